"""Operations with results of a fixed size, and what they become in ONNX.

The boxes that NMS keeps and those that lie on one pyramid level differ in number from image to
image. torch.export cannot follow such numbers, so each is hidden inside one operation: a mask as
long as its input, or one row for every box. ONNX has operators for both.

N images, M candidates of an image, R boxes of all images, C channels, S the side of a crop.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor


@torch.library.custom_op("convnext_backbone::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float, max_kept: int) -> Tensor:
    """Return which boxes (N, M, 4) NMS keeps, (N, M) bool: at most `max_kept` of an image.

    A negative score (N, M) marks a row that holds no box.
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(scores)):
        rows = (scores[image] >= 0).nonzero().squeeze(1)
        kept = torchvision.ops.nms(boxes[image, rows], scores[image, rows], iou_threshold)
        keep[image, rows[kept[:max_kept]]] = True
    return keep


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, max_kept: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op(
    "convnext_backbone::roi_align_levels",
    mutates_args=(),
    # torch 2.6 cannot read it from the annotations.
    schema=(
        "(Tensor[] features, Tensor boxes, Tensor images, Tensor levels, float[] scales, "
        "int[] size, int sampling_ratio, bool aligned) -> Tensor"
    ),
)
def roi_align_levels(
    features: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Crop each box (R, 4) from its own level of the pyramid, and from no other: (R, C, S, S).

    Args:
        features: A map (N, C, H, W) of each level.
        boxes: In pixels of the image.
        images: The image of each box, (R,) int64.
        levels: Its level, (R,) int64.
        scales: From pixels of the image to those of each level.
        size: Height and width of a crop.
        sampling_ratio: Samples along a side of a bin; 0 adapts them to the box.
        aligned: Whether pixel centres lie at half coordinates.
    """
    crops = boxes.new_zeros(len(boxes), features[0].shape[1], *size)
    rows = torch.cat([images[:, None].to(boxes), boxes], dim=1)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        own = levels == level
        crops[own] = torchvision.ops.roi_align(
            feature, rows[own], tuple(size), scale, sampling_ratio, aligned
        )
    return crops


@roi_align_levels.register_fake
def _(
    features: Any, boxes: Tensor, images: Any, levels: Any, scales: Any, size: Any, *_: Any
) -> Tensor:
    return boxes.new_empty(boxes.shape[0], features[0].shape[1], *size)


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Return what torch's exporter writes for each operation, as its `custom_translation_table`.

    Raises:
        ImportError: onnxscript is missing.
    """
    from onnxscript import opset18

    op: Any = opset18  # takes lists and numbers too, which its annotations do not say

    def translate_nms_mask(boxes: Any, scores: Any, iou_threshold: float, max_kept: int) -> Any:
        # One class only: boxes of different classes have been moved apart.
        picked = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, [1]), max_kept, iou_threshold, _BELOW_ZERO
        )
        rows = op.Gather(picked, [0, 2], axis=1)  # (image, class, box) -> (image, box)
        zeros = op.Expand(op.Constant(value_ints=[0]), op.Shape(scores))
        ones = op.Expand(op.Constant(value_ints=[1]), op.Shape(rows, start=0, end=1))
        return op.Cast(op.ScatterND(zeros, rows, ones), to=_ONNX_BOOL)

    def translate_roi_align_levels(
        features: Sequence[Any],
        boxes: Any,
        images: Any,
        levels: Any,
        scales: Sequence[float],
        size: Sequence[int],
        sampling_ratio: int,
        aligned: bool,
    ) -> Any:
        crops, rows = [], []
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            own = op.NonZero(op.Equal(levels, op.Constant(value_int=level)))
            own = op.Squeeze(own, [0])
            crops.append(
                op.RoiAlign(
                    feature,
                    op.Gather(boxes, own),
                    op.Gather(images, own),
                    coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
                    output_height=size[0],
                    output_width=size[1],
                    sampling_ratio=sampling_ratio,
                    spatial_scale=scale,
                )
            )
            rows.append(own)
        # Where in the concatenated crops each box has come to lie.
        order = op.Concat(*rows, axis=0)
        count = op.Squeeze(op.Shape(order), [0])
        positions = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
        places = op.ScatterElements(positions, order, positions)
        return op.Gather(op.Concat(*crops, axis=0), places)

    return {
        torch.ops.convnext_backbone.nms_mask.default: translate_nms_mask,
        torch.ops.convnext_backbone.roi_align_levels.default: translate_roi_align_levels,
    }


_BELOW_ZERO = -0.5  # ONNX keeps scores above its threshold, and a score of 0 counts
_ONNX_BOOL = 9
