"""Heads on anchors or points of every level of a pyramid, then NMS; detectors with one such head.

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
DENSE_HEADS: dict[str, Callable[[Any, int, Tensor], Tensor]] = {
    "RetinaHead": _as_predicted,
    "FCOSHead": _as_predicted,
    "ATSSHead": _as_predicted,
    "RTMDetHead": _as_predicted,
    "RTMDetSepBNHead": _as_predicted,
    "GFLHead": _expected_distance,
}


class PriorHead(nn.Module):
    """A head on the priors of every level, with the steps after it.

    Dense heads and proposals differ in how they choose the candidates of a level, in `_level`.

    Args:
        where: The name of the head in the config.
        test_cfg: The name of its `test_cfg`.
        head: The head.

    Raises:
        ValueError: A setting of the head is not reproduced.
    """

    _level: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]

    def __init__(self, where: str, test_cfg: str, head: Any) -> None:
        super().__init__()
        check_coder(where, head.bbox_coder)
        self.head = head
        self.suppress = Suppression(test_cfg, head.test_cfg)
        count = int(head.test_cfg.get("nms_pre", -1))
        if count <= 0:  # all of them, whose number depends on the size of the image
            raise ValueError(f"{test_cfg}.nms_pre must be positive to be deployed, got {count}")
        self.max_candidates = count

    def forward(self, features: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        """Return the boxes (N, K, 4) that NMS keeps, their scores and groups (N, K)."""
        maps = self.head(features)  # scores, boxes and, of some heads, factors of each level
        sizes = [level.shape[-2:] for level in maps[0]]
        priors = self.head.prior_generator.grid_priors(sizes, maps[0][0].dtype, maps[0][0].device)
        levels = map(self._level, range(len(priors)), priors, *maps)
        scores, groups, priors, predicted = (torch.cat(x, dim=1) for x in zip(*levels, strict=True))
        boxes = decode_boxes(self.head.bbox_coder, priors, predicted, size)
        return self.suppress(boxes, scores, groups)


class DenseHead(PriorHead):
    """A head of `DENSE_HEADS`, the `bbox_head` of a detector, with the steps after it."""

    def __init__(self, head: Any) -> None:
        super().__init__("model.bbox_head", "model.test_cfg", head)
        if getattr(head.loss_cls, "custom_cls_channels", False):
            raise ValueError(f"loss_cls {type(head.loss_cls).__name__!r} cannot be deployed")
        self.adapt = DENSE_HEADS[type(head).__name__]
        self.limits = self.suppress.limits

    def forward(self, features: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        """Return boxes (N, K, 4), scores (N, K) and labels (N, K)."""
        return finish(*super().forward(features, size))

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


def level_scores(head: Any, maps: Tensor) -> Tensor:
    """Return the scores (N, A, C) of a level's logits, without the background."""
    logits = priors_last(maps, head.cls_out_channels)
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]


def priors_last(maps: Tensor, channels: int) -> Tensor:
    """(N, priors * D, H, W) -> (N, A, D)."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, channels)
