"""numpy's arrays and scalars out of a pickle, of checked parts alone.

numpy's own constructors trust what a file says: `numpy.ndarray` and `multiarray.scalar` take bytes
for objects, and a dtype's state can clear the flag that says so; the bytes of a file are then used
as a pointer. What stands here takes the place of numpy's names while a file is read. It admits
booleans, numbers, bytes and text, whose size must be that of their data.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .containers import refuse

_CODE = re.compile(r"[<>=|]?(?:[?bBhHiIlLqQefdFD]|[biufcSU]\d{1,9})")
_KINDS = "biufcSU"
_MAX_AXES = 8
_ORDERS = ("<", ">", "|", "=")


class CheckedDtype:
    """Takes the place of `numpy.dtype`: a simple type, never one of objects or of fields."""

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            refuse(f"numpy.dtype({code[:20]!r})" if isinstance(code, str) else "numpy.dtype(...)")
        self.dtype = np.dtype(code)

    def set_state(self, state: object) -> None:
        """Take over the byte order; nothing else of a simple type's state may vary."""
        if not isinstance(state, tuple) or len(state) not in (8, 9) or state[1] not in _ORDERS:
            refuse("a state of numpy.dtype")
        size = (-1, self.dtype.itemsize)
        if any(part is not None for part in state[2:5]) or state[5] not in size:
            refuse("numpy.dtype with fields")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


def _array(*_: object) -> None:
    """Take the place of `numpy.ndarray`, whose constructor takes a buffer for its elements."""
    refuse("numpy.ndarray(...)")


def reconstruct(cls: object, shape: object, code: object) -> Any:
    """Return an empty array whose state comes next, as `multiarray._reconstruct` does."""
    if cls is not _array:
        refuse("an array of another class")
    return np.empty(0, np.uint8)


def fill_array(array: Any, state: Any) -> None:
    """Fill an array of `reconstruct` from (version, shape, dtype, is it Fortran order, bytes).

    Only once: a second state would free the memory of the first, which may be shared by now.
    """
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
    array.__setstate__((1, shape, dtype.dtype, bool(fortran), data))


def _holds(dtype: object, data: object, count: int) -> bool:
    """Return whether bytes are so many items; ValueError: they are no characters."""
    if isinstance(dtype, CheckedDtype) and dtype.dtype.kind == "U" and isinstance(data, bytes):
        order = "be" if dtype.dtype.str.startswith(">") else "le"
        data.decode(f"utf-32-{order}", "surrogatepass")  # of other numbers numpy makes no text
    return (
        isinstance(dtype, CheckedDtype)
        and dtype.dtype.kind in _KINDS
        and dtype.dtype.itemsize > 0  # a copy of empty texts has 4 bytes for each
        and isinstance(data, bytes)
        and len(data) == count * dtype.dtype.itemsize
    )


def _scalar(dtype: Any, data: Any = None) -> Any:
    """Return a scalar of its bytes, as `multiarray.scalar` does."""
    if not _holds(dtype, data, 1):
        refuse("numpy.core.multiarray.scalar of an object")
    return np.frombuffer(data, dtype.dtype)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: object) -> Any:
    """Return an array of its bytes, as numpy writes it with protocol 5 of pickle."""
    if not isinstance(data, bytes | bytearray):
        refuse("an array of what is no bytes")
    array = np.empty(0, np.uint8)
    fill_array(array, (1, shape, dtype, order == "F", bytes(data)))
    return array


# numpy names its constructors differently before and after version 2; either reads both.
NUMPY_TYPES: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _array,
    "numpy.dtype": CheckedDtype,
    **{f"numpy.{core}.multiarray._reconstruct": reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
