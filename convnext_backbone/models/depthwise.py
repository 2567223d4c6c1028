"""Depthwise convolution with a weight gradient that is fast on the CPU.

oneDNN's gradient of a depthwise weight is the slowest operation of a ConvNeXt training step on the
CPU: for a 7x7 map of 768 channels it takes some hundred times as long as the forward pass, and a
quarter to nearly half of a step. Here it is a forward convolution too, one of the input with the
gradient of the output as its kernel. Everything is built from differentiable torch operations.

Axes: N batch, C channels, H height, W width, (KH, KW) kernel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

# What one convolution of the weight's gradient takes: these rows of one map, or several images of
# no more numbers. More leaves the cache, and is less exact, being summed one after the other.
_ROWS, _NUMBERS = 14, 1 << 17

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
    grad[n, c, h, w]`, where `x` is zero outside its borders, D the dilation and P the padding. For
    one image that is a depthwise convolution of `x` with the map `grad` as its kernel, D as its
    stride, and KH x KW pixels of output.

    Args:
        x: The input of the convolution (N, C, H, W).
        grad: The gradient of its output (N, C, H, W).
        weight: The weight, for its shape and dtype.
        dilation: Along H and W.
    """
    n, c, h, w = x.shape
    sum_dtype = torch.promote_types(x.dtype, torch.float32)
    ph, pw = _same_padding(weight, dilation)
    x = F.pad(x, (0, 0, ph, ph)).permute(2, 3, 0, 1)  # (N, C, H, W) -> (H + 2 PH, W, N, C)
    grad = grad.permute(2, 3, 0, 1)  # (N, C, H, W) -> (H, W, N, C)
    rows = min(h, _ROWS)
    images = max(1, _NUMBERS // max(h * w * c, 1)) if rows == h else 1
    total = torch.zeros((c, *weight.shape[2:]), dtype=sum_dtype, device=x.device)
    for first in range(0, n, images):
        count = min(images, n - first)
        for top in range(0, h, rows):
            height = min(rows, h - top)
            tile = x.narrow(0, top, height + 2 * ph).narrow(2, first, count).to(sum_dtype)
            kernel = grad.narrow(0, top, height).narrow(2, first, count).to(sum_dtype)
            # Every channel of every image is one of the convolution's, channels-last.
            tile = tile.reshape(1, height + 2 * ph, w, count * c).permute(0, 3, 1, 2)
            kernel = kernel.reshape(height, w, 1, count * c).permute(3, 2, 0, 1)
            sums = F.conv2d(
                tile, kernel, stride=dilation, padding=(0, pw), groups=count * c
            )  # (1, N * C, KH, KW)
            total = total + sums.reshape(count, *total.shape).sum(0)
    # Contiguous, like the weight: DistributedDataParallel warns of other strides and copies.
    return total.contiguous().unsqueeze(1).to(weight.dtype)
