"""The input of a deployed network: RGB images in [0, 255], normalised and padded in the graph."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import Size, check_part

# Necks that fail unless this number divides height and width: they double maps instead of resizing
# them to each other.
NECK_DIVISORS = {"CSPNeXtPAFPN": 32}


def pad_for_neck(model: Any) -> None:
    """Let a model pad its images as far as its neck needs it, if its own padding is less."""
    needed = NECK_DIVISORS.get(type(getattr(model, "neck", None)).__name__, 1)
    preprocessor = model.data_preprocessor
    if getattr(preprocessor, "pad_size_divisor", needed) % needed:
        preprocessor.pad_size_divisor = math.lcm(preprocessor.pad_size_divisor, needed)


class InputLayer(nn.Module):
    """What mmdet's and mmsegmentation's preprocessors do to a batch of images of one size.

    Args:
        preprocessor: The model's `data_preprocessor`.

    Attributes:
        divisor: Height and width are padded to a multiple of it, at the right and the bottom.

    Raises:
        ValueError: The preprocessor does something else.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: Any) -> None:
        super().__init__()
        check_part("model.data_preprocessor", preprocessor, PREPROCESSORS)
        read = PREPROCESSORS[type(preprocessor).__name__]
        self.divisor, self.pad_value, self.swap = read(preprocessor)
        normalise = preprocessor._enable_normalize
        mean = preprocessor.mean if normalise else torch.zeros(3, 1, 1)
        std = preprocessor.std if normalise else torch.ones(3, 1, 1)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's input for images (N, 3, H, W), float or uint8."""
        height, width = image.shape[-2:]
        image = (image.flip(1) if self.swap else image).to(self.mean.dtype)
        image = (image - self.mean) / self.std
        padded = self.padded((height, width))
        bottom, right = padded[0] - height, padded[1] - width
        return F.pad(image, (0, right, 0, bottom), value=self.pad_value)

    def mean_colour(self) -> list[float]:
        """Return the colour (R, G, B) in [0, 255] that becomes the value of the padding."""
        colour = (self.mean + self.pad_value * self.std).flatten().tolist()
        return colour[::-1] if self.swap else colour

    def padded(self, size: Size) -> Size:
        """Return the height and width after padding."""
        # Written so that torch.export sees that the strides divide it.
        height, width = ((side + self.divisor - 1) // self.divisor * self.divisor for side in size)
        return height, width


class Features(nn.Module):
    """Backbone and neck, in a precision of their own; their maps leave in float32.

    Args:
        model: The model; its own parts are taken.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.neck = model.neck if model.with_neck else nn.Identity()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of normalised images (N, 3, H, W)."""
        dtype = next(self.backbone.parameters()).dtype
        return [level.float() for level in self.neck(self.backbone(images.to(dtype)))]


def _detection(preprocessor: Any) -> tuple[int, float, bool]:
    # Images are loaded as BGR; a conversion makes them the RGB that the graph gets.
    swap = not preprocessor._channel_conversion
    return int(preprocessor.pad_size_divisor), float(preprocessor.pad_value), swap


def _segmentation(preprocessor: Any) -> tuple[int, float, bool]:
    testing = dict(preprocessor.test_cfg or {})
    divisor = testing.pop("size_divisor", None) or 1
    if any(value is not None for value in testing.values()):
        raise ValueError(
            f"data_preprocessor.test_cfg {testing} cannot be deployed, only size_divisor"
        )
    return int(divisor), float(preprocessor.pad_val), not preprocessor.channel_conversion


# The preprocessors that are reproduced: (divisor, value of the padding, swap the channels).
PREPROCESSORS = {
    "DetDataPreprocessor": _detection,
    "SegDataPreProcessor": _segmentation,
}
