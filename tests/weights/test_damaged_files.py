"""Random damage to every container, and pickles of torch that are hostile: a clear error, always.

The pickles are written operation by operation. A hostile one does little at the size it has here,
should it ever be read.
"""

import pickle
import random
import shutil
import struct
import sys
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from helpers.originals import ORIGINALS, V1
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone
from convnext_backbone.weights import file_limits
from convnext_backbone.weights.native import describe, open_weights
from convnext_backbone.weights.read import read_checkpoint
from convnext_backbone.weights.torch_files import (
    CheckpointError,
    read_torch_file,
)


def _torch(old_format):
    def write(folder):
        torch.save(
            {"model": V1.state_dict(), "epoch": 3},
            folder / "w.pth",
            _use_new_zipfile_serialization=not old_format,
        )
        return folder / "w.pth"

    return write


def _safetensors(folder):
    save_file(V1.state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


CONTAINERS = {
    "zip": _torch(False),
    "old": _torch(True),
    "safetensors": _safetensors,
    "keras_h5": ORIGINALS["keras_h5"].write,
    "keras_weights_h5": ORIGINALS["keras_weights_h5"].write,
    "keras_archive": ORIGINALS["keras_archive"].write,
    "shards": ORIGINALS["huggingface-v1_shards"].write,
}
PER_CONTAINER = 60


def _damage(data, chance):
    """Cut the bytes, or change up to 8 of them: anywhere, at the start, or at the end."""
    if chance.random() < 0.25:
        return bytes(data[: chance.randrange(len(data))])
    data = bytearray(data)
    ends = min(len(data), chance.choice([64, 1024, 8192]))
    for _ in range(chance.randint(1, 8)):
        place = chance.choice(
            [chance.randrange(len(data)), chance.randrange(ends), -1 - chance.randrange(ends)]
        )
        data[place] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONTAINERS)
def test_random_damage_is_a_clear_error_or_other_numbers(name, tmp_path):
    chance = random.Random(name)
    origin = CONTAINERS[name](tmp_path)
    broken = tmp_path / "broken"
    if origin.is_dir():
        shutil.copytree(origin, broken)
        files = sorted(origin.iterdir())
    else:
        broken = tmp_path / f"broken{origin.suffix}"
        files = [origin]
    outcomes = {"read": 0, "refused": 0}
    for index in range(PER_CONTAINER):
        file = chance.choice(files)
        target = broken / file.name if broken.is_dir() else broken
        target.write_bytes(_damage(file.read_bytes(), chance))
        try:
            describe(open_weights(broken))
            ConvNextBackbone.from_pretrained(broken)
            outcomes["read"] += 1
        except (ValueError, OSError):
            outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"input {index}: {type(error)}: {error}") from error
        if broken.is_dir():
            target.write_bytes(file.read_bytes())
    assert outcomes["refused"] > PER_CONTAINER // 10


# ------------------------------------------------------------------------------ writing pickles

NO, NONE, NOTHING = b"\x89", b"N", b")"


def name(dotted):
    module, _, last = dotted.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def parts(*values):
    return b"(" + b"".join(values) + b"t"


def call(function, *arguments):
    return name(function) + parts(*arguments) + b"R"


def new(cls, *arguments):
    return name(cls) + parts(*arguments) + b"\x81"


def entries(**values):
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def numbers(values):
    return parts(*map(number, values))


EMPTY = call("collections.OrderedDict")
INERT, INERT_DICT = call("pathlib.PosixPath", text("a")), call("collections.defaultdict")


def storage(key="0", count=4, kind="Float", view=b""):
    kind = name(f"torch.{kind}Storage")
    return parts(text("storage"), kind, text(key), text("cpu"), number(count), view) + b"Q"


def shape(size=(4,), stride=(1,), offset=0):
    return number(offset), numbers(size), numbers(stride)


