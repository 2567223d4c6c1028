"""Bins of regions and their bilinear samples, for roi.py and deform_roi.py; letters as there."""

from collections.abc import Iterator

import torch
from torch import Tensor


def extents(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, aligned: bool
) -> tuple[Tensor, Tensor]:
    """First corner `(R, 2)` and bin size `(R, 2)` of each region on the map, both as (y, x)."""
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    start, extent = corners[:, [1, 0]], corners[:, [3, 2]] - corners[:, [1, 0]]
    if not aligned:
        extent = extent.clamp(min=1)
    return start, extent / extent.new_tensor(size)


def regions_by_grid(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Split regions into groups of one sampling grid: (indices into `rois`, (S_y, S_x))."""
    if sampling_ratio > 0:
        yield torch.arange(len(rois), device=rois.device), (sampling_ratio, sampling_ratio)
        return
    grids = extents(rois, size, spatial_scale, aligned)[1].ceil().clamp(min=0).long()
    kinds, which = grids.unique(dim=0, return_inverse=True)
    for kind, (rows, columns) in enumerate(kinds.tolist()):
        yield (which == kind).nonzero().squeeze(1), (rows, columns)


def neighbours(position: Tensor, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The two pixels about a position along one axis, with their bilinear weights."""
    position = position.clamp(0, length - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=length - 1)
    weight = position - low
    return (low, 1 - weight), (high, weight)
