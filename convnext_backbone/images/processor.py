"""ConvNextImageProcessor: images of any kind to the tensor that a ConvNeXt was trained on.

Parameters, defaults and arithmetic are those of transformers 5
(models/convnext/image_processing_convnext.py and image_processing_pil_convnext.py), so that results
are equal bit for bit within one backend. Where transformers fails or leaves an image unusable
(palette, grey, 16 bits, EXIF orientation), this one converts it.

Axes: N batch, C channels, H height, W width, in pixels.
"""

import os
import warnings
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..utils.checks import as_int, check_choice, check_min
from ..utils.files import encode_json, expand_path, read_json, write_json
from ..weights.source import resolve
from .reading import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    as_tensor,
    blend_numpy,
    blend_torch,
    flatten,
    load_image,
    to_chw,
    to_eight_bits,
    to_numpy,
    to_rgb,
    upright,
)

PROCESSOR_CONFIG = "preprocessor_config.json"
_Pixels = TypeVar("_Pixels", Tensor, np.ndarray)
_SQUASH_FROM = 384  # sides from here on are resized without a crop, as the checkpoints were trained
_MAX_PIXELS = 2**28  # of a resized image; only a sliver of an image gets there
# What None stands for, as in transformers.
_DEFAULTS: dict[str, Any] = {
    "size": 384,
    "crop_pct": 224 / 256,
    "resample": int(Image.Resampling.BICUBIC),
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "data_format": CHANNELS_FIRST,
}
_DINOV3 = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
# Pillow's filter code -> the name of torchvision's. The pil backend has all of Pillow's.
_TORCHVISION_FILTERS: dict[int, str] = {
    Image.Resampling.NEAREST: "NEAREST_EXACT",
    Image.Resampling.BILINEAR: "BILINEAR",
    Image.Resampling.BICUBIC: "BICUBIC",
    Image.Resampling.LANCZOS: "LANCZOS",
}


class BatchFeature(UserDict[str, Any]):
    """What the processor returns: a dict for `model(**inputs)`, with attributes and `.to()`."""

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})  # not there yet while it is unpickled or copied
        if name in data:
            return data[name]
        raise AttributeError(f"BatchFeature has {list(data)}, got {name!r}")

    def to(self, *args: Any, **kwargs: Any) -> "BatchFeature":
        """Return the same with every tensor sent through `Tensor.to`; integers keep their dtype."""
        places = [a for a in args if not isinstance(a, torch.dtype)]
        place = {k: v for k, v in kwargs.items() if k != "dtype"}

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                return value.to(*args, **kwargs)
            return value.to(*places, **place) if places or place else value

        return BatchFeature({k: move(v) for k, v in self.data.items()})


