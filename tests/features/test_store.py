"""Features of many images in a folder: complete, exact, resumable and lazily read."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone, cli
from convnext_backbone.features import store as feature_store
from convnext_backbone.features.extractor import FeatureExtractor
from convnext_backbone.features.store import (
    FeatureStore,
    extract_features,
    load_features,
)
from convnext_backbone.images.sources import name_images

SHAPE = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
BROKEN = {"b/text.jpg": b"not an image", "empty.png": b"", "b/cut.png": None}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(ConvNextBackbone(**SHAPE, out_indices=(2, 4)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    (root / "b").mkdir()
    generator = np.random.default_rng(0)
    for i in range(40):
        size = (int(generator.integers(20, 90)), int(generator.integers(20, 90)), 3)
        array = generator.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(array).save(root / ("b" if i % 3 else "") / f"{i:02d}.png")
    for name, content in BROKEN.items():
        whole = (root / "00.png").read_bytes()
        (root / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    return root


def _extractor(weights, **options):
    options = {"out_features": ["stage2", "stage4"], "size": "native", **options}
    return FeatureExtractor(weights, on_error="skip", batch_size=3, **options)


def _extract(weights, images, out, *, shard_bytes=40_000, options=None, **kwargs):
    _, named = name_images([images])
    extractor = _extractor(weights, **(options or {}))
    return extract_features(extractor, named, out, shard_bytes=shard_bytes, **kwargs)


def _contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(weights, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "whole"
    _extract(weights, images, out)
    return out


def test_every_image_is_there_once_with_the_features_of_the_extractor(weights, images, whole):
    store = load_features(whole)
    paths = sorted(
        p for p in images.rglob("*.png") if p.relative_to(images).as_posix() not in BROKEN
    )
    assert list(store) == sorted(p.relative_to(images).as_posix() for p in paths)
    assert len(store) == 40
    assert store.features == ("stage2", "stage4")
    fx = _extractor(weights)
    for path in paths:
        got = store[path.relative_to(images).as_posix()]
        want = fx(path)
        assert list(got) == list(want)
        for name in want:
            torch.testing.assert_close(got[name], want[name], atol=1e-6, rtol=1e-6)
    shards = sorted(whole.glob("*.safetensors"))
    assert len(shards) > 3
    keys = [key for shard in shards for key in _keys(shard)]
    assert len(keys) == len(set(keys)) == 2 * 40


def _keys(shard):
    from safetensors import safe_open

    return list(safe_open(shard, framework="pt").keys())


def test_the_manifest_says_how_the_features_were_made(images, whole):
    store = load_features(whole)
    manifest = store.manifest
    assert set(store.failures) == set(BROKEN)
    assert "not an image" in store.failures["b/text.jpg"]
    assert manifest["dtype"] == "float32"
    assert manifest["features"]["stage4"] == {"channels": 32, "stride": 32}
    assert manifest["preprocessing"]["image_mean"] == [0.485, 0.456, 0.406]
    assert len(manifest["weights"]["sha256"]) == 64
    assert manifest["versions"]["torch"] == torch.__version__
    height, width = np.array(Image.open(images / "00.png")).shape[:2]
    assert manifest["files"]["00.png"] == {
        "bytes": (images / "00.png").stat().st_size,
        "height": height,
        "width": width,
    }
    assert sum(shard["images"] for shard in manifest["shards"]) == 40


@pytest.mark.parametrize("stopped", [False, True])
def test_the_callers_extractor_is_left_as_it_is(stopped, weights, images, tmp_path, monkeypatch):
    extractor = _extractor(weights)
    _, named = name_images([images])
    before = dict(vars(extractor))
    if stopped:
        monkeypatch.setattr(feature_store, "_write_shard", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if stopped else nullcontext():
        extract_features(extractor, named, tmp_path / "out", shard_bytes=40_000)
    assert vars(extractor) == before
    assert extractor.run_options.compute_workers == 0


def test_the_number_of_threads_does_not_change_a_bit(weights, images, whole, tmp_path):
    torch.set_num_threads(2)
    try:
        _extract(weights, images, tmp_path / "two")
    finally:
        torch.set_num_threads(1)
    assert _contents(tmp_path / "two") == _contents(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_goes_on_and_ends_equal_to_the_bit(
    weights, images, whole, tmp_path, monkeypatch, workers
):
    out = tmp_path / "resumed"
    replace = os.replace
    calls = []

    def stop_at_the_seventh(source, target):
        calls.append(target)
        if len(calls) == 7:
            raise KeyboardInterrupt
        replace(source, target)

    options = {"num_workers": workers}
    monkeypatch.setattr(os, "replace", stop_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        _extract(weights, images, out, options=options)
    monkeypatch.undo()
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
    done = _extract(weights, images, out, options=options)
    assert done.kept == 2
    assert len(kept) == 3  # the third was written, but not yet marked as finished
    assert _contents(out) == _contents(whole)
    assert sum(p.stat().st_mtime_ns == t for p, t in kept.items()) == 2
    again = _extract(weights, images, out, options=options)
    assert again.written == 0
    assert (again.images, len(again.failures)) == (40, 3)


def test_a_damaged_shard_is_noticed_and_written_again(weights, images, whole, tmp_path):
    out = tmp_path / "damaged"
    _extract(weights, images, out)
    shard = sorted(out.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=f"shards are missing or damaged: {shard.name}"):
        load_features(out).verify()
    assert _extract(weights, images, out).written == 1
    load_features(out).verify()
    assert _contents(out) == _contents(whole)


def test_a_killed_program_goes_on_and_ends_equal_to_the_bit(weights, images, whole, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "convnext_backbone", "extract", str(images)]
    command += ["--weights", str(weights), "--out", str(out), "--features", "stage2", "stage4"]
    command += ["--size", "native", "--batch-size", "3", "--shard-mb", "1", "--quiet"]
    script = (
        "import sys; from convnext_backbone import cli\n"
        "from convnext_backbone.features import store as feature_store\n"
        "plan = feature_store._make_plan\n"
        "feature_store._make_plan = lambda e, i, _: plan(e, i, 40_000)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *command[3:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not list(out.glob("features-*.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "40 images, 3 unreadable" in second.stdout
    assert second.stderr.count("unreadable: ") == 3
    load_features(out).verify()
    assert _shards(out) == _shards(whole)


def _shards(folder):
    return {k: v for k, v in _contents(folder).items() if k.startswith("features")}


def test_pooled_features_stack(weights, images, tmp_path):
    _extract(weights, images, tmp_path / "pooled", options={"pool": "avg"})
    store = load_features(tmp_path / "pooled")
    stacked = store.stack("stage4")
    assert stacked.shape == (40, 32)
    names = list(store)
    assert torch.equal(stacked[7], store[names[7]]["stage4"])
    assert torch.equal(store.stack("stage2", names[3:5])[1], store.load(names[4], "stage2"))


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


def test_other_settings_or_images_do_not_mix(weights, images, tmp_path):
    out = tmp_path / "out"
    _extract(weights, images, out)
    with pytest.raises(ValueError, match=r"other settings \(.*dtype changed\)"):
        _extract(weights, images, out, options={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="shards of another size"):
        _extract(weights, images, out, shard_bytes=10_000)
    _, named = name_images([images])
    moved = {name: path for name, path in named.items() if name != "00.png"}
    moved["new.png"] = named["00.png"]
    with pytest.raises(ValueError, match=r"other images \(added: new.png; gone: 00.png\)"):
        extract_features(_extractor(weights), moved, out, shard_bytes=40_000)


def test_a_full_disk_keeps_what_is_finished(weights, images, whole, tmp_path, monkeypatch):
    out = tmp_path / "full"
    calls = []

    def fail_at_the_sixth(descriptor):
        calls.append(descriptor)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail_at_the_sixth)
    with pytest.raises(OSError, match=r"cannot write .*No space left on device; finished") as info:
        _extract(weights, images, out)
    assert "\n" not in str(info.value)
    assert not list(out.glob(".*.part"))
    monkeypatch.undo()
    assert _extract(weights, images, out).kept == 2
    assert _contents(out) == _contents(whole)


def test_names_come_from_what_the_sources_have_in_common(images):
    root, named = name_images([images])
    assert root == images
    assert "b/01.png" in named
    root, named = name_images([images / "b", images / "00.png"])
    assert root == images
    assert {"00.png", "b/01.png"} <= named.keys()
    _, one = name_images([images / "b" / "01.png"])
    assert list(one) == ["01.png"]
    _, twice = name_images([images / "b", str(images / "b" / "*.png")])
    assert len(twice) == len(set(twice.values()))


def test_command_line_reports_and_refuses_in_one_line(weights, images, tmp_path, capsys):
    out = str(tmp_path / "out")
    base = ["--weights", str(weights), "--out", out, "--quiet"]
    assert cli.main(["extract", str(images), *base, "--size", "32", "--pool", "avg"]) == 0
    captured = capsys.readouterr()
    assert "40 images, 3 unreadable; 1 shards written, 0 kept" in captured.out
    assert captured.err.count("\n") == 3
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    in_a_file = [str(images), *base[:3], str(tmp_path / "file"), "--quiet"]
    wrong = {
        "it is a file, not a folder": in_a_file,
        "--shard-mb must be an integer of at least 1, got 0": [*in_a_file, "--shard-mb", "0"],
        "no images in folder": [str(tmp_path / "empty"), *base],
        "no such image or folder": [str(tmp_path / "nowhere"), *base],
        "other settings": [str(images), *base, "--size", "64"],
        "out_features must be a subset": [str(images), *base, "--features", "stage7"],
        "Not a directory": [str(images), *base[:3], str(tmp_path / "file" / "x"), "--quiet"],
        "cannot read image": [str(images), *base[:3], out + "2", "--quiet", "--on-error", "raise"],
    }
    for error, arguments in wrong.items():
        assert cli.main(["extract", *arguments]) == 2, error
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, error
        assert error in lines[0]
    with pytest.raises(SystemExit):
        cli.main(["extract", str(images), *base, "--size", "big"])
    assert "must be native, a side or HEIGHTxWIDTH, got 'big'" in capsys.readouterr().err


def test_several_processes_of_torchrun_are_refused(weights, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["extract", str(images), "--weights", str(weights), "--out", str(tmp_path / "o")]
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "extract runs as one process, torchrun started several" in line


def test_a_link_that_leads_nowhere_and_a_name_of_two_lines_are_named(weights, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    (folder / "linked.png").symlink_to("a.png")
    (folder / "nowhere.png").symlink_to("missing.png")
    (folder / "two\nlines.png").write_text("no image")
    out = tmp_path / "out"
    arguments = ["extract", str(folder), "--weights", str(weights), "--out", str(out), "--quiet"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "2 images, 2 unreadable" in printed.out
    nowhere, lines = printed.err.splitlines()
    assert nowhere.startswith("unreadable: nowhere.png: no such image: ")
    assert lines.startswith(r"unreadable: 'two\nlines.png': cannot read image ")
    store = load_features(out)
    assert set(store) == {"a.png", "linked.png"}
    assert store.manifest["files"]["linked.png"]["bytes"] == (folder / "a.png").stat().st_size
    assert set(store.failures) == {"nowhere.png", "two\nlines.png"}


@pytest.mark.parametrize("text", ["", '{"sha256"', "{}", "[]"])
def test_a_damaged_part_is_written_again(text, weights, images, whole, tmp_path):
    out = tmp_path / "damaged"
    shutil.copytree(whole, out)
    (out / "features-00001.json").write_text(text)
    assert _extract(weights, images, out).written == 1
    assert _contents(out) == _contents(whole)


def test_a_stopped_program_says_that_it_can_go_on(weights, images, tmp_path, capsys, monkeypatch):
    def stop(self, source):
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureExtractor, "stream", stop)
    arguments = ["extract", str(images), "--weights", str(weights), "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--quiet"])
    assert stopped.value.code == 130
    assert "finished shards are kept" in capsys.readouterr().err


def test_finished_folders_are_plain_json_and_safetensors(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    index = json.loads((whole / "index.json").read_text())["files"]
    assert index.keys() == manifest["files"].keys()
    assert set(index.values()) == {shard["file"] for shard in manifest["shards"] if shard["images"]}
