"""Files that are damaged, declare too much, or lead elsewhere: one clear error, at once."""

import json
import os
import socket
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone, ConvNextConfig
from convnext_backbone.cli import main
from convnext_backbone.weights import file_limits, open_weights
from convnext_backbone.weights.read import read_checkpoint

h5py = pytest.importorskip("h5py")
SHAPE = {"hidden_sizes": (8, 16), "depths": (1, 2)}


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return ConvNextBackbone(**SHAPE, out_indices=(1, 2)).state_dict()


def refused(path, match, capsys):
    """The reader raises a ValueError or OSError; the command line prints one line and gives 2."""
    with pytest.raises((ValueError, OSError), match=match):
        open_weights(path).fields()
    assert main(["info", str(path)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


# Files of PyTorch


def test_a_stub_of_a_pickle(tmp_path, capsys):
    (tmp_path / "p.pth").write_bytes(b"\x80\x02junk")
    refused(tmp_path / "p.pth", "p.pth", capsys)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_truncations_and_flipped_bytes_give_one_clear_error_or_the_weights(new, weights, tmp_path):
    path = tmp_path / "w.pth"
    small = {k: v[:2] for k, v in weights.items()}
    torch.save(small, path, _use_new_zipfile_serialization=new)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for position in rng.integers(0, min(len(data), 4096), rng.integers(1, 4)):
            data[position] ^= int(rng.integers(1, 256))
        if rng.random() < 0.5:
            del data[rng.integers(1, len(data)) :]
        path.write_bytes(data)
        try:
            read_checkpoint(path, mmap=False)
        except (ValueError, OSError):
            continue


def test_an_archive_that_inflates_a_thousandfold(tmp_path, capsys):
    path = tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(100 << 20, dtype=torch.uint8)}, path)
    with (
        zipfile.ZipFile(path) as plain,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "small.pth").stat().st_size < 1 << 20
    refused(tmp_path / "small.pth", "would need", capsys)


# Zip files in which readers may see different things; here it is always what Python's reader sees

LOCAL, ENTRY = struct.Struct("<4s5H3I2H"), struct.Struct("<4s4B4H3I5H2I")
END, END64, LOCATOR = (
    struct.Struct("<4s4H2IH"),
    struct.Struct("<4sQ2H2I4Q"),
    struct.Struct("<4sIQI"),
)


def entry(name, data, place, size=None, comment=b"", extra=b"", attributes=0, flags=0):
    """An entry of a directory, of stored bytes at a place in the file."""
    size = len(data) if size is None else size
    numbers = (0, 0, 0, zlib.crc32(data), len(data), size, len(name), len(extra), len(comment))
    head = ENTRY.pack(b"PK\1\2", 20, 3, 20, 0, flags, *numbers, 0, 0, attributes, place)
    return head + name + extra + comment


def local(name, data):
    crc = zlib.crc32(data)
    return (
        LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 0, crc, len(data), len(data), len(name), 0) + name + data
    )


def parts_of(path):
    """The local part of a zip file, and the entries of its directory."""
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = [(e.filename.encode(), archive.read(e)) for e in archive.infolist()]
    body, directory = b"", []
    for name, data in contents:
        directory.append((name, data, len(body)))
        body += local(name, data)
    return body, directory


def end(count, size, offset, comment=b""):
    return END.pack(b"PK\5\6", 0, 0, count, count, size, offset, len(comment)) + comment


def end64(count, size, offset, place):
    record = END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    return record + LOCATOR.pack(b"PK\6\7", 0, place, 1)


def _two_directories(body, entries):
    hidden = b"".join(entry(*e) for e in entries)
    size = len(hidden) - ENTRY.size - 1
    shown = entry(b"x", b"", 0, comment=bytes(size))
    return body + hidden + shown + end(len(entries), len(hidden), len(body))


def _two_directories_in_zip64(body, entries):
    hidden = b"".join(entry(*e) for e in entries)
    record = end64(len(entries), len(hidden), len(body), len(body + hidden))
    before = body + hidden + record[: END64.size] + b"so that Python does not find it"
    shown = entry(b"x", b"", 0, comment=record[END64.size :])
    return before + shown + end(1, len(shown), len(before))


