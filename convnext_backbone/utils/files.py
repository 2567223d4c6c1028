"""Files that are whole or missing: written under another name, then moved to their own."""

import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Suffixes of files that count as images in a folder.
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".avif")
)
# errno of a disk, a quota or a file that takes no more.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 1 << 22  # bytes read at a time
_LONG_NAME = 200  # bytes; a file's name has at most 255, and a temporary one is longer
_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFDIR: "directory"}


@contextmanager
def errors_naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make an OSError raised within name `path`.

    ENOSPC carries no file name, and a temporary file's name means nothing to the user.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{error}: {os.fspath(path)!r}") from error
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to, and move what was written to `path` at the end.

    A reader finds the old file or the new one, also when the power fails. An error leaves the old
    one as it was and nothing beside it; a kill may leave a file whose name begins with a dot and
    ends in `.part`.

    Raises:
        OSError: The file cannot be written; it names `path`.
    """
    path = Path(path)
    name = path.name
    if len(os.fsencode(name)) > _LONG_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    partial = path.with_name(f".{name}.{os.getpid()}.part")
    try:
        with errors_naming(path):
            partial.touch()
            mode = partial.stat().st_mode  # as the user's umask has it; safetensors writes 0600
            yield partial
            partial.chmod(mode)
        move_into_place(partial, path)
    finally:
        with suppress(OSError):  # an error above is the one to report
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """Yield a temporary folder, and move the files written there into `folder` at the end.

    For files that one of them, `last`, refers to. It is taken away first and comes last: a kill
    between two moves leaves a folder without it, and never an old one with new files.

    Raises:
        OSError: A file cannot be written; it names `folder`, or the file's place in it.
    """
    folder = Path(folder)
    with errors_naming(folder):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        beside = folder if folder.exists() else folder.parent
        beside.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=beside, prefix=".writing-")
    with temporary as partial:
        try:
            yield Path(partial)
        except OSError as error:
            # An error of another file, such as one that is read, keeps its name.
            if error.errno is None or not str(error.filename or partial).startswith(partial):
                raise
            raise OSError(error.errno, error.strerror, os.fspath(folder)) from error
        with errors_naming(folder):
            folder.mkdir(exist_ok=True)
        others = set(os.listdir(partial)) - {last}
        if others:
            with errors_naming(folder / last):
                (folder / last).unlink(missing_ok=True)
        for name in (*others, last):
            move_into_place(Path(partial, name), folder / name)


def move_into_place(partial: Path, path: str | os.PathLike[str]) -> None:
    """Move a file that is whole to its name, once its bytes are on the disk."""
    with errors_naming(path):
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in one step; see `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write a JSON object in one step; see `atomic_write`."""
    write_bytes(path, encode_json(values))


def encode_json(values: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON file."""
    return (json.dumps(values, indent=2) + "\n").encode()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object; ValueError where the file holds none."""
    check_regular(path)
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # damaged, nested too deep, or too long a number
        raise ValueError(f"{os.fspath(path)} is not a JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{os.fspath(path)} must hold a JSON object, got {type(values).__name__}")
    return values


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse a FIFO, a socket or a device, whose reading may never end, with a ValueError."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "device")
        raise ValueError(f"{os.fspath(path)} is a {kind}, and only regular files are read")


def expand_path(path: str | os.PathLike[str], name: str = "source") -> str:
    """Return a path that a user gave, with `~` for the home folder.

    Raises:
        TypeError: It is no path.
        ValueError: It is empty, which would mean the current directory.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name} must be a string or a path, got {type(path).__name__}")
    if not os.fspath(path):
        raise ValueError(f"{name} must not be empty; the current directory is '.'")
    return os.path.expanduser(path)


def check_outputs(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuse, with a ValueError, to write a file that is read as well, by whatever name."""
    read = {_identity(path): path for path in inputs}
    for path in outputs:
        found = _identity(path)
        if found is not None and found in read:
            raise ValueError(
                f"{os.fspath(read[found])!r} is read, and would be replaced by {os.fspath(path)!r}"
            )


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return what two names of one file share; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
