"""Two runs into one folder, at the same time or one after another: nothing mixed, nothing lost."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.extraction import SHAPE, contents, extract, make_extractor
from PIL import Image
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone
from convnext_backbone.features.extraction import extract_features
from convnext_backbone.features.extractor import FeatureExtractor
from convnext_backbone.features.store import load_features
from convnext_backbone.images.files import ImageList


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    save_file(ConvNextBackbone(**SHAPE, out_indices=(2, 4)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def few_images(image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for name in ("00.png", "03.png", "06.png"):
        shutil.copy(image_folder / name, folder)
    return folder


def _in_between(monkeypatch, owner, name, run, target=""):
    """Run `run` once, before what the first call of `owner.name` (for that target) does."""
    step, left = getattr(owner, name), [run]

    def call(*args, **kwargs):
        if left and str(args[-1]).endswith(target):
            left.pop()()
        return step(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


# ------------------------------------------------------------------------------ settings, images


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("same", [True, False], ids=["same settings", "other settings"])
def test_of_runs_that_begin_a_folder_at_once_one_decides_about_its_settings(
    same, links, weights_file, other_weights, few_images, tmp_path, monkeypatch
):
    out, alone = tmp_path / "out", tmp_path / "alone"
    second = weights_file if same else other_weights
    extract(second, few_images, alone)
    if not links:  # as on FAT and on some network drives

        def link(source, target):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    # The first run has seen no plan when the second writes its own, and all of its features.
    _in_between(monkeypatch, Path, "mkdir", lambda: extract(second, few_images, out))
    if same:
        assert extract(weights_file, few_images, out).kept == 1
    else:
        with pytest.raises(ValueError, match=r"out was written with other settings \(weights"):
            extract(weights_file, few_images, out)
    assert contents(out) == contents(alone)


def test_a_run_that_finds_the_features_of_another_finds_its_plan(
    weights_file, few_images, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    # Between the look for a plan and that for files, which are not foreign ones.
    _in_between(monkeypatch, Path, "glob", lambda: extract(weights_file, few_images, out))
    assert extract(weights_file, few_images, out).kept == 1
    _in_between(monkeypatch, Path, "is_file", lambda: extract(weights_file, few_images, out))
    assert extract(weights_file, few_images, out).kept == 1


def test_a_shard_of_other_settings_is_refused_whatever_the_plan_says(
    weights_file, other_weights, few_images, tmp_path
):
    out, other = tmp_path / "out", tmp_path / "other"
    extract(weights_file, few_images, out)
    extract(other_weights, few_images, other)
    shutil.copy(other / "plan.json", out)
    before = contents(out)
    with pytest.raises(ValueError, match=r"out was written with other settings \(shard 0\)"):
        extract(other_weights, few_images, out)
    assert contents(out) == before


def test_the_place_of_the_weights_is_no_setting(weights_file, few_images, tmp_path):
    extract(weights_file, few_images, tmp_path / "a")
    moved = shutil.copy(weights_file, tmp_path / "moved.safetensors")
    extract(moved, few_images, tmp_path / "b")
    shutil.copy(tmp_path / "a" / "plan.json", tmp_path / "b")
    assert extract(weights_file, few_images, tmp_path / "b").kept == 1


def test_a_shard_of_other_images_that_was_finished_meanwhile_is_left_as_it_is(
    weights_file, few_images, image_folder, tmp_path, monkeypatch
):
    out, alone = tmp_path / "out", tmp_path / "alone"
    extract(weights_file, few_images, alone)
    # While the first run computes its first shard, the second does all of its own.
    _in_between(
        monkeypatch, FeatureExtractor, "_run", lambda: extract(weights_file, few_images, out)
    )
    with pytest.raises(ValueError, match=r"out was written from a different image list \(added: "):
        extract(weights_file, image_folder, out)
    assert contents(out) == contents(alone)


def test_a_shard_that_the_same_run_elsewhere_finished_meanwhile_may_be_written_again(
    weights_file, few_images, tmp_path, monkeypatch
):
    out, alone = tmp_path / "out", tmp_path / "alone"
    extract(weights_file, few_images, alone)
    _in_between(
        monkeypatch, FeatureExtractor, "_run", lambda: extract(weights_file, few_images, out)
    )
    assert extract(weights_file, few_images, out).images == 3
    assert contents(out) == contents(alone)


# ------------------------------------------------------------------------------ temporary files


def test_what_a_living_process_is_writing_stays_and_what_a_dead_one_left_goes(
    weights_file, few_images, tmp_path
):
    out = tmp_path / "out"
    extract(weights_file, few_images, out)
    before = contents(out)
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as living:
        names = ("features-0000001-00.safetensors", "features-0000000.json", "manifest.json")
        partials = [out / f".{name}.{living.pid}.part" for name in names]
        for partial in partials:
            partial.write_bytes(b"half")
        extract(weights_file, few_images, out)
        assert all(partial.exists() for partial in partials)
        # Nothing is written for days: the process is another one that has the same number.
        week_ago = time.time() - 7 * 24 * 3600
        os.utime(partials[0], (week_ago, week_ago))
        extract(weights_file, few_images, out)
        assert [partial.exists() for partial in partials] == [False, True, True]
        living.communicate(b"\n")
    extract(weights_file, few_images, out)
    assert contents(out) == before


def test_a_run_that_is_stopped_does_not_touch_what_another_is_writing(
    weights_file, few_images, image_folder, tmp_path, monkeypatch
):
    out, alone = tmp_path / "out", tmp_path / "alone"
    extract(weights_file, few_images, alone)

    def stopped():
        yield next(iter(ImageList([few_images])))
        raise KeyboardInterrupt

    def second():
        options = {"shard_images": 8, "shard_bytes": 20_000}
        with pytest.raises(KeyboardInterrupt):
            extract_features(make_extractor(weights_file), stopped(), out, **options)

    _in_between(monkeypatch, os, "replace", second, "features-0000000-00.safetensors")
    assert extract(weights_file, few_images, out).written == 1
    monkeypatch.undo()
    assert contents(out) == contents(alone)
    load_features(out).verify()


# ------------------------------------------------------------------------------ what was typed


def _cli(capsys, *arguments):
    from convnext_backbone import cli

    code = cli.main(["extract", *map(str, arguments), "--quiet"])
    return code, capsys.readouterr()


def test_a_higher_limit_of_pixels_reads_what_was_too_large_before(weights_file, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    Image.new("RGB", (40, 40)).save(images / "large.png")
    Image.new("RGB", (20, 20)).save(images / "small.png")
    (images / "text.png").write_bytes(b"text")
    command = [images, "--weights", weights_file, "--out", out, "--max-pixels"]
    code, printed = _cli(capsys, *command, 1000)
    assert code == 0
    assert "unreadable: large.png: " in printed.err
    for limit, kept in ((1000, True), (1500, True), (1600, False), (1600, True), (1000, True)):
        code, printed = _cli(capsys, *command, limit)
        assert code == 0
        assert ("0 shards written, 1 kept" in printed.out) == kept, limit
    assert list(load_features(out)) == ["large.png", "small.png"]
    assert set(load_features(out).failures) == {"text.png"}


def test_an_image_that_a_changed_decoder_reads_is_read_then(
    weights_file, image_folder, tmp_path, monkeypatch
):
    from PIL import ImageFile

    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shutil.copy(image_folder / "b" / "cut.png", images)
    shutil.copy(image_folder / "00.png", images)
    assert extract(weights_file, images, out).failed == 1
    assert extract(weights_file, images, out).written == 0
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert extract(weights_file, images, out).written == 1
    assert list(load_features(out)) == ["00.png", "cut.png"]


def test_errors_that_shall_raise_do_so_in_a_folder_that_was_begun_with_others(
    weights_file, image_folder, few_images, tmp_path, capsys
):
    command = ["--weights", weights_file, "--out"]
    skipped, out = tmp_path / "skipped", tmp_path / "out"
    assert _cli(capsys, image_folder, *command, skipped)[0] == 0
    before = contents(skipped)
    for folder in (skipped, out):
        code, printed = _cli(capsys, image_folder, *command, folder, "--on-error", "raise")
        assert code == 2
        # By its name in the folder, whichever its place in the shard.
        (line,) = printed.err.splitlines()
        assert "extract: error: b/cut.png: cannot read image" in line
    assert contents(skipped) == before
    whole = tmp_path / "whole"
    assert _cli(capsys, few_images, *command, whole)[0] == 0
    code, printed = _cli(capsys, few_images, *command, whole, "--on-error", "raise")
    assert code == 0
    assert "0 shards written, 1 kept" in printed.out


def test_an_image_inside_a_tar_that_shall_raise_is_named(weights_file, tmp_path, capsys):
    import tarfile

    (tmp_path / "a.png").write_bytes(b"text")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    command = [tmp_path / "s.tar", "--weights", weights_file, "--out", tmp_path / "out"]
    code, printed = _cli(capsys, *command, "--on-error", "raise")
    assert code == 2
    (line,) = printed.err.splitlines()
    assert line.endswith("error: cannot read image 's.tar/a.png': not an image")
