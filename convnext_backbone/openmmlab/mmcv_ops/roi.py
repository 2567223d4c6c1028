"""Pooling in regions of interest: `roi_align` and `roi_pool` as mmcv calls them.

A region is a row `(image index, x1, y1, x2, y2)` in pixels of the image; `spatial_scale`, map
pixels per image pixel, takes it to the feature map. N images, C channels, H/W height and width of
the map, R regions, P/Q pooled height and width, S samples along one side of a bin.

Papers: Mask R-CNN, https://arxiv.org/abs/1703.06870 (roi_align); Fast R-CNN,
https://arxiv.org/abs/1504.08083 (roi_pool). Called by `mmcv/ops/roi_align.py` and `roi_pool.py`;
semantics: `mmcv/ops/csrc/common/cuda/roi_align_cuda_kernel.cuh` and `roi_pool_cuda_kernel.cuh`.
"""

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from .missing import MissingMmcvOpError
from .precision import at_least_float32, copy_gradients

_AVERAGE = 1


def roi_align_forward(
    input: Tensor,  # (N, C, H, W)
    rois: Tensor,  # (R, 5)
    output: Tensor,  # (R, C, P, Q)
    argmax_y: Tensor,  # used in max mode only
    argmax_x: Tensor,
    aligned_height: int,  # P
    aligned_width: int,  # Q
    spatial_scale: float,
    sampling_ratio: int,  # S; 0 takes as many as the bin is pixels long, for each region anew
    pool_mode: int,  # 0 max, 1 average
    aligned: bool,  # pixel centres at half-integers; else regions of at least one map pixel
) -> None:
    """Average bilinear samples of each bin of each region into `output`.

    Raises:
        MissingMmcvOpError: In max mode, which no model of mmdet or mmseg uses.
    """
    if pool_mode != _AVERAGE:
        raise MissingMmcvOpError("roi_align with pool_mode='max'")
    size = (aligned_height, aligned_width)
    features, rois = at_least_float32(input), _like(rois, input)
    pooled = torchvision_roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned)
    output.copy_(pooled)


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
    geometry = ((aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)

    def pool(features: Tensor) -> Tensor:
        return torchvision_roi_align(features, rois, *geometry)

    # The average is linear in the features, so any values give its gradient.
    copy_gradients(pool, [torch.zeros_like(grad_input)], grad_output, [grad_input])


def _like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Bring coordinates to the working precision of `reference` (torchvision wants one type)."""
    return tensor.to(at_least_float32(reference[:0]).dtype)


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
    channels, height, width = grad_input.shape[1:]
    channel = torch.arange(channels, device=grad.device)[:, None, None]
    plane = rois[:, 0].long()[:, None, None, None] * channels + channel
    position = plane * (height * width) + argmax.clamp(min=0)
    total = grad.new_zeros(grad_input.numel()).index_add_(0, position.flatten(), grad.flatten())
    grad_input.copy_(total.view_as(grad_input))
