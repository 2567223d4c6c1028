"""How FullyShardedDataParallel cuts a ConvNeXt: one unit per block.

A policy by size alone would cut a block between its layers, or wrap a whole stage, whose blocks the
backbone runs one by one; either leaves a layer with its weights still sharded.
"""

from torch import nn

from ..models.block import Block


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Tell FullyShardedDataParallel which modules to wrap: the blocks.

    Args:
        module: The module in question.
        recurse: Whether the question is to look into `module`, rather than to wrap it.
        nonwrapped_numel: Numbers in the parameters of `module` that no unit holds yet.
    """
    return recurse or isinstance(module, Block)