def tensor(*of, **dimensions):
    where = (of[0] if of else storage(), *shape(**dimensions))
    return call("torch._utils._rebuild_tensor_v2", *where, NO, EMPTY)


def of_device(data, kind="numpy"):
    function = f"torch._utils._rebuild_device_tensor_from_{kind}"
    return call(function, data, name("torch.float32"), text("cpu"), NO)


def with_state(data, state):
    return call("torch._utils._rebuild_parameter_with_state", data, NO, EMPTY, state)


def with_type(function, cls, arguments, state=NONE):
    return call("torch._tensor._rebuild_from_type_v2", name(function), name(cls), arguments, state)


def quantized(size, stride):
    scheme = parts(name("torch.per_tensor_affine"), b"G?\xf0" + bytes(6), number(0))
    where = (storage(kind="QInt8"), *shape(size, stride))
    return call("torch._utils._rebuild_qtensor", *where, scheme, NO, EMPTY)


DTYPE = call("numpy.dtype", text("f4"), NO, b"\x88")
DTYPE += parts(number(3), text("<"), NONE * 3, number(-1), number(-1), number(0)) + b"b"
ARRAY = call("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), NOTHING, text("b"))


def filled(count, letter):
    data = call("_codecs.encode", text(letter * 4 * count), text("latin1"))
    return parts(number(1), numbers([count]), DTYPE, NO, data) + b"b"


def put(index):
    return b"q" + bytes([index])


def get(index):
    return b"h" + bytes([index])


# ------------------------------------------------------------------------------ hostile ones

MAKERS = (
    "torch.FloatTensor", "torch.LongTensor", "torch.cuda.HalfTensor", "torch.sparse.FloatTensor",
    "torch.Tensor", "torch.storage.UntypedStorage", "torch.storage.TypedStorage",
    "torch.FloatStorage", "builtins.bytearray", "__builtin__.bytearray", "builtins.bytes",
)  # fmt: skip
DAG = NOTHING + b"".join(put(9) + get(9) + b"\x86" for _ in range(60))


def of_type(kind):
    return parts(text("storage"), kind, text("0"), text("cpu"), number(4))


def nested(size=4, offset=0, stride=1):
    """Parts of a nested tensor of one row, of a buffer of 4 numbers."""
    integers = [
        call("torch._utils._rebuild_device_tensor_from_numpy", small_array(value),
             name("torch.int64"), text("cpu"), NO)
        for value in ([[size]], [[stride]], [offset])
    ]  # fmt: skip
    return tensor(), *integers


def small_array(value):
    """An array of small integers."""
    value = np.array(value, np.int64)
    kind = call("numpy.dtype", text("i8"), NO, b"\x88")
    data = call("_codecs.encode", text(value.tobytes().decode("latin1")), text("latin1"))
    made = call("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), NOTHING, text("b"))
    return made + parts(number(1), numbers(value.shape), kind, NO, data) + b"b"


DEEP = NOTHING + b"\x85" * 50  # a tuple in a tuple in a tuple ...
HOSTILE = {
    # An array that a tensor shares is filled again, and its memory is freed.
    "freed memory": entries(
        n=ARRAY + filled(500, "A") + put(1), a=of_device(get(1)), z=get(1) + filled(1, "B")
    ),
    "freed memory, empty at first": entries(
        n=ARRAY + filled(0, "A") + put(1), a=of_device(get(1)), z=get(1) + filled(1, "B")
    ),
    "two states": entries(n=ARRAY + filled(500, "A") + put(1), z=get(1) + filled(500, "B")),
    # Memory of any size, in which nobody wrote.
    **{f"{maker} called": entries(a=call(maker, number(1000))) for maker in MAKERS},
    **{f"{maker} made": entries(a=new(maker, number(1000))) for maker in MAKERS},
    **{
        f"{maker} called by another": entries(a=with_type(maker, "torch.Tensor", numbers([1000])))
        for maker in MAKERS
    },
    "parameter made": entries(a=new("torch.nn.parameter.Parameter", tensor())),
    "longer than its storage": entries(a=tensor(size=(5,))),
    "behind its storage": entries(a=tensor(offset=1)),
    "steps out of its storage": entries(a=tensor(size=(2,), stride=(4,))),
    "longer than what is stored": entries(a=tensor(storage(count=5), size=(5,))),
    "negative": entries(a=tensor(size=(-1,))),
    "more sizes than strides": entries(a=tensor(size=(1, 1))),
    "a storage of two lengths": entries(a=tensor(storage(count=3), size=(3,)), b=tensor()),
    "a storage of two types": entries(a=tensor(), b=tensor(storage(count=16, kind="Byte"))),
    "a storage of negative length": entries(a=tensor(storage(count=-1), size=())),
    "a storage that is nowhere": entries(a=tensor(storage("1"))),
    "a view of a storage": entries(a=tensor(storage(view=parts(text("1"), number(0), number(4))))),
    "wide items": entries(
        a=call(
            "torch._utils._rebuild_tensor_v3", storage(), *shape(), NO, EMPTY, name("torch.float64")
        )
    ),
    "quantized, expanded": entries(a=quantized((1000,), (0,))),
    "quantized, too long": entries(a=quantized((17,), (1,))),
    "expanded and copied": entries(a=of_device(tensor(size=(1 << 40,), stride=(0,)), "cpu_tensor")),
    # What grows.
    "another codec": entries(a=call("_codecs.encode", text("aa"), text("hex"))),
    "a codec of bytes": entries(
        a=call("_codecs.encode", call("_codecs.encode", text("a"), text("latin1")), text("latin1"))
    ),
    "a codec without a name": entries(a=call("_codecs.encode", text("a"))),
    # What takes the place of a method, a class or memory.
    "methods of a dict": EMPTY + entries(items=number(1)) + b"b",
    "methods of a counter": call("collections.Counter") + entries(items=number(1)) + b"b",
    "attributes of a dict, as a dict of another kind": EMPTY + EMPTY + b"b",
    "another memory of a tensor": entries(a=tensor() + parts(storage(), *shape()) + b"b"),
    "another memory of a parameter": entries(a=with_state(tensor(), entries(data=tensor()))),
    "methods of a parameter": entries(a=with_state(tensor(), entries(untyped_storage=number(1)))),
    "methods of a tensor": entries(
        a=with_type(
            "torch._utils._rebuild_tensor_v2",
            "torch.Tensor",
            parts(storage(), *shape(), NO, EMPTY),
            entries(data_ptr=number(1)),
        )
    ),
    "another class": entries(
        a=new("argparse.Namespace")
        + parts(entries(), entries(__class__=name("numpy.dtype")))
        + b"b"
    ),
    "another class, in a dict of another kind": entries(
        a=new("argparse.Namespace")
        + parts(entries(), EMPTY + text("__class__") + name("numpy.dtype") + b"s")
        + b"b"
    ),
    "hooks that are no dict": entries(
        a=call("torch._utils._rebuild_tensor_v2", storage(), *shape(), NO, number(1))
    ),
    # What overflows the stack when it is hashed, or always has the same hash.
    "a key of tuples in tuples": b"}" + DEEP + NONE + b"s",
    "a set of tuples in tuples": entries(a=call("builtins.set", b"](" + DEEP + b"e")),
    "pairs of tuples in tuples": call("collections.OrderedDict", b"](" + DEEP + NONE + b"\x86e"),
    "a huge key": b"}" + number((1 << 61) - 1) + NONE + b"s",
    "a long tuple for a key": b"}" + parts(*[NONE] * 1000) + NONE + b"s",
    # What an object that keeps nothing takes the place of.
    "methods of an inert dict": INERT_DICT + entries(items=number(1)) + b"b",
    "attributes of an inert dict, as a dict of another kind": INERT_DICT + EMPTY + b"b",
    "an item of an inert dict": entries(a=INERT_DICT + NONE + b"a"),
    "an entry of an inert object": entries(a=INERT + text("a") + NONE + b"s"),
    "a call of an inert object": entries(a=INERT + NOTHING + b"R"),
    "an inert storage": entries(a=tensor(INERT)),
    "inert hooks": entries(
        a=call("torch._utils._rebuild_tensor_v2", storage(), *shape(), NO, INERT_DICT)
    ),
    "an inert class of a tensor": entries(
        a=with_type(
            "torch._utils._rebuild_tensor_v2",
            "pathlib.PosixPath",
            parts(storage(), *shape(), NO, EMPTY),
        )
    ),
    "an inert class of a wrapper": entries(
        a=call(
            "torch._utils._rebuild_wrapper_subclass",
            *(name("pathlib.PosixPath"), name("torch.float32"), *shape((1 << 40,))[1:], number(0)),
            *(call("torch.serialization._get_layout", text("torch.strided")), text("cpu"), NO),
        )
    ),
    "an inert layout": entries(
        a=call("torch._utils._rebuild_sparse_tensor", INERT, parts(tensor(), tensor(), NONE))
    ),
    "an inert device": entries(
        a=call(
            "torch._utils._rebuild_device_tensor_from_numpy",
            *(INERT, name("torch.float32"), text("cpu"), NO),
        )
    ),
    "an inert scalar of numpy": entries(a=call("numpy._core.multiarray.scalar", DTYPE, INERT)),
    # What is no pickle of weights.
    # What is compared, hashed or shown for ever.
    **{
        f"tuples in tuples for {place}": body
        for place, body in {
            "a function": DAG + NOTHING + b"R",
            "a class": DAG + NOTHING + b"\x81",
            "a type of numbers": call("numpy.dtype", DAG, NO, NO),
            "names of a state": new("argparse.Namespace") + parts(NONE, parts(DAG)) + b"b",
            "a state": new("argparse.Namespace") + parts(DAG) + b"b",
            "a class of an array": call("numpy._core.multiarray._reconstruct", DAG, NO, NO),
            "a type of a storage": parts(*[of_type(DAG) + b"Q"] * 2),
            "a class of a tensor": call(
                "torch._tensor._rebuild_from_type_v2", name("builtins.set"), DAG, NOTHING, NONE
            ),
        }.items()
    },
    "an array of a number of bytes": entries(
        a=call("numpy._core.numeric._frombuffer", number(1 << 40), DTYPE, numbers([1]), text("C"))
    ),
    **{
        f"nested, {what}": entries(a=call("torch._utils._rebuild_nested_tensor", *tensors))
        for what, tensors in {
            "beyond its memory": nested(size=3, offset=2),
            "of a negative size": nested(size=-1),
            "expanded and copied": nested(size=1 << 40, stride=0),
            "before its memory": nested(size=1, offset=-1),
            "of three tensors": nested()[:3],
        }.items()
    },
    "an operation of other pickles": b"\x82\x01",
    "an item of a set of a list": b"\x8f(]\x90",
    "a huge item of a set": b"\x8f(" + number((1 << 61) - 1) + b"\x90",
    "a frozen set of tuples in tuples": b"(" + DEEP + b"\x91",
    "a complex key": b"}" + call("builtins.complex", number(1), number(2)) + NONE + b"s",
    "an operation that is none": b"\xff",
    "a call of a tensor": entries(a=tensor() + NOTHING + b"R"),
    "arguments that are none": entries(a=name("torch.Size") + b"]R"),
    "too few arguments": entries(a=call("torch._utils._rebuild_tensor_v2")),
    "too many arguments": entries(a=call("torch._utils._rebuild_tensor", *[number(1)] * 9)),
    "sparse values that are none": entries(
        a=call("torch._utils._rebuild_sparse_tensor", NONE, numbers([1, 2, 3]))
    ),
    "a class of nobody": entries(
        a=call("torch._utils._rebuild_wrapper_subclass", name("torch.Tensor"))
    ),
    "an unknown place in the memo": entries(a=get(9)),
    "an operation that torch does not know": b"N0",
    "an empty stack": b"a",
}


def write_zip(path, body, method=zipfile.ZIP_STORED, pickle_name="data.pkl"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"a/{pickle_name}", b"\x80\x02" + body + b".")
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/version", "3\n")
    return path


LENGTHS = struct.pack("<q", 4)


def write_legacy(path, body, keys=("0",), stored=(LENGTHS + bytes(16),)):
    if b"storage" not in body and stored:
        keys, stored = (), ()
    body = body.replace(b"tQ", b"NtQ")  # it is no view of another storage
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    begin = [torch.serialization.MAGIC_NUMBER, 1001, system]
    pickles = [*(pickle.dumps(part, 2) for part in begin), b"\x80\x02" + body + b"."]
    path.write_bytes(b"".join([*pickles, pickle.dumps(list(keys), 2), *stored]))
    return path


def refused(path, match="w.pth"):
    """A file is refused in one line, mapped or not."""
    with pytest.raises(CheckpointError, match=match) as raised:
        read_checkpoint(path)
    assert path.name in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError):
        read_checkpoint(path, mmap=False)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_is_refused(what, write, tmp_path):
    refused(write(tmp_path / "w.pth", HOSTILE[what]))


@pytest.mark.parametrize("pickle_name", ["data.PKL", "DATA.pkl", "other.pkl"])
def test_a_zip_file_without_the_pickle_of_torch_is_named(pickle_name, tmp_path):
    path = write_zip(tmp_path / "w.pth", entries(a=tensor()), pickle_name=pickle_name)
    refused(path, r"w\.pth: torch\.save did not write this zip file")


def test_what_a_file_is_refused_for_is_named(tmp_path):
    for maker, match in (
        ("torch.FloatTensor", r"refused .*w\.pth: it asks for torch\.FloatTensor, which"),
        ("os.system", r"refused .*w\.pth: it asks for os\.system, which"),
        ("_codecs.encode", r"it asks for a call of _codecs\.encode with such arguments"),
    ):
        refused(write_zip(tmp_path / "w.pth", entries(a=call(maker, number(1)))), match)
    long = write_zip(tmp_path / "w.pth", entries(a=tensor(size=(1000,))))
    refused(long, r"a tensor of shape \(1000,\) is larger than its storage of 16 bytes")


# ------------------------------------------------------------------------------ memory and time

AGAIN = {  # what is kept, and what copies it
    "a text": (
        text("x" * 10_000) + put(1) + text("latin1") + put(2),
        name("_codecs.encode") + get(1) + get(2) + b"\x86R",
    ),
    "a list": (b"](" + NONE * 5_000 + b"e" + put(1), name("builtins.set") + get(1) + b"\x85R"),
    "a dict": (
        b"}(" + b"".join(number(n) + NO for n in range(5_000)) + b"u" + put(1),
        name("collections.Counter") + get(1) + b"\x85R",
    ),
    "sizes": (numbers(range(5_000)) + put(1), name("torch.Size") + get(1) + b"\x85R"),
    "an array": (ARRAY + filled(2_000, "A") + put(1), of_device(get(1))),
    "attributes": (
        b"}(" + b"".join(text(f"a{n}") + NO for n in range(5_000)) + b"u" + put(1),
        with_state(tensor(), get(1)),
    ),
    "a scalar": (
        text("x" * 10_000) + put(1) + call("numpy.dtype", text("S10000"), NO, NO) + put(2),
        call(
            "numpy._core.multiarray.scalar", get(2), call("_codecs.encode", get(1), text("latin1"))
        ),
    ),
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("what", AGAIN)
def test_what_is_copied_many_times_is_limited_by_what_is_stored(what, write, tmp_path):
    kept, again = AGAIN[what]
    body = entries(kept=parts(kept), **{f"a{n}": again for n in range(1000)})
    with file_limits(free_mib=1, ratio=10):
        refused(write(tmp_path / "w.pth", body), "would need .* of memory")


def test_a_pickle_of_operations_that_pack_well_is_limited_by_what_is_stored(tmp_path):
    body = b"(" + b"}" * 100_000 + b"t"
    path = write_zip(tmp_path / "w.pth", body, zipfile.ZIP_DEFLATED)
    with file_limits(free_mib=1):
        refused(path, "would need .* of memory")
    with pytest.raises(ValueError, match="expected a dict of tensors, got tuple"):
        read_checkpoint(write_zip(path, body))


@pytest.mark.parametrize("one", [INERT, new("uuid.UUID"), INERT_DICT])
def test_objects_that_keep_nothing_count_as_memory(one, tmp_path):
    path = write_zip(tmp_path / "w.pth", b"(" + one * 10_000 + b"t", zipfile.ZIP_DEFLATED)
    with file_limits(free_mib=1):
        refused(path, "would need .* of memory")


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.filterwarnings("error")
def test_a_newer_protocol_is_read(protocol, is_zip, tmp_path):
    path, expected = tmp_path / "w.pth", V1.state_dict()
    more = [{1, "a"}, frozenset([2]), b"b" * 300, "c" * 300, np.arange(3.0), Namespace(d=1)]
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_zip}
    torch.save({"state_dict": expected, "more": more}, path, **options)
    tensors = read_checkpoint(path).tensors
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert repr(read_torch_file(path)["more"]) == repr(more)


@pytest.mark.filterwarnings("error:Validating sparse")
def test_no_hint_of_torch_is_shown(tmp_path):
    torch.save({"model": V1.state_dict(), "mask": torch.eye(3).to_sparse()}, tmp_path / "w.pth")
    assert ConvNextBackbone.from_pretrained(tmp_path / "w.pth").load_report.notes == ()


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_named(tmp_path):
    path, module = tmp_path / "w.pth", torch.nn.Linear(2, 2)
    torch.jit.trace(module, torch.ones(1, 2)).save(path)
    refused(path, "this is a program of TorchScript, not a state dict")
    torch.export.save(torch.export.export(module, (torch.ones(1, 2),)), tmp_path / "w.pt2")
    refused(tmp_path / "w.pt2", r"this is a program of torch\.export, not a state dict")


# ------------------------------------------------------------------------------ old files


@pytest.mark.parametrize(
    ("keys", "stored", "match"),
    [
        ((), (), "does not list the storages"),
        (("0", "0"), (LENGTHS + bytes(16),) * 2, "does not list the storages"),
        (("1",), (LENGTHS + bytes(16),), "does not list the storages"),
        (("0", "1"), (LENGTHS + bytes(16),) * 2, "does not list the storages"),
        ((0,), (LENGTHS + bytes(16),), "w.pth"),
        (("0",), (LENGTHS + bytes(15),), "cut off"),
        (("0",), (LENGTHS,), "cut off"),
        (("0",), (), "of another size"),
        (("0",), (struct.pack("<q", 3) + bytes(16),), "of another size"),
        (("0",), (struct.pack("<q", -1) + bytes(16),), "of another size"),
    ],
)
def test_every_storage_of_an_old_file_is_in_it(keys, stored, match, tmp_path):
    path = write_legacy(tmp_path / "w.pth", entries(a=tensor()), keys, stored)
    refused(path, match)
    assert read_checkpoint(write_legacy(path, entries(a=tensor()))).tensors["a"].sum() == 0


def test_a_pickle_that_torch_has_not_written_is_one_error(tmp_path):
    for content in (7, [1], {"a": 1}):
        (tmp_path / "w.pth").write_bytes(pickle.dumps(content, 2))
        refused(tmp_path / "w.pth", "does not begin as torch.save begins a file")


# ------------------------------------------------------------------------------ valid files


def parameter(**attributes):
    value = torch.nn.Parameter(torch.ones(2))
    vars(value).update(attributes)
    return value


def with_attribute(value):
    value.note = {"of": "mine"}
    return value


VERSIONED = OrderedDict(w=torch.ones(2))
VERSIONED._metadata = OrderedDict({"": {"version": 1}})
VALID = {
    "numbers": [1, -(1 << 70), 2.5, True, None, "text", b"bytes", b"", 1j, "\udc80"],
    "collections": [(), (1,), (1, 2), (1, 2, 3, 4), [], {}, {1, "a"}, set(), OrderedDict(a=1)],
    "keys": {1: 0, 2.5: 0, False: 0, None: 0, "a": 0, (1, "b"): 0, b"c": 0, torch.float16: 0},
    "counter": Counter("abca"),
    "versions of a state dict": VERSIONED,
    "arguments": Namespace(lr=0.1, names=["a"], inner=Namespace()),
    "constants of torch": [torch.float32, torch.bfloat16, torch.qint8, torch.per_tensor_affine],
    "types": [torch.Tensor, torch.nn.Parameter, OrderedDict, set],
    "devices and sizes": [torch.device("cuda", 1), torch.device("cpu"), torch.Size([2, 3])],
    "layouts": [torch.strided, torch.sparse_coo],
    "numpy": [np.arange(300.0), np.float32(2), np.array(["a"]), np.str_("b"), {np.int64(3): 1}],
    "the same array twice": [array := np.arange(5), array],
    "parameters": [parameter(), parameter(lr_mult=2.0, labels=["a"], mask=torch.ones(1))],
    "tensors with attributes": with_attribute(torch.ones(2)),
    "views": [(base := torch.arange(24.0)), base[5:], base.view(4, 6).T, base[:0], base[::3]],
    "an expanded tensor": torch.ones(3, 1).expand(3, 5),
    "empty tensors": [torch.ones(0, 3), torch.ones(0, dtype=torch.int8), torch.tensor(1.0)],
    "dtypes": [
        torch.ones(3, dtype=dtype)
        for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16,
            torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128,
        )
    ],
    "unsigned": [torch.ones(3, dtype=getattr(torch, f"uint{n}")) for n in (16, 32, 64)],
    "float8": [torch.ones(3).to(torch.float8_e4m3fn), torch.ones(3).to(torch.float8_e5m2)],
    "conjugates": [torch.ones(2, dtype=torch.complex64).conj(), torch.ones(2).requires_grad_()],
    "channels last": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "storages": [torch.ones(2).untyped_storage()],
    "sparse": lambda: [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()],
    "meta": torch.ones(3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: [
        torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint32),
        torch.quantize_per_channel(
            torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.quint8
        ),
    ],
}  # fmt: skip


