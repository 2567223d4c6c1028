"""One image of any kind, upright, as a tensor: files, Pillow images, arrays, tensors.

What Pillow would make unusable is converted: palettes, transparency, 16 bits, EXIF orientation.

Of 16-bit values the high byte is kept. Where no value lies above 255, they are taken for 8-bit
values in a wider type, as in transformers, with a warning, since that is a guess.

Axes: C channels, H height, W width, in pixels.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..utils.files import check_regular, expand_path

CHANNELS_FIRST, CHANNELS_LAST = "channels_first", "channels_last"
_FEW = 1 << 12  # 16-bit values below have at most 16 levels in their high byte: cameras of 12 bits
_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # its values that swap height and width


def load_image(source: str | os.PathLike[str] | BinaryIO, name: str | None = None) -> Image.Image:
    """Read an image file whole, upright; errors call it `name`, or by its path.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: Its bytes cannot be read.
        ValueError: The file is not an image, is damaged, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`, of which Pillow itself warns only.
    """
    if name is None:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the open file"
    try:
        if not isinstance(source, str | os.PathLike):
            return _decode(source)
        source = expand_path(source)
        check_regular(source)
        # Given a path, Pillow maps an uncompressed TIFF into memory and takes its sides for those
        # of the upright image.
        with open(source, "rb") as file:
            return _decode(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such image: {name!r}") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"cannot read image {name!r}: not an image") from error
    except Exception as error:
        # Pillow's decoders and their libraries raise what they like on damaged data: RuntimeError
        # for AVIF, struct.error, zlib.error, AttributeError, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, f"cannot read image: {error.strerror}", name) from error
        raise ValueError(
            f"cannot read image {name!r}: {str(error) or type(error).__name__}"
        ) from error


def _decode(file: BinaryIO) -> Image.Image:
    with Image.open(file) as image:
        _check_limits(image)
        return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation asks; as it is stored without any."""
    image.load()  # errors of the pixels are not those of the EXIF data
    return ImageOps.exif_transpose(image) if read_exif(image) else image.copy()


def read_exif(image: Image.Image) -> Image.Exif:
    """Return the EXIF data of an image: none where they are damaged, as OpenCV takes them."""
    try:
        return image.getexif()
    except Exception:  # SyntaxError, struct.error, ... of what is no EXIF
        return Image.Exif()


def image_size_of(source: str | os.PathLike[str] | BinaryIO) -> tuple[int, int] | None:
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


def _check_limits(image: Image.Image) -> None:
    if image.format == "EPS":  # a program, which Pillow gives to Ghostscript
        raise ValueError("PostScript is not read; convert it to PNG")
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise ValueError(
            f"it has {pixels:,} pixels; the limit is {limit:,}; PIL.Image.MAX_IMAGE_PIXELS or "
            "--max-pixels allows more"
        )


def flatten(images: Any) -> Iterator[Any]:
    """Yield single images out of nested lists and batches."""
    if isinstance(images, Sequence) and not isinstance(images, str):
        for image in images:
            yield from flatten(image)
    elif getattr(images, "ndim", None) == 4:
        yield from images
    else:
        yield images


def as_tensor(image: Any) -> Tensor:
    """Return an array or tensor, if it may be an image, as uint8 or floating point."""
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "uif":
            raise TypeError(f"an image must hold numbers, got an array of {image.dtype}")
        native = image.astype(image.dtype.newbyteorder("="), copy=False)
        # A tensor shares the memory, which must be contiguous and may be written to.
        image = torch.from_numpy(np.require(native, requirements=("C", "W")))
    if not isinstance(image, Tensor):
        raise TypeError(
            "an image must be a path, a Pillow image, an array or a tensor, "
            f"got {type(image).__name__}"
        )
    if image.is_floating_point():
        if not torch.isfinite(image).all():
            raise ValueError("an image must not hold NaN or infinite values")
        return image
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.uint16:
        return _narrow(image.to(torch.int32))
    if image.dtype == torch.bool or image.is_complex():
        raise TypeError(f"an image must hold integers or real numbers, got {image.dtype}")
    # torch compares -1 with an int8 as 255, and finds no smallest value of uint32 and uint64.
    wide = image.to(torch.int64)
    if wide.numel() and (wide.min() < 0 or wide.max() > 255):
        raise ValueError(
            f"an image of {image.dtype} must lie within 0 .. 255, "
            f"got {int(wide.min())} .. {int(wide.max())}"
        )
    return wide.to(torch.uint8)


def _narrow(x: Tensor) -> Tensor:
    """Return the values of a 16-bit container, held as int32, as uint8."""
    top = int(x.max()) if x.numel() else 0
    if 0 < top <= 255:
        warnings.warn(
            "an image of 16 bits holds no value above 255: they are taken for 8-bit values; if it "
            "is that dark, give the high byte of each as uint8",
            stacklevel=6,
        )
        return x.to(torch.uint8)
    if 255 < top < _FEW:
        warnings.warn(
            f"an image of 16 bits holds no value above {_FEW - 1}, so that its high byte has "
            "few levels: scale it to 16 bits, or to 8 yourself",
            stacklevel=6,
        )
    return (x >> 8).to(torch.uint8)


def to_chw(x: Tensor, data_format: str | None, num_channels: int | None = None) -> Tensor:
    """Return an image of 2 or 3 axes as (C, H, W).

    Without a `data_format`, its channels are the first axis of 1, 3 or 4, or of `num_channels`
    where that is another number.
    """
    if x.ndim == 2:
        return x[None]
    if x.ndim != 3:
        raise ValueError(f"an image must have 2 or 3 axes, got shape {tuple(x.shape)}")
    if data_format is None:
        expected = (1, 3, 4) if num_channels in (None, 1, 3, 4) else (num_channels,)
        candidates = {CHANNELS_FIRST: x.shape[0], CHANNELS_LAST: x.shape[2]}
        fitting = [name for name, channels in candidates.items() if channels in expected]
        if not fitting:
            text = "1, 3 or 4" if len(expected) > 1 else str(num_channels)
            raise ValueError(
                f"an image must have {text} channels on its first or last axis, got shape "
                f"{tuple(x.shape)}; give input_data_format for other numbers of channels"
            )
        data_format = fitting[0]
    return x if data_format == CHANNELS_FIRST else x.permute(2, 0, 1)  # (H, W, C) -> (C, H, W)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Narrow 16-bit grey to 8 bits; Pillow's own conversion would clip it to white."""
    if image.mode == "F":
        raise ValueError("an image of mode F has no known range: convert it to 8 bits first")
    if not image.mode.startswith("I"):
        return image
    values = np.array(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"an image of mode {image.mode} must lie within 0 .. 65535, "
            f"got {values.min()} .. {values.max()}"
        )
    return Image.fromarray(_narrow(torch.from_numpy(values)).numpy())


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, laying transparency on white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_numpy(x: Tensor) -> np.ndarray:
    """Return a tensor as an array, bfloat16, which NumPy lacks, as float32."""
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def blend_torch(x: Tensor) -> Tensor:
    """Lay RGBA (4, H, W) on white, in the rounding of transformers' torchvision backend."""
    from torchvision.transforms.v2 import functional as tvf

    _check_blendable(x)
    y = tvf.to_dtype(x, torch.float32, scale=True)
    y = y[:3] * y[3:] + (1 - y[3:])
    return tvf.to_dtype(y, x.dtype, scale=True)


def blend_numpy(x: Tensor) -> Tensor:
    """Lay RGBA (4, H, W) on white, in the rounding of transformers' Pillow backend."""
    _check_blendable(x)
    white = 1.0 if x.is_floating_point() else 255
    y = to_numpy(x)
    alpha = y[3:] / white
    y = alpha * y[:3] + (1 - alpha) * white
    y = y if x.is_floating_point() else np.round(y)
    return torch.from_numpy(y).to(x.dtype)


def _check_blendable(x: Tensor) -> None:
    if x.is_floating_point() and (x.min() < 0.0 or x.max() > 1.0):
        raise ValueError(
            "a floating-point RGBA image must lie within 0 .. 1, "
            f"got {float(x.min())} .. {float(x.max())}"
        )
