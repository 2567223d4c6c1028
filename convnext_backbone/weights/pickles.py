"""Pickles of PyTorch files, read by a table of what they may call.

The unpicklers of Python and of torch import what a file names, and call it with any arguments, any
number of times; even of torch's own safe list, `torch.FloatTensor(n)` makes a tensor of memory that
nobody wrote, and `_codecs.encode` doubles a text at each call. Here a name stands for what
`_CALLS` or `NUMPY_TYPES` has under it, or for a type that the caller or the user allows, and
nothing is imported. `_CALLS` also says with which arguments weights have a call, and what all of a
pickle takes in memory is limited by what is stored.
"""

import codecs
import math
import pickletools
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch._utils import IMPORT_MAPPING, NAME_MAPPING
from torch.storage import TypedStorage, UntypedStorage

from .containers import check_inflation, memory_limit, raise_damaged, refuse
from .numpy_types import NUMPY_TYPES, CheckedDtype, fill_array, reconstruct

# What torch puts on the user's list when these are imported: a `DeviceMesh` connects to other
# processes.
_OF_TORCH = re.compile(r"torch\.(distributed|nested|_dynamo)\.")


def users_types() -> dict[str, Any]:
    """Return what the user allowed by `torch.serialization.add_safe_globals`, by its name."""
    entries = torch.serialization.get_safe_globals()
    named = {e[1]: e[0] for e in entries if isinstance(e, tuple)}
    named |= {_name_of(e): e for e in entries if not isinstance(e, tuple)}
    return {name: entry for name, entry in named.items() if not _OF_TORCH.match(name)}


