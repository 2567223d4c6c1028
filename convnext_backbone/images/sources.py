"""Where images come from: files, folders, globs, lists, generators and datasets."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from ..utils.files import check_path, check_regular
from .reading import read_exif

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".avif")
)
_IMAGE_KEYS = ("image", "img", "jpg", "png")  # of a dataset's dict, in the order of preference
_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # its values that swap height and width


@dataclass(frozen=True)
class ImageItem:
    """One image to work on."""

    index: int  # its position in the source
    name: str  # its path, or its position
    image: Any  # what ConvNextImageProcessor takes, or the processed tensor (C, H, W)
    ready: bool = False  # processed already
    dataset: Any = None  # where `image` is still to be taken from, at `index`

    def fetch(self) -> "ImageItem":
        """Return the item with its image taken out of the dataset."""
        return self if self.dataset is None else as_item(self.index, self.dataset[self.index])


def iter_folder(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths of the images in a folder and below it, each folder's entries by name.

    Files count as images by their suffix. Linked folders are followed, except back to one that they
    lie in. Links that lead nowhere are yielded; the reader raises for them.
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if _is_folder(entry):
            if not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                yield from iter_folder(entry.path, above)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and (
            entry.is_symlink() or entry.is_file()
        ):
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def iter_glob(pattern: str) -> Iterator[str]:
    """Yield the files that a glob matches, sorted; an error if there is none."""
    if not glob.has_magic(pattern):
        raise FileNotFoundError(f"no such image or folder: {pattern!r}")
    found = sorted(glob.iglob(pattern, recursive=True))
    found = [path for path in found if os.path.isfile(path) or not os.path.exists(path)]
    if not found:
        raise ValueError(f"no file matches {pattern!r}")
    yield from found


def is_single(source: Any) -> bool:
    """Return whether a source is one image rather than a collection; ValueError if it is empty."""
    if isinstance(source, str | os.PathLike):
        check_path(source)
        return not Path(source).is_dir() and (
            Path(source).exists() or not glob.has_magic(os.fspath(source))
        )
    if isinstance(source, Image.Image | Mapping | bytes):  # bytes are refused as a whole
        return True
    return getattr(source, "ndim", 4) < 4


def expand(source: Any) -> Any:
    """Return a collection for any source: a folder or glob as its files, an image as a list.

    Nothing found: FileNotFoundError or ValueError.
    """
    if is_single(source):
        return [source]
    if not isinstance(source, str | os.PathLike):
        return source
    text = os.fspath(source)
    found = iter_folder(text) if os.path.isdir(text) else iter_glob(text)
    paths = [Path(path) for path in found]
    if not paths:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"no images in folder {text!r} (looked for {suffixes})")
    return paths


def iter_items(source: Any) -> Iterator[ImageItem]:
    """Yield the items of a collection, see `expand`; TypeError for anything else."""
    # torch's IterableDataset has a __getitem__ that raises.
    in_order = isinstance(source, Sequence | IterableDataset) or hasattr(source, "ndim")
    if not in_order and hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        # Entries are fetched where images are decoded, so that one that fails costs no other.
        yield from (ImageItem(i, str(i), None, dataset=source) for i in range(len(source)))
        return
    if not hasattr(source, "__iter__"):
        raise TypeError(
            "images must be an image, a path, a folder, a glob, or a list, iterator or dataset of "
            f"images, got {type(source).__name__}"
        )
    yield from (as_item(index, entry) for index, entry in enumerate(source))


def as_item(index: int, entry: Any) -> ImageItem:
    """Take the image out of an entry of a list or a dataset; TypeError if there is none.

    A tuple gives its first value, as in (image, label). A dict gives `pixel_values` (C, H, W) or
    (1, C, H, W) as they are, mmengine's `inputs` (BGR, 0 .. 255) in RGB order, or the first of
    `image`, `img`, `jpg`, `png`.
    """
    if isinstance(entry, tuple) and entry:
        entry = entry[0]
    if not isinstance(entry, Mapping):
        name = getattr(entry, "filename", "") or index
        name = os.fspath(entry) if isinstance(entry, str | os.PathLike) else name
        return ImageItem(index, str(name), entry)
    pixels = entry.get("pixel_values")
    if isinstance(pixels, Tensor):
        # A processor gives a batch of one. The first axis of (1, H, W) is the only channel.
        image = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
        return ImageItem(index, str(index), image, ready=True)
    if isinstance(entry.get("inputs"), Tensor):
        name = getattr(entry.get("data_samples"), "img_path", None)
        image = entry["inputs"]
        image = image.flip(0) if image.ndim == 3 and image.shape[0] == 3 else image  # BGR to RGB
        return ImageItem(index, str(index if name is None else name), image)
    key = next((key for key in _IMAGE_KEYS if entry.get(key) is not None), None)
    if key is None:
        raise TypeError(f"entry {index} holds no image, got a dict of {list(entry)}")
    name = getattr(entry[key], "filename", "") or index
    return ImageItem(index, str(name), entry[key])


def read_size(source: str | os.PathLike[str] | BinaryIO) -> tuple[int, int] | None:
    """Return the (height, width) of an upright image from its header, or None if unreadable."""
    try:
        if isinstance(source, str | os.PathLike):
            check_regular(source)
        with Image.open(source) as image:
            width, height = image.size
            # Pillow gives the size of a TIFF as it is upright.
            turned = image.format != "TIFF" and read_exif(image).get(_ORIENTATION) in _TURNED
    except Exception:  # as in `load_image`
        return None
    return (width, height) if turned else (height, width)
