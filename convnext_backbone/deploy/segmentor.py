"""Segmentors of mmsegmentation as one graph: logits at the input's size, then the best class.

N images, C classes, H and W the input's height and width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import Size, check_part
from .inputs import Features, InputLayer
from .mask2former import PixelDecoder, mask2former_logits


class AdaptiveAvgPool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products.

    torch's exporter writes a wrong graph for free sides and an output of 2 or 3, without an error.

    Args:
        size: Height and width of the output.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W) to (N, C, *size)."""
        rows, columns = (
            self._weights(*sides, x) for sides in zip(self.size, x.shape[-2:], strict=True)
        )
        return rows @ x @ columns.transpose(0, 1)

    @staticmethod
    def _weights(bins: int, length: int, like: Tensor) -> Tensor:
        """Return the share (bins, length) that each pixel has in the mean of each bin."""
        index = torch.arange(bins, device=like.device)[:, None]
        start, end = index * length // bins, ((index + 1) * length + bins - 1) // bins
        pixel = torch.arange(length, device=like.device)[None]
        inside = ((pixel >= start) & (pixel < end)).to(like.dtype)
        return inside / (end - start).to(like.dtype)


def replace_adaptive_pooling(model: nn.Module) -> None:
    """Put `AdaptiveAvgPool` in the place of every `nn.AdaptiveAvgPool2d` of a model."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size: Any = child.output_size
                size = (size, size) if isinstance(size, int) else tuple(size)
                if None in size:
                    raise ValueError(f"{child} cannot be deployed: a side of it is the input's")
                setattr(parent, name, AdaptiveAvgPool(size))


def _forward(head: Any, features: Sequence[Tensor], size: Size) -> Tensor:
    return F.interpolate(
        head(features), size=size, mode="bilinear", align_corners=head.align_corners
    )


# Decode heads by the name of their class: from features to logits (N, C, H, W) at a size.
DECODE_HEADS: dict[str, Callable[[Any, Sequence[Tensor], Size], Tensor]] = {
    "UPerHead": _forward,
    "FCNHead": _forward,
    "LinearHead": _forward,
    "SegformerHead": _forward,
    "ASPPHead": _forward,
    "DepthwiseSeparableASPPHead": _forward,
    "PSPHead": _forward,
    "Mask2FormerHead": mask2former_logits,
}


class Segmentor(nn.Module):
    """A segmentor of mmsegmentation, from RGB images to label maps.

    Args:
        model: An `EncoderDecoder`.
        probabilities: Whether to return them as well; for sliding windows they always are.

    Attributes:
        crop: Height and width of the windows; None for whole images.
        output_names: Of what `forward` returns.
        description: What deploy.json says of the inference.

    Raises:
        ValueError: A part or a setting is not reproduced; the message names it.
    """

    def __init__(self, model: Any, probabilities: bool = False) -> None:
        super().__init__()
        check_part("model.decode_head", model.decode_head, DECODE_HEADS)
        replace_adaptive_pooling(model)
        if hasattr(model.decode_head, "pixel_decoder"):
            model.decode_head.pixel_decoder = PixelDecoder(model.decode_head.pixel_decoder)
        self.inputs = InputLayer(model.data_preprocessor)
        self.features = Features(model)
        self.heads = model.decode_head
        slides = model.test_cfg.get("mode", "whole") == "slide"
        self.crop: Size | None = tuple(model.test_cfg.crop_size) if slides else None
        self.probabilities = probabilities or slides
        self.output_names = ("label_map", *(["probabilities"] if self.probabilities else ()))
        rule = {
            "mode": "slide" if slides else "whole",
            "align_corners": bool(model.align_corners),
            "threshold": getattr(self.heads, "threshold", None),
        }
        if slides:
            rule |= {"crop": list(model.test_cfg.crop_size), "stride": list(model.test_cfg.stride)}
        self.description = {"inference": rule}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the label map (N, H, W) int64 and, if asked for, probabilities (N, C, H, W)."""
        height, width = image.shape[-2:]
        features = self.features(self.inputs(image))
        size = self.inputs.padded((height, width))
        logits = DECODE_HEADS[type(self.heads).__name__](self.heads, features, size)
        logits = logits[..., :height, :width]
        if logits.shape[1] == 1:
            probabilities = logits.sigmoid()
            labels = (probabilities > self.heads.threshold).squeeze(1).long()
        else:
            labels = logits.argmax(dim=1)
            probabilities = logits.softmax(dim=1) if self.probabilities else logits
        return (labels, probabilities) if self.probabilities else (labels,)
