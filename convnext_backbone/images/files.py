"""Images on disk: files, folders, globs, tars and lists of paths, read as they are used.

`ImageList` reads several sources, each image once; `find_entries` one, for `FeatureExtractor`. A
new kind of list is a row of `_LISTS`. What an `ImageList` holds is the names of the folder or the
tar that is being read and the files that globs match; a list of any length passes through.
"""

import csv
import glob
import io
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..utils.checks import shorten_list
from ..utils.files import IMAGE_SUFFIXES, check_regular, expand_path
from ..utils.parquet import import_parquet

PathLike = str | os.PathLike[str]
# Why the data of a member of a tar cannot be read.
_NOWHERE = "it links to no file of the tar"
_SPARSE = "it is stored as a sparse file; pack the tar without --sparse"
_MAX_LINKS = 40  # that lead from one to another, as Linux follows them
# Of tars that would have to be read from their start for every image.
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


class ImageEntry(NamedTuple):
    """One image of a source: its name, and where its bytes are."""

    name: str
    path: str  # of the file, or of the tar that holds it
    start: int = 0
    # Of its bytes inside a tar, or why they cannot be read; None is the whole file.
    length: int | str | None = None

    def open(self) -> str | io.BytesIO:
        """Return what Pillow opens: the path, or the bytes inside the tar.

        ValueError for what cannot be read from the tar.
        """
        if self.length is None:
            return self.path
        if isinstance(self.length, str):
            raise ValueError(f"cannot read image {self.name!r}: {self.length}")
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.length))

    def version(self) -> tuple[int, ...]:
        """Return what changes when the file is replaced; () where there is none.

        The time of the last change of the inode counts as well: a replaced file may have the size
        and the time of modification of the one before.
        """
        try:
            found = os.stat(self.path)
        except OSError:
            return ()
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class ImageList:
    """The images of folders, globs, files, tars and lists, each once, in a fixed order.

    Example:
        >>> [entry.name for entry in ImageList(["photos/"])]
        ['a.jpg', 'b.png', 'c.png']

    Args:
        sources: Folders (with all below them), globs, image files and `.tar` files (WebDataset's:
            the members that are images); or lists of paths: `.txt` (one a line), `.csv` and
            `.parquet` files. Paths in a list are relative to its folder.
        column: The column of a `.csv` or `.parquet` list that holds the paths.

    An image's name is its path below the folder that the sources share; in a tar, the tar's with
    that of the member; in a list, the entry as it is written. An image that is named twice is there
    once: while names ascend this needs no memory, else some 70 bytes a name.

    Raises:
        FileNotFoundError: A source does not exist.
        ValueError: A source holds no image, its names are no Unicode, or a tar is damaged; when it
            is iterated over.
    """

    def __init__(self, sources: Sequence[PathLike], column: str = "file") -> None:
        if not sources:
            raise ValueError("sources must not be empty")
        self.column = column
        found = [path for source in sources for path in _match_paths(source)]
        self._sources = [os.path.abspath(path) for path in found]
        _check_sources(self._sources)
        roots = {path if os.path.isdir(path) else os.path.dirname(path) for path in self._sources}
        self._prefix = os.path.join(os.path.commonpath(roots), "")
        # The entries of one folder are different, and in its order rather than their names'.
        self._once = len(self._sources) == 1 and os.path.isdir(self._sources[0])

    def __iter__(self) -> Iterator[ImageEntry]:
        last, seen, count = "", None, 0
        for entry in self._entries():
            try:
                entry.name.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"an image's name must be Unicode, got {entry.name!r}") from error
            if seen is None and count and entry.name <= last and not self._once:
                seen = {hash(e.name) for e in islice(self._entries(), count)}
            if seen is not None:
                if hash(entry.name) in seen:
                    continue
                seen.add(hash(entry.name))
            count, last = count + 1, entry.name
            yield entry
        if not count:
            raise _no_images(self._sources)

    def _entries(self) -> Iterator[ImageEntry]:
        for source in self._sources:
            yield from _iter_entries(source, self.column, self._prefix)