@dataclass
class ConvNextImageProcessor:
    """Resize, crop, rescale and normalise images.

    Example:
        >>> processor = ConvNextImageProcessor(size=224)
        >>> processor("cat.jpg", return_tensors="pt").pixel_values.shape
        torch.Size([1, 3, 224, 224])

    Attributes:
        do_resize: Resize at all.
        size: The side of the output, as `{"shortest_edge": side}` or a number. Below 384 the short
            side becomes `side / crop_pct` and the middle is cut out; from 384 on the image is
            warped to a square.
        crop_pct: The share of the resized short side that the crop keeps, in (0, 1].
        resample: Pillow's code of the filter; 3 is bicubic, 2 bilinear.
        do_rescale: Multiply by `rescale_factor`.
        rescale_factor: What brings the values to 0 .. 1.
        do_normalize: Subtract `image_mean` and divide by `image_std`.
        image_mean: One number, or one a channel.
        image_std: One number, or one a channel.
        do_convert_rgb: True converts every image to RGB, laying transparency on white. None
            converts the images that do not have as many channels as `image_mean`. False converts
            none.
        data_format: `channels_first` or `channels_last`, of the output.
        input_data_format: The same of arrays and tensors that come in; None looks for an axis of
            1, 3 or 4 channels, or of as many as `image_mean` has where that is another number, the
            first axis first.
        backend: `torchvision` works on tensors, on any device; `pil` on the CPU with Pillow.
        squash: True warps and False crops at any size; None goes by the size.
        rescale_first: Rescale before the resize, as DINOv3's processor does, so that what is
            resized is not rounded to 8 bits. Only the torchvision backend does; Pillow has 8 bits.

    Raises:
        ValueError: A value is out of its range.
        TypeError: A value is of the wrong type, or a name is not an attribute.
    """

    do_resize: bool = True
    size: Any = None
    crop_pct: float | None = None
    resample: int | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Any = None
    image_std: Any = None
    do_convert_rgb: bool | None = None
    data_format: str = CHANNELS_FIRST
    input_data_format: str | None = None
    backend: str = "torchvision"
    squash: bool | None = None
    rescale_first: bool = False

    model_input_names = ("pixel_values",)

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        self.size = _size_dict(self.size)
        self.image_mean = _per_channel("image_mean", self.image_mean)
        self.image_std = _per_channel("image_std", self.image_std)
        self._check()

    def _check(self) -> None:
        check_choice("resample", self.resample, tuple(int(code) for code in Image.Resampling))
        formats = (CHANNELS_FIRST, CHANNELS_LAST)
        check_choice("data_format", self.data_format, formats)
        check_choice("input_data_format", self.input_data_format, (None, *formats))
        check_choice("backend", self.backend, ("torchvision", "pil"))
        if self.backend == "torchvision" and self.resample not in _TORCHVISION_FILTERS:
            name = Image.Resampling(int(self.resample or 0)).name.lower()
            raise ValueError(
                f"resample must be one of {tuple(map(int, _TORCHVISION_FILTERS))}, got "
                f"{self.resample} ({name}), which only backend='pil' has"
            )
        if not isinstance(self.crop_pct, int | float) or not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must lie above 0 and up to 1, got {self.crop_pct!r}")
        if not isinstance(self.rescale_factor, int | float) or not self.rescale_factor > 0:
            raise ValueError(f"rescale_factor must be positive, got {self.rescale_factor!r}")
        if not np.all(np.abs(self.image_std) > 0):
            raise ValueError(f"image_std must not hold 0 or NaN, got {self.image_std!r}")
        if self.do_normalize and len({np.size(self.image_mean), np.size(self.image_std), 1}) > 2:
            raise ValueError(
                "image_mean and image_std must have one number or one a channel each, got "
                f"{self.image_mean} and {self.image_std}"
            )
        side = self.size["shortest_edge"]
        check_pixels("size", side, side)

    def __call__(self, images: Any, **overrides: Any) -> BatchFeature:
        """Process images: `preprocess`."""
        return self.preprocess(images, **overrides)

    def preprocess(
        self,
        images: Any,
        *,
        return_tensors: str | None = None,
        device: str | torch.device | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Turn images into `pixel_values`.

        Args:
            images: A Pillow image, an array or tensor of 2 to 4 axes, a path, or a (nested) list
                of them. Integers are 0 .. 255. 16 bits give their high byte; where none of an
                image's values lies above 255, they are taken as they are, with a warning.
            return_tensors: `pt` stacks a tensor (N, C, H, W), `np` an array; None gives a list
                with one entry an image.
            device: Where to work; None works where a tensor is. Only with the torchvision backend.
            overrides: Attributes to replace for this call.

        Raises:
            ValueError: An image cannot be read or used, or `pt` and `np` are asked for images
                that came out in several sizes.
            TypeError: An entry is no image, or an override is not an attribute.
        """
        # transformers' TensorType is an enum
        return_tensors = getattr(return_tensors, "value", return_tensors)
        check_choice("return_tensors", return_tensors, _STACKERS)
        given = {k: v for k, v in overrides.items() if v is not None}
        run = replace(self, **given) if given else self
        tensors = [run.to_tensor(image, device) for image in flatten(images)]
        outputs = run.process_tensors(tensors)
        if run.data_format == CHANNELS_LAST:
            outputs = [x.permute(1, 2, 0) for x in outputs]  # (C, H, W) -> (H, W, C)
        return BatchFeature({"pixel_values": _STACKERS[return_tensors](outputs)})

    def to_tensor(
        self,
        image: Any,
        device: str | torch.device | None = None,
        *,
        num_channels: int | None = None,
    ) -> Tensor:
        """Return one image (Pillow, array, tensor or path) as an upright (C, H, W).

        `num_channels` are those that the network takes, for where `image_mean` does not fix them.

        Raises:
            ValueError: The image cannot be read, or its values or channels do not fit.
            TypeError: It is not an image.
        """
        wanted = num_channels  # None where any number will do
        if self.do_convert_rgb:
            wanted = 3
        elif self.do_normalize and isinstance(self.image_mean, tuple):
            wanted = len(self.image_mean)
        if isinstance(image, str | os.PathLike):
            image = load_image(image)
        elif isinstance(image, Image.Image):
            image = upright(image)
        if isinstance(image, Image.Image):
            x = to_chw(torch.from_numpy(self._from_pil(image, wanted)), CHANNELS_LAST)
        else:
            x = to_chw(as_tensor(image), self.input_data_format, wanted)
            x = self._match_channels(x, wanted)
        if 0 in x.shape:
            raise ValueError(f"an image must have at least one pixel, got shape {tuple(x.shape)}")
        if self.do_rescale and x.is_floating_point() and 0 < x.max() <= 1:
            warnings.warn(
                "the values of a floating-point image lie within 0 .. 1 and are about to be "
                "multiplied by rescale_factor again: give do_rescale=False for such images",
                stacklevel=4,
            )
        return x.contiguous() if device is None else x.contiguous().to(device)

    def _from_pil(self, image: Image.Image, wanted: int | None) -> np.ndarray:
        if self.do_convert_rgb is False:
            return np.array(image)
        image = to_eight_bits(image)
        if wanted == 1:
            return np.array(to_rgb(image).convert("L"))
        if wanted in (3, None):
            return np.array(to_rgb(image))
        x = np.array(image)
        if x.ndim != 3 or x.shape[-1] != wanted:
            raise ValueError(
                f"an image must have {wanted} channels, got one of Pillow's mode {image.mode}"
            )
        return x

    def _match_channels(self, x: Tensor, wanted: int | None) -> Tensor:
        if self.do_convert_rgb is False or wanted in (None, x.shape[0]):
            return x
        if wanted == 3 and x.shape[0] == 1:
            return x.expand(3, -1, -1)
        if wanted == 3 and x.shape[0] == 4:
            return blend_numpy(x) if self.backend == "pil" else blend_torch(x)
        raise ValueError(f"an image must have {wanted} channels, got shape {tuple(x.shape)}")

    def process_tensors(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Resize and normalise what `to_tensor` gave, images of one shape at once off the CPU."""
        if self.backend == "pil":
            return [torch.from_numpy(self._process_array(to_numpy(x))) for x in images]
        groups: dict[Any, list[int]] = {}
        for index, image in enumerate(images):
            alone = image.device.type == "cpu"
            key = index if alone else (tuple(image.shape), image.dtype, image.device)
            groups.setdefault(key, []).append(index)
        results: dict[int, Tensor] = {}
        for indices in groups.values():
            batch = torch.stack([images[i] for i in indices])
            results.update(zip(indices, self._process_torch(batch), strict=True))
        return [results[index] for index in range(len(images))]

    def plan(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the (height, width) that an image is resized to, and those that it is cut to.

        ValueError where the image is so narrow that the resized one would not fit into memory.
        """
        side = self.size["shortest_edge"]
        if side >= _SQUASH_FROM if self.squash is None else self.squash:
            return (side, side), (side, side)
        short = int(side / (self.crop_pct or 1))
        long = int(short * max(height, width) / min(height, width))
        if short * long > _MAX_PIXELS:
            raise ValueError(
                f"an image of {height}x{width} is too narrow to be resized to a short side of "
                f"{short} and a long one of {long} pixels"
            )
        resized = (long, short) if width <= height else (short, long)
        return resized, (side, side)

    def warp(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize images (..., C, H, W) to (height, width)."""
        if self.backend == "pil":
            return torch.from_numpy(_resize_pil(to_numpy(x), size, int(self.resample or 0)))
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as tvf

        mode = getattr(InterpolationMode, _TORCHVISION_FILTERS[int(self.resample or 0)])
        if self.rescale_first and self.do_rescale:
            x = x.to(torch.float32)  # resizing is linear: the factor may as well follow
        if tuple(size) == (1, 1):  # where torch's kernel of 8 bits needs the channels innermost
            x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
        return tvf.resize(x, list(size), interpolation=mode, antialias=True)

    def _process_torch(self, x: Tensor) -> Tensor:
        if self.do_resize:
            resized, (height, width) = self.plan(*x.shape[-2:])
            x = _center_crop(self.warp(x, resized), height, width)
        if not self.do_normalize:
            return x * self.rescale_factor if self.do_rescale else x
        # One step instead of two, as transformers does it: (x - 255 mean) / (255 std).
        factor = 1.0 / self.rescale_factor if self.do_rescale else 1.0
        mean, std = (
            (torch.tensor(values, device=x.device) * factor).view(-1, 1, 1)
            for values in (self.image_mean, self.image_std)
        )
        return (x.to(torch.float32) - mean).div_(std)

    def _process_array(self, x: np.ndarray) -> np.ndarray:
        if self.do_resize:
            resized, (height, width) = self.plan(*x.shape[-2:])
            x = _center_crop(_resize_pil(x, resized, int(self.resample or 0)), height, width)
        if self.do_rescale:
            x = _rescaled(x, self.rescale_factor)
        if self.do_normalize:
            x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)
            mean, std = (np.asarray(v, dtype=x.dtype) for v in (self.image_mean, self.image_std))
            x = ((x.T - mean) / std).T
        return np.ascontiguousarray(x)

    # Where its settings come from and go to.

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as transformers writes them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        left_out = ("do_convert_rgb", "data_format", "input_data_format", "squash", "rescale_first")
        for name in left_out:
            if values[name] == getattr(ConvNextImageProcessor, name):
                del values[name]
        del values["backend"]  # how to compute, not what
        values["resample"] = int(values["resample"])
        return {**values, "image_processor_type": "ConvNextImageProcessor"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> "ConvNextImageProcessor":
        """Build a processor from the contents of a preprocessor_config.json.

        Entries without effect on the arithmetic are left out; ValueError for an unknown step.
        """
        unknown = {k: values[k] for k in ("do_center_crop", "do_pad") if values.get(k)}
        if unknown:
            raise ValueError(f"the processor has no such step: {unknown}")
        known = {f.name for f in fields(cls)}
        # None stands for a default, but for a step it means that the step is left out.
        given = {
            k: v for k, v in values.items() if k in known and (v is not None or k.startswith("do_"))
        }
        size = given.get("size")
        if isinstance(size, Mapping) and size.keys() == {"height", "width"}:
            # DINOv3's processor: a square, without a crop.
            if size["height"] != size["width"]:
                raise ValueError(f"size must be a square, got {dict(size)}")
            given.update(size={"shortest_edge": size["height"]}, squash=True, rescale_first=True)
            given.setdefault("resample", int(Image.Resampling.BILINEAR))
            given = {**_DINOV3, **given}
        return cls(**{**given, **overrides})

    def to_json_string(self) -> str:
        """Return the settings as the text of a preprocessor_config.json."""
        return encode_json(self.to_dict()).decode()

    def to_json_file(self, path: str | os.PathLike[str]) -> None:
        """Write the settings to a file, replacing it in one step."""
        write_json(expand_path(path, "path"), self.to_dict())

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> "ConvNextImageProcessor":
        """Read the settings from a file; see `from_pretrained`."""
        return cls.from_pretrained(path)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        **overrides: Any,
    ) -> "ConvNextImageProcessor":
        """Read a preprocessor_config.json.

        Args:
            source: The file, the directory or weights file that it lies beside, a Hugging Face id
                or an `arch.tag` of `list_weights()`.
            revision: The branch, tag or commit of a Hugging Face repository.
            subfolder: The folder inside a directory or a Hugging Face repository.
            overrides: Attributes to replace.

        Raises:
            FileNotFoundError: There is no such file.
            ConnectionError: The hub cannot be reached.
            ValueError: The file is not a processor's.
        """
        path = resolve(source, revision=revision, subfolder=subfolder).file(PROCESSOR_CONFIG)
        return cls.from_dict(read_json(path), **overrides)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> list[str]:
        """Write `directory`/preprocessor_config.json in one step and return its path in a list."""
        path = Path(expand_path(directory, "directory"), PROCESSOR_CONFIG)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.to_json_file(path)
        return [str(path)]


def check_pixels(name: str, height: int, width: int) -> None:
    """Refuse the (height, width) of an image that would not fit into memory."""
    if height * width > _MAX_PIXELS:
        raise ValueError(f"{name} must be at most {_MAX_PIXELS:,} pixels, got {height}x{width}")


def _size_dict(size: Any) -> dict[str, int]:
    if as_int(size) is not None:
        size = {"shortest_edge": size}
    if not isinstance(size, Mapping) or not size.get("shortest_edge"):
        got = size.keys() if isinstance(size, Mapping) else repr(size)
        raise ValueError(f"Size dictionary must contain 'shortest_edge' key. Got {got}")
    return {**size, "shortest_edge": check_min("shortest_edge", size["shortest_edge"], 1)}


def _per_channel(name: str, value: Any) -> float | tuple[float, ...]:
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Sequence | np.ndarray) and len(value) > 0 and not isinstance(value, str):
        return tuple(float(v) for v in value)
    raise TypeError(f"{name} must be a number or one a channel, got {value!r}")


