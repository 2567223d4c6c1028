"""Depthwise convolution with a weight gradient that is quick on the CPU.

oneDNN's depthwise weight gradient is the slowest operation of a ConvNeXt training step on the CPU:
on a 7x7 map of 768 channels it takes 80 times as long as the forward pass. Here it is a sum of
products of shifted maps instead, tile by tile, so that a tile's products stay in the cache.

Axes: N batch, C channels, H height, W width, K kernel side.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers of one tile's products: 2 MiB in fp32, about a core's share of the second-level cache.
_TILE = 1 << 19


def depthwise_conv2d_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel of `x` (N, C, H, W) with its own `weight` (C, 1, K, K), padding K // 2.

    The plain twin of `depthwise_conv2d`.
    """
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Do what `depthwise_conv2d_plain` does, with a backward pass made for the CPU.

    Autocast must be off, as it is inside a custom gradient.
    """
    return _DepthwiseConv2d.apply(x, weight, bias)


class _DepthwiseConv2d(torch.autograd.Function):
    """The gradients are built from differentiable operations, so they have gradients too."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return depthwise_conv2d_plain(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # An odd kernel with "same" padding: the transpose is the same convolution, turned.
            grad_x = depthwise_conv2d_plain(grad, weight.flip(2, 3), None)
        if ctx.needs_input_grad[1]:
            grad_weight = depthwise_weight_grad(x, grad, weight.shape[-1]).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias


def depthwise_weight_grad(x: Tensor, grad: Tensor, size: int) -> Tensor:
    """Return the gradient of the weight (C, 1, K, K), in fp32 at least.

    `out[c, 0, i, j] = sum over n, h, w of x[n, c, h + i - K // 2, w + j - K // 2] * grad[n, c, h,
    w]`, with `x` zero outside its borders.

    Args:
        x: The input of the convolution (N, C, H, W).
        grad: The gradient of its output (N, C, H, W).
        size: K, odd.
    """
    n, c, h, w = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    pad = size // 2
    # (N, C, H, W) -> (N, H + K - 1, W + K - 1, C)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
    grad = grad.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
    per_row = max(w * size * c, 1)
    rows = min(h, max(1, _TILE // per_row))
    images = max(1, _TILE // (per_row * rows)) if rows == h else 1
    sums: list[Tensor] = [x.new_zeros(size * c, dtype=wide) for _ in range(size)]
    for first in range(0, n, images):
        for top in range(0, h, rows):
            g = grad[first : first + images, top : top + rows].to(wide).unsqueeze(3)
            tile = padded[first : first + images, top : top + rows + size - 1].to(wide)
            for i in range(size):
                # (n, h, w, K, C): entry j of the fourth axis is the map shifted by j pixels.
                shifted = tile[:, i : i + g.shape[1]].unfold(2, w, 1).permute(0, 1, 4, 2, 3)
                sums[i] = sums[i] + (shifted * g).flatten(3).sum(dim=(0, 1, 2))
    return torch.stack(sums).view(size, size, c).permute(2, 0, 1).unsqueeze(1)
