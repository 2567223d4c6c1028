"""Deformable RoI pooling as `mmcv/ops/deform_roi_pool.py` calls it.

Paper: Deformable ConvNets, https://arxiv.org/abs/1703.06211, section 2.2. Semantics:
`mmcv/ops/csrc/common/cuda/deform_roi_pool_cuda_kernel.cuh`: `roi_align` (aligned, average), but
each bin is first shifted by its own offset. N images, C channels, H/W height and width of the
map, R regions, P/Q pooled height and width, S samples along one side of a bin.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .precision import at_least_float32, copy_gradients


def deform_roi_pool_forward(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (R, 5), as in roi.py
    offset: Tensor,  # (R, 2, P, Q), shifts (dx, dy) of the bins; empty for none
    output: Tensor,  # (R, C, P, Q)
    pooled_height: int,  # P
    pooled_width: int,  # Q
    spatial_scale: float,
    sampling_ratio: int,  # S; 0 takes as many as the bin is pixels long, for each region anew
    gamma: float,  # length of a shift of 1, in widths or heights of the region
) -> None:
    """Average bilinear samples of each shifted bin of each region."""
    size = (pooled_height, pooled_width)
    pool = partial(_pool, rois, size, spatial_scale, sampling_ratio, gamma)
    output.copy_(pool(at_least_float32(input), at_least_float32(offset)))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Gradients for `input` and `offset`, written into `grad_input` and `grad_offset`."""
    size = (pooled_height, pooled_width)
    pool = partial(_pool, rois, size, spatial_scale, sampling_ratio, gamma)
    if offset.numel() == 0:
        copy_gradients(partial(pool, offset=offset), [input], grad_output, [grad_input])
    else:
        copy_gradients(pool, [input, offset], grad_output, [grad_input, grad_offset])


def _pool(
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    features: Tensor,
    offset: Tensor,
) -> Tensor:
    """The pooled `(R, C, P, Q)`, differentiable in `features` and `offset`."""
    rois = rois.to(features)
    corners = (rois[:, 1:] * spatial_scale - 0.5)[:, :, None, None]
    # (R, 4, 1, 1) as (x1, y1, x2, y2) -> (R, 2, 1, 1) as (y, x), to broadcast over the bins
    start, extent = corners[:, [1, 0]], corners[:, [3, 2]] - corners[:, [1, 0]]
    step = extent / extent.new_tensor(size)[:, None, None]
    bins = [torch.arange(count, device=rois.device) for count in size]
    cell = torch.stack(torch.meshgrid(*bins, indexing="ij")).to(rois)
    corner = start + cell * step
    if offset.numel():
        corner = corner + gamma * extent * offset.view(len(rois), 2, *size).flip(1)
    # (N, C, H, W) -> (N * H * W, C): a sample reads all channels of a pixel at once.
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2)
    pooled, order = [], []
    for index, grid in _regions_by_grid(step.flatten(1), sampling_ratio):
        order.append(index)
        image = rois[index, 0].long()
        pooled.append(_average(pixels, features.shape[2:], image, corner[index], step[index], grid))
    if not pooled:
        return features.new_zeros(0, features.shape[1], *size)
    return torch.cat(pooled)[torch.cat(order).argsort()]


def _average(
    pixels: Tensor,  # (N * H * W, C)
    bounds: torch.Size,  # (H, W)
    image: Tensor,  # (R,) index of each region's image
    corner: Tensor,  # (R, 2, P, Q), first corner of each bin as (y, x)
    step: Tensor,  # (R, 2, 1, 1), height and width of the bins
    grid: tuple[int, int],  # numbers of samples along height and width
) -> Tensor:
    """Mean `(R, C, P, Q)` of a grid of samples in each bin."""
    regions, _, rows, columns = corner.shape
    total = pixels.new_zeros(regions, rows, columns, pixels.shape[1])
    base = image[:, None, None] * (bounds[0] * bounds[1])
    for sample in range(grid[0] * grid[1]):
        cell = divmod(sample, grid[1])
        y, x = (
            corner[:, axis] + (cell[axis] + 0.5) / grid[axis] * step[:, axis] for axis in (0, 1)
        )
        inside = (y >= -1) & (y <= bounds[0]) & (x >= -1) & (x <= bounds[1])
        for row, row_weight in _neighbours(y, bounds[0]):
            for column, column_weight in _neighbours(x, bounds[1]):
                weight = torch.where(inside, row_weight * column_weight, 0)
                total = total + pixels[base + row * bounds[1] + column] * weight[..., None]
    return total.permute(0, 3, 1, 2) / max(grid[0] * grid[1], 1)


def _regions_by_grid(step: Tensor, sampling_ratio: int) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Group regions of one sampling grid by their bin sizes `(R, 2)`: (indices, (S_y, S_x))."""
    if sampling_ratio > 0:
        yield torch.arange(len(step), device=step.device), (sampling_ratio, sampling_ratio)
        return
    grids, which = step.ceil().clamp(min=0).long().unique(dim=0, return_inverse=True)
    for group, (rows, columns) in enumerate(grids.tolist()):
        yield (which == group).nonzero().squeeze(1), (rows, columns)


def _neighbours(position: Tensor, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The two pixels about a position along one axis, with their bilinear weights."""
    position = position.clamp(0, length - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=length - 1)
    weight = position - low
    return (low, 1 - weight), (high, weight)
