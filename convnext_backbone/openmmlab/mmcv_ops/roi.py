"""Pooling in regions of interest: `roi_align` and `roi_pool` as mmcv calls them.

A region is a row `(image index, x1, y1, x2, y2)` in pixels of the image; `spatial_scale`, map
pixels per image pixel, takes it to the feature map. N images, C channels, H/W height and width of
the map, R regions, P/Q pooled height and width, S samples along one side of a bin.

Papers: Mask R-CNN, https://arxiv.org/abs/1703.06870 (roi_align); Fast R-CNN,
https://arxiv.org/abs/1504.08083 (roi_pool). Called by `mmcv/ops/roi_align.py` and `roi_pool.py`;
semantics: `mmcv/ops/csrc/common/cuda/roi_align_cuda_kernel.cuh` and `roi_pool_cuda_kernel.cuh`.
"""

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from .precision import at_least_float32, copy_gradients
from .sampling import extents, neighbours, regions_by_grid

_AVERAGE = 1
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
    if pool_mode == _AVERAGE:
        geometry = ((aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)

        def pool(features: Tensor) -> Tensor:
            return torchvision_roi_align(features, rois, *geometry)

        # The average is linear in the features, so any values give its gradient.
        copy_gradients(pool, [torch.zeros_like(grad_input)], grad_output, [grad_input])
        return
    y, x = _like(argmax_y, grad_output), _like(argmax_x, grad_output)
    height, width = grad_input.shape[2:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    grad = torch.where(inside, at_least_float32(grad_output), 0)
    total = grad.new_zeros(grad_input.shape)
    for row, row_weight in neighbours(y, height):
        for column, column_weight in neighbours(x, width):
            values = grad * row_weight * column_weight
            _add_at(total, rois[:, 0].long(), row * width + column, values)
    grad_input.copy_(total)


def _like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Bring coordinates to the working precision of `reference` (torchvision wants one type)."""
    return tensor.to(at_least_float32(reference[:0]).dtype)


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


def _add_at(total: Tensor, image: Tensor, index: Tensor, values: Tensor) -> None:
    """Add `values` `(R, C, P, Q)` to `total` `(N, C, H, W)`, in the maps of `image` `(R,)`.

    `index`, of the shape of `values`, is row * W + column.
    """
    channels, height, width = total.shape[1:]
    channel = torch.arange(channels, device=total.device)[:, None, None]
    plane = image[:, None, None, None] * channels + channel
    position = plane * (height * width) + index
    total.view(-1).index_add_(0, position.flatten(), values.flatten())


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
    grad = torch.where(argmax >= 0, at_least_float32(grad_output), 0)
    total = grad.new_zeros(grad_input.shape)
    _add_at(total, rois[:, 0].long(), argmax.clamp(min=0).long(), grad)
    grad_input.copy_(total)
