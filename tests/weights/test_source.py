"""Small files of a model are found on disk first, then in the hub's cache, and else named."""

import huggingface_hub.constants as constants
import pytest

from convnext_backbone import ConvNextConfig, ConvNextImageProcessor
from convnext_backbone.utils.files import WEIGHT_SUFFIXES
from convnext_backbone.weights.source import at_revision, find_file, is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of huggingface_hub that holds org/tiny, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--org--tiny"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v2").write_text(COMMIT)
    ConvNextConfig(depths=(1, 2), hidden_sizes=(8, 16)).save_pretrained(snapshot)
    ConvNextConfig(depths=(3, 4), hidden_sizes=(8, 16)).save_pretrained(snapshot / "deep")
    ConvNextImageProcessor(size=64).save_pretrained(snapshot)
    return tmp_path


@pytest.mark.parametrize("source", ["org/tiny", "org/tiny@v2", "hf-hub:org/tiny"])
def test_a_hub_id_gives_the_cached_file(source, cache):
    assert ConvNextConfig.from_pretrained(source).depths == (1, 2)
    assert ConvNextImageProcessor.from_pretrained(source).size == {"shortest_edge": 64}


def test_revision_and_subfolder_are_those_of_the_repository(cache):
    assert ConvNextConfig.from_pretrained("org/tiny", revision="v2").depths == (1, 2)
    assert ConvNextConfig.from_pretrained("org/tiny", subfolder="deep").depths == (3, 4)


@pytest.mark.parametrize("options", [{"revision": "v3"}, {"subfolder": "no"}])
def test_what_is_not_cached_while_the_hub_is_out_of_reach_is_named(options, cache):
    with pytest.raises(ConnectionError, match=r"config\.json of 'org/tiny' is not in the cache"):
        ConvNextConfig.from_pretrained("org/tiny", **options)


def test_what_is_on_disk_comes_first(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ConvNextConfig(depths=(5, 6), hidden_sizes=(8, 16)).save_pretrained("org/tiny")
    assert ConvNextConfig.from_pretrained("org/tiny").depths == (5, 6)
    with pytest.raises(FileNotFoundError, match=r"no other\.json at 'org/tiny'"):
        find_file("org/tiny", "other.json")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", True),
        ("hf_hub:org/name", True),
        ("org/name@main", True),
        ("name", False),
        ("a/b/c", False),
        (3, False),
        ("./name", False),
        ("~/name", False),
        *((f"weights/model{ending}", False) for ending in (*WEIGHT_SUFFIXES, ".json")),
    ],
)
def test_the_form_of_an_id(source, expected):
    assert is_hub_id(source) is expected


def test_a_missing_file_is_not_asked_of_the_hub(cache, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"no config\.json at 'model/config\.json'"):
        ConvNextConfig.from_pretrained("model/config.json")


@pytest.mark.parametrize(
    "load", [ConvNextConfig.from_pretrained, lambda source: find_file(source, "x")]
)
def test_the_empty_source_is_not_the_current_directory(load, tmp_path, monkeypatch):
    ConvNextConfig().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="source must not be empty"):
        load("")


def test_a_revision_belongs_to_an_id(tmp_path):
    assert at_revision("org/name", "v2") == "org/name@v2"
    assert at_revision("hf-hub:org/name@v2", "v2") == "org/name@v2"
    assert at_revision("org/name@v2", None) == "org/name@v2"
    assert at_revision(tmp_path, None) == tmp_path
    with pytest.raises(ValueError, match="revision 'v3' is asked for, but 'org/name@v2' names 'v2"):
        at_revision("org/name@v2", "v3")


@pytest.mark.parametrize(
    "source", ["{here}", "weights/model.pth", "convnext_tiny.fb_in1k", "https://host/model.pth"]
)
def test_a_revision_of_what_has_none_is_refused(source, tmp_path):
    source = source.format(here=tmp_path)
    assert at_revision(source, "main") == source
    with pytest.raises(ValueError, match=f"revision 'v2' is asked for, but '{source}' has none"):
        at_revision(source, "v2")
