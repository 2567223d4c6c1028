"""How FullyShardedDataParallel cuts a ConvNeXt: one unit per block.

A process then gathers the weights of one block at a time, which bounds its memory by the largest
block. Stages are modules that are called, so policies that wrap whole stages work too.
"""

from torch import nn

from ..models.block import Block


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Make each block a unit: a policy for torch's `auto_wrap_policy`."""
    return recurse or isinstance(module, Block)
