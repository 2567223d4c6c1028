"""Pooling in regions of interest: `roi_align` and `roi_pool` as mmcv calls them.

A region is a row `(image index, x1, y1, x2, y2)` in pixels of the image; `spatial_scale`, map
pixels per image pixel, takes it to the feature map. N images, C channels, H/W height and width of
the map, R regions, P/Q pooled height and width, S samples along one side of a bin.

Papers: Mask R-CNN, https://arxiv.org/abs/1703.06870 (roi_align); Fast R-CNN,
https://arxiv.org/abs/1504.08083 (roi_pool). Called by `mmcv/ops/roi_align.py` and `roi_pool.py`;
semantics: `mmcv/ops/csrc/common/cuda/roi_align_cuda_kernel.cuh` and `roi_pool_cuda_kernel.cuh`.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from .precision import at_least_float32, copy_gradients

_MAX, _AVERAGE = 0, 1
# Samples may lie up to one pixel off the map; there they read its border.
_OUTSIDE = -2.0


def roi_align_forward(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (R, 5)
    output: Tensor,  # (R, C, P, Q)
    argmax_y: Tensor,  # (R, C, P, Q) in max mode, else empty
    argmax_x: Tensor,
    aligned_height: int,  # P
    aligned_width: int,  # Q
    spatial_scale: float,
    sampling_ratio: int,  # S; 0 takes as many as the bin is pixels long, for each region anew
    pool_mode: int,  # 0 max, 1 average
    aligned: bool,  # pixel centres at half-integers; else regions of at least one map pixel
) -> None:
    """Pool bilinear samples of each bin of each region into `output`.

    In max mode `argmax_y` and `argmax_x` get the place on the map of the winning sample, -2
    (outside) for a bin without samples.
    """
    features, rois = at_least_float32(input), _like(rois, input)
    size = (aligned_height, aligned_width)
    if pool_mode == _AVERAGE:
        output.copy_(
            torchvision_roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned)
        )
        return
    for index, grid in regions_by_grid(rois, size, spatial_scale, sampling_ratio, aligned):
        best, y, x = _max_align(features, rois[index], size, spatial_scale, grid, aligned)
        output[index] = best.to(output)
        argmax_y[index] = y.to(argmax_y)
        argmax_x[index] = x.to(argmax_x)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` for `input`, written into `grad_input`."""
    rois = _like(rois, grad_output)
    if pool_mode == _MAX:
        grad = at_least_float32(grad_output)
        y, x = _like(argmax_y, grad_output), _like(argmax_x, grad_output)
        grad_input.copy_(_scatter_bilinear(grad, rois[:, 0].long(), y, x, grad_input.shape))
        return

    def pool(features: Tensor) -> Tensor:
        size = (aligned_height, aligned_width)
        return torchvision_roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned)

    # The average is linear in the features, so any values give its gradient.
    copy_gradients(pool, [torch.zeros_like(grad_input)], grad_output, [grad_input])


def _like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Bring coordinates to the working precision of `reference` (torchvision wants one type)."""
    return tensor.to(at_least_float32(reference[:0]).dtype)


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


def _max_align(
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    grid: tuple[int, int],
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum over the samples of a bin, and where on the map it lies: three `(R, C, P, Q)`."""
    (pooled_y, pooled_x), (grid_y, grid_x) = size, grid
    shape = (len(rois), features.shape[1], pooled_y, pooled_x)
    if grid_y * grid_x == 0 or len(rois) == 0:
        # A region without extent has no samples: 0, at a position that gets no gradient.
        nowhere = features.new_full(shape, _OUTSIDE)
        return features.new_zeros(shape), nowhere, nowhere
    # A grid S times as fine with one sample per bin puts that sample where S per bin would lie.
    fine = (pooled_y * grid_y, pooled_x * grid_x)
    samples = torchvision_roi_align(features, rois, fine, spatial_scale, 1, aligned)
    best, winner = F.max_pool2d(samples, grid, return_indices=True)
    # (R, C, P, Q) flat index into (P * S_y, Q * S_x) -> row and column of the fine grid
    row, column = winner // fine[1], winner % fine[1]
    start, step = extents(rois, fine, spatial_scale, aligned)
    start, step = start[:, :, None, None, None], step[:, :, None, None, None]
    y = start[:, 0] + (row + 0.5) * step[:, 0]
    x = start[:, 1] + (column + 0.5) * step[:, 1]
    return best, y, x


