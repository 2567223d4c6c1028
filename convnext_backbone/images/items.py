"""Images as values: what is one image, what is a collection, and the image in each entry.

Files, folders, globs, tars and lists are found by `files`; here are Pillow images, arrays, tensors,
Python lists, iterators and datasets.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from .files import ImageEntry, find_entries, holds_many
from .reading import load_image

_IMAGE_KEYS = ("image", "img", "jpg", "png")  # of a dataset's dict, in the order of preference


@dataclass(frozen=True)
class ImageItem:
    """One image to work on."""

    index: int  # its position in the source
    name: str  # its path, or its position
    image: Any  # what ConvNextImageProcessor takes, or the processed tensor (C, H, W)
    ready: bool = False  # processed already
    dataset: Any = None  # where `image` is still to be taken from, at `index`

    def fetch(self) -> "ImageItem":
        """Return the item with its image taken out of the dataset or the tar."""
        if self.dataset is not None:
            return as_item(self.index, self.dataset[self.index]).fetch()
        entry = self.image
        if isinstance(entry, ImageEntry):
            whole = entry.length is None
            return replace(self, image=entry.path if whole else load_image(entry.open(), self.name))
        return self


def is_single(source: Any) -> bool:
    """Return whether a source is one image rather than a collection; ValueError if it is empty."""
    if isinstance(source, str | os.PathLike):
        return not holds_many(source)
    if isinstance(source, Image.Image | Mapping | bytes | ImageEntry):  # bytes are refused whole
        return True
    return getattr(source, "ndim", 4) < 4


def expand(source: Any) -> Any:
    """Return a collection for any source: a path as its `ImageEntry`s, one image as a list.

    Nothing found: FileNotFoundError or ValueError.
    """
    if is_single(source):
        return [source]
    return find_entries(source) if isinstance(source, str | os.PathLike) else source


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
    if isinstance(entry, ImageEntry):
        return ImageItem(index, entry.name, entry)
    if isinstance(entry, tuple) and entry:
        entry = entry[0]
    if isinstance(entry, Mapping):
        pixels = entry.get("pixel_values")
        if isinstance(pixels, Tensor):
            # A processor gives a batch of one. The first axis of (1, H, W) is the only channel.
            single = pixels.ndim == 4 and len(pixels) == 1
            return ImageItem(index, str(index), pixels[0] if single else pixels, ready=True)
        image = entry.get("inputs")
        if isinstance(image, Tensor):
            name = getattr(entry.get("data_samples"), "img_path", None)
            image = image.flip(0) if image.ndim == 3 and len(image) == 3 else image  # BGR to RGB
            return ImageItem(index, str(index if name is None else name), image)
        key = next((key for key in _IMAGE_KEYS if entry.get(key) is not None), None)
        if key is None:
            raise TypeError(f"entry {index} holds no image, got a dict of {list(entry)}")
        entry = entry[key]
    if isinstance(entry, str | os.PathLike):
        return ImageItem(index, os.fspath(entry), entry)
    return ImageItem(index, str(getattr(entry, "filename", "") or index), entry)