def _zip64_record_elsewhere(body, entries):
    hidden = b"".join(entry(*e) for e in entries)
    shown = entry(b"x", b"", 0)
    start = len(body + hidden) + END64.size
    first = end64(len(entries), len(hidden), len(body), 0)[: END64.size]
    last = end64(1, len(shown), start, len(body + hidden))
    return body + hidden + first + shown + last + end(1, len(shown), start)


def _another_count(body, entries):
    shown = b"".join(entry(*e) for e in entries)
    return body + shown + end(len(entries) - 1, len(shown), len(body))


def _a_prefix(body, entries):
    shown = b"".join(entry(*e) for e in entries)
    return local(b"x", b"y") + body + shown + end(len(entries), len(shown), len(body))


def _bytes_at_the_end(body, entries):
    shown = b"".join(entry(*e) for e in entries)
    return body + shown + end(len(entries), len(shown), len(body)) + b"more"


def _changed(key, **changes):
    def write(body, entries):
        shown = b"".join(entry(*e, **(changes if e[0].endswith(key) else {})) for e in entries)
        return body + shown + end(len(entries), len(shown), len(body))

    return write


def _elsewhere(body, entries):
    shown = b"".join(entry(name, data, 1 << 30) for name, data, _ in entries)
    return body + shown + end(len(entries), len(shown), len(body))


def _another_entry(name, data=b"", **changes):
    def write(body, entries):
        entries = [*entries, (name, data, len(body))]
        body += local(name, data)
        shown = b"".join(entry(*e, **(changes if e[0] == name else {})) for e in entries)
        return body + shown + end(len(entries), len(shown), len(body))

    return write


def _size64(size):
    return struct.pack("<2HQ", 1, 8, size)


