"""Files appear whole or not at all, and what cannot be written is told by its own name."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from convnext_backbone.utils.files import (
    atomic_files,
    atomic_write,
    check_outputs,
    expand_path,
    read_json,
    write_bytes,
    write_json,
)
from convnext_backbone.weights.export import write_tensors

_WRITE_TOO_MUCH = """
import resource, sys, torch
from pathlib import Path
from convnext_backbone.utils.files import write_bytes
from convnext_backbone.weights.export import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1])
try:
    if path.suffix == ".json":
        write_bytes(path, bytes(10_000))
    else:
        write_tensors({"a": torch.zeros(2_500)}, path)
except OSError as error:
    print(error)
"""


def test_a_file_is_replaced_at_once_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with atomic_write(path) as partial:
        partial.write_text('{"a": 2}')
        assert read_json(path) == {"a": 1}
    assert read_json(path) == {"a": 2}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail():
        with atomic_write(path) as partial:
            partial.write_bytes(b"new")
            raise RuntimeError("in the midst")

    with pytest.raises(RuntimeError, match="in the midst"):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on files here")
@pytest.mark.parametrize("name", ["a.json", "a.safetensors", "a.pth"])
def test_a_file_that_does_not_fit_is_told_by_name_and_the_old_one_stays(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"old")
    arguments = [sys.executable, "-c", _WRITE_TOO_MUCH, str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert "File too large" in done.stdout, done.stderr
    assert repr(str(path)) in done.stdout
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.json", "a.safetensors", "a.pth"])
def test_files_are_as_open_to_others_as_the_umask_says(name, tmp_path):
    path = tmp_path / name
    before = os.umask(0o027)
    try:
        if path.suffix == ".json":
            write_json(path, {})
        else:
            write_tensors({"a": torch.zeros(1)}, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_folder_that_is_not_there_is_an_error_of_the_same_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no/a\.json"):
        write_json(tmp_path / "no" / "a.json", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"file/a\.json"):
        write_json(tmp_path / "file" / "a.json", {})


@pytest.mark.parametrize("text", ["", "{", "\xff", "[1]"])
def test_what_is_no_json_object_is_told_by_name(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json (is not a JSON file|must hold a JSON object)"):
        read_json(tmp_path / "a.json")


def test_tensors_written_by_name_are_read_back(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    write_tensors(tensors, tmp_path / "a.safetensors")
    write_tensors({"state_dict": tensors}, tmp_path / "a.pth")
    again = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / "a.safetensors")[name], tensor)
        assert torch.equal(again[name], tensor)


@pytest.mark.parametrize("exists", [True, False])
def test_files_of_a_folder_appear_together_and_nothing_is_left_beside_them(exists, tmp_path):
    folder = tmp_path / "above" / "folder"
    if exists:
        folder.mkdir(parents=True)
        (folder / "a").write_text("old")
        (folder / "kept").write_text("kept")
    with atomic_files(folder, "a") as partial:
        (partial / "a").write_text("new")
        (partial / "a.data").write_text("data")
        assert not (folder / "a.data").exists()
    assert (folder / "a").read_text() == "new"
    assert set(os.listdir(folder)) == {"a", "a.data", *(["kept"] if exists else [])}
    assert os.listdir(folder.parent) == ["folder"]


def test_an_error_among_the_files_of_a_folder_leaves_the_old_ones(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail():
        with atomic_files(tmp_path, "a") as partial:
            (partial / "a").write_text("new")
            raise RuntimeError("in the midst")

    with pytest.raises(RuntimeError, match="in the midst"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def _fail_inside(folder, error):
    with atomic_files(folder, "a") as partial:
        raise error(partial)


def test_an_error_of_writing_names_the_folder_and_one_of_reading_its_own_file(tmp_path):
    out, full = tmp_path / "out", (errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (lambda _: OSError(*full), lambda partial: OSError(*full, str(partial / "a"))):
        with pytest.raises(OSError, match=r"No space left on device: '.*out'$"):
            _fail_inside(out, error)
    with pytest.raises(FileNotFoundError, match=r"'missing\.jpg'$"):
        _fail_inside(out, lambda _: FileNotFoundError(errno.ENOENT, "gone", "missing.jpg"))
    with pytest.raises(OSError, match=r"^truncated$"):  # as Pillow raises it
        _fail_inside(out, lambda _: OSError("truncated"))
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(NotADirectoryError, match=r"'.*out'$"),
        atomic_files(tmp_path / "out", "a"),
    ):
        pass


def _write_new(folder, names):
    with atomic_files(folder, names[0]) as partial:
        for name in names:
            (partial / name).write_text("new")


@pytest.mark.parametrize("moves", range(3))
def test_files_that_are_half_replaced_lack_the_one_that_refers_to_the_others(
    moves, tmp_path, monkeypatch
):
    """As after a kill: what is left is all old, all new, or without the last file."""
    names = ("deploy.json", "model.onnx", "predict.py")
    for name in names:
        (tmp_path / name).write_text("old")
    replace, left = os.replace, [moves]

    def replace_or_stop(source, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_stop)
    with pytest.raises(KeyboardInterrupt):
        _write_new(tmp_path, names)
    assert "deploy.json" not in os.listdir(tmp_path)


@pytest.mark.parametrize("others", [(), ("a.data",)])
def test_the_last_file_of_a_folder_is_new_at_the_end(others, tmp_path):
    for name in ("a", *others):
        (tmp_path / name).write_text("old")
    with atomic_files(tmp_path, "a") as partial:
        for name in ("a", *others):
            (partial / name).write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)} == dict.fromkeys(
        ("a", *others), "new"
    )


@pytest.mark.parametrize("name", ["a" * 255, "\u6f22" * 85])
def test_the_longest_name_that_a_file_may_have_is_written(name, tmp_path):
    write_bytes(tmp_path / name, b"data")
    assert os.listdir(tmp_path) == [name]


def test_a_file_that_is_read_is_not_written(tmp_path):
    for name in ("photo.png", "other.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "link.png").symlink_to("photo.png")
    (tmp_path / "below").mkdir()
    read = [tmp_path / "photo.png", tmp_path / "missing.png", tmp_path]
    for same in ("photo.png", "below/../photo.png", "link.png"):
        with pytest.raises(
            ValueError, match=r"photo\.png' is read, and would be replaced by .*png"
        ):
            check_outputs([tmp_path / "new.png", tmp_path / same], read)
    check_outputs([tmp_path / "new.png", tmp_path / "other.png", tmp_path / "missing.png"], read)


def test_an_empty_path_is_refused_by_the_name_of_its_argument():
    with pytest.raises(ValueError, match=r"^out must not be empty; the current directory is '\.'$"):
        expand_path("", "out")
    with pytest.raises(TypeError, match="out must be a string or a path, got NoneType"):
        expand_path(None, "out")


def test_a_path_of_the_users_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_path("~/a") == expand_path(Path("~/a")) == str(tmp_path / "a")
    assert expand_path("~nobody-of-this-name.png") == "~nobody-of-this-name.png"
    with pytest.raises(ValueError, match="out must not be empty"):
        expand_path("", "out")


def test_the_current_directory_is_meant_by_a_dot_only():
    expand_path(".", "folder")
    expand_path(Path("a"), "folder")
    with pytest.raises(ValueError, match=r"folder must not be empty; .* directory is '\.'"):
        expand_path("", "folder")
    with pytest.raises(TypeError, match="folder must be a string or a path, got int"):
        expand_path(3, "folder")
