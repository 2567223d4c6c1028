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
from typing import BinaryIO

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
_ENCRYPTED, _UTF8 = 0x1, 0x800  # bits of an entry's flags
_FOLDER = 0x10  # a bit of an entry's attributes, for which torch's reader fills no memory in
_ZIP64 = 1  # the kind of the extra field that holds sizes of 4 GiB and more
# What follows a zip file's directory; the first two in ZIP64 only. Signature, size of the record,
# two versions, two disks, entries here and in all, size and offset of the directory:
_END64 = struct.Struct("<4sQ2H2I4Q")
# signature, a disk, offset of the record above, disks:
_LOCATOR = struct.Struct("<4sIQI")
# signature, two disks, entries here and in all, size and offset of the directory, comment's size.
_END = struct.Struct("<4s4H2IH")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not because that would be unsafe."""


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


def check_zip(file: BinaryIO, name: str) -> dict[bytes, zipfile.ZipInfo]:
    """Check the directory of a zip file before it is read; return its entries by `entry_key`.

    What Python's reader checks here is loaded by torch's, so both must see the same directory.
    CheckpointError: they do not, or it is damaged or encrypted, inflates too far, or has two
    entries of one name.
    """
    with (
        damage_errors(f"cannot read checkpoint {name}", "zip file"),
        zipfile.ZipFile(file) as archive,
    ):
        size = file.seek(0, os.SEEK_END)
        _check_end(file, size, archive)
        entries = archive.infolist()
    counts = Counter(map(entry_key, entries))
    for entry in entries:
        faults = _faults(entry, counts[entry_key(entry)], archive.start_dir)
        if fault := next((text for text, is_there in faults.items() if is_there), None):
            raise CheckpointError(f"{name}: the entry {entry.filename!r} {fault}")
    # Entries may overlap: their sum is compared with the size of the file itself.
    check_inflation(name, sum(entry.file_size for entry in entries), size)
    return {entry_key(entry): entry for entry in entries}


def entry_key(entry: zipfile.ZipInfo) -> bytes:
    """Return an entry's name as torch's reader compares it: its bytes, A as a."""
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437").lower()


def _faults(entry: zipfile.ZipInfo, count: int, end: int) -> dict[str, bool]:
    """List what no entry may be, most of it because readers differ in what they make of it."""
    size, packed = entry.file_size, entry.compress_size
    is_stored = entry.compress_type == zipfile.ZIP_STORED
    is_folder = bool(entry.external_attr & _FOLDER) or entry.filename.endswith("/")
    return {
        "is in the zip file twice": count > 1,
        "is encrypted": bool(entry.flag_bits & _ENCRYPTED),
        f"is of compression method {entry.compress_type}": entry.compress_type not in _METHODS,
        "has two names": entry.filename != entry.orig_filename,
        "has two sizes": _extra_kinds(entry.extra).count(_ZIP64) > 1,
        "is a folder with a size": is_folder and size > 0,
        f"stores {packed:,} bytes for {size:,}": packed != size
        if is_stored
        else packed == 0 < size,
        "is beyond the end of the zip file": entry.header_offset + packed > end,
    }


def _extra_kinds(extra: bytes) -> list[int]:
    kinds = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        kinds.append(kind)
        extra = extra[4 + length :]
    return kinds


def _check_end(file: BinaryIO, size: int, archive: zipfile.ZipFile) -> None:
    """Refuse a zip file in which another reader may find another directory.

    Python looks for it right before the records at the end; torch's reader at the offset that
    they state, and for a record of ZIP64 at the offset that its locator states.
    """
    end = size - len(archive.comment) - _END.size
    before = _END64.size + _LOCATOR.size
    file.seek(max(end - before, 0))
    records = file.read(min(end, before))
    signature, *_, total, _, offset, _ = _END.unpack(file.read(_END.size))
    is_sound = signature == b"PK\5\6"
    if len(records) == before and records[_END64.size :].startswith(b"PK\6\7"):
        signature, *_, total, _, offset = _END64.unpack_from(records)
        place = _LOCATOR.unpack_from(records, _END64.size)[2]
        is_sound = is_sound and signature == b"PK\6\6" and place == end - before
    found = archive.start_dir, len(archive.filelist)
    if not is_sound or found != (offset, total):
        raise zipfile.BadZipFile("its directory is not where the end of the file says")
