"""CARAFE upsampling as `mmcv/ops/carafe.py` calls it.

Paper: CARAFE, https://arxiv.org/abs/1905.02188. Semantics:
`mmcv/ops/csrc/common/cuda/carafe_naive_cuda_kernel.cuh`. N batch, G groups, C channels of a
group, H/W height and width of the features, S scale factor, K kernel size.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Each output pixel is a weighted sum of the K x K pixels about the one that it came from.

    Args:
        features: `(N, G * C, H, W)`; reads 0 beyond its borders.
        masks: `(N, G * K * K, H * S, W * S)`, the weights of each output pixel.
        output: `(N, G * C, H * S, W * S)`, filled in place.
        kernel_size: K, odd.
        group_size: G.
        scale_factor: S.
    """
    weights = _by_cell(masks, kernel_size, group_size, scale_factor)
    total = torch.zeros_like(_split(output, group_size, scale_factor), dtype=weights.dtype)
    for index, window in _windows(features, kernel_size, group_size):
        total.addcmul_(window, weights[:, :, index, None])
    output.copy_(total.reshape(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients for `features` and `masks`, written into `bottom_grad` and `mask_grad`."""
    grad = _split(at_least_float32(top_grad), group_size, scale_factor)
    weights = _by_cell(masks, kernel_size, group_size, scale_factor)
    padded = F.pad(torch.zeros_like(features, dtype=grad.dtype), [kernel_size // 2] * 4)
    weight_grad = torch.zeros_like(weights)
    for (index, window), (_, place) in zip(
        _windows(features, kernel_size, group_size),
        _cut(padded, kernel_size, group_size),
        strict=True,
    ):
        # (N, G, C, H, S, W, S): sum over the S * S output pixels of one input pixel ...
        place.add_((grad * weights[:, :, index, None]).sum(dim=(4, 6), keepdim=True))
        # ... and over the channels that share one weight.
        weight_grad[:, :, index] = (grad * window).sum(dim=2)
    height, width = features.shape[2:]
    start = kernel_size // 2
    bottom_grad.copy_(padded[:, :, start : start + height, start : start + width])
    mask_grad.copy_(weight_grad.reshape(mask_grad.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """`carafe_naive_forward` with scratch buffers.

    `carafe_backward` is handed `rfeatures` instead of `features`, so the features are left there,
    in their own layout. `routput` and `rmasks` are not used.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """`carafe_naive_backward` with scratch buffers; see `carafe_forward` for `rfeatures`."""
    carafe_naive_backward(
        top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor
    )


def _split(maps: Tensor, groups: int, scale: int) -> Tensor:
    """(N, G * C, H * S, W * S) -> (N, G, C, H, S, W, S)."""
    batch, _, height, width = maps.shape
    return maps.reshape(batch, groups, -1, height // scale, scale, width // scale, scale)


def _by_cell(masks: Tensor, kernel_size: int, groups: int, scale: int) -> Tensor:
    """(N, G * K * K, H * S, W * S) -> (N, G, K * K, H, S, W, S), in the working precision."""
    split = _split(at_least_float32(masks), groups, scale)
    assert split.shape[2] == kernel_size**2
    return split


def _windows(features: Tensor, kernel_size: int, groups: int) -> Iterator[tuple[int, Tensor]]:
    """The features as each cell of the kernel sees them, zeros beyond the borders."""
    padded = F.pad(at_least_float32(features), [kernel_size // 2] * 4)
    return _cut(padded, kernel_size, groups)


def _cut(padded: Tensor, kernel_size: int, groups: int) -> Iterator[tuple[int, Tensor]]:
    """Views of a padded map, one for each cell of the kernel: (cell, (N, G, C, H, 1, W, 1))."""
    height, width = (side - kernel_size + 1 for side in padded.shape[2:])
    grouped = padded.unflatten(1, (groups, -1))
    for index in range(kernel_size**2):
        row, column = divmod(index, kernel_size)
        window = grouped[..., row : row + height, column : column + width]
        yield index, window[:, :, :, :, None, :, None]
