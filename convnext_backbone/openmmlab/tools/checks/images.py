"""Are the images of a data set there, whole, and as large as they are said to be?

A check never refuses what the pipeline's own loader reads: what Pillow does not know is given to
the loader, and loaders that are not known here are passed over.
"""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from ....utils.checks import first_line
from ...config_walk import is_local, type_name
from ..errors import UsageError

MAX_IMAGES = 5000  # opening every file of a large data set would delay each start
_QUIET = 3.0  # seconds until a progress bar appears
_BACKENDS = (None, "cv2", "pillow", "turbojpeg")
_ORIENTATION = 0x0112  # EXIF; from 5 on, width and height are swapped
# Pillow's formats that every loader reads. Of others, OpenCV reads some.
_COMMON = ("BMP", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_TRAILERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_WIDE_MODES = ("I", "F", "I;32")  # of 32 bits a pixel, which OpenCV reads of few kinds
_TRAILER_WINDOW = 4096  # some cameras append a few bytes of their own
_LOADING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, AttributeError, RuntimeError)


class ImageReader:
    """Reads images as the first step of a pipeline does.

    Args:
        pipeline: The pipeline of a data set.

    Attributes:
        opens_files: Whether that step is OpenMMLab's loader, and reads from a file system.
        known: Whether its backend reads common files, too.
    """

    def __init__(self, pipeline: Sequence[Mapping[str, Any]] | None) -> None:
        step = next(iter(pipeline or ()), {})
        self._flag = step.get("color_type", "color")
        self._backend = step.get("imdecode_backend", "cv2")
        self.opens_files = type_name(step) == "LoadImageFromFile" and is_local(step)
        self.known = self.opens_files and self._backend in _BACKENDS

    def check(self, path: str) -> tuple[int, int] | None:
        """Check that an image is whole.

        Returns:
            Its width and height as the loader gives them; None where the loader is not known.

        Raises:
            UsageError: It cannot be read or is cut short.
        """
        if not self.known:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, or odd EXIF data
            try:
                with Image.open(path) as image:
                    complete = self._is_complete(path, image.format)
                    if not complete:
                        image.load()
                    # Pillow's method for PNG decodes the whole file to look for EXIF at its end.
                    turned = Image.Image.getexif(image).get(_ORIENTATION, 1) >= 5
                    odd = turned or image.mode in _WIDE_MODES or image.format not in _COMMON
                    # Pillow tolerates a missing trailer, the loader may not.
                    if odd or (image.format in _TRAILERS and not complete):
                        return self._load(path)
                    return image.size
            except Image.DecompressionBombError:
                return None
            except (OSError, SyntaxError, ValueError) as error:
                # What Pillow has no decoder for, the loader may have.
                if _format(path) in _TRAILERS or "truncated" in str(error):
                    raise UsageError(f"image {path!r} is cut short: {error}") from error
                return self._load(path)

    def _is_complete(self, path: str, format_: str | None) -> bool:
        trailer = _TRAILERS.get(format_ or "")
        if trailer is None:
            return False
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TRAILER_WINDOW))
            return trailer in file.read()

    def _load(self, path: str) -> tuple[int, int]:
        import cv2
        import mmcv

        reason = "it is no image, or it is damaged"
        try:
            pixels = mmcv.imread(path, flag=self._flag, backend=self._backend)
        except (*_LOADING_ERRORS, cv2.error) as error:
            pixels, reason = None, f"{reason} ({first_line(error)})"
        if pixels is None:
            if _format(path) == "TIFF":
                reason += "; imdecode_backend='tifffile' reads TIFF of any kind"
            raise UsageError(f"image {path!r} cannot be read: {reason}")
        return pixels.shape[1], pixels.shape[0]


def _format(path: str) -> str | None:
    """Return the format of an image that Pillow opens, else None."""
    try:
        with Image.open(path) as image:
            return image.format
    except (OSError, SyntaxError, ValueError):
        return None


def check_exist(folder: str, names: Sequence[str], listed_in: str) -> None:
    """Check that files exist; `names` are relative to `folder` or absolute.

    Raises:
        UsageError: Some do not; the message has their number and the first.
    """
    absent = [
        name
        for name in show_progress(names, f"looking for the files of {listed_in}")
        if not os.path.isfile(os.path.join(folder, name))
    ]
    if absent:
        raise UsageError(
            f"{len(absent)} of {len(names)} files that {listed_in!r} lists are not in "
            f"{folder!r}, such as {absent[0]!r}"
        )


def spread(items: Sequence[Any], most: int | None) -> Sequence[Any]:
    """Return at most `most` of `items`, evenly spread."""
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def show_progress(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Iterate with a progress bar, which appears only where it takes a few seconds."""
    return tqdm(items, desc=what, delay=_QUIET, leave=False)
