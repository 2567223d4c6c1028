"""Deformable convolution, without and with modulation, as mmcv calls it.

Papers: Deformable ConvNets, https://arxiv.org/abs/1703.06211, and v2,
https://arxiv.org/abs/1811.11168. Called by `mmcv/ops/deform_conv.py` and
`modulated_deform_conv.py`. torchvision's `deform_conv2d` comes from the same kernels: offsets lie
as (dy, dx) for each kernel cell, cells row by row, deform groups outermost.

`input` is `(N, C, H, W)`, `weight` `(D, C / group, kH, kW)`, `offset` in pixels
`(N, deformable_group * 2 * kH * kW, H_out, W_out)`, `mask` `(N, deformable_group * kH * kW, H_out,
W_out)`, `bias` `(D,)`, and the output `(N, D, H_out, W_out)`. mmcv passes the geometry by name.
torchvision reads the kernel and the numbers of groups off the shapes and chooses its own step over
the batch, so those names and the scratch buffers `columns` and `ones` are not used.
"""
# ruff: noqa: N803 - mmcv calls by these names

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from .precision import at_least_float32, copy_gradients

_Pair = tuple[int, int]  # (height, width)


class _Geometry(NamedTuple):
    stride: _Pair
    padding: _Pair
    dilation: _Pair


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Convolve at learned positions."""
    operands = map(at_least_float32, (input, offset, weight))
    output.copy_(_convolve(_plain(**geometry), *operands))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Gradients for `input` and `offset`, written into `gradInput` and `gradOffset`."""
    convolve = partial(_convolve, _plain(**geometry), weight=at_least_float32(weight))
    copy_gradients(convolve, (input, offset), gradOutput, (gradInput, gradOffset))


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **geometry: int,
) -> None:
    """Add `scale` times the gradient for the weight to `gradWeight`."""
    operands = map(at_least_float32, (input, offset))
    convolve = partial(_convolve, _plain(**geometry), *operands)
    # The result is linear in the weight, so any values give its gradient.
    grad = torch.zeros_like(gradWeight)
    copy_gradients(convolve, [grad], gradOutput, [grad])
    gradWeight.add_(grad, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,  # read only where `with_bias`
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Convolve at learned positions, each sample multiplied by its entry of `mask`."""
    operands = (input, offset, weight, mask, *([bias] if with_bias else []))
    convolve = partial(_convolve_modulated, _modulated(**geometry), output.shape[2:])
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
    with_bias: bool,
    **geometry: int,
) -> None:
    """Gradients of `modulated_deform_conv_forward`, written into the five `grad_*` tensors."""
    convolve = partial(_convolve_modulated, _modulated(**geometry), grad_output.shape[2:])
    operands = [input, offset, weight, mask, *([bias] if with_bias else [])]
    targets = [grad_input, grad_offset, grad_weight, grad_mask, *([grad_bias] if with_bias else [])]
    copy_gradients(convolve, operands, grad_output, targets)


def _plain(
    dH: int, dW: int, padH: int, padW: int, dilationH: int, dilationW: int, **unused: int
) -> _Geometry:
    return _Geometry((dH, dW), (padH, padW), (dilationH, dilationW))


def _modulated(**geometry: int) -> _Geometry:
    names = ("stride", "pad", "dilation")
    return _Geometry(*((geometry[f"{name}_h"], geometry[f"{name}_w"]) for name in names))


def _convolve_modulated(
    geometry: _Geometry,
    size: torch.Size,  # (H_out, W_out)
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    offset, mask = _read_flat(offset, size), _read_flat(mask, size)
    return _convolve(geometry, input, offset, weight, mask, bias)


def _read_flat(values: Tensor, size: torch.Size) -> Tensor:
    """Read `(N, K, H, W)` of a larger map as one of `size`, as compiled mmcv does.

    Its kernel checks no sizes and takes an image's values in the order of memory. mmdet's DyHead
    relies on it: it passes the offsets of the level below.
    """
    batch, channels = values.shape[:2]
    count = channels * size.numel()
    if values.shape[2:] == size or values[:1].numel() < count:  # the last, torchvision refuses
        return values
    return values.reshape(batch, -1)[:, :count].view(batch, channels, *size)


def _convolve(
    geometry: _Geometry,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    if torch.is_grad_enabled():
        off = _off_the_map(offset, weight.shape[2:], geometry)
        offset = torch.where(off, offset.detach(), offset)
    return deform_conv2d(input, offset, weight, bias, *geometry, mask)


def _off_the_map(offset: Tensor, kernel: torch.Size, geometry: _Geometry) -> Tensor:
    """Where a tap lies a pixel or more before the map: bool of the shape of `offset`.

    At exactly one pixel the gradient for the offset is one-sided. torchvision looks into the
    map, compiled mmcv out of it, to 0; and all offsets are 0 when training starts.
    """
    # (N, groups * kH * kW * 2, H_out, W_out) -> (N, groups, kH, kW, 2, H_out, W_out)
    shifts = offset.unflatten(1, (-1, *kernel, 2))
    before = []
    for axis in (0, 1):
        out = torch.arange(offset.shape[2 + axis], device=offset.device) * geometry.stride[axis]
        tap = torch.arange(kernel[axis], device=offset.device) * geometry.dilation[axis]
        position = tap[:, None] + out - geometry.padding[axis]
        position = position[:, None, :, None] if axis == 0 else position[:, None, :]
        before.append(shifts[:, :, :, :, axis] + position <= -1)
    off = before[0] | before[1]
    return torch.stack([off, off], dim=4).view(offset.shape)