def name_images(sources: Sequence[PathLike]) -> dict[str, Path]:
    """Return the files of an `ImageList` by name; ValueError for images inside a tar."""
    entries = list(ImageList(sources))
    if any(entry.length is not None for entry in entries):
        raise ValueError("images inside a tar must be unpacked first")
    return {entry.name: Path(entry.path) for entry in entries}


def output_names(images: Mapping[str, Path], suffix: str) -> dict[str, str]:
    """Return a relative path with a suffix for each of `name_images`, for a file made of it.

    It is the image's own below the folder that all have in common, so that a name in a list that is
    absolute or holds `..` leads to no other folder. Where two would be one, the suffixes that the
    images have stay.
    """
    paths = {name: os.path.abspath(path) for name, path in images.items()}
    # Relative names of a list begin at its folder, and keep all that is written.
    starts = [str(path).removesuffix(name) or path.parent for name, path in images.items()]
    above = [*map(os.path.abspath, starts), *map(os.path.dirname, paths.values())]
    root = os.path.commonpath(above)
    own = {name: Path(os.path.relpath(path, root)) for name, path in paths.items()}
    short = {name: path.with_suffix(suffix).as_posix() for name, path in own.items()}
    long = {name: path.as_posix() + suffix for name, path in own.items()}
    folders = {folder.as_posix() for path in own.values() for folder in path.parents}
    taken = Counter([*short.values(), *long.values(), *folders])
    return {name: short[name] if taken[short[name]] == 1 else long[name] for name in images}


# ------------------------------------------------------------------------------ one source


def holds_many(path: PathLike) -> bool:
    """Return whether a path names a collection of images: a folder, a glob, a tar or a list.

    ValueError if it is empty.
    """
    text = expand_path(path)
    if os.path.isdir(text) or text.lower().endswith((".tar", *_COMPRESSED, *_LISTS)):
        return True
    return not os.path.exists(text) and glob.has_magic(text)


def find_entries(source: PathLike) -> list[ImageEntry]:
    """Return the images of a collection, named by their paths, in a list as they are written.

    Raises: as `ImageList`. A glob that matches an image takes whatever it matches for images.
    """
    paths = [os.fspath(Path(path)) for path in _match_paths(source)]
    if not all(map(holds_many, paths)):
        return [ImageEntry(path, path) for path in paths]
    _check_sources(paths)
    here = os.path.join(os.curdir, "")
    entries = [entry for path in paths for entry in _iter_entries(path, "file", here)]
    if not entries:
        raise _no_images(paths)
    return entries


def _match_paths(source: PathLike) -> list[str]:
    """Return the path of what is there, else the files that a glob matches, sorted."""
    pattern = expand_path(source)
    if os.path.exists(pattern):
        return [pattern]
    if not glob.has_magic(pattern):
        raise FileNotFoundError(f"no such image or folder: {pattern!r}")
    found = sorted(glob.iglob(pattern, recursive=True))
    found = [path for path in found if os.path.isfile(path) or not os.path.exists(path)]
    if not found:
        raise ValueError(f"no file matches {pattern!r}")
    return found


def _check_sources(paths: Sequence[str]) -> None:
    """Refuse what cannot be read, or not together."""
    files = [path for path in paths if not os.path.isdir(path)]
    for path in files:
        if path.lower().endswith(_COMPRESSED):
            raise ValueError(f"{path} is compressed, and only plain .tar files are read")
    lists = [path for path in files if _suffix(path) in _LISTS]
    if lists and (len(lists) < len(paths) or len(set(map(os.path.dirname, lists))) > 1):
        raise ValueError(
            "lists of images must lie in one folder and cannot be mixed with images, got "
            + shorten_list(paths)
        )


def _iter_entries(path: str, column: str, prefix: str) -> Iterator[ImageEntry]:
    """Yield the images of a path, named without the prefix; those of a list as it names them."""
    if os.path.isdir(path):
        for image in _iter_folder(path):
            yield ImageEntry(_name(image, prefix), image)
    elif _suffix(path) in _LISTS:
        folder = os.path.dirname(path)
        for name in _read_list(path, column):
            yield ImageEntry(name, os.path.join(folder, name))
    elif _suffix(path) == ".tar":
        yield from _tar_entries(path, _name(path, prefix))
    else:
        yield ImageEntry(_name(path, prefix), path)