NOT_TORCHS = "torch.save did not write this zip file"
REFUSED = {
    "two directories": (_two_directories, NOT_TORCHS),
    "two directories in ZIP64": (_two_directories_in_zip64, NOT_TORCHS),
    "a ZIP64 record elsewhere": (_zip64_record_elsewhere, NOT_TORCHS),
    "a name in another code": (
        _another_entry(b"w/data/0", flags=0x800),
        "is in the zip file twice",
    ),
    "a name with a null": (_another_entry(b"w/data.pkl\0x"), "is in the zip file twice"),
    "more bytes than are stored": (_changed(b"data/0", size=64), "stores 16 bytes for 64"),
    "fewer bytes than are stored": (_changed(b"data/0", size=8), "stores 16 bytes for 8"),
    "entries beyond the file": (_elsewhere, "cannot read checkpoint"),
    "bytes beyond the file": (
        _changed(b"data/0", size=0xFFFFFFFF, extra=_size64(1 << 40)),
        "stores 16 bytes for",
    ),
}
READ = {
    "another number of entries": _another_count,
    "a prefix": _a_prefix,
    "bytes at the end": _bytes_at_the_end,
    "a pickle in capitals": _another_entry(b"w/DATA.pkl"),
    "a storage in capitals": _another_entry(b"w/Data/0"),
    "a name of nulls": _another_entry(b"w/y\0x"),
    "a folder for a storage": _changed(b"data/0", attributes=0x10),
    "a folder by its name": _another_entry(b"w/data/1/", b"abcd"),
    "two sizes": _changed(b"data/0", size=0xFFFFFFFF, extra=_size64(0xFFFFFFFF) + _size64(16)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_zip_file_that_says_two_things_is_refused(what, tmp_path, capsys):
    write, match = REFUSED[what]
    path = tmp_path / "w.pth"
    path.write_bytes(write(*parts_of(path)))
    refused(path, match, capsys)


def _as_it_is(body, entries):
    shown = b"".join(entry(*e) for e in entries)
    return body + shown + end(len(entries), len(shown), len(body))


def _with_a_comment(body, entries):
    shown = b"".join(entry(*e) for e in entries)
    return body + shown + end(len(entries), len(shown), len(body), b"of me")


def _with_sizes_of_zip64(body, entries):
    shown = b"".join(entry(*e, size=0xFFFFFFFF, extra=_size64(len(e[1]))) for e in entries)
    record = end64(len(entries), len(shown), len(body), len(body + shown))
    return body + shown + record + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


@pytest.mark.parametrize(
    "write",
    [_as_it_is, _with_a_comment, _with_sizes_of_zip64, _another_entry(b"w/data/"), *READ.values()],
    ids=["as it is", "a comment", "sizes of ZIP64", "a folder", *READ],
)
def test_a_sound_zip_file_of_another_writer_is_read(write, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(write(*parts_of(path)))
    for mmap in (True, False):
        assert read_checkpoint(path, mmap=mmap).tensors["a"].tolist() == [0.0] * 4


def test_a_deflated_entry_of_no_bytes_is_refused(tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path := tmp_path / "z.pth", "w", 8) as new:
        for item in old.infolist():
            new.writestr(item.filename, b"" if item.filename.endswith("data/0") else old.read(item))
    data = bytearray(path.read_bytes())
    place = data.rfind(b"w/data/0") - ENTRY.size
    data[place + 20 : place + 28] = struct.pack("<2I", 0, 16)
    path.write_bytes(data)
    refused(path, "stores 0 bytes for 16", capsys)


def test_views_are_limited_by_what_the_files_have_and_not_by_what_is_unpacked(tmp_path, capsys):
    torch.save({"a": torch.zeros(200_000).expand(2, -1)}, tmp_path / "plain.pth")
    packed = tmp_path / "a.bin"
    with zipfile.ZipFile(tmp_path / "plain.pth") as old, zipfile.ZipFile(packed, "w", 8) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.bin"}}))
    with file_limits(free_mib=1, ratio=2):
        assert read_checkpoint(tmp_path / "plain.pth").tensors["a"].shape == (2, 200_000)
        refused(packed, "a would need", capsys)
        refused(index, "a would need", capsys)
    assert read_checkpoint(index).tensors["a"].shape == (2, 200_000)


# Keys


@pytest.mark.parametrize("key", ["stages.999999999.0.gamma", "stages.0.999999999.gamma"])
def test_keys_that_count_more_than_there_is(key, weights, tmp_path, capsys):
    torch.save({**weights, key: torch.ones(8)}, tmp_path / "w.pth")
    refused(
        tmp_path / "w.pth",
        rf"{key} counts 999,999,99\d stages and blocks that are not there",
        capsys,
    )


@pytest.mark.parametrize("infix", ["_orig_mod.", "stages._orig_mod."])
def test_two_keys_that_are_one_without_their_wrappers(infix, weights, tmp_path, capsys):
    key = "stages.0.0.gamma"
    twice = infix + key if infix == "_orig_mod." else key.replace("stages.", infix)
    save_file({**weights, twice: torch.ones(8)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", rf"{twice}.* both map to stages\.0\.0\.gamma", capsys)


def test_one_tensor_in_two_shards(weights, tmp_path, capsys):
    keys = sorted(weights)
    save_file({k: weights[k] for k in keys[:10]}, tmp_path / "a.safetensors")
    save_file({k: weights[k] for k in keys[9:]}, tmp_path / "b.safetensors")
    index = {
        "weight_map": {k: "a.safetensors" if k in keys[:10] else "b.safetensors" for k in keys}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, rf"{keys[9]} is in both a\.safetensors and b\.safetensors", capsys)


# JSON


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_nested_beyond_reading(name, weights, tmp_path, capsys):
    if name == "config.json":
        save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / name).write_text("[" * 100_000)
    refused(tmp_path, "is not a", capsys)
    if name == "config.json":
        with pytest.raises(ValueError, match="is not a JSON file"):
            ConvNextConfig.from_pretrained(tmp_path)


# What is no file


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path, capsys):
    path = tmp_path / "w.pth"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
    else:
        path = "/dev/zero"
    refused(path, f"{path} is a {kind}, and only regular files are read", capsys)


# HDF5 and Keras


def h5_file(path, **weights):
    """A file that looks like one of Keras: one layer of one variable."""
    with h5py.File(path, "w") as root:
        root.attrs["layer_names"] = [b"layer"]
        group = root.create_group("layer")
        group.attrs["weight_names"] = [b"kernel:0"]
        for name, value in weights.items():
            group[name] = value
    return path


def _external_link(group, secret):
    group["kernel:0"] = h5py.ExternalLink(str(secret), "/layer/kernel:0")


def _soft_link(group, secret):
    group["elsewhere"] = np.ones(3)
    group["kernel:0"] = h5py.SoftLink("/layer/elsewhere")


def _external_storage(group, secret):
    group.create_dataset("kernel:0", (4,), "u1", external=[(str(secret), 0, 4)])


def _virtual(group, secret):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "layer/kernel:0", (3,))
    group.create_virtual_dataset("kernel:0", layout)


def _circle(group, secret):
    group["again"] = group.file["/"]
    group["kernel:0"] = h5py.SoftLink("/layer/again/layer/kernel:0")


def _objects(group, secret):
    group.create_dataset("kernel:0", (2,), h5py.string_dtype())


def _references(group, secret):
    group.create_dataset("kernel:0", (2,), h5py.ref_dtype)


def _nothing_stored(group, secret):
    group.create_dataset("kernel:0", (1 << 40,), "f4", chunks=(1 << 20,))


def _compressed_zeros(group, secret):
    group.create_dataset("kernel:0", data=np.zeros(100 << 20, "u1"), compression="gzip")


@pytest.mark.parametrize(
    ("add", "match"),
    [
        (_external_link, "kernel:0 is an external link, which is not followed"),
        (_soft_link, "kernel:0 is a soft link, which is not followed"),
        (_external_storage, "kernel:0 has external storage"),
        (_virtual, "kernel:0 is a virtual data set"),
        (_circle, "the group /layer/again is linked more than once"),
        (_objects, "kernel:0 holds objects"),
        (_references, "kernel:0 holds objects"),
        (_nothing_stored, "kernel:0 would need .* for 0 bytes"),
        (_compressed_zeros, "kernel:0 would need"),
    ],
)
@pytest.mark.parametrize("archive", [False, True], ids=["h5", "keras"])
def test_an_h5_file_reads_nothing_but_its_own_numbers(archive, add, match, tmp_path, capsys):
    secret = h5_file(tmp_path / "secret.h5", **{"kernel:0": np.full(3, 42.0, "f4")})
    path = h5_file(tmp_path / "w.h5")
    with h5py.File(path, "a") as root:
        add(root["layer"], secret)
    if archive:
        with zipfile.ZipFile(tmp_path / "w.keras", "w") as target:
            target.writestr("model.weights.h5", path.read_bytes())
        path = tmp_path / "w.keras"
    refused(path, match, capsys)


def _archive(path, change):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("model.weights.h5", np.random.default_rng(0).bytes(5000) + b"x" * 5000)
    data = bytearray(path.read_bytes())
    change(data, data.rfind(b"PK\x01\x02"))
    path.write_bytes(data)


def _flip_stream(data, entry):
    data[60:70] = bytes(255 - b for b in data[60:70])


def _encrypt(data, entry):
    data[6] |= 1
    data[entry + 8] |= 1


def _unknown_method(data, entry):
    data[8] = data[entry + 10] = 77


def _bomb(data, entry):
    data[entry + 24 : entry + 28] = (0x7FFFFFFF).to_bytes(4, "little")


def _cut(data, entry):
    del data[-10:]


@pytest.mark.parametrize("change", [_flip_stream, _encrypt, _unknown_method, _bomb, _cut])
def test_a_damaged_keras_archive(change, tmp_path, capsys):
    _archive(tmp_path / "w.keras", change)
    refused(tmp_path / "w.keras", "w.keras", capsys)


# convert


@pytest.mark.parametrize("change", ["missing", "cut", "half a norm", "a stage", "cut norm"])
@pytest.mark.parametrize("to", ["timm", "facebook", "huggingface", "mmpretrain", "native"])
def test_convert_refuses_what_is_incomplete(to, change, weights, tmp_path, capsys):
    weights = {k: v for k, v in weights.items() if not k.startswith("norms.")}
    if change == "missing":
        del weights["stages.1.0.pwconv1.bias"]
    elif change == "cut":
        weights["stages.1.1.pwconv2.weight"] = weights["stages.1.1.pwconv2.weight"][:, :7].clone()
    elif change == "a stage":
        weights = {k: v for k, v in weights.items() if not k.startswith("stages.1.")}
    elif change == "cut norm":
        weights |= {"norm.weight": torch.ones(15), "norm.bias": torch.zeros(15)}
    else:
        weights["norm.weight"] = torch.ones(16)
    save_file(weights, tmp_path / "w.safetensors")
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "w.safetensors"), str(out), "--to", to]) == 2
    error = capsys.readouterr().err
    assert "incomplete" in error
    assert not out.exists()
