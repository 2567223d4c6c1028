"""CARAFE upsampling as `mmcv/ops/carafe.py` calls it.

Paper: CARAFE, https://arxiv.org/abs/1905.02188. Semantics:
`mmcv/ops/csrc/common/cuda/carafe_cuda_kernel.cuh`. N batch, G groups, C channels of a
group, H/W height and width of the features, S scale factor, K kernel size.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32, copy_gradients


def carafe_forward(
    features: Tensor,  # (N, G * C, H, W); reads 0 beyond its borders
    masks: Tensor,  # (N, G * K * K, H * S, W * S), the weights of each output pixel
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,  # (N, G * C, H * S, W * S)
    kernel_size: int,  # K, odd
    group_size: int,  # G
    scale_factor: int,  # S
) -> None:
    """Each output pixel is a weighted sum of the K x K pixels about its source pixel.

    mmcv passes `rfeatures` to `carafe_backward` in place of `features`, so the features are copied
    there, in their own layout. The scratch buffers `routput` and `rmasks` are not used.
    """
    rfeatures.copy_(features)
    operands = map(at_least_float32, (features, masks))
    output.copy_(_carafe(kernel_size, group_size, scale_factor, *operands))


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
    """Gradients for the features and `masks`, written into `bottom_grad` and `mask_grad`."""
    carafe = partial(_carafe, kernel_size, group_size, scale_factor)
    copy_gradients(carafe, (rfeatures, masks), top_grad, (bottom_grad, mask_grad))


def _carafe(kernel: int, groups: int, scale: int, features: Tensor, masks: Tensor) -> Tensor:
    """The upsampled `(N, G * C, H * S, W * S)`, differentiable in `features` and `masks`."""
    batch, channels, height, width = features.shape
    # (N, G * K * K, H * S, W * S) -> (N, G, K * K, H, S, W, S)
    weights = masks.view(batch, groups, kernel**2, height, scale, width, scale)
    # (N, G * C, H, W) -> (N, G, C, H + K - 1, W + K - 1)
    padded = F.pad(features, [kernel // 2] * 4).unflatten(1, (groups, -1))
    total = features.new_zeros(batch, groups, channels // groups, height, scale, width, scale)
    # A sum over views: unfolding would hold the features K * K times.
    for cell, weight in enumerate(weights.unbind(2)):
        row, column = divmod(cell, kernel)
        window = padded[..., row : row + height, column : column + width]
        total = total + window[:, :, :, :, None, :, None] * weight[:, :, None]
    return total.view(batch, channels, height * scale, width * scale)
