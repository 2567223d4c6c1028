"""numpy's arrays and scalars out of a pickle, rebuilt by functions that check every part.

numpy's own constructors trust what a file says: `numpy.ndarray` and `multiarray.scalar` take bytes
for objects, and a dtype's state can clear the flag that says so; the bytes of a file are then used
as a pointer. What stands here takes the place of numpy's names while a file is read. It admits
booleans, numbers, bytes and text, whose size must be that of their data.
"""

import math
import re
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np

_CODE = re.compile(r"[<>=|]?(?:[?bBhHiIlLqQefdFD]|[biufcSU]\d{1,9})")
_KINDS = "biufcSU"
_MAX_AXES = 8
_ORDERS = ("<", ">", "|", "=")


def refuse(what: str) -> NoReturn:
    """Refuse what a pickle asks for, in the form in which torch names it."""
    raise UnpicklingError(f"GLOBAL {what} was not an allowed global")


class CheckedDtype:
    """Takes the place of `numpy.dtype`: a simple type, never one of objects or of fields."""

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            refuse(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        """Take over the byte order; nothing else of a simple type's state may vary."""
        if not isinstance(state, tuple) or len(state) not in (8, 9) or state[1] not in _ORDERS:
            refuse("a state of numpy.dtype")
        size = (-1, self.dtype.itemsize)
        if any(part is not None for part in state[2:5]) or state[5] not in size:
            refuse("numpy.dtype with fields")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class CheckedArray(np.ndarray):
    """Takes the place of `numpy.ndarray`; it pickles as a plain array."""

    def __new__(cls, *args: object) -> "CheckedArray":
        """Refuse to be called: the constructor of an array takes a buffer for its elements."""
        refuse("numpy.ndarray(...)")

    def __setstate__(self, state: Any) -> None:
        """Fill the array from (version, shape, dtype, is it Fortran order, bytes), once."""
        # A second state would free the memory of the first, which a tensor may share by now.
        if "is_filled" in vars(self):
            refuse("a second state of numpy.ndarray")
        self.is_filled = True
        if not isinstance(state, tuple) or len(state) != 5:
            refuse("a state of numpy.ndarray")
        _, shape, dtype, fortran, data = state
        # numpy's own __setstate__ trusts the number of axes and reads beyond its 64.
        sizes = isinstance(shape, tuple) and len(shape) <= _MAX_AXES
        sizes = sizes and all(type(n) is int and n >= 0 for n in shape)
        # The strides of an empty array must not overflow either.
        sizes = sizes and math.prod(n or 1 for n in shape) < 1 << 48
        if not sizes or not _holds(dtype, data, math.prod(shape)):
            refuse("numpy.ndarray of objects or of another size than its data")
        plain: Any = (1, shape, dtype.dtype, bool(fortran), data)
        super().__setstate__(plain)

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


def _holds(dtype: object, data: object, count: int) -> bool:
    return (
        isinstance(dtype, CheckedDtype)
        and dtype.dtype.kind in _KINDS
        and dtype.dtype.itemsize > 0  # a copy of empty texts has 4 bytes for each
        and isinstance(data, bytes)
        and len(data) == count * dtype.dtype.itemsize
    )


def _reconstruct(cls: object, shape: object, code: object) -> CheckedArray:
    """Return the empty array whose state comes next, as `multiarray._reconstruct` does."""
    if cls is not CheckedArray:
        refuse(f"an array of class {cls!r}")
    return np.ndarray.__new__(CheckedArray, (0,), np.uint8)


def _scalar(dtype: Any, data: Any = None) -> Any:
    """Return a scalar of its bytes, as `multiarray.scalar` does."""
    if not _holds(dtype, data, 1):
        refuse("numpy.core.multiarray.scalar of an object")
    return np.frombuffer(data, dtype.dtype)[0]


def _no_bytes() -> bytes:
    """Return the data of an empty array, which pickles as a call of `bytes`."""
    return b""


def numpy_types() -> list[tuple[Callable[..., Any], str]]:
    """List the stand-ins with numpy's names, for `torch.serialization.add_safe_globals`.

    numpy names its constructors differently before and after version 2; either reads both.
    """
    return [
        (CheckedArray, "numpy.ndarray"),
        (CheckedDtype, "numpy.dtype"),
        (_no_bytes, "builtins.bytes"),
        *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    ]