def _no_images(sources: Sequence[str]) -> ValueError:
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    return ValueError(f"no images in {shorten_list(sources)} (looked for {suffixes})")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _name(path: str, prefix: str) -> str:
    return path.removeprefix(prefix).replace(os.sep, "/")


def _iter_folder(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths of the images in a folder and below it, each folder's entries by name.

    Files count as images by their suffix. Linked folders are followed, except back to one that they
    lie in. Dangling symlinks are included; the reader raises for them.
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if _is_folder(entry):
            if not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                yield from _iter_folder(entry.path, above)
        elif _suffix(entry.name) in IMAGE_SUFFIXES and (entry.is_symlink() or entry.is_file()):
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


# ------------------------------------------------------------------------------ tars


def _tar_entries(path: str, name: str) -> Iterator[ImageEntry]:
    members = _tar_members(path)
    has_links = any(isinstance(found, str) for found in members.values())
    paths = {posixpath.normpath(member): member for member in members} if has_links else {}
    for member, found in members.items():
        if _suffix(member) not in IMAGE_SUFFIXES:
            continue
        for _ in range(_MAX_LINKS):
            if isinstance(found, str):
                found = members.get(paths.get(found, ""), (0, _NOWHERE))
        start, length = (0, _NOWHERE) if isinstance(found, str) else found
        yield ImageEntry(f"{name}/{member}", path, start, length)


def _tar_members(path: str) -> dict[str, tuple[int, int | str] | str]:
    """Return the start and length of a tar's files, and the paths that links lead to, by name.

    Of members of one name the last counts, as where a tar is unpacked. ValueError for damage.
    """
    check_regular(path)
    members: dict[str, tuple[int, int | str] | str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                setattr(tar, "members", [])  # noqa: B010 - TarInfos are large
                members.pop(member.name, None)
                if member.isreg():
                    # A sparse file lies there in pieces, and `size` is that of the whole.
                    length = _SPARSE if member.issparse() else member.size
                    members[member.name] = member.offset_data, length
                elif member.issym() or member.islnk():
                    # A symbolic link is relative to its folder, a hard link to the tar.
                    folder = posixpath.dirname(member.name) if member.issym() else ""
                    target = posixpath.join(folder, member.linkname)
                    members[member.name] = posixpath.normpath(target)
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no whole, uncompressed tar: {error}") from error
    with open(path, "rb") as file:
        file.seek(end)
        # tarfile takes a damaged header for the end.
        if any(file.read(tarfile.BLOCKSIZE)):
            raise ValueError(f"{path} is damaged: there is no header of a file at byte {end}")
    return members


# ------------------------------------------------------------------------------ lists


def _read_list(path: str, column: str) -> Iterator[str]:
    check_regular(path)
    try:
        for number, name in enumerate(_LISTS[_suffix(path)](path, column)):
            if not isinstance(name, str) or not name:
                raise ValueError(f"{path}: entry {number} must be a path, got {name!r}")
            yield name
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no list of paths in UTF-8: {error}") from error


def _text_names(path: str, _: str) -> Iterator[str]:
    with open(path, encoding="utf-8-sig") as file:
        yield from (line for line in (line.rstrip("\n") for line in file) if line)


def _csv_names(path: str, column: str) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_column(path, column, reader.fieldnames or ())
        yield from (row[column] for row in reader)


def _parquet_names(path: str, column: str) -> Iterator[str]:
    with import_parquet().ParquetFile(path) as file:
        _check_column(path, column, file.schema_arrow.names)
        for batch in file.iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()


def _check_column(path: str, column: str, columns: Iterable[str]) -> None:
    if column not in columns:
        raise ValueError(f"{path} must have the column {column!r}, got {list(columns)}")


# suffix -> function of a list and the column of its names
_LISTS: dict[str, Callable[[str, str], Iterator[str]]] = {
    ".txt": _text_names,
    ".csv": _csv_names,
    ".parquet": _parquet_names,
}
