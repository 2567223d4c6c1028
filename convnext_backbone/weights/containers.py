"""What every container must keep to: how far it may inflate, and that a zip file is sound."""

import os
import struct
import zipfile
import zlib
from collections import Counter
from typing import BinaryIO

from ..utils.checks import first_line

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
# Weights hardly compress: zeros do, and nothing else comes near this ratio.
MAX_RATIO, FREE_MIB = 100, 64
ZIP_START = b"PK\x03\x04"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1  # a bit of an entry's flags


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not because that would be unsafe."""


def check_inflation(name: str, size: int, stored: int) -> None:
    """Refuse what would take `size` bytes of memory for the `stored` bytes of a file."""
    if size > MAX_RATIO * stored + (FREE_MIB << 20):
        raise CheckpointError(
            f"{name} would inflate from {stored:,} to {size:,} bytes; the limit is {MAX_RATIO} "
            f"times what is stored and {FREE_MIB} MiB"
        )


def check_zip(file: BinaryIO, name: str) -> bool:
    """Check the directory of a zip file, and its pickles by their CRC-32, before it is read.

    CheckpointError: it is damaged, encrypted, inflates too far or has two entries of one name.
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
                # torch leaves the field 0 where the user switched checksums off.
                if entry.filename.endswith(".pkl") and entry.CRC:
                    archive.read(entry)
    except CheckpointError:
        raise
    except DAMAGED as error:
        reason = f"the zip file is truncated or damaged: {first_line(error)}"
        raise CheckpointError(f"cannot read checkpoint {name}: {reason}") from error
    return any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
