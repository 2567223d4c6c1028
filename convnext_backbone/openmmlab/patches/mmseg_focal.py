"""mmseg's focal loss without a GPU.

On the CPU mmseg 1.2.2 takes one column of the one-hot labels instead of those of all classes, and
stops in the first iteration. Goes when `FocalLoss.forward` slices `target[:, :num_classes]`.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def repair(losses: ModuleType) -> None:
    """Replace `FocalLoss.forward` of `mmseg.models.losses.focal_loss`."""
    original = losses.FocalLoss.forward

    def forward(
        self: Any,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Any = None,
        reduction_override: str | None = None,
        ignore_index: int = 255,
        **kwargs: Any,
    ) -> Tensor:
        if pred.is_cuda or target.shape == pred.shape:
            return original(
                self, pred, target, weight, avg_factor, reduction_override, ignore_index, **kwargs
            )
        valid = (target != ignore_index).reshape(-1).float()
        weight = valid if weight is None else weight.reshape(-1) * valid
        # A single channel is that of the label 1.
        classes = torch.arange(pred.shape[1], device=pred.device) + (pred.shape[1] == 1)
        one_hot = target.unsqueeze(1) == classes.view(1, -1, *[1] * (target.ndim - 1))
        return original(self, pred, one_hot.long(), weight, avg_factor, reduction_override)

    losses.FocalLoss.forward = forward