NOT_OLD = ("unsigned", "float8", "storages", "nested")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("what", VALID)
def test_what_valid_files_hold_is_read(what, is_zip, tmp_path):
    path = tmp_path / "w.pth"
    if not is_zip and what in NOT_OLD:
        pytest.skip("torch itself cannot read it back")
    written = VALID[what]() if type(VALID[what]) is FunctionType else VALID[what]
    content = {"state_dict": V1.state_dict(), "more": written}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    read = read_torch_file(path, mmap=is_zip)["more"]
    if what == "storages":
        assert read[0].untyped().tolist() == written[0].tolist()
    else:
        assert "".join(repr(read).split()) == "".join(repr(written).split())
    tensors = read_checkpoint(path).tensors
    assert all(torch.equal(tensors[key], value) for key, value in V1.state_dict().items())


def test_what_other_writers_of_pickles_hold_is_read(tmp_path):
    """Python 2 wrote an OrderedDict as pairs, and torch tensors of XLA devices as arrays."""
    python2 = call("collections.OrderedDict", b"](](U\x01a" + tensor() + b"ee")
    versions = entries(_metadata=EMPTY) + b"b"
    others = {
        "a": of_device(ARRAY + filled(2, "A")),
        "b": call("__builtin__.set", b"](" + number(1) + b"e"),
        "c": call("torch._utils._rebuild_tensor", storage(), *shape()),
        "d": of_device(tensor(), "cpu_tensor"),
    }
    for write in (write_zip, write_legacy):
        tensors = read_checkpoint(write(tmp_path / "w.pth", python2 + versions)).tensors
        assert tensors["a"].tolist() == [0.0] * 4
        tensors = read_checkpoint(write(tmp_path / "w.pth", entries(**others))).tensors
        assert tensors["a"].numpy().tobytes() == b"A" * 8
        assert tensors["d"].tolist() == [0.0] * 4
        assert tensors.keys() == {"a", "c", "d"}


