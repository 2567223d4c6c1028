"""Depthwise convolution with a weight gradient that is fast on the CPU.

oneDNN's gradient of a depthwise weight is the slowest operation of a ConvNeXt training step on the
CPU: for a 7x7 map of 768 channels it takes 80 times as long as the forward pass, and a quarter to
nearly half of a step. Here it is a sum of products of shifted maps instead, tile by tile, so that
the products of a tile stay in the cache. Everything is built from differentiable torch operations.

Axes: N batch, C channels, H height, W width, (KH, KW) kernel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

# Numbers in the products of one tile: 2 MiB in fp32, about a core's share of the L2 cache.
_TILE = 1 << 19

Pair = tuple[int, ...]  # along H and W


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Pair) -> Tensor:
    """Convolve each channel with a kernel of its own, stride 1, "same" zero padding.

    The value is `F.conv2d`'s. Gradients of any order, in forward and in reverse mode, and under
    vmap are those of `F.conv2d` too; only the weight's is computed in another way.

    Args:
        x: Maps (N, C, H, W).
        weight: One kernel for each channel (C, 1, KH, KW), KH and KW odd, in the dtype of `x`.
        bias: (C,), or None.
        dilation: Of the kernel, along H and W.

    Returns:
        Maps (N, C, H, W).
    """
    return _DepthwiseConv2d.apply(x, weight, bias, dilation)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Pair) -> Tensor:
    padding = _same_padding(weight, dilation)
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])


def _same_padding(weight: Tensor, dilation: Pair) -> Pair:
    return (
        dilation[0] * (weight.shape[2] - 1) // 2,
        dilation[1] * (weight.shape[3] - 1) // 2,
    )


class _DepthwiseConv2d(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Pair) -> Tensor:
        return _convolve(x, weight, bias, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        # A backward pass may be started under autocast, which must not reach these operations.
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                # With "same" padding the transposed convolution is one with the kernel turned.
                grad_x = _convolve(grad, weight.flip(2, 3), None, ctx.dilation)
            if ctx.needs_input_grad[1]:
                grad_weight = _weight_gradient(x, grad, weight, ctx.dilation)
            if ctx.needs_input_grad[2]:
                grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        x, weight = ctx.saved_tensors
        x_tangent, weight_tangent, bias_tangent, _ = tangents
        out = None
        if x_tangent is not None:
            out = _convolve(x_tangent, weight, bias_tangent, ctx.dilation)
            bias_tangent = None
        if weight_tangent is not None:
            more = _convolve(x, weight_tangent, bias_tangent, ctx.dilation)
            out = more if out is None else out + more
        elif bias_tangent is not None:
            out = bias_tangent.view(1, -1, 1, 1).expand_as(x)
        return out


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, dilation: Pair) -> Tensor:
    """Return the gradient (C, 1, KH, KW) of the weight, summed in fp32 at least.

    `out[c, 0, i, j]` is the sum over n, h and w of `x[n, c, h + i * DH - PH, w + j * DW - PW] *
    grad[n, c, h, w]`, where `x` is zero outside its borders, D the dilation and P the padding.

    Args:
        x: The input of the convolution (N, C, H, W).
        grad: The gradient of its output (N, C, H, W).
        weight: The weight, for its shape and dtype.
        dilation: Along H and W.
    """
    n, c, h, w = x.shape
    (kh, kw), (dh, dw) = weight.shape[2:], dilation
    ph, pw = _same_padding(weight, dilation)
    sum_dtype = torch.promote_types(x.dtype, torch.float32)
    # (N, C, H, W) -> (N, H + 2 PH, W + 2 PW, C)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph))
    grad = grad.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
    per_row = max(w * kw * c, 1)
    rows = min(h, max(1, _TILE // per_row))
    images = max(1, _TILE // (per_row * rows)) if rows == h else 1
    # One sum (KW, C) for each row of the kernel.
    sums = [torch.zeros((), dtype=sum_dtype, device=x.device)] * kh
    # `narrow`, since vmap has no rule for what indexing makes of a slice that takes everything.
    for first in range(0, n, images):
        count = min(images, n - first)
        for top in range(0, h, rows):
            height = min(rows, h - top)
            g = grad.narrow(0, first, count).narrow(1, top, height).to(sum_dtype).unsqueeze(3)
            tile = padded.narrow(0, first, count).narrow(1, top, height + 2 * ph).to(sum_dtype)
            for i in range(kh):
                line = tile.narrow(1, i * dh, height)
                # (n, h, w, KW, C): entry j of the fourth axis is the map shifted by j * DW pixels.
                shifted = line.unfold(2, w, 1)[:, :, ::dw].permute(0, 1, 4, 2, 3)
                sums[i] = sums[i] + (shifted * g).sum(dim=(0, 1, 2))
    summed = torch.stack([s.expand(kw, c) for s in sums])  # (KH, KW, C)
    # Contiguous, like the weight: DistributedDataParallel warns of other strides and copies.
    return summed.permute(2, 0, 1).unsqueeze(1).to(weight.dtype).contiguous()
