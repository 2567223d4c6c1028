"""Mixed precision on the CPU, where mmengine's `AmpOptimWrapper` refuses to work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn


class CpuAmpOptimWrapper(OptimWrapper):
    """Compute the losses under bfloat16 autocast; weights, gradients and steps stay float32.

    bfloat16 has float32's range, so the loss is not scaled.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Cast what runs inside, and accumulate gradients as mmengine's wrapper does."""
        with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
            yield
