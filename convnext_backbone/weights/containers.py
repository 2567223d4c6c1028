"""Limits on what a weights file may declare, how formats begin, and whether a zip file is sound."""

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pickle import UnpicklingError
from typing import BinaryIO, NoReturn

from ..utils.checks import check_min, first_line

# What readers raise on a file that is truncated, damaged, or not one of their own.
DAMAGED = (
    RuntimeError,  # and so RecursionError and NotImplementedError
    EOFError,
    OSError,
    LookupError,
    AttributeError,
    ValueError,
    TypeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    UnpicklingError,
)
# How files begin; PICKLE is the start of PyTorch's files of before version 1.6.
ZIP_START, HDF5_START, PICKLE_START = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x80"
HEAD = 64  # bytes that show what a file is
# The formats of weights files, by the suffixes of their names. A new format is a row here, a branch
# of `read._read_file`, and its start, above and in `is_weights_start`.
SUFFIXES = {
    "safetensors": (".safetensors",),
    "PyTorch": (".pth", ".pt", ".bin", ".ckpt"),
    "Keras": (".h5", ".hdf5", ".keras"),
}
WEIGHT_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1  # a bit of an entry's flags


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not because that would be unsafe."""


class RefusedError(Exception):
    """What a pickle asks for, and weights have no need of."""


def refuse(what: str) -> NoReturn:
    """Refuse what a pickle asks for."""
    raise RefusedError(what)


def raise_damaged(reason: str) -> NoReturn:
    """Raise the error of a damaged file."""
    raise UnpicklingError(reason)


@contextmanager
def damage_errors(name: str, kind: str) -> Iterator[None]:
    """Make a CheckpointError of what reading a damaged file raises."""
    try:
        yield
    except CheckpointError:
        raise
    except DAMAGED as error:
        reason = f"the {kind} is truncated or damaged: {first_line(error)}"
        raise CheckpointError(f"{name}: {reason}") from error


@dataclass(frozen=True)
class FileLimits:
    """What a weights file may declare before it is refused; see `file_limits`."""

    # Weights hardly compress: zeros do, and nothing else comes near this ratio.
    ratio: int = 100  # bytes in memory for each byte that is stored
    free_mib: int = 64  # MiB in memory that any file may take beyond that
    absent_blocks: int = 1000  # stages and blocks that keys count without a tensor in them
    download_gib: int = 32  # GiB of a downloaded file

    def __post_init__(self) -> None:
        for field in fields(self):
            check_min(field.name, getattr(self, field.name), 0)


_DEFAULTS = FileLimits()
_LIMITS = ContextVar("_LIMITS", default=_DEFAULTS)


def current_limits() -> FileLimits:
    """Return the limits that hold in this thread."""
    return _LIMITS.get()


@contextmanager
def file_limits(**changes: int) -> Iterator[None]:
    """Change what weights files may declare, in this thread, for files that you trust.

    Example:
        >>> with file_limits(ratio=2000):
        ...     backbone = ConvNextBackbone.from_pretrained("my-backbone")

    Args:
        changes: Fields of `FileLimits` and their values.

    Raises:
        TypeError: There is no such limit; ValueError: it is no integer, or negative.
    """
    token = _LIMITS.set(replace(_LIMITS.get(), **changes))
    try:
        yield
    finally:
        _LIMITS.reset(token)


def is_weights_start(head: bytes, size: int) -> bool:
    """Return whether a file of weights of `size` bytes may begin with `head`."""
    starts = (ZIP_START, HDF5_START, PICKLE_START)
    return head.startswith(starts) or is_safetensors_start(head, size)


def is_safetensors_start(head: bytes, size: int) -> bool:
    """Return whether `head` is a length that the file has, and the start of a JSON header."""
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < size


def memory_limit(stored: int) -> int:
    """Return the bytes of memory that the `stored` bytes of a file may take."""
    limits = current_limits()
    return limits.ratio * stored + (limits.free_mib << 20)


def check_inflation(name: str, size: int, stored: int) -> None:
    """Refuse what would take `size` bytes of memory for the `stored` bytes of a file."""
    if size > memory_limit(stored):
        limits = current_limits()
        limit = f"{limits.ratio} times that and {limits.free_mib} MiB"
        raise CheckpointError(
            f"{name} would need {size:,} bytes of memory for {stored:,} bytes on disk; the limit "
            f"is {limit}; file_limits(ratio=...) allows more"
        )


def check_zip(file: BinaryIO, name: str) -> dict[str, zipfile.ZipInfo]:
    """Check the directory of a zip file before it is read; return its entries by name.

    CheckpointError: it is damaged or encrypted, inflates too far, or has two entries of one name.
    """
    with (
        damage_errors(f"cannot read checkpoint {name}", "zip file"),
        zipfile.ZipFile(file) as archive,
    ):
        entries = archive.infolist()
    counts = Counter(entry.filename for entry in entries)
    for entry in entries:
        faults = _faults(entry, counts[entry.filename])
        if fault := next((text for text, is_there in faults.items() if is_there), None):
            raise CheckpointError(f"{name}: the entry {entry.filename!r} {fault}")
    # Entries may overlap: their sum is compared with the size of the file itself.
    stored = file.seek(0, os.SEEK_END)
    check_inflation(name, sum(entry.file_size for entry in entries), stored)
    return {entry.filename: entry for entry in entries}


def _faults(entry: zipfile.ZipInfo, count: int) -> dict[str, bool]:
    size, packed = entry.file_size, entry.compress_size
    is_stored = entry.compress_type == zipfile.ZIP_STORED
    return {
        "is in the zip file twice": count > 1,
        "is encrypted": bool(entry.flag_bits & _ENCRYPTED),
        f"is of compression method {entry.compress_type}": entry.compress_type not in _METHODS,
        f"stores {packed:,} bytes for {size:,}": packed != size
        if is_stored
        else packed == 0 < size,
    }
