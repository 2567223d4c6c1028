"""What the pickles of a PyTorch file would build, checked before torch builds anything.

`torch.load(weights_only=True)` calls what is on torch's own list with any arguments, any number of
times. Of a few bytes, `torch.FloatTensor(n)` makes a tensor of memory that nobody wrote; a tensor
may outgrow its storage, and `_codecs.encode` doubles a text at each call. So a pickle is first
interpreted here, without building anything: `_CALLS` lists the calls that weights need and the
arguments they have, and what all of it takes in memory is limited by what is stored.

torch's process-wide list of safe types, which the caller has set, is admitted as it is.
"""

import math
import pickle
import pickletools
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import torch
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from .containers import CheckpointError, check_inflation, memory_limit
from .inert_types import INERT_DICTS
from .numpy_types import refuse


def safe_names() -> frozenset[str]:
    """Return the names of what torch's process-wide list of safe types holds now."""
    return frozenset(map(name_of, torch.serialization.get_safe_globals()))


def name_of(entry: Any) -> str:
    """Return the name by which a pickle asks for an entry of that list."""
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def raise_damaged(reason: str) -> NoReturn:
    """Raise the unpickler's error of a damaged file."""
    raise pickle.UnpicklingError(reason)


# ------------------------------------------------------------------------------ interpreting

