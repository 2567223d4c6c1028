"""Overlaps of boxes as `mmcv/ops/bbox.py` calls them."""

import torch
from torch import Tensor

from .precision import at_least_float32

_IOU = 0


def bbox_overlaps(
    bboxes1: Tensor,  # (M, 4) as (x1, y1, x2, y2)
    bboxes2: Tensor,  # (N, 4); N == M where `aligned`, which compares row with row
    ious: Tensor,  # (M, N), or (M,) where `aligned`
    mode: int,  # 0 over the union, 1 over the area of the first box
    aligned: bool,
    offset: int,  # 0, or 1 where a box of one pixel has x1 == x2
) -> None:
    """Write intersection over union, or over the first box, into `ious`; NaN for empty boxes."""
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
