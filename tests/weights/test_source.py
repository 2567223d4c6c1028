"""Weights and the JSON files beside them: every kind of source, one resolver, one error family."""

import socket
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextImageProcessor,
    load_weights,
)
from convnext_backbone.weights import DownloadError, open_weights
from convnext_backbone.weights.containers import WEIGHT_SUFFIXES
from convnext_backbone.weights.source import read_hub_id, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIELDS = {"depths": (1, 2), "hidden_sizes": (8, 16)}


def save_model(folder, **fields):
    """Save weights, config.json and preprocessor_config.json."""
    torch.manual_seed(0)
    ConvNextBackbone(**{**FIELDS, **fields}).save_pretrained(folder)
    ConvNextImageProcessor(size=64).save_pretrained(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of huggingface_hub that holds org/tiny, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--org--tiny"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v2").write_text(COMMIT)
    save_model(snapshot)
    save_model(snapshot / "deep", depths=(3, 4))
    return tmp_path


# ------------------------------------------------------------------------------ one resolver

SOURCES = {
    "directory": lambda home: str(home / "m"),
    "path": lambda home: home / "m",
    "home": lambda home: "~/m",
    "path_below_home": lambda home: Path("~/m"),
    "file": lambda home: str(home / "m" / "model.safetensors"),
    "file_below_home": lambda home: "~/m/model.safetensors",
    "hub": lambda home: "org/tiny",
    "hub_revision": lambda home: "hf-hub:org/tiny@v2",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_weights_config_and_processor_come_from_the_same_source(kind, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save_model(tmp_path / "m")
    source = SOURCES[kind](tmp_path)
    expected = ConvNextBackbone.from_pretrained(str(tmp_path / "m")).state_dict()
    module = ConvNextBackbone(**FIELDS)
    load_weights(module, source)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in expected.items())
    assert ConvNextBackbone.from_pretrained(source).config.depths == (1, 2)
    assert ConvNextConfig.from_pretrained(source).depths == (1, 2)
    assert ConvNextImageProcessor.from_pretrained(source).size == {"shortest_edge": 64}
    assert resolve(source).file("preprocessor_config.json").is_file()


@pytest.mark.parametrize(
    "source",
    ["{here}/no", "{here}/no.pth", "~/no", "https://host.invalid/model.pth",
     "convnext_tiny.fb_in1k"],
)  # fmt: skip
def test_a_file_that_no_source_has_is_a_file_not_found_error(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ConvNextConfig(**FIELDS).save_pretrained(".")  # never read for a source that is not there
    source = source.format(here=tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"no config\.json at '{source}'"):
        ConvNextConfig.from_pretrained(source)


@pytest.mark.parametrize(
    "load", [ConvNextConfig.from_pretrained, ConvNextBackbone.from_pretrained, open_weights]
)
def test_one_error_family_for_all_files(load, cache, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(DownloadError, match="not in the cache"):
        load("org/unknown")
    with pytest.raises(ConnectionError):
        load("org/unknown")
    with pytest.raises(ValueError, match=r"convnext_tiny\.fb_in1k"):
        load("convnext_tiny.no_such_tag")
    with pytest.raises(ValueError, match="source must not be empty"):
        load("")
    with pytest.raises(TypeError, match="source must be a string or a path, got int"):
        load(3)


def test_revision_and_subfolder_are_those_of_the_repository(cache, tmp_path):
    assert ConvNextConfig.from_pretrained("org/tiny", revision="v2").depths == (1, 2)
    for source in ("org/tiny", tmp_path / "models--org--tiny" / "snapshots" / COMMIT):
        assert ConvNextConfig.from_pretrained(source, subfolder="deep").depths == (3, 4)
        assert open_weights(source, subfolder="deep").fields()["depths"] == (3, 4)
        module = ConvNextBackbone(**{**FIELDS, "depths": (3, 4)})
        assert load_weights(module, source, subfolder="deep", revision="main").fresh == ()
    assert open_weights("org/tiny", revision="v2").fields()["depths"] == (1, 2)


def test_a_subfolder_of_what_has_none_is_refused(tmp_path):
    save_model(tmp_path)
    for source in (tmp_path / "model.safetensors", "convnext_tiny.fb_in1k", "https://host/m.pth"):
        with pytest.raises(ValueError, match="subfolder='deep' needs a directory or"):
            resolve(source, subfolder="deep")


@pytest.mark.parametrize("source", ["org/tiny", "org/tiny@v2", "hf-hub:org/tiny"])
def test_a_hub_id_gives_the_cached_file(source, cache):
    assert ConvNextConfig.from_pretrained(source).depths == (1, 2)
    assert ConvNextImageProcessor.from_pretrained(source).size == {"shortest_edge": 64}


@pytest.mark.parametrize("options", [{"revision": "v3"}, {"subfolder": "no"}])
def test_what_is_not_cached_while_the_hub_is_out_of_reach_is_named(options, cache):
    with pytest.raises(ConnectionError, match=r"config\.json of 'org/tiny' is not in the cache"):
        ConvNextConfig.from_pretrained("org/tiny", **options)


def test_what_is_on_disk_comes_first(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ConvNextConfig(depths=(5, 6), hidden_sizes=(8, 16)).save_pretrained("org/tiny")
    assert ConvNextConfig.from_pretrained("org/tiny").depths == (5, 6)
    with pytest.raises(FileNotFoundError, match=r"no other\.json at 'org/tiny'"):
        resolve("org/tiny").file("other.json")


def test_a_path_is_never_a_hub_id(cache):
    with pytest.raises(FileNotFoundError):
        ConvNextConfig.from_pretrained(Path("org/tiny"))


# ------------------------------------------------------------------------------ forms


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
    assert (read_hub_id(source) is not None) is expected


def test_a_missing_file_is_not_asked_of_the_hub(cache, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"no config\.json at 'model/config\.json'"):
        ConvNextConfig.from_pretrained("model/config.json")


@pytest.mark.parametrize(
    "load", [ConvNextConfig.from_pretrained, lambda source: resolve(source).file("x")]
)
def test_the_empty_source_is_not_the_current_directory(load, tmp_path, monkeypatch):
    ConvNextConfig().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="source must not be empty"):
        load("")


def test_without_a_network_the_hub_is_tried_once_and_the_error_says_how_to_go_on(
    cache, monkeypatch
):
    def retries(*args, **kwargs):
        raise AssertionError("the client tries for a minute")

    with socket.socket() as closed:  # a port that nobody listens on
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", retries)
        monkeypatch.setattr("convnext_backbone.weights.source.getproxies", dict)
        with pytest.raises(DownloadError, match="org/other: the hub cannot be reached") as caught:
            resolve("org/other").weights()
    for way in ("pass a local file", "init_cfg=None", "HF_HOME"):
        assert way in str(caught.value)
    assert resolve("org/tiny").file("config.json").is_file()  # the cache needs no network


def test_a_revision_belongs_to_an_id():
    assert resolve("org/name", revision="v2").revision == "v2"
    assert resolve("hf-hub:org/name@v2", revision="v2").revision == "v2"
    assert resolve("org/name@v2").revision == "v2"
    with pytest.raises(ValueError, match="revision='v3' contradicts 'v2' in 'org/name@v2'"):
        resolve("org/name@v2", revision="v3")


@pytest.mark.parametrize(
    "source", ["{here}", "weights/model.pth", "convnext_tiny.fb_in1k", "https://host/model.pth"]
)
def test_a_revision_of_what_has_none_is_refused(source, tmp_path):
    source = source.format(here=tmp_path)
    assert resolve(source, revision="main").name == source
    with pytest.raises(ValueError, match=f"revision='v2' needs a Hugging Face id, got '{source}'"):
        resolve(source, revision="v2")
