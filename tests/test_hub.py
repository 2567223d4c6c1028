"""Small files of a model are found on disk first, then in the hub's cache, and else named."""

import huggingface_hub.constants as constants
import pytest

from convnext_backbone import ConvNextConfig, ConvNextImageProcessor
from convnext_backbone.hub import find_file, is_hub_id

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
    [("org/name", True), ("org/name@main", True), ("name", False), ("a/b/c", False), (3, False)],
)
def test_the_form_of_an_id(source, expected):
    assert is_hub_id(source) is expected
