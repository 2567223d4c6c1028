"""mmseg's cross entropy with a weight per class, where label maps have void pixels.

mmseg 1.2.2 averages by the weights of all labels, looks up that of void's 255 too and stops with an
IndexError in the first iteration (published CGNet recipes do). Void has no weight here, as in
torch's own average. Goes when mmseg leaves void out.
"""

from types import ModuleType
from typing import Any

from torch import Tensor

from .replace import replace_function


def repair(losses: ModuleType) -> None:
    """Replace `cross_entropy` of `mmseg.models.losses.cross_entropy_loss`."""
    original = losses.cross_entropy

    def cross_entropy(
        pred: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        class_weight: Tensor | None = None,
        reduction: str = "mean",
        avg_factor: Any = None,
        ignore_index: int = -100,
        avg_non_ignore: bool = False,
    ) -> Tensor:
        if class_weight is not None and avg_factor is None and reduction == "mean":
            avg_factor = class_weight[label[label != ignore_index]].sum()
        return original(
            pred, label, weight, class_weight, reduction, avg_factor, ignore_index, avg_non_ignore
        )

    replace_function(original, cross_entropy)