_OPERATION = 100  # bytes that one operation takes, about: an empty dict has 64
_ENTRY = 64  # bytes of an entry of a set or a dict, about
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_READ = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_DICTS = ("collections.OrderedDict", "collections.Counter")
_TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_STORAGE_TYPE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
_ITEM_SIZES = {
    "ComplexDouble": 16,
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Byte", "Char", "Bool", "Untyped"), 1),
    **dict.fromkeys(("QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
}


@dataclass(frozen=True)
class _Global:
    """A class, a function or a constant that a pickle names."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A storage that a pickle names, of `count` items."""

    key: str
    item_size: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.item_size * self.count


@dataclass(eq=False)
class _Object:
    """What a call returns, and about how many bytes it takes."""

    maker: str
    size: int


class PickleReader:
    """Interprets a pickle as torch's safe unpickler does, with stand-ins for all that it builds."""

    def __init__(
        self, stream: BinaryIO, name: str, stored: int, *, is_legacy: bool = False
    ) -> None:
        self.storages: dict[str, _Storage] = {}
        self._stream, self._name, self._stored, self._is_legacy = stream, name, stored, is_legacy
        self._size, self._limit = 0, memory_limit(stored)
        self._safe_names = safe_names()
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Interpret one pickle to its end; return its object, made of stand-ins."""
        for operation, argument, _ in pickletools.genops(self._stream):
            self._take(_OPERATION)
            if operation.name in _READ:
                self._stack.append(argument)
            elif operation.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[operation.name])
            elif operation.name in _STEPS:
                _STEPS[operation.name](self, argument)
            else:
                raise_damaged(f"torch.load knows no {operation.name} in a pickle")
        return self._stack.pop()

    def _begin(self, protocol: int) -> None:
        if protocol in (4, 5):
            raise CheckpointError(
                f"cannot read checkpoint {self._name}: it has pickle protocol {protocol}; save it "
                "with protocol 2, the default of torch.save"
            )

    def _take(self, size: int) -> None:
        self._size += size
        if self._size > self._limit:
            check_inflation(self._name, self._size, self._stored)

    def _pop(self, count: int) -> list[Any]:
        return [self._stack.pop() for _ in range(count)][::-1]

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target += items
        elif getattr(target, "maker", "") not in self._safe_names:
            refuse("an item of what is no list")

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not all(map(_is_key, items[::2])):
            refuse("a key that is no plain value")
        if isinstance(target, dict):
            target |= zip(items[::2], items[1::2], strict=True)
        elif getattr(target, "maker", "") not in (*_DICTS, *INERT_DICTS):
            refuse("an item of what is no dict")

    def _find(self, argument: str) -> None:
        module, _, name = argument.partition(" ")  # as protocol 2 has them: Python 2's
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        name = f"{module}.{name}"
        if name == "builtins.bytearray":
            reason = "builds a bytearray, which weights have no need of"
            raise CheckpointError(f"{self._name}: its pickle {reason}")
        if not (name in _CALLS or name in self._safe_names or _is_constant(name)):
            refuse(name[:100])
        self._stack.append(_Global(name))

    def _call(self, _: Any) -> None:
        function, arguments = self._pop(2)
        name = getattr(function, "name", "what is no function")
        if not isinstance(arguments, tuple) or (self._is_legacy and name in _COPIES):
            refuse(f"a call of {name} in this way")
        # What is on torch's process-wide list checks its arguments itself.
        is_safe = name in self._safe_names and name not in _CALLS
        size = _size_of(arguments) if is_safe else _size_of_call(name, arguments)
        self._take(0 if name in _DENSE else size)  # a view of a storage takes nothing
        self._stack.append(_Object(name, size))

    def _make(self, _: Any) -> None:
        """Interpret `cls.__new__(cls, ...)`: no class of torch's own list is saved like that."""
        if getattr(self._stack[-2], "name", "") not in self._safe_names:
            refuse("a new object of an unknown class")
        self._call(None)

    def _build(self, _: Any) -> None:
        """Interpret the setting of a state: an object's, or the versions in a state dict."""
        state, target = self._stack.pop(), self._stack[-1]
        maker, size = getattr(target, "maker", type(target).__name__), _size_of(state)
        is_versions = isinstance(state, dict) and state.keys() <= {"_metadata"}
        is_dict = maker == _DICTS[0] or maker in INERT_DICTS
        if not (is_versions if is_dict else maker in self._safe_names) or _sets_class(state):
            refuse(f"a state of {maker}")
        target.size += size
        self._take(size)

    def _load(self, _: Any) -> None:
        """Interpret the loading of a storage: wherever it is named, it has one type and size."""
        word, kind, key, location, count, *view = self._stack.pop()
        found = _STORAGE_TYPE.fullmatch(kind.name)
        is_text = isinstance(key, str) and isinstance(location, str)
        # The last part is a view of another storage, which only torch < 0.4 wrote.
        if word != "storage" or not found or not is_text or view not in ([], [None]):
            raise_damaged("it names a storage as torch.save does not")
        storage = _Storage(key, _ITEM_SIZES[found[1]], count if _are_counts(count) else -1)
        known = self.storages.setdefault(key, storage)
        if storage.count < 0 or (storage.count > 0 and known != storage):
            raise_damaged(f"it names the storage {key!r} with another size or type")
        self._stack.append(storage)


# What torch's safe unpickler knows, besides _READ and _CONSTANTS.
_STEPS: dict[str, Callable[[PickleReader, Any], Any]] = {
    "PROTO": PickleReader._begin,
    "STOP": lambda reader, _: None,
    "MARK": PickleReader._mark,
    "BINPUT": PickleReader._put,
    "LONG_BINPUT": PickleReader._put,
    "BINGET": PickleReader._get,
    "LONG_BINGET": PickleReader._get,
    "TUPLE": lambda reader, _: reader._push(tuple(reader._pop_mark())),
    "TUPLE1": lambda reader, _: reader._push(tuple(reader._pop(1))),
    "TUPLE2": lambda reader, _: reader._push(tuple(reader._pop(2))),
    "TUPLE3": lambda reader, _: reader._push(tuple(reader._pop(3))),
    "EMPTY_LIST": lambda reader, _: reader._push([]),
    "EMPTY_DICT": lambda reader, _: reader._push({}),
    "APPEND": lambda reader, _: reader._extend(reader._pop(1)),
    "APPENDS": lambda reader, _: reader._extend(reader._pop_mark()),
    "SETITEM": lambda reader, _: reader._set_items(reader._pop(2)),
    "SETITEMS": lambda reader, _: reader._set_items(reader._pop_mark()),
    "GLOBAL": PickleReader._find,
    "REDUCE": PickleReader._call,
    "NEWOBJ": PickleReader._make,
    "BUILD": PickleReader._build,
    "BINPERSID": PickleReader._load,
}


def _is_constant(name: str) -> bool:
    value = vars(torch).get(name.removeprefix("torch."))
    is_value = name.startswith("torch.") and isinstance(value, torch.dtype | torch.qscheme)
    return is_value or name in _TENSOR_TYPES or _STORAGE_TYPE.fullmatch(name) is not None


def _is_key(key: Any) -> bool:
    """Return whether a key can be hashed: tuples far inside each other overflow the stack."""
    if isinstance(key, tuple):
        is_flat = len(key) <= _MAX_AXES and not any(isinstance(part, tuple) for part in key)
        return is_flat and all(map(_is_key, key))
    if isinstance(key, int):
        return abs(key) < sys.hash_info.modulus  # beyond it, any number of them has one hash
    return isinstance(key, str | bytes | float | None | _Global | _Object)


def _sets_class(state: Any) -> bool:
    """Return whether a state may assign `__class__`, as the second of two dicts can."""
    slots = state[1] if isinstance(state, tuple) and len(state) == 2 else None
    is_special = isinstance(slots, dict) and any(str(key).startswith("__") for key in slots)
    return is_special or getattr(slots, "maker", "") in _DICTS


def _size_of(value: Any, depth: int = 1) -> int:
    """Return about how many bytes a copy of a value takes, with that of what is directly in it."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, tuple | list | dict):
        items = list(value.values()) if isinstance(value, dict) else value
        inside = sum(_size_of(item, depth - 1) for item in items) if depth else 0
        return _ENTRY * len(items) + inside
    return value.size if isinstance(value, _Object) else 0


# ------------------------------------------------------------------------------ what may be called
# Each function returns about how many bytes a call takes, or None for arguments that weights do not
# have; a TypeError and its like mean the same.


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
    item_size: int = 0,
) -> int | None:
    """Check that a tensor lies within its storage, which would grow for it otherwise."""
    if not _is_shape(size, stride) or not _are_counts(offset):
        return None
    if not _is_usual(grad, hooks, metadata):
        return None
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count, item_size = math.prod(size), item_size or storage.item_size
    if count and (last + 1) * item_size > storage.nbytes:
        raise_damaged(
            f"a tensor of shape {size} is larger than its storage of {storage.nbytes:,} bytes"
        )
    return count * item_size


def _tensor_of_dtype(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> int | None:
    item_size = vars(torch)[dtype.name.removeprefix("torch.")].itemsize
    return _tensor(storage, offset, size, stride, grad, hooks, metadata, item_size)


def _quantized(
    storage: Any, offset: Any, size: Any, stride: Any, scheme: Any, grad: Any, hooks: Any
) -> int | None:
    """Check a quantized tensor, which has memory of its own before it is given the storage."""
    nbytes = _tensor(storage, offset, size, stride, grad, hooks)
    parts = [part for item in scheme[1:] for part in (item if isinstance(item, list) else [item])]
    is_plain = all(_is_dense(part) or isinstance(part, int | float) for part in parts)
    if not is_plain or nbytes is None or nbytes > storage.nbytes:
        return None
    return nbytes + _ENTRY * len(parts)


def _parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> int | None:
    is_tensor = isinstance(data, _Object) and data.maker.startswith("torch._")
    if not is_tensor or not _is_usual(grad, hooks) or not _is_state(state):
        return None
    return _ENTRY * len(state or ())


def _with_attributes(function: Any, kind: Any, arguments: Any, state: Any) -> int | None:
    """Check a tensor that has attributes, or is of a class that the user allows."""
    is_own = kind.name in _TENSOR_TYPES and _is_state(state)
    if not is_own and kind.name not in safe_names():
        return None
    return _size_of_call(function.name, arguments) + _size_of(state)


def _of_users_class(kind: Any, *_: Any) -> int | None:
    return 0 if kind.name in safe_names() else None


def _of_device(data: Any, dtype: Any, device: Any, grad: Any) -> int | None:
    """Check a tensor of an XLA device or its like, which is a copy of an array or a tensor."""
    is_plain = _is_dense(data) or data.maker.endswith(".multiarray._reconstruct")
    is_usual = isinstance(device, str) and isinstance(grad, bool)
    return MAX_ITEM * data.size if is_plain and is_usual else None


def _sparse(layout: Any, parts: Any) -> int | None:
    """Check a sparse tensor but for its indices, which torch checks after loading."""
    dense = [part for part in parts if _is_dense(part)]
    others = [part for part in parts if not _is_dense(part)]
    is_usual = all(isinstance(o, tuple | bool | None) or o.maker == "torch.Size" for o in others)
    size = MAX_ITEM * sum(part.size for part in dense) + _size_of(others)
    return size if is_usual and isinstance(layout, _Object) else None


def _nested(*parts: Any) -> int | None:
    is_usual = len(parts) == 4 and all(map(_is_dense, parts))
    return MAX_ITEM * sum(part.size for part in parts) if is_usual else None


def _without_values(dtype: Any, size: Any, stride: Any, grad: Any) -> int | None:
    return 0 if _is_shape(size, stride) and isinstance(grad, bool) else None


def _ordered_dict(pairs: Any = ()) -> int | None:
    is_usual = all(_is_key(key) for key, _ in pairs)  # Python 2 wrote pairs
    return _ENTRY * len(pairs) if is_usual else None


def _collection(keys: Any = ()) -> int | None:
    is_usual = isinstance(keys, tuple | list | dict) and all(map(_is_key, keys))
    return _ENTRY * len(keys) if is_usual else None


def _plain(*values: Any) -> int | None:
    is_usual = all(isinstance(value, str | int | float) for value in values)
    return _size_of(values) if is_usual else None


def _bytes(text: Any, encoding: Any) -> int | None:
    return len(text) if isinstance(text, str) and encoding == "latin1" else None


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _is_shape(size: Any, stride: Any) -> bool:
    return len(size) == len(stride) <= _MAX_AXES and _are_counts(*size, *stride)


def _is_dense(value: Any) -> bool:
    return isinstance(value, _Object) and value.maker in _DENSE


def _is_usual(grad: Any, hooks: Any, metadata: Any = None) -> bool:
    """Check what follows the shape of a tensor; torch takes hooks for a dict without looking."""
    is_dict = hooks is None or hooks.maker == _DICTS[0]
    return isinstance(grad, bool) and is_dict and isinstance(metadata, dict | None)


def _is_state(state: Any) -> bool:
    """Return whether a state leaves what every tensor has alone."""
    return state is None or (isinstance(state, dict) and not state.keys() & _MEMBERS)


_MAX_AXES = 64  # as most functions of torch have it
MAX_ITEM = 16  # bytes of a number; a copy of bytes may have so many for each
_MEMBERS = frozenset(dir(torch.nn.Parameter))
_DENSE: dict[str, Callable[..., int | None]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
}
# What copies a tensor, whose storage files of torch < 1.6 fill only later.
_COPIES = (
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_nested_tensor",
)
_CALLS: dict[str, Callable[..., int | None]] = {
    **_DENSE,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch._utils._rebuild_wrapper_subclass": _of_users_class,
    "torch._utils._rebuild_device_tensor_from_numpy": _of_device,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _of_device,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_values,
    "torch.serialization._get_layout": _plain,
    "torch.device": _plain,
    "torch.Size": _collection,
    "builtins.complex": _plain,
    "builtins.set": _collection,
    "collections.Counter": _collection,
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _bytes,
}


def _size_of_call(name: str, arguments: Any) -> int:
    """Return about how many bytes a call takes; UnpicklingError: it is none that weights need."""
    size = None
    if name in _CALLS:
        with suppress(TypeError, ValueError, LookupError, AttributeError):
            size = _CALLS[name](*arguments)
    if size is None:
        refuse(f"a call of {name} with such arguments")
    return size
