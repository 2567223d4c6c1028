"""numpy's values are read as they were; no bytes of a file become an object or another's memory."""

import io
import pickle
import struct
import threading
import zipfile

import numpy as np
import pytest
import torch

from convnext_backbone.weights.torch_files import CheckpointError, read_torch_file

VALUES = {
    "float64": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">f4"),
    "bool": np.array([True, False]),
    "half": np.array([1.5, 2.5], np.float16),
    "complex": np.array([1 + 2j]),
    "text": np.array(["ab", "c", "\U0001f600", "\ud800"]),
    "big-endian text": np.array(["ab", "c"], dtype=">U2"),
    "bytes": np.array([b"ab", b"c"]),
    "empty": np.zeros((0, 3)),
    "no axes": np.array(2.5),
    "scalar": np.float32(0.75),
    "integer": np.int64(-3),
    "flag": np.bool_(True),
    "letter": np.str_("abc"),
}


def save(value, tmp_path):
    torch.save({"value": value, "weight": torch.ones(2)}, tmp_path / "file.pth")
    return tmp_path / "file.pth"


@pytest.mark.parametrize("name", VALUES)
def test_values_are_read_as_they_were(name, tmp_path):
    expected = VALUES[name]
    got = read_torch_file(save(expected, tmp_path))["value"]
    assert got.dtype == pickle.loads(pickle.dumps(expected)).dtype  # numpy makes it native
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)


def test_what_was_read_is_written_as_a_plain_array(tmp_path):
    got = read_torch_file(save(np.arange(3.0), tmp_path))["value"]
    assert type(got) is np.ndarray
    again = read_torch_file(save(got, tmp_path))["value"]
    np.testing.assert_array_equal(again, np.arange(3.0))


class Call:
    """Pickles as a call of a function, and the state that is set on what it returns."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


POINTER = struct.pack("<q", 0x4141414141414141)
RECONSTRUCT = np.empty(0).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]
CLEARED = (3, "|", None, None, None, -1, -1, 0)  # a dtype's state without the flag of objects
ATTACKS = {
    "array over bytes": Call(np.ndarray, (1,), "O", POINTER),
    "numbers over bytes": Call(np.ndarray, (1000,), "f8", POINTER),
    "object dtype": Call(np.dtype, "O8", False, True),
    "cleared flags": Call(np.dtype, "O8", False, True, state=CLEARED),
    "scalar of an object": Call(SCALAR, np.dtype("O"), POINTER),
    "scalar of too few bytes": Call(SCALAR, np.dtype("f8"), b"1234"),
    "scalar of a cleared dtype": Call(
        SCALAR, Call(np.dtype, "O8", False, True, state=CLEARED), POINTER
    ),
    "array of objects": np.array([object], dtype=object),
    "array of fields": np.zeros(2, dtype=[("a", "f8"), ("b", "O")]),
    "array of plain fields": np.zeros(2, dtype=[("a", "f8")]),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "too little data": Call(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1000,), np.dtype("f8"), False, POINTER)
    ),
    "negative shape": Call(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1, -1), np.dtype("f8"), False, POINTER)
    ),
    "more axes than numpy has": Call(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (0,) * 70, np.dtype("f8"), False, b"")
    ),
    "an empty array of huge sides": Call(
        RECONSTRUCT,
        np.ndarray,
        (0,),
        b"b",
        state=(1, (0, 1 << 62, 1 << 62), np.dtype("f8"), False, b""),
    ),
    "list for data": Call(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("f8"), False, [POINTER])
    ),
    "another class": Call(RECONSTRUCT, np.matrix, (0,), b"b"),
    "elements of another size": Call(
        np.dtype, "S4", False, True, state=(3, "|", None, None, None, 1 << 30, 1, 0)
    ),
    "a subarray": Call(
        np.dtype, "f8", False, True, state=(3, "<", (np.dtype("O"), (2,)), None, None, -1, -1, 0)
    ),
    "a name for a dtype": Call(np.dtype, "object"),
    "no character": Call(SCALAR, np.dtype("U1"), b"\xff" * 4),
    "characters of another order": Call(SCALAR, np.dtype(">U1"), "a".encode("utf-32-le")),
    "an array of no characters": Call(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("U1"), False, b"\xff" * 4)
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_in_a_file_becomes_an_object_or_a_pointer(name, tmp_path):
    path = save(ATTACKS[name], tmp_path)
    with pytest.raises(CheckpointError, match=r"refused to read|cannot read"):
        read_torch_file(path)


def test_the_old_format_is_read_by_the_same_rules(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"value": np.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_torch_file(path)["value"], np.arange(3.0))
    torch.save({"value": ATTACKS["array over bytes"]}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="refused"):
        read_torch_file(path)


def test_what_the_user_allows_does_not_admit_numpys_own_constructors(tmp_path):
    path = save(ATTACKS["array over bytes"], tmp_path)
    with (
        torch.serialization.safe_globals([np.ndarray, np.dtype]),
        pytest.raises(CheckpointError, match="refused"),
    ):
        read_torch_file(path)


def test_torchs_list_is_the_same_after_loads_in_many_threads(tmp_path):
    paths = [save(VALUES["float64"], tmp_path), tmp_path / "bad.pth"]
    torch.save({"value": ATTACKS["object dtype"]}, paths[1])
    before, failures = torch.serialization.get_safe_globals(), []

    def work(path):
        for _ in range(30):
            try:
                read_torch_file(path)
            except CheckpointError as error:
                failures.append((path, error))

    threads = [threading.Thread(target=work, args=(paths[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(torch.serialization.get_safe_globals()) == set(before)
    assert len(failures) == 90
    assert {path for path, _ in failures} == {paths[1]}


def test_importing_the_package_allows_nothing():
    import subprocess
    import sys

    script = (
        "import torch; before = set(torch.serialization.get_safe_globals())\n"
        "import convnext_backbone\n"
        "assert set(torch.serialization.get_safe_globals()) == before"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_archive_may_not_hide_a_pickle_of_numpy(tmp_path):
    """The pickle that stands beside the tensors of a zip file is read by the same rules."""
    buffer = io.BytesIO()
    torch.save({"value": 1}, buffer)
    path = tmp_path / "edited.pth"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                data = pickle.dumps({"value": ATTACKS["array over bytes"]}, protocol=2)
            target.writestr(item.filename, data)
    with pytest.raises(CheckpointError, match="refused"):
        read_torch_file(path)
