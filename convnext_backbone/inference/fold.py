"""Folding: fewer operations for the same result, exact in real numbers and done in fp64.

The affine part of a norm moves into the layer behind it (ConvNeXt pads no pointwise and no
downsampling layer, so a norm's shift reaches every pixel alike), GRN's shift into the bias of the
second pointwise layer, and layer scale into that layer's weight and bias.
"""

import copy

import torch
from torch import Tensor, nn

from ..models.block import Block
from ..models.layers import GlobalResponseNorm


def fold_block(block: Block) -> Block:
    """Return a folded copy of an unmodified block: no layer scale, no affine part of the norm."""
    folded = copy.deepcopy(block)
    assert isinstance(folded.norm, nn.LayerNorm)
    _fold_norm(folded.norm, folded.pwconv1)
    weight, bias = _weight_and_bias(folded.pwconv2)
    if isinstance(folded.grn, GlobalResponseNorm):
        bias = bias + weight @ folded.grn.beta.double()
        nn.init.zeros_(folded.grn.beta)
    if folded.gamma is not None:
        gamma = folded.gamma.double()
        weight, bias = weight * gamma.unsqueeze(1), bias * gamma
        folded.gamma = None
    _assign(folded.pwconv2, weight, bias)
    return folded


def fold_downsampling(layers: nn.Sequential) -> nn.Sequential:
    """Return a folded copy of an unmodified norm and convolution."""
    folded = copy.deepcopy(layers)
    norm, conv = folded
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(conv, nn.Conv2d)
    _fold_norm(norm, conv)
    return folded


def _fold_norm(norm: nn.LayerNorm, layer: nn.Conv2d | nn.Linear) -> None:
    """Move the affine part of `norm` into the layer behind it, whose weight is (out, C, ...)."""
    weight, bias = _weight_and_bias(layer)
    trailing = (1,) * (weight.ndim - 2)
    if norm.bias is not None:
        bias = bias + (weight * norm.bias.double().view(-1, *trailing)).flatten(1).sum(dim=1)
    if norm.weight is not None:
        weight = weight * norm.weight.double().view(-1, *trailing)
    _assign(layer, weight, bias)
    norm.register_parameter("weight", None)
    norm.register_parameter("bias", None)


def _weight_and_bias(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    weight = layer.weight.double()
    return weight, weight.new_zeros(()) if layer.bias is None else layer.bias.double()


def _assign(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    # New parameters: copies of tied layers may still share the memory of the old ones.
    bias = bias.expand(weight.shape[0]).contiguous()
    for name, value in (("weight", weight), ("bias", bias)):
        value = value.to(layer.weight.dtype)
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))


def promote(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters, buffers and tensors that are plain attributes, such as computed weights."""
    module.to(dtype)
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(part, name, value.detach().to(dtype))
