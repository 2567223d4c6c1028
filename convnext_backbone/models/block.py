"""The ConvNeXt block and the stage, a chain of blocks.

Papers: ConvNeXt (arXiv 2201.03545, section 2 and figure 4), ConvNeXt V2 (arXiv 2301.00808, section
3.3). Parameter names are those of facebookresearch/ConvNeXt (models/convnext.py).

Axes: N batch, C channels, H height, W width.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from .config import ConvNextConfig
from .layers import ACTIVATIONS, DepthwiseConv2d, DropPath, GlobalResponseNorm, build_norm

_MLP_RATIO = 4  # hidden width of the block over its width, in every published ConvNeXt
WITH_CP = (False, "selective", True)
# Outputs of convolutions and linear layers, which "selective" saves: they are expensive to compute
# again. What lies between them (norm, activation, GRN) is recomputed in the backward pass.
_SAVED_OPS = [
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.linear.default,
]
_SELECTIVE = partial(create_selective_checkpoint_contexts, _SAVED_OPS)


def weight_of_stages(network: nn.Module) -> nn.Parameter:
    """Return a weight whose dtype and device are those of a network.

    A user's own parameters may come before the stages', and be of another dtype.
    """
    weights = (*network.get_submodule("stages").parameters(), *network.parameters())
    return next(p for p in weights if p.is_floating_point())


def checkpointed(module: nn.Module, x: Tensor, with_cp: bool | str) -> Tensor:
    """Call `module` on `x`; what it holds for the backward pass is one of `WITH_CP`."""
    # Without gradients nothing is held, so there is nothing to recompute; nor in a traced graph.
    if not with_cp or not torch.is_grad_enabled() or torch.jit.is_tracing():
        return module(x)
    if with_cp == "selective":
        return checkpoint(module, x, use_reentrant=False, context_fn=_SELECTIVE)
    return checkpoint(module, x, use_reentrant=False)


class Block(nn.Module):
    """Depthwise convolution, norm, two pointwise layers, residual: (N, C, H, W) to the same.

    Every part is called as a module, so each can be hooked, parametrized, pruned and replaced.

    Args:
        config: The architecture.
        channels: C.
        drop_path_rate: Probability with which a sample skips the block in training.
        kernel_size: Side of the depthwise kernel.
        dilation: Of the depthwise convolution.
    """

    def __init__(
        self,
        config: ConvNextConfig,
        channels: int,
        drop_path_rate: float,
        kernel_size: int = 7,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        hidden = _MLP_RATIO * channels
        self.dwconv = DepthwiseConv2d(channels, kernel_size, dilation, config.conv_bias)
        self.norm = build_norm(config.norm_layer, channels, config.norm_eps)
        self.pwconv1 = nn.Linear(channels, hidden)
        self.act = ACTIVATIONS[config.hidden_act]()
        self.grn = GlobalResponseNorm(hidden) if config.use_grn else nn.Identity()
        self.pwconv2 = nn.Linear(hidden, channels)
        scale = config.layer_scale_init_value
        self.gamma = nn.Parameter(torch.full((channels,), float(scale))) if scale > 0 else None
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's residual branch to `x` (N, C, H, W)."""
        y = self.dwconv(x)
        y = y.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        y = self.norm(y)
        y = self.pwconv1(y)  # (N, H, W, C) -> (N, H, W, 4C)
        y = self.act(y)
        y = self.grn(y)
        y = self.pwconv2(y)  # (N, H, W, 4C) -> (N, H, W, C)
        gamma = self.gamma  # read once: a parametrization computes it
        if gamma is not None:
            y = y * gamma
        y = y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        return x + self.drop_path(y)


class Stage(nn.Sequential):
    """The blocks of one stage, one after the other: (N, C, H, W) to the same.

    Attributes:
        with_cp: What its blocks hold for the backward pass, one of `WITH_CP`: False, everything;
            "selective", the outputs of convolutions and linear layers; True, the blocks' inputs.
    """

    with_cp: bool | str = False

    def __getitem__(self, idx: Any) -> Any:
        """Return a block, or a stage of some of the blocks."""
        part = super().__getitem__(idx)
        if isinstance(idx, slice):
            part.with_cp = self.with_cp
        return part

    def forward(self, input: Tensor) -> Tensor:
        """Run the blocks on `input` (N, C, H, W)."""
        x = input
        for block in self:
            x = checkpointed(block, x, self.with_cp)
        return x
