"""What every container must keep to: how much it may claim, and that a zip file is sound."""

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import IO, BinaryIO

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
)
# How files of each kind begin; PICKLE is that of PyTorch's files of before version 1.6.
ZIP_START, HDF5_START, PICKLE_START = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x80"
HEAD = 64  # bytes that show what a file is
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BYTEARRAY = (b"builtins\nbytearray\n", b"__builtin__\nbytearray\n")
_CHUNK = 1 << 22  # bytes read at a time
_ENCRYPTED = 0x1  # a bit of an entry's flags


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not because that would be unsafe."""


@dataclass(frozen=True)
class FileLimits:
    """What a file may claim before it is refused; see `file_limits`."""

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
    """Change what weights files may claim, in this thread, for files that you trust.

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


def check_inflation(name: str, size: int, stored: int) -> None:
    """Refuse what would take `size` bytes of memory for the `stored` bytes of a file."""
    limits = current_limits()
    if size > limits.ratio * stored + (limits.free_mib << 20):
        raise CheckpointError(
            f"{name} would inflate from {stored:,} to {size:,} bytes; the limit is {limits.ratio} "
            f"times what is stored and {limits.free_mib} MiB; file_limits(ratio=...) allows more"
        )


def check_zip(file: BinaryIO, name: str) -> bool:
    """Check the directory of a zip file and its pickles before it is read.

    CheckpointError: it is damaged (a pickle by its CRC-32), encrypted, inflates too far, or has two
    entries of one name.
    Returns whether any entry is compressed, so that the file cannot be mapped.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            counts = Counter(entry.filename for entry in entries)
            for entry in entries:
                what = f"{name}: the entry {entry.filename!r}"
                if counts[entry.filename] > 1:
                    raise CheckpointError(f"{what} is in the zip file twice")
                if entry.flag_bits & _ENCRYPTED:
                    raise CheckpointError(f"{what} is encrypted")
                if entry.compress_type not in _METHODS:
                    raise CheckpointError(f"{what} is of compression method {entry.compress_type}")
            # Entries may overlap: their sum is compared with the size of the file itself.
            check_inflation(
                name, sum(entry.file_size for entry in entries), file.seek(0, os.SEEK_END)
            )
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    _check_pickle(archive, entry, f"{name}: the entry {entry.filename!r}")
    except CheckpointError:
        raise
    except DAMAGED as error:
        reason = f"the zip file is truncated or damaged: {first_line(error)}"
        raise CheckpointError(f"cannot read checkpoint {name}: {reason}") from error
    return any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)


def _check_pickle(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, what: str) -> None:
    if not entry.CRC:  # torch leaves the field 0 where the user switched checksums off
        del entry.CRC
    with archive.open(entry) as pickle:
        check_allocations(pickle, what)


def check_allocations(stream: IO[bytes], what: str) -> None:
    """Refuse a pickle that builds a bytearray: of a number, which takes that much memory.

    torch admits it in every file. Its unpickler knows no other spelling of a type's name.
    """
    before = b""
    while data := stream.read(_CHUNK):
        if any(name in before + data for name in _BYTEARRAY):
            raise CheckpointError(f"{what} builds a bytearray, which weights have no need of")
        before = data[-max(map(len, _BYTEARRAY)) :]
