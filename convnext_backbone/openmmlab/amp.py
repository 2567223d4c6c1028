"""Mixed precision on the CPU, and on a GPU in float16 after a run in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn


class CpuAmpOptimWrapper(OptimWrapper):
    """Compute the losses under bfloat16 autocast; weights, gradients and steps stay float32.

    bfloat16 has float32's range, so the loss is not scaled. mmengine's wrapper refuses to work on
    the CPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Cast what runs inside, and accumulate gradients as mmengine's wrapper does."""
        with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
            yield


class Float16OptimWrapper(AmpOptimWrapper):
    """mmengine's, which also goes on from a checkpoint of a run in bfloat16."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the optimizer, and the loss scaler where the checkpoint's run scaled its loss."""
        if not state_dict.get("loss_scaler"):  # empty without scaling, which torch's would refuse
            state_dict.pop("loss_scaler", None)
        super().load_state_dict(state_dict)
