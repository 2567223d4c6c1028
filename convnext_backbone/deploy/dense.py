"""Detectors with one dense head: anchors or points on every level of a pyramid, then NMS.

The letters are those of `boxes.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .boxes import (
    NO_BOX,
    Size,
    Suppression,
    best_candidates,
    check_coder,
    decode_boxes,
    finish,
    gather_rows,
    read_max_candidates,
)


def _as_predicted(head: Any, level: int, predicted: Tensor) -> Tensor:
    return predicted


def _expected_distance(head: Any, level: int, predicted: Tensor) -> Tensor:
    """Return the mean of each side's distribution (N, M, 4 * bins), in pixels: (N, M, 4)."""
    return (
        head.integral(predicted).view(*predicted.shape[:2], 4)
        * head.prior_generator.strides[level][0]
    )


# Heads by the name of their class: from what one predicts for a box to what its coder decodes.
HEADS: dict[str, Callable[[Any, int, Tensor], Tensor]] = {
    "RetinaHead": _as_predicted,
    "FCOSHead": _as_predicted,
    "ATSSHead": _as_predicted,
    "RTMDetHead": _as_predicted,
    "RTMDetSepBNHead": _as_predicted,
    "GFLHead": _expected_distance,
}


class DenseHead(nn.Module):
    """A head of `HEADS` with the steps after it.

    Args:
        head: The detector's `bbox_head`.

    Raises:
        ValueError: A setting of the head is not reproduced.
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        check_coder("model.bbox_head", head.bbox_coder)
        if getattr(head.loss_cls, "custom_cls_channels", False):
            raise ValueError(f"loss_cls {type(head.loss_cls).__name__!r} cannot be deployed")
        self.head = head
        self.adapt = HEADS[type(head).__name__]
        self.suppress = Suppression("model.test_cfg", head.test_cfg)
        self.max_candidates = read_max_candidates("model.test_cfg", head.test_cfg)
        self.limits = self.suppress.limits(head.test_cfg)

    def forward(self, features: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, K, 4), scores (N, K) and labels (N, K)."""
        maps = self.head(features)  # scores, boxes and, of some heads, factors of each level
        levels = map(self._level, range(len(maps[0])), level_priors(self.head, maps[0]), *maps)
        scores, labels, priors, predicted = (torch.cat(x, dim=1) for x in zip(*levels, strict=True))
        boxes = decode_boxes(self.head.bbox_coder, priors, predicted, size)
        return finish(*self.suppress(boxes, scores, labels))

    def _level(
        self,
        level: int,
        priors: Tensor,
        scores: Tensor,
        boxes: Tensor,
        factors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Choose candidates of a level: scores, labels (N, M), priors and predictions (N, M, D)."""
        head = self.head
        threshold = self.limits.score_threshold or 0.0
        best, rows, labels = best_candidates(
            level_scores(head, scores), self.max_candidates, threshold
        )
        if factors is not None:
            factors = priors_last(factors, 1).sigmoid().squeeze(-1).gather(1, rows)
            best = torch.where(best >= 0, best * factors, NO_BOX)
        predicted = gather_rows(priors_last(boxes, boxes.shape[1] // head.num_base_priors), rows)
        return best, labels, priors[rows], self.adapt(head, level, predicted)


def level_priors(head: Any, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the anchors (A, 4) or points (A, 2) of each level's map."""
    sizes = [level.shape[-2:] for level in maps]
    return head.prior_generator.grid_priors(sizes, maps[0].dtype, maps[0].device)


def level_scores(head: Any, maps: Tensor) -> Tensor:
    """Return the scores (N, A, C) of a level's logits, without the background."""
    logits = priors_last(maps, head.cls_out_channels)
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]


def priors_last(maps: Tensor, channels: int) -> Tensor:
    """(N, priors * D, H, W) -> (N, A, D)."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, channels)
