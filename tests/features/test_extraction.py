"""Features of many images in a folder: complete, exact and resumable."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers.extraction import BROKEN, WHOLE, contents, extract, make_extractor
from PIL import Image

from convnext_backbone import cli
from convnext_backbone.features import formats
from convnext_backbone.features.extraction import ShardWriter, extract_features
from convnext_backbone.features.extractor import FeatureExtractor
from convnext_backbone.features.store import load_features
from convnext_backbone.images import reading
from convnext_backbone.images.files import ImageEntry, ImageList

FORMATS = pytest.mark.parametrize("format", ["safetensors", "parquet"])


@pytest.fixture(scope="module")
def whole(weights_file, image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "whole"
    extract(weights_file, image_folder, out)
    return out


@FORMATS
def test_every_image_is_there_once_with_the_features_of_the_extractor(
    format, weights_file, image_folder, tmp_path
):
    extract(weights_file, image_folder, tmp_path / "out", format=format)
    store = load_features(tmp_path / "out")
    paths = [p for p in image_folder.rglob("*.png") if p.name not in ("empty.png", "cut.png")]
    names = {path: path.relative_to(image_folder).as_posix() for path in paths}
    assert sorted(store) == sorted(names.values())
    assert len(store) == WHOLE
    assert store.features == ("stage2", "stage4")
    fx = make_extractor(weights_file)
    for path, name in names.items():
        want = fx(path)
        assert list(store[name]) == list(want)
        for feature, tensor in want.items():
            torch.testing.assert_close(store[name][feature], tensor, atol=1e-6, rtol=1e-6)
    assert set(store.failures) == set(BROKEN)
    assert "not an image" in store.failures["b/text.jpg"]


def test_the_files_of_a_shard_are_closed_at_their_size(whole):
    shards = [json.loads(path.read_text()) for path in sorted(whole.glob("features-*.json"))]
    assert [shard["rows"] for shard in shards] == [8, 8, 8, 8, 8, 3]
    files = [file for shard in shards for file in shard["files"]]
    assert len(files) > len(shards)
    assert {file["file"] for file in files} == {p.name for p in whole.glob("*.safetensors")}
    # A file ends with the first image that reaches the size; the largest has (16 * 12**2 + 32 *
    # 3**2) values.
    assert all(file["bytes"] < 20_000 + 4 * (16 * 12**2 + 32 * 9) + 8_000 for file in files)


def test_the_manifest_says_how_the_features_were_made(whole):
    manifest = load_features(whole).manifest
    assert manifest["dtype"] == "float32"
    assert manifest["features"]["stage4"] == {"channels": 32, "stride": 32}
    assert manifest["preprocessing"]["image_mean"] == [0.485, 0.456, 0.406]
    assert len(manifest["weights"]["sha256"]) == 64
    assert manifest["weights"]["licence"] is None  # of a file, unknown
    assert manifest["versions"]["torch"] == torch.__version__
    assert (manifest["images"], manifest["failures"], manifest["shards"]) == (WHOLE, 3, 6)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_callers_extractor_is_left_as_it_is(
    stopped, weights_file, image_folder, tmp_path, monkeypatch
):
    extractor = make_extractor(weights_file)
    before = dict(vars(extractor))
    if stopped:
        monkeypatch.setattr(ShardWriter, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if stopped else nullcontext():
        extract_features(extractor, ImageList([image_folder]), tmp_path / "out")
    assert vars(extractor) == before
    assert extractor.run_options.compute_workers == 0


def test_the_number_of_threads_does_not_change_a_bit(weights_file, image_folder, whole, tmp_path):
    torch.set_num_threads(2)
    try:
        extract(weights_file, image_folder, tmp_path / "two")
    finally:
        torch.set_num_threads(1)
    assert contents(tmp_path / "two") == contents(whole)


# ------------------------------------------------------------------------------ resuming


@FORMATS
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_goes_on_and_ends_equal_to_the_bit(
    format, workers, weights_file, image_folder, tmp_path, monkeypatch
):
    whole, out = tmp_path / "whole", tmp_path / "resumed"
    extract(weights_file, image_folder, whole, format=format)
    replace = os.replace
    left = 3  # shards to finish

    def stop_after_the_third(source, target):
        nonlocal left
        if str(target).endswith("3-00" + next(whole.glob("*-00.*")).suffix):
            raise KeyboardInterrupt
        left -= str(target).endswith(".json")
        replace(source, target)

    options = {"num_workers": workers}
    monkeypatch.setattr(os, "replace", stop_after_the_third)
    with pytest.raises(KeyboardInterrupt):
        extract(weights_file, image_folder, out, options=options, format=format)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="is not finished, 3 shards are"):
        load_features(out)
    kept = {p: p.stat().st_mtime_ns for p in out.glob("features-*")}
    done = extract(weights_file, image_folder, out, options=options)  # the format is the plan's
    assert (done.kept, done.written) == (3, 3)
    assert contents(out) == contents(whole)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    again = extract(weights_file, image_folder, out, options=options)
    assert (again.written, again.images, again.failed) == (0, WHOLE, 3)
    assert again.failures.keys() == BROKEN.keys()


def test_a_damaged_file_is_noticed_and_written_again(weights_file, image_folder, whole, tmp_path):
    out = tmp_path / "damaged"
    shutil.copytree(whole, out)
    shard = sorted(out.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=f"shards are missing or damaged: {shard.name}"):
        load_features(out).verify()
    assert extract(weights_file, image_folder, out).written == 1
    load_features(out).verify()
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    "text", ["", '{"sha256"', "{}", "[]", '{"files": [{}]}', '{"files": {"a": 1}}', "[" * 100_000]
)
def test_a_shard_whose_record_is_damaged_is_written_again(
    text, weights_file, image_folder, whole, tmp_path
):
    out = tmp_path / "damaged"
    shutil.copytree(whole, out)
    (out / "features-0000001.json").write_text(text)
    with pytest.raises(ValueError, match=r"features-0000001\.json"):
        load_features(out)
    assert extract(weights_file, image_folder, out).written == 1
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "damaged, or of another version"),
        ("[]", "must hold a JSON object"),
        ("", "is not a JSON file"),
        ('{"format": "convnext_backbone features 1", "shards": []}', "of another version"),
        ('{"format": "convnext_backbone features 2"}', "lacks files, shard_images, .*, settings"),
        (
            '{"format": "convnext_backbone features 2", "files": "parquet", "shard_images": 1, '
            '"shard_bytes": 1, "settings": {"weights": 1}}',
            "begun with shard_images 1, got 8",
        ),
    ],
)
def test_a_damaged_plan_is_named(text, reason, weights_file, image_folder, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}.* {reason}"):
        extract(weights_file, image_folder, tmp_path)
    assert (tmp_path / "plan.json").read_text() == text


def test_images_that_were_replaced_get_their_own_features(weights_file, image_folder, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(image_folder, images)
    extract(weights_file, images, out)
    before = load_features(out)["00.png"]["stage4"]
    # Another image with the same number of bytes and the same time of modification.
    changed = images / "00.png"
    old, size = changed.stat(), changed.stat().st_size
    height, width = np.array(Image.open(changed)).shape[:2]
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    grey = (tmp_path / "grey.png").read_bytes()
    changed.unlink()
    changed.write_bytes(grey + b"\0" * (size - len(grey)))
    os.utime(changed, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (size, old.st_mtime_ns)
    assert extract(weights_file, images, out).written == 1
    after = load_features(out)
    assert not torch.equal(after["00.png"]["stage4"], before)
    torch.testing.assert_close(
        after["00.png"]["stage4"],
        make_extractor(weights_file)(changed)["stage4"],
        atol=1e-6,
        rtol=0,
    )
    extract(weights_file, images, tmp_path / "fresh")
    assert _values(out) == _values(tmp_path / "fresh")


def _values(folder):
    """The files that hold features; nothing that an earlier state left."""
    return {k: v for k, v in contents(folder).items() if k.endswith(".safetensors")}


def test_a_shard_of_fewer_files_leaves_none_of_the_earlier_ones(weights_file, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in "abcd":
        Image.new("RGB", (256, 256)).save(images / f"{name}.png")
    options = {"out_features": ["stage2"]}  # 65,536 bytes a map
    extract(weights_file, images, out, options=options)
    assert len(_values(out)) == 4
    for name in "abcd":
        Image.new("RGB", (64, 64)).save(images / f"{name}.png")
    extract(weights_file, images, out, options=options)
    assert list(_values(out)) == ["features-0000000-00.safetensors"]
    assert sorted(load_features(out)) == ["a.png", "b.png", "c.png", "d.png"]


def test_a_transient_error_is_tried_again_and_a_lasting_one_is_not(
    weights_file, image_folder, whole, tmp_path, monkeypatch
):
    out, opened, tries = tmp_path / "out", reading.Image.open, []

    def fail(file, *args):
        if str(getattr(file, "name", file)).endswith("b/01.png"):
            tries.append(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(file, *args)

    monkeypatch.setattr(reading.Image, "open", fail)
    first = extract(weights_file, image_folder, out)
    assert first.failures.keys() == {*BROKEN, "b/01.png"}
    assert "Input/output error" in first.failures["b/01.png"]
    tries.clear()
    again = extract(weights_file, image_folder, out)
    # It is read again, and what was computed of the others stays.
    assert (len(tries), again.written, again.failed) == (1, 0, 4)
    monkeypatch.undo()
    assert extract(weights_file, image_folder, out).written == 1
    assert extract(weights_file, image_folder, out).written == 0
    assert contents(out).keys() == contents(whole).keys()
    assert _values(out).keys() == _values(whole).keys()
    store, expected = load_features(out), load_features(whole)
    assert store.failures.keys() == BROKEN.keys()
    for name in expected:
        torch.testing.assert_close(store[name], expected[name], atol=0, rtol=0)


def test_an_image_that_comes_later_is_read_then(weights_file, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    (images / "a.png").symlink_to("missing.png")
    assert extract(weights_file, images, out).failed == 1
    assert extract(weights_file, images, out).kept == 1
    Image.new("RGB", (32, 32)).save(images / "missing.png")
    (images / "missing.png").rename(images / "missing")
    (images / "a.png").unlink()
    (images / "a.png").symlink_to("missing")
    assert extract(weights_file, images, out).written == 1
    assert list(load_features(out)) == ["a.png"]


def test_other_settings_or_images_do_not_mix(weights_file, image_folder, tmp_path):
    out = tmp_path / "out"
    extract(weights_file, image_folder, out)
    before = contents(out)
    with pytest.raises(ValueError, match=r"other settings \(.*dtype changed\)"):
        extract(weights_file, image_folder, out, options={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="begun with shard_images 8, got 4"):
        extract(weights_file, image_folder, out, shard_images=4)
    with pytest.raises(ValueError, match="begun with files safetensors, got parquet"):
        extract(weights_file, image_folder, out, format="parquet")
    listed = list(ImageList([image_folder]))
    moved = [ImageEntry("new.png", e.path) if e.name == "00.png" else e for e in listed]
    for change, entries in {
        r"added: new\.png; gone: 00\.png": moved,
        "in another order": [*listed[1:8], listed[0], *listed[8:]],
        r"gone: empty\.png\)": listed[:-1],
        "it has more shards": listed[:40],
        r"added: new\.png\)": [*listed, ImageEntry("new.png", listed[0].path)],
    }.items():
        with pytest.raises(ValueError, match=rf"different image list \({change}"):
            extract_features(
                make_extractor(weights_file), entries, out, shard_images=8, shard_bytes=20_000
            )
        assert contents(out) == before, change


def test_options_of_another_engine_are_named(weights_file, image_folder, tmp_path):
    for engine, option in (("local", "workers"), ("ray", "machines")):
        with pytest.raises(ValueError, match=rf"^engine '{engine}' has the options .*'{option}'"):
            extract(weights_file, image_folder, tmp_path / "o", engine=engine, **{option: 2})
    assert not (tmp_path / "o").exists()


def test_what_a_killed_run_had_begun_to_write_is_removed(weights_file, image_folder, tmp_path):
    out = tmp_path / "out"
    extract(weights_file, image_folder, out)
    before = contents(out)
    with subprocess.Popen([sys.executable, "-c", ""]) as killed:
        pass  # and waited for
    (out / f".features-0000001-00.safetensors.{killed.pid}.part").write_bytes(b"half")
    extract(weights_file, image_folder, out)
    assert contents(out) == before


def test_without_pyarrow_nothing_is_written(weights_file, image_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'convnext_backbone\[parquet\]'"):
        extract(weights_file, image_folder, tmp_path / "out", format="parquet")
    assert not (tmp_path / "out").exists()
    extract(weights_file, image_folder, tmp_path / "out")


def test_a_full_disk_keeps_what_is_finished(
    weights_file, image_folder, whole, tmp_path, monkeypatch
):
    out = tmp_path / "full"
    finished = [p.name for p in whole.glob("*.json")]
    fsync = os.fsync

    def fail_after_the_third(descriptor):
        if len(list(out.glob("features-*.json"))) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_after_the_third)
    with pytest.raises(OSError, match=r"cannot write .*No space left on device; finished") as info:
        extract(weights_file, image_folder, out)
    assert "\n" not in str(info.value)
    assert not list(out.glob(".*.part"))
    monkeypatch.undo()
    assert extract(weights_file, image_folder, out).kept == 3
    assert contents(out) == contents(whole)
    assert len(finished) == 8  # six shards, the plan and the manifest


# ------------------------------------------------------------------------------ large headers


def _headers(folder):
    """The lengths of the headers, which the first eight bytes of a safetensors file hold."""
    files = sorted(folder.glob("*.safetensors"))
    return [int.from_bytes(file.read_bytes()[:8], "little") for file in files]


def test_a_file_is_closed_before_its_header_is_larger_than_safetensors_reads(
    weights_file, tmp_path
):
    # A letter that JSON in JSON writes as seven bytes, in the name and in the reason.
    letter, count = "写" * 200, 6500
    entries = [ImageEntry(f"{i}/" + 5 * f"{letter}/", str(tmp_path / "no")) for i in range(count)]
    out = tmp_path / "out"
    fx = make_extractor(weights_file, num_workers=0)
    result = extract_features(fx, entries, out, shard_images=len(entries))
    assert result.failed == count
    assert len(_headers(out)) == 1  # 50 MB
    entries = [entry._replace(path=str(tmp_path / entry.name)) for entry in entries]
    out = tmp_path / "more"
    result = extract_features(fx, entries, out, shard_images=len(entries))
    assert result.failed == count
    first, second = _headers(out)
    assert 80e6 < first < 100e6  # safetensors' limit
    assert second > 1e6
    store = load_features(out)
    assert list(store.failures) == [entry.name for entry in entries]


@pytest.mark.parametrize("name", ["a", "写", "\U0001f40d", '"\\\n\x01', "é" * 50])
def test_names_of_images_with_features_count_as_well(name, weights_file, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_MAX_HEADER", 20_000)
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(path)
    entries = [ImageEntry(f"{name}{i:03}", str(path)) for i in range(150)]
    out = tmp_path / "out"
    fx = make_extractor(weights_file, pool="avg")
    extract_features(fx, entries, out, shard_images=len(entries))
    headers = _headers(out)
    plan = json.loads((out / "plan.json").read_text())
    settings = len(json.dumps(json.dumps(plan["settings"])))
    assert len(headers) > 1
    assert 10_000 < max(headers) - settings < 21_000
    assert len(load_features(out)) == 150


# ------------------------------------------------------------------------------ the program


def test_a_killed_program_goes_on_and_ends_equal_to_the_bit(
    weights_file, image_folder, whole, tmp_path
):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "convnext_backbone", "extract", str(image_folder)]
    command += ["--weights", str(weights_file), "--out", str(out), "--features", "stage2", "stage4"]
    command += ["--size", "native", "--batch-size", "3", "--shard-images", "8", "--quiet"]
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
    store, expected = load_features(out), load_features(whole)
    store.verify()
    assert list(store) == list(expected)
    for name in expected:
        torch.testing.assert_close(store[name], expected[name], atol=0, rtol=0)


def test_command_line_reports_and_refuses_in_one_line(weights_file, image_folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    base = ["--weights", str(weights_file), "--out", out, "--quiet"]
    pooled = [str(image_folder), *base, "--size", "32", "--pool", "avg"]
    assert cli.main(["extract", *pooled]) == 0
    captured = capsys.readouterr()
    assert "40 images, 3 unreadable; 1 shards written, 0 kept" in captured.out
    assert captured.err.count("\n") == 3
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    in_a_file = [str(image_folder), *base[:3], str(tmp_path / "file"), "--quiet"]
    wrong = {
        "it is a file, not a folder": in_a_file,
        "--shard-mb must be an integer of at least 1, got 0": [*in_a_file, "--shard-mb", "0"],
        "shard_images must be an integer of at least 1, got 0": [*pooled, "--shard-images", "0"],
        "out must not be empty; the current directory is '.'": [*pooled, "--out", ""],
        "no images in": [str(tmp_path / "empty"), *base[:3], out + "3"],
        "no such image or folder": [str(tmp_path / "nowhere"), *base],
        "other settings": [str(image_folder), *base, "--size", "64"],
        "out_features must be a subset": [str(image_folder), *base, "--features", "stage7"],
        "Not a directory": [str(image_folder), *base[:3], str(tmp_path / "file" / "x"), "--quiet"],
        "cannot read image": [
            *(str(image_folder), *base[:3], out + "2", "--quiet", "--on-error", "raise"),
        ],
        "--address cannot be used with --engine local": [*pooled, "--address", "auto"],
        "--device cpu is for one process": [*pooled, "--device", "cpu", "--engine", "ray"],
    }
    for error, arguments in wrong.items():
        assert cli.main(["extract", *arguments]) == 2, error
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, error
        assert error in lines[0]
    assert not (tmp_path / "out3").exists()
    with pytest.raises(SystemExit):
        cli.main(["extract", str(image_folder), *base, "--size", "big"])
    assert "must be native, a side or HEIGHTxWIDTH, got 'big'" in capsys.readouterr().err


def test_users_of_torchrun_are_given_the_new_line(weights_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["extract", str(tmp_path), "--weights", str(weights_file), "--out", "o"]
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run `convnext-backbone extract ... --engine ray --workers 2`" in line


def test_a_link_that_leads_nowhere_and_a_name_of_two_lines_are_named(
    weights_file, tmp_path, capsys
):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    (folder / "linked.png").symlink_to("a.png")
    (folder / "nowhere.png").symlink_to("missing.png")
    (folder / "two\nlines.png").write_text("no image")
    out = tmp_path / "out"
    arguments = ["extract", str(folder), "--weights", str(weights_file), "--out", str(out)]
    assert cli.main([*arguments, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "2 images, 2 unreadable" in printed.out
    nowhere, lines = printed.err.splitlines()
    assert nowhere.startswith("unreadable: nowhere.png: no such image: ")
    assert lines.startswith(r"unreadable: 'two\nlines.png': cannot read image ")
    store = load_features(out)
    assert set(store) == {"a.png", "linked.png"}
    assert set(store.failures) == {"nowhere.png", "two\nlines.png"}


def test_a_stopped_program_says_that_it_can_go_on(
    weights_file, image_folder, tmp_path, capsys, monkeypatch
):
    def stop(self, source):
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureExtractor, "stream", stop)
    arguments = ["extract", str(image_folder), "--weights", str(weights_file), "--out"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, str(tmp_path / "o"), "--quiet"])
    assert stopped.value.code == 130
    assert "finished shards are kept" in capsys.readouterr().err


def test_a_run_that_reads_no_image_fails_in_one_line_at_its_end(weights_file, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    command = ["extract", str(tmp_path / "images"), "--weights", str(weights_file), "--quiet"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 2
    unreadable, error = capsys.readouterr().err.splitlines()
    assert unreadable.startswith("unreadable: a.png: ")
    assert error == "convnext-backbone extract: error: none of the 1 images could be read"


def test_a_link_of_a_tar_to_nothing_is_one_unreadable_image(weights_file, tmp_path):
    Image.new("RGB", (40, 50)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../a.png"
        tar.addfile(link)
    for size in (32, "native"):
        extractor = FeatureExtractor(weights_file, size=size, on_error="skip")
        result = extract_features(extractor, ImageList([tmp_path / "s.tar"]), tmp_path / f"{size}")
        assert result.images == 1
        assert result.failures == {
            "s.tar/b.png": "cannot read image 's.tar/b.png': it links to no file of the tar"
        }
