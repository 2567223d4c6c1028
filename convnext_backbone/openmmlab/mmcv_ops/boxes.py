"""Overlaps of boxes as `mmcv/ops/bbox.py` calls them."""

import torch
from torch import Tensor

from .precision import at_least_float32

_IOU = 0


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Intersection over union, or over the first box.

    Args:
        bboxes1: `(M, 4)` as (x1, y1, x2, y2).
        bboxes2: `(N, 4)`; `N == M` where `aligned`.
        ious: `(M, N)`, or `(M,)` where `aligned`, filled in place; NaN where both areas are 0.
        mode: 0 over the union, 1 over the area of the first box.
        aligned: Whether to compare row with row instead of each with each.
        offset: 0, or 1 where a box of one pixel has `x1 == x2`.
    """
    first, second = at_least_float32(bboxes1), at_least_float32(bboxes2)
    if not aligned:
        first = first[:, None]
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    inter = (high - low + offset).clamp(min=0).prod(dim=-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(dim=-1)
    if mode == _IOU:
        area = area + (second[..., 2:] - second[..., :2] + offset).prod(dim=-1) - inter
    ious.copy_(inter / area)