def _scatter_bilinear(
    grad: Tensor, image: Tensor, y: Tensor, x: Tensor, shape: torch.Size
) -> Tensor:
    """Add each value of `grad` to the four pixels of `shape` that one bilinear sample read.

    `y` and `x`, `(R, C, P, Q)` as `grad`, are the sample's place in the map of `image` `(R,)`;
    less than -1 or more than H or W is outside.
    """
    batch, channels, height, width = shape
    channel = torch.arange(channels, device=grad.device)[None, :, None, None]
    plane = (image[:, None, None, None] * channels + channel) * (height * width)
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    grad = torch.where(inside, grad, 0)
    flat = grad.new_zeros(batch * channels * height * width)
    for row, row_weight in neighbours(y, height):
        for column, column_weight in neighbours(x, width):
            index = plane + row * width + column
            flat.index_add_(0, index.flatten(), (grad * row_weight * column_weight).flatten())
    return flat.view(shape)


def neighbours(position: Tensor, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The two pixels about a position along one axis, with their bilinear weights."""
    position = position.clamp(0, length - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=length - 1)
    weight = position - low
    return (low, 1 - weight), (high, weight)


def roi_pool_forward(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (R, 5)
    output: Tensor,  # (R, C, P, Q); 0 where a bin lies outside the map
    argmax: Tensor,  # (R, C, P, Q) int32, gets row * W + column of the maximum, or -1
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum over the whole pixels of each bin of each region.

    mmcv does not round the region to the map, as torchvision's `roi_pool` does: its far corner is
    one image pixel further out, and a bin covers every map pixel that it touches. So each bin is
    passed to torchvision as a region of its own, with whole numbers for its corners.
    """
    features, rois = at_least_float32(input), _like(rois, input)
    size = (pooled_height, pooled_width)
    low, high = _whole_bins(rois, size, spatial_scale, features.shape[2:])
    low, high = low.flatten(0, 2), high.flatten(0, 2)
    image = rois[:, 0].repeat_interleave(pooled_height * pooled_width)
    # torchvision includes the far pixel and takes (x, y).
    cells = torch.cat([image[:, None], low.flip(1).to(rois), (high - 1).flip(1).to(rois)], dim=1)
    best, winner = torch.ops.torchvision.roi_pool(features, cells, 1.0, 1, 1)
    empty = (high <= low).any(dim=1)[:, None, None, None]
    best, winner = best.masked_fill(empty, 0), winner.masked_fill(empty, -1)
    # (R * P * Q, C, 1, 1) -> (R, C, P, Q)
    for target, source in ((output, best), (argmax, winner)):
        target.copy_(source.view(len(rois), *size, input.shape[1]).permute(0, 3, 1, 2))


def _whole_bins(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, bounds: torch.Size
) -> tuple[Tensor, Tensor]:
    """First and one-past-last pixel of each bin, `(R, P, Q, 2)` int64 as (y, x), in the map."""
    start = rois[:, [2, 1]] * spatial_scale
    extent = (rois[:, [4, 3]] + 1) * spatial_scale - start
    bins = [torch.arange(count, device=rois.device) for count in size]
    cell = torch.stack(torch.meshgrid(*bins, indexing="ij"), dim=-1).to(rois)
    step = (extent / extent.new_tensor(size))[:, None, None]
    start = start[:, None, None]
    limit = torch.tensor(bounds, device=rois.device)
    low = torch.minimum((cell * step + start).floor().long().clamp(min=0), limit)
    high = torch.minimum(((cell + 1) * step + start).ceil().long().clamp(min=0), limit)
    malformed = (extent <= 0).any(dim=1)[:, None, None, None]
    return low, torch.where(malformed, low, high)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of `roi_pool_forward` for `input`, written into `grad_input`."""
    batch, channels, height, width = grad_input.shape
    grad = at_least_float32(grad_output).flatten(2)
    winner = argmax.flatten(2).long()
    grad = torch.where(winner >= 0, grad, 0)
    # (R, C, P * Q) -> one plane of H * W values per image and channel
    channel = torch.arange(channels, device=grad.device)[None, :, None]
    plane = rois[:, 0].long()[:, None, None] * channels + channel
    index = plane * (height * width) + winner.clamp(min=0)
    flat = grad.new_zeros(batch * channels * height * width)
    flat.index_add_(0, index.flatten(), grad.flatten())
    grad_input.copy_(flat.view(batch, channels, height, width))
