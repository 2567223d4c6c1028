"""The reader of a folder of features: lazy and by name."""

import json
import pickle
import shutil

import pytest
import torch
from helpers.extraction import WHOLE, extract

from convnext_backbone.features.store import FeatureStore, load_features


@pytest.fixture(scope="module", params=["safetensors", "parquet"])
def whole(request, weights_file, image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "whole"
    extract(weights_file, image_folder, out, format=request.param)
    return out


def test_pooled_features_stack(weights_file, image_folder, tmp_path):
    for format in ("safetensors", "parquet"):
        out = tmp_path / format
        extract(weights_file, image_folder, out, format=format, options={"pool": "avg"})
        store = load_features(out)
        stacked = store.stack("stage4")
        assert stacked.shape == (WHOLE, 32)
        names = list(store)
        assert torch.equal(stacked[7], store[names[7]]["stage4"])
        assert torch.equal(store.stack("stage2", names[3:5])[1], store.load(names[4], "stage2"))


def test_a_tilde_is_the_home_folder(weights_file, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    extract(weights_file, image_folder, "~/features")
    assert list(load_features("~/features")) == list(load_features(tmp_path / "features"))


def test_the_reader_names_what_it_does_not_have(whole, tmp_path):
    store = load_features(whole)
    with pytest.raises(KeyError, match=r"no features of image 'empty\.png': cannot read image"):
        store["empty.png"]
    with pytest.raises(KeyError, match=r"no features of image 'nothing\.png'"):
        store["nothing.png"]
    with pytest.raises(KeyError, match="feature must be one of"):
        store.load("00.png", "stage1")
    with pytest.raises(ValueError, match="must have one shape to be stacked"):
        store.stack("stage2")
    with pytest.raises(FileNotFoundError, match="holds no features"):
        load_features(tmp_path)
    assert "empty.png" not in store


def test_the_reader_follows_into_workers(whole):
    store = load_features(whole)
    expected = store["00.png"]["stage4"]
    copy = pickle.loads(pickle.dumps(store))
    assert isinstance(copy, FeatureStore)
    assert torch.equal(copy["00.png"]["stage4"], expected)


def test_the_reader_shows_what_it_holds(whole):
    shown = repr(load_features(whole))
    for part in ("40 images, 3 unreadable", "stage2 (16, H, W), stage4 (32, H, W)", "float32"):
        assert part in shown
    assert "model.safetensors" in shown


def test_a_manifest_without_a_pooling_is_shown(weights_file, image_folder, tmp_path):
    extract(weights_file, image_folder, tmp_path / "out", options={"pool": None})
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["pool"]
    path.write_text(json.dumps(manifest))
    assert "stage4 (32, H, W)" in repr(load_features(tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "format in .*manifest.json must be one of"),
        ('{"format": 3}', "must be one of"),
        ('{"format": "convnext_backbone features 2"}', "'features' must be dict"),
        ("null", "must hold a JSON object"),
    ],
)
def test_a_damaged_manifest_is_named(text, reason, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        load_features(out)


def test_a_missing_or_damaged_file_is_named(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    first = next(p for p in sorted(out.iterdir()) if "-00." in p.name)
    first.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{first.name} is damaged"):
        load_features(out)
    first.unlink()
    with pytest.raises(FileNotFoundError, match=f"a shard is missing: .*{first.name}"):
        load_features(out)
