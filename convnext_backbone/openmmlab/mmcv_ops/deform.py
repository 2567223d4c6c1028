"""Deformable convolution, without and with modulation, as mmcv calls it.

Papers: Deformable ConvNets, https://arxiv.org/abs/1703.06211, and v2,
https://arxiv.org/abs/1811.11168. Called by `mmcv/ops/deform_conv.py` and
`modulated_deform_conv.py`. torchvision's `deform_conv2d` comes from the same kernels: offsets lie
as (dy, dx) for each kernel cell, cells row by row, deform groups outermost. It reads the numbers
of groups off the shapes and chooses its own step over the batch, so `group`, `deformable_group`,
`im2col_step` and the scratch buffers `columns` and `ones` are not used.
"""
# ruff: noqa: N803 - mmcv calls by these names

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from .precision import at_least_float32, copy_gradients


def deform_conv_forward(
    input: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (D, C / group, kH, kW)
    offset: Tensor,  # (N, deformable_group * 2 * kH * kW, H_out, W_out), in pixels
    output: Tensor,  # (N, D, H_out, W_out)
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,  # stride
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Convolve at learned positions."""
    convolve = _Convolution((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW))
    output.copy_(convolve(*map(at_least_float32, (input, offset, weight))))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients for `input` and `offset`, written into `gradInput` and `gradOffset`."""
    convolve = _Convolution((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW))
    with_weight = partial(convolve, weight=at_least_float32(weight))
    copy_gradients(with_weight, (input, offset), gradOutput, (gradInput, gradOffset))
    gradOffset.masked_fill_(convolve.off_the_map(offset), 0)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the gradient for the weight to `gradWeight`."""
    convolve = _Convolution((kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW))
    input, offset = at_least_float32(input), at_least_float32(offset)
    # The result is linear in the weight, so any values give its gradient.
    grad = torch.zeros_like(gradWeight)
    copy_gradients(partial(convolve, input, offset), [grad], gradOutput, [grad])
    gradWeight.add_(grad, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,  # (N, C, H, W)
    weight: Tensor,  # (D, C / group, kernel_h, kernel_w)
    bias: Tensor,  # (D,); read only where `with_bias`
    ones: Tensor,
    offset: Tensor,  # (N, deformable_group * 2 * kernel_h * kernel_w, H_out, W_out), in pixels
    mask: Tensor,  # (N, deformable_group * kernel_h * kernel_w, H_out, W_out)
    output: Tensor,  # (N, D, H_out, W_out)
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Convolve at learned positions, each sample multiplied by its entry of `mask`."""
    convolve = _Convolution(
        (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    )
    operands = (input, offset, weight, mask, *([bias] if with_bias else []))
    output.copy_(convolve(*map(at_least_float32, operands)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of `modulated_deform_conv_forward`, written into the five `grad_*` tensors."""
    convolve = _Convolution(
        (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    )
    operands = [input, offset, weight, mask, *([bias] if with_bias else [])]
    targets = [grad_input, grad_offset, grad_weight, grad_mask, *([grad_bias] if with_bias else [])]
    copy_gradients(convolve, operands, grad_output, targets)
    grad_offset.masked_fill_(convolve.off_the_map(offset), 0)


@dataclass(frozen=True)
class _Convolution:
    """`deform_conv2d` with its geometry fixed, in pairs (height, width): a function of tensors."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def __call__(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        return deform_conv2d(
            input, offset, weight, bias, self.stride, self.padding, self.dilation, mask
        )

    def off_the_map(self, offset: Tensor) -> Tensor:
        """Where a tap lies a pixel or more before the map: bool of the shape of `offset`.

        At exactly one pixel the gradient for the offset is one-sided. torchvision looks into the
        map, compiled mmcv out of it, to 0; and all offsets are 0 when training starts.
        """
        off = self._before(offset, 0) | self._before(offset, 1)
        return torch.stack([off, off], dim=4).view(offset.shape)

    def _before(self, offset: Tensor, axis: int) -> Tensor:
        """The same along one axis, as `(N, groups, kH, kW, H_out, W_out)`."""
        # (N, groups * kH * kW * 2, H_out, W_out) -> (N, groups, kH, kW, 2, H_out, W_out)
        shift = offset.unflatten(1, (-1, *self.kernel, 2))[:, :, :, :, axis]
        out = torch.arange(offset.shape[2 + axis], device=offset.device) * self.stride[axis]
        tap = torch.arange(self.kernel[axis], device=offset.device) * self.dilation[axis]
        position = tap[:, None] + out - self.padding[axis]
        return shift + (position[:, None, :, None] if axis == 0 else position[:, None, :]) <= -1