def _name_of(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


# ------------------------------------------------------------------------------ reading

_OPERATION = 100  # bytes that one operation takes, about: an empty dict has 64
_ENTRY = 64  # bytes of an entry of a set or a dict, about
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_IGNORED = {"PROTO", "FRAME", "STOP"}
# Operations whose argument is a value: a number, a text or bytes.
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_TEXTS = {"SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_READ = _NUMBERS | _TEXTS | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_STORAGE_TYPE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
_STORAGE_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Untyped": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}


@dataclass(frozen=True)
class StorageType:
    """The type of a storage that a pickle names."""

    dtype: torch.dtype

    def nbytes(self, count: int) -> int:
        """Return the bytes of so many items."""
        return count * self.dtype.itemsize


class PickleReader:
    """Reads pickles of one file.

    Args:
        stream: What the pickles are read from.
        name: The file's, for errors.
        stored: Bytes of the file.
        types: What may be called besides what weights need, by its name in pickles.
        fetch: Returns a storage's bytes, given its key, their number and its device.
    """

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        stored: int,
        types: Mapping[str, Any],
        fetch: Callable[[str, int, str], UntypedStorage],
    ) -> None:
        self.storages: dict[str, tuple[StorageType, int]] = {}  # each with the number of its items
        self._stream, self._name, self._stored = stream, name, stored
        self._size, self._limit = 0, memory_limit(stored)
        self._names = {**types, **_NAMES}
        self._types = frozenset(types.values())
        self._fetch = fetch
        self._fetched: dict[str, UntypedStorage] = {}
        self._unfilled: dict[int, Any] = {}  # arrays whose state comes later
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Read one pickle to its end; return its object."""
        for operation, argument, _ in pickletools.genops(self._stream):
            self._take(_OPERATION)
            if operation.name in _READ:
                self._stack.append(argument)
            elif operation.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[operation.name])
            elif operation.name in _STEPS:
                _STEPS[operation.name](self, argument)
            elif operation.name not in _IGNORED:
                raise_damaged(f"weights have no {operation.name} in their pickle")
        return self._stack.pop()

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

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is set:
            _check_keys(items)
            target.update(items)
        elif type(target) is list:
            target += items
        else:
            refuse("an item of what is no list or set")

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in _DICTS:
            refuse("an item of what is no dict")
        _check_keys(items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def _push_named(self, module: str, name: str) -> None:
        """Push what a name stands for; files of protocol 2 have the names of Python 2."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self._push(self._find(f"{module}.{name}"))

    def _find(self, name: str) -> Any:
        if name in self._names:
            return self._names[name]
        storage = _STORAGE_TYPE.fullmatch(name)
        if storage and storage[1] in _STORAGE_DTYPES:
            return StorageType(_STORAGE_DTYPES[storage[1]])
        constant = vars(torch).get(name.removeprefix("torch."))
        if not name.startswith("torch.") or not isinstance(constant, torch.dtype | torch.qscheme):
            refuse(name[:100])
        return constant

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        if not isinstance(arguments, tuple):
            refuse("a call without arguments")
        self._push(self._call(function, arguments))

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not callable(function):  # and before it is hashed: tuples of tuples may take for ever
            refuse("a call of what is no function")
        if function is torch._tensor._rebuild_from_type_v2:
            return self._call_with_type(*arguments)
        size = _size_of(arguments)  # what the caller or the user allows checks its arguments itself
        if function in _CALLS:
            size = _size_of_call(function, arguments)
        elif function not in self._types:
            refuse(f"a call of {_name_of(function)}")
        self._take(0 if function in _DENSE else size)  # a view of a storage takes nothing
        made = function(*arguments)
        if function is reconstruct:
            self._unfilled[id(made)] = made
        return made

    def _call_with_type(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """Make a tensor that has attributes, or is of a class that the user allows."""
        is_own = kind in _TENSOR_TYPES and _is_state(state)
        if not (is_own or self._is_allowed(kind)) or not isinstance(arguments, tuple):
            refuse("a tensor with such attributes, or of such a class")
        self._take(_size_of(state))
        made = self._call(function, arguments)
        return torch._tensor._rebuild_from_type_v2(lambda: made, kind, (), state)

    def _is_allowed(self, kind: Any) -> bool:
        return isinstance(kind, type) and kind in self._types

    def _make(self, _: Any) -> None:
        """Call `cls.__new__(cls, ...)`: no class of torch's or Python's is saved like that."""
        kind, arguments = self._pop(2)
        if not self._is_allowed(kind):
            refuse("a new object of such a class")
        self._take(_size_of(arguments))
        self._push(kind.__new__(kind, *arguments))

    def _build(self, _: Any) -> None:
        """Set a state: an array's, an object's, or the versions in a state dict."""
        state, target = self._stack.pop(), self._stack[-1]
        self._take(_size_of(state))
        if id(target) in self._unfilled:
            fill_array(self._unfilled.pop(id(target)), state)
        elif isinstance(target, CheckedDtype):
            target.set_state(state)
        elif type(target) is OrderedDict and type(state) is dict and state.keys() <= {"_metadata"}:
            vars(target).update(state)
        elif type(target) in self._types:
            _set_state(target, state)
        else:
            refuse(f"a state of {type(target).__name__}")

    def _load(self, _: Any) -> None:
        """Push a storage: wherever it is named, it has one type and size."""
        word, kind, key, location, count, *view = self._stack.pop()
        is_usual = isinstance(key, str) and isinstance(location, str) and _are_counts(count)
        # The last part is a view of another storage, which only torch < 0.4 wrote.
        is_usual = is_usual and isinstance(kind, StorageType) and view in ([], [None])
        if word != "storage" or not is_usual:
            raise_damaged("it names a storage as torch.save does not")
        if self.storages.setdefault(key, (kind, count)) != (kind, count) and count:
            raise_damaged(f"it names the storage {key!r} with another size or type")
        if not count:
            storage = UntypedStorage(0)
        elif key not in self._fetched:
            storage = self._fetch(key, kind.nbytes(count), location)
            self._fetched[key] = storage
        else:
            storage = self._fetched[key]
        self._push(TypedStorage(wrap_storage=storage, dtype=kind.dtype, _internal=True))


class StorageFinder(PickleReader):
    """Follows a pickle for the storages that it names, and makes nothing."""

    def _find(self, name: str) -> Any:
        return super()._find(name) if _STORAGE_TYPE.fullmatch(name) else None

    def _call(self, function: Any, arguments: Any) -> None: ...

    def _make(self, _: Any) -> None:
        self._pop(2)
        self._push(None)

    def _build(self, _: Any) -> None:
        self._pop(1)

    def _extend(self, items: list[Any]) -> None: ...

    _set_items = _extend


# What is done at an operation, besides those of _READ, _CONSTANTS and _IGNORED.
_STEPS: dict[str, Callable[[PickleReader, Any], Any]] = {
    "MARK": PickleReader._mark,
    "BINPUT": PickleReader._put,
    "LONG_BINPUT": PickleReader._put,
    "MEMOIZE": lambda reader, _: reader._put(len(reader._memo)),
    "BINGET": lambda reader, index: reader._push(reader._memo[index]),
    "LONG_BINGET": lambda reader, index: reader._push(reader._memo[index]),
    "TUPLE": lambda reader, _: reader._push(tuple(reader._pop_mark())),
    "TUPLE1": lambda reader, _: reader._push(tuple(reader._pop(1))),
    "TUPLE2": lambda reader, _: reader._push(tuple(reader._pop(2))),
    "TUPLE3": lambda reader, _: reader._push(tuple(reader._pop(3))),
    "EMPTY_LIST": lambda reader, _: reader._push([]),
    "EMPTY_DICT": lambda reader, _: reader._push({}),
    "EMPTY_SET": lambda reader, _: reader._push(set()),
    "FROZENSET": lambda reader, _: reader._push(reader._call(frozenset, (reader._pop_mark(),))),
    "APPEND": lambda reader, _: reader._extend(reader._pop(1)),
    "APPENDS": lambda reader, _: reader._extend(reader._pop_mark()),
    "SETITEM": lambda reader, _: reader._set_items(reader._pop(2)),
    "SETITEMS": lambda reader, _: reader._set_items(reader._pop_mark()),
    "ADDITEMS": lambda reader, _: reader._extend(reader._pop_mark()),
    "GLOBAL": lambda reader, argument: reader._push_named(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda reader, _: reader._push_named(*reader._pop(2)),
    "REDUCE": PickleReader._reduce,
    "NEWOBJ": lambda reader, _: reader._make(_),
    "BUILD": lambda reader, _: reader._build(_),
    "BINPERSID": PickleReader._load,
}


def _check_keys(keys: list[Any]) -> None:
    if not all(map(_is_key, keys)):
        refuse("a key that is no plain value")


def _is_key(key: Any) -> bool:
    """Return whether a key may be hashed: tuples far inside each other overflow the stack."""
    if isinstance(key, tuple):
        is_flat = len(key) <= _MAX_AXES and not any(isinstance(part, tuple) for part in key)
        return is_flat and all(map(_is_key, key))
    if isinstance(key, int | np.integer):
        return abs(int(key)) < sys.hash_info.modulus  # beyond, any number of them has one hash
    return not isinstance(key, complex | np.complexfloating)  # which makes such, too


def _set_state(target: Any, state: Any) -> None:
    """Set the state of an object of an allowed type, as torch does."""
    if hasattr(target, "__setstate__"):
        target.__setstate__(state)
        return
    own, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    names = [*(own or ()), *(slots or ())]
    is_plain = isinstance(own, dict | None) and isinstance(slots, dict | None)
    if not is_plain or any(not isinstance(name, str) or name.startswith("__") for name in names):
        refuse(f"a state of {type(target).__name__} with special names")
    if own:
        vars(target).update(own)
    for name, value in (slots or {}).items():
        setattr(target, name, value)


def _size_of(value: Any, depth: int = 1) -> int:
    """Return about how many bytes a copy of a value takes, with that of what is directly in it."""
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if isinstance(value, tuple | list | dict | set | frozenset):
        items = list(value.values()) if isinstance(value, dict) else value
        inside = sum(_size_of(item, depth - 1) for item in items) if depth else 0
        return _ENTRY * len(items) + inside
    return _nbytes_of(value) if isinstance(value, Tensor | np.ndarray) else 0


def _nbytes_of(*values: Any) -> int:
    """Return the bytes of arrays, and of tensors as if they were dense."""
    tensors = sum(value.numel() * value.itemsize for value in values if isinstance(value, Tensor))
    return tensors + sum(value.nbytes for value in values if isinstance(value, np.ndarray))


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
    if not isinstance(storage, TypedStorage) or not _is_shape(size, stride):
        return None
    if not _are_counts(offset) or not _is_usual(grad, hooks, metadata):
        return None
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count, item_size = math.prod(size), item_size or storage.dtype.itemsize
    nbytes = storage._untyped_storage.nbytes()
    if count and (last + 1) * item_size > nbytes:
        raise_damaged(f"a tensor of shape {size} is larger than its storage of {nbytes:,} bytes")
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
    return _tensor(storage, offset, size, stride, grad, hooks, metadata, dtype.itemsize)


def _quantized(
    storage: Any, offset: Any, size: Any, stride: Any, scheme: Any, grad: Any, hooks: Any
) -> int | None:
    """Check a quantized tensor, which has memory of its own before it is given the storage."""
    nbytes = _tensor(storage, offset, size, stride, grad, hooks)
    parts = [part for item in scheme[1:] for part in (item if isinstance(item, list) else [item])]
    is_plain = all(isinstance(part, Tensor | int | float) for part in parts)
    if not is_plain or nbytes is None or nbytes > storage._untyped_storage.nbytes():
        return None
    return nbytes + _ENTRY * len(parts)


def _parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> int | None:
    if not isinstance(data, Tensor) or not _is_usual(grad, hooks) or not _is_state(state):
        return None
    return _size_of(state)


def _of_device(data: Any, dtype: Any, device: Any, grad: Any) -> int | None:
    """Check a tensor of an XLA device or its like, which is a copy of an array or a tensor."""
    is_usual = isinstance(dtype, torch.dtype) and isinstance(device, str) and isinstance(grad, bool)
    is_usual = is_usual and isinstance(data, Tensor | np.ndarray)
    return MAX_ITEM * _nbytes_of(data) if is_usual else None


def _copy(data: Any, dtype: torch.dtype, device: str, grad: bool) -> Tensor:
    """Copy what was on a device that this machine may lack: a copy shares no memory with others."""
    return torch.as_tensor(data).to(dtype, copy=True).requires_grad_(grad)


def _sparse(layout: Any, parts: Any) -> int | None:
    is_usual = all(isinstance(part, Tensor | tuple | bool | None) for part in parts)
    return MAX_ITEM * _nbytes_of(*parts) if is_usual and isinstance(layout, torch.layout) else None


def _make_sparse(layout: torch.layout, parts: Any) -> Tensor:
    """Make a sparse tensor; its indices are checked, which torch leaves for later."""
    if layout is torch.sparse_coo:
        indices, values, size = parts[:3]
        return torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
    return torch.sparse_compressed_tensor(*parts, layout=layout, check_invariants=True)


def _nested(buffer: Any, sizes: Any, strides: Any, offsets: Any) -> int | None:
    rows = sizes.tolist()
    size = buffer.itemsize * sum(map(math.prod, rows)) + _ENTRY * len(rows)
    return size if all(_are_counts(*row) for row in rows) else None


def _make_nested(buffer: Tensor, sizes: Tensor, strides: Tensor, offsets: Tensor) -> Tensor:
    """Make a nested tensor of copies; torch takes the place of each row as a file states it."""
    rows = zip(sizes.tolist(), strides.tolist(), offsets.tolist(), strict=True)
    begin = buffer.storage_offset()
    views = [buffer.as_strided(size, stride, begin + offset) for size, stride, offset in rows]
    return torch.nested.as_nested_tensor(views)


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


def _text(text: Any, encoding: Any) -> int | None:
    return len(text) if isinstance(text, str) and encoding == "latin1" else None


def _nothing() -> int:
    return 0


def _empty_bytes() -> bytes:
    """Return the bytes of an empty array, which are pickled as a call of `bytes`."""
    return b""


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _is_shape(size: Any, stride: Any) -> bool:
    return len(size) == len(stride) <= _MAX_AXES and _are_counts(*size, *stride)


def _is_usual(grad: Any, hooks: Any, metadata: Any = None) -> bool:
    """Check what follows the shape of a tensor; hooks would be called."""
    has_hooks = hooks is not None and (type(hooks) is not OrderedDict or len(hooks) > 0)
    return isinstance(grad, bool) and not has_hooks and isinstance(metadata, dict | None)


def _is_state(state: Any) -> bool:
    """Return whether a state leaves what every tensor has alone."""
    return state is None or (isinstance(state, dict) and not state.keys() & _MEMBERS)


_MAX_AXES = 64  # as most functions of torch have it
MAX_ITEM = 16  # bytes of a number; a copy of bytes may have so many for each
_MEMBERS = frozenset(dir(torch.nn.Parameter))
_DICTS = (dict, OrderedDict, Counter)
_TENSOR_TYPES = (Tensor, torch.nn.Parameter)
_Check = Callable[..., int | None]
_DENSE: dict[Any, _Check] = {
    torch._utils._rebuild_tensor: _tensor,
    torch._utils._rebuild_tensor_v2: _tensor,
    torch._utils._rebuild_tensor_v3: _tensor_of_dtype,
}
# What is called under its own name, and the check of its arguments.
_OWN_NAMES: dict[Any, _Check] = {
    **_DENSE,
    torch._utils._rebuild_qtensor: _quantized,
    torch._utils._rebuild_parameter: _parameter,
    torch._utils._rebuild_parameter_with_state: _parameter,
    torch._utils._rebuild_meta_tensor_no_storage: _without_values,
    torch.serialization._get_layout: _plain,
    torch.device: _plain,
    torch.Size: _collection,
    complex: _plain,
    set: _collection,
    frozenset: _collection,
    Counter: _collection,
    OrderedDict: _ordered_dict,
    codecs.encode: _text,
}
# What takes the place of a name: numpy's check their arguments themselves.
_IN_PLACE: dict[str, tuple[Any, _Check]] = {
    "torch._utils._rebuild_device_tensor_from_numpy": (_copy, _of_device),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": (_copy, _of_device),
    "torch._utils._rebuild_sparse_tensor": (_make_sparse, _sparse),
    "torch._utils._rebuild_nested_tensor": (_make_nested, _nested),
    "builtins.bytes": (_empty_bytes, _nothing),
    **{name: (make, lambda *parts: _size_of(parts)) for name, make in NUMPY_TYPES.items()},
}
_CALLS = _OWN_NAMES | dict(_IN_PLACE.values())
_NAMES = {
    **{_name_of(kind): kind for kind in (*_TENSOR_TYPES, torch._tensor._rebuild_from_type_v2)},
    **{_name_of(function): function for function in _OWN_NAMES},
    **{name: make for name, (make, _) in _IN_PLACE.items()},
}


def _size_of_call(function: Any, arguments: tuple[Any, ...]) -> int:
    """Return about how many bytes a call takes, or refuse one that weights do not need."""
    size = None
    with suppress(TypeError, ValueError, LookupError, AttributeError):
        size = _CALLS[function](*arguments)
    if size is None:
        name = next(name for name, made in _NAMES.items() if made is function)
        refuse(f"a call of {name} with such arguments")
    return size
