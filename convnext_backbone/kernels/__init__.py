"""Fused operations of the block, each with its plain twin, and the switch that governs them.

- `block`: which of them a block takes.
- `depthwise`: the depthwise convolution, with a weight gradient that is quick on the CPU.
- `pointwise`: the rest of the block without gradients, tile by tile.
- `training`: the rest of the block with gradients, tile by tile, keeping much or little.
- `triton_ops`: all of it on a CUDA device, by Triton; off unless switched on.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .switches import use_kernels

__all__ = ["eager", "to_channels_last", "use_kernels"]


def eager(x: Tensor) -> bool:
    """Whether `x` is plain data that no tracer, transform or counter of operations watches.

    Those must see ordinary operations: what they record would otherwise be opaque or wrong.
    """
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
    )


def to_channels_last(x: Tensor) -> Tensor:
    """Return `x` (N, C, H, W) in channels-last memory, unless a transform forbids it.

    Under vmap a map has one axis more than it shows, and torch refuses the memory format.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return x
    return x.to(memory_format=torch.channels_last)