def test_a_tensor_of_another_device_is_a_copy(tmp_path):
    """An old file's storages are read before its tensors are made."""
    body = entries(a=tensor(), b=of_device(tensor(), "cpu_tensor"))
    stored = struct.pack("<q4f", 4, 1, 2, 3, 4)
    read = read_checkpoint(write_legacy(tmp_path / "w.pth", body, ("0",), (stored,))).tensors
    assert read["a"].tolist() == read["b"].tolist() == [1, 2, 3, 4]
    read["a"].zero_()
    assert read["b"].tolist() == [1, 2, 3, 4]


def test_another_order_of_bytes_is_named(tmp_path):
    path = write_zip(tmp_path / "w.pth", entries(a=tensor()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/byteorder", {"little": "big", "big": "little"}[sys.byteorder])
    refused(path, "a machine with another order of bytes")


class Subclass(torch.Tensor):
    """A class of tensors that a user allows."""


class Slots:
    """Another, whose state torch assigns."""

    __slots__ = ("value",)


def test_types_that_the_user_allows_are_read(tmp_path):
    slots = Slots()
    slots.value = 3
    content = {"a": torch.ones(2).as_subclass(Subclass), "b": slots}
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", r"asks for \S*(Subclass|Slots)")
    with torch.serialization.safe_globals([Subclass, Slots]):
        read = read_torch_file(tmp_path / "w.pth", types={})
    assert type(read["a"]) is Subclass
    assert read["b"].value == 3


@pytest.mark.parametrize(
    "what", ["distributed.device_mesh.DeviceMesh", "nested._internal.nested_tensor._rebuild_njt"]
)
def test_what_torch_allows_by_itself_is_not_the_users(what, tmp_path):
    pytest.importorskip("torch.distributed.tensor")
    assert f"torch.{what}" in {
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in torch.serialization.get_safe_globals()
        if not isinstance(kind, tuple)
    }
    path = write_zip(tmp_path / "w.pth", entries(a=call(f"torch.{what}", text("cpu"), number(0))))
    with pytest.raises(CheckpointError, match=rf"asks for torch\.{what},"):
        read_checkpoint(path)


def test_storages_are_mapped_where_their_bytes_are_aligned(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pth")
    write_zip(tmp_path / "odd.pth", entries(a=tensor()))
    write_zip(tmp_path / "packed.pth", entries(a=tensor()), zipfile.ZIP_DEFLATED)
    write_legacy(tmp_path / "old.pth", entries(a=tensor()))
    for file in ("plain.pth", "odd.pth", "packed.pth", "old.pth"):
        read = read_torch_file(tmp_path / file, mmap=True)["a"]
        size = (tmp_path / file).stat().st_size
        maps = Path("/proc/self/maps").read_text()
        place = next(
            (line for line in maps.splitlines() if file in line and _spans(line, read)), ""
        )
        assert bool(place) is (file == "plain.pth"), (file, size)


def _spans(line, tensor):
    first, last = (int(part, 16) for part in line.split()[0].split("-"))
    return first <= tensor.data_ptr() < last