def _center_crop(x: _Pixels, height: int, width: int) -> _Pixels:
    """Cut the middle out of a tensor or array (..., H, W)."""
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def _resize_pil(x: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Resize (C, H, W) with Pillow; values of 0 .. 1 pass through 8 bits, as in transformers."""
    integral = x.dtype == np.uint8 or np.allclose(x, x.astype(int))
    limit = 255 if integral else 1
    if x.min() < 0 or x.max() > limit:
        raise ValueError(
            f"the pil backend needs values within 0 .. {limit}, got {x.min()} .. {x.max()}"
        )
    levels = (x if integral else _rescaled(x, 255.0)).astype(np.uint8)
    # Pillow has images of 1, 3 and 4 channels of one type; others are resized one by one.
    groups = [levels] if levels.shape[0] in (1, 3, 4) else np.split(levels, levels.shape[0])
    resized = np.concatenate([_resize_channels(group, size, resample) for group in groups])
    return resized if integral else _rescaled(resized, 1 / 255)


def _resize_channels(x: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    hwc = np.moveaxis(x, 0, -1)  # (C, H, W) -> (H, W, C)
    image = Image.fromarray(hwc[..., 0] if hwc.shape[-1] == 1 else np.ascontiguousarray(hwc))
    resized = np.array(image.resize((size[1], size[0]), resample=resample))
    resized = resized[..., None] if resized.ndim == 2 else resized
    return np.moveaxis(resized, -1, 0)  # (H, W, C) -> (C, H, W)


def _rescaled(x: np.ndarray, factor: float) -> np.ndarray:
    return (x.astype(np.float64) * factor).astype(np.float32)


def _stack(images: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f"images of one batch must have one shape to be stacked, got {shapes}; "
            "resize them, or leave return_tensors at None"
        )
    if not images:
        raise ValueError("images must not be empty")
    return torch.stack(images)


_STACKERS: dict[str | None, Callable[[list[Tensor]], Any]] = {
    None: lambda images: images,
    "pt": _stack,
    "np": lambda images: _stack(images).cpu().numpy(),
}
