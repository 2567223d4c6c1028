"""How FullyShardedDataParallel cuts a ConvNeXt: one unit per block.

A process then gathers the weights of one block at a time, which bounds its memory by the largest
block. Stages are modules that are called, so policies that wrap whole stages work too.
"""

from torch import nn

from ..models.block import Block


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Choose the modules that FullyShardedDataParallel wraps: the blocks.

    A policy of torch, for `auto_wrap_policy`.

    Args:
        module: The module in question.
        recurse: Whether the question is to look into `module`, rather than to wrap it.
        nonwrapped_numel: Numbers in the parameters of `module` that no unit holds yet.
    """
    return recurse or isinstance(module, Block)
