"""From what heads predict to a fixed number of boxes.

mmdet's own functions choose rows by data-dependent masks, which torch.export cannot follow. Here
every step keeps its size: a row that holds no box has the score `NO_BOX`.

N images, A priors of a level, M candidates of an image, K boxes of the result, C classes. Boxes are
(x1, y1, x2, y2) in pixels of the image; `size` is its height and width.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import nms_mask

Size = tuple[int, int]
NO_BOX = -1.0  # the score of a row that holds none
NO_LABEL = -1
_MIN_RATIO = 16 / 1000  # mmdet's limit of how much a delta scales a box, and its inverse


def check_part(where: str, part: Any, names: Collection[str]) -> None:
    """Check that the class of a model's part is among those that are reproduced.

    Args:
        where: Its name in the config.
        part: The part.
        names: Of the classes that are reproduced.

    Raises:
        ValueError: It is not; the message names both.
    """
    name = type(part).__name__
    if name not in names:
        raise ValueError(f"{where} {name!r} cannot be deployed, only {sorted(names)}")


@dataclass(frozen=True)
class Limits:
    """Where a detector cuts its candidates.

    Attributes:
        score_threshold: Lower scores are dropped; None drops none.
        iou_threshold: Of NMS; None without.
        max_per_image: How many boxes are kept, K.
    """

    score_threshold: float | None
    iou_threshold: float | None
    max_per_image: int


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Move corners (..., 4) that lie outside the image to its border."""
    height, width = size
    ends = (width, height, width, height)
    sides = zip(boxes.unbind(-1), ends, strict=True)
    return torch.stack([side.clamp(0, end) for side, end in sides], dim=-1)


def decode_deltas(coder: Any, priors: Tensor, deltas: Tensor, size: Size) -> Tensor:
    """Shift and scale priors (..., 4) by deltas (..., 4), as in R-CNN (arXiv 1311.2524)."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    limit = abs(math.log(_MIN_RATIO))
    sides = priors[..., 2:] - priors[..., :2]
    centres = (priors[..., :2] + priors[..., 2:]) * 0.5 + sides * deltas[..., :2]
    half = sides * deltas[..., 2:].clamp(-limit, limit).exp() * 0.5
    boxes = torch.cat([centres - half, centres + half], dim=-1)
    return clip_boxes(boxes, size) if coder.clip_border else boxes


def decode_distances(coder: Any, points: Tensor, distances: Tensor, size: Size) -> Tensor:
    """Return the boxes whose sides lie at the distances (..., 4) left, up, right, down of points.

    Points are (..., 2), or anchors (..., 4) for their centres.
    """
    if points.shape[-1] == 4:
        points = (points[..., :2] + points[..., 2:]) / 2
    boxes = torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)
    return clip_boxes(boxes, size) if coder.clip_border else boxes


# The coder of a head, by the name of its class.
DECODERS: dict[str, Callable[[Any, Tensor, Tensor, Size], Tensor]] = {
    "DeltaXYWHBBoxCoder": decode_deltas,
    "DistancePointBBoxCoder": decode_distances,
}


def check_coder(owner: str, coder: Any) -> None:
    """Refuse a coder that is not in `DECODERS`, and settings of one that are not reproduced.

    Raises:
        ValueError: It names the head and the coder.
    """
    check_part(f"{owner}.bbox_coder", coder, DECODERS)
    if getattr(coder, "add_ctr_clamp", False):
        raise ValueError(f"{owner}.bbox_coder.add_ctr_clamp=True cannot be deployed")


def decode_boxes(coder: Any, priors: Tensor, predicted: Tensor, size: Size) -> Tensor:
    """Decode boxes (..., 4) with the decoder of the coder's class."""
    return DECODERS[type(coder).__name__](coder, priors, predicted, size)


# ------------------------------------------------------------------------------ selection


class Suppression:
    """NMS with the settings of a head's `test_cfg`, among the boxes of each group.

    Args:
        where: The name of `test_cfg` in the config, for errors.
        test_cfg: Holds `nms`, `max_per_img` and, of a detector, `score_thr`.

    Attributes:
        limits: Where a detector with this NMS cuts its candidates.

    Raises:
        ValueError: The settings ask for something else, such as soft-NMS.
    """

    def __init__(self, where: str, test_cfg: Mapping[str, Any]) -> None:
        nms = dict(test_cfg.get("nms") or {})
        kind = nms.pop("type", "nms")
        if kind != "nms":
            raise ValueError(
                f"{where}.nms.type {kind!r} cannot be deployed, only 'nms': to replace it, give "
                f"--cfg-options {where}.nms.type=nms"
            )
        self.iou_threshold = float(nms.pop("iou_threshold", nms.pop("iou_thr", math.nan)))
        self.class_agnostic = bool(nms.pop("class_agnostic", False))
        nms.pop("split_thr", None)  # how much mmcv does at a time
        if nms or not 0 <= self.iou_threshold <= 1:
            raise ValueError(f"{where}.nms cannot be deployed: {dict(test_cfg.get('nms') or {})}")
        self.max_kept = int(test_cfg.get("max_per_img", -1))
        if self.max_kept <= 0:
            raise ValueError(f"{where}.max_per_img must be positive, got {self.max_kept}")
        self.min_size = float(test_cfg.get("min_bbox_size", -1))
        threshold = float(test_cfg.get("score_thr", 0))
        self.limits = Limits(threshold, self.iou_threshold, self.max_kept)

    def __call__(
        self, boxes: Tensor, scores: Tensor, groups: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep `max_kept` boxes of an image, the best first.

        Args:
            boxes: (N, M, 4).
            scores: (N, M), negative for rows that hold no box.
            groups: (N, M) int64, the class or the level of each box.

        Returns:
            Boxes (N, K, 4), scores (N, K) and groups (N, K), K being `max_kept`.
        """
        if self.min_size >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = scores.where((sides > self.min_size).all(dim=-1), NO_BOX)
        apart = boxes if self.class_agnostic else self._apart(boxes, scores, groups)
        keep = nms_mask(apart, scores, self.iou_threshold, self.max_kept)
        return top_boxes(boxes, scores.where(keep, NO_BOX), groups, self.max_kept)

    @staticmethod
    def _apart(boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        # In the same arithmetic as mmcv, so that the overlaps round alike.
        largest = boxes.where((scores >= 0)[..., None], 0.0).amax(dim=(1, 2), keepdim=True)
        return boxes + groups[..., None].to(boxes) * (largest + 1)


def top_boxes(
    boxes: Tensor, scores: Tensor, labels: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `count` best of candidates (N, M), padded if M is smaller: the best first."""
    scores, rows = best_rows(scores, count)
    rows = rows.where(scores >= 0, 0)
    return gather_rows(boxes, rows), scores, labels.gather(1, rows)


def best_candidates(scores: Tensor, count: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best `count` pairs of a prior and a class above a threshold.

    Args:
        scores: Of a level's priors, (N, A, C).
        count: How many, M; what is missing holds no box.
        threshold: A pair counts if its score is greater.

    Returns:
        Scores, indices of priors and classes, (N, M) each.
    """
    classes = scores.shape[-1]
    best, pairs = best_rows(scores.flatten(1), count)
    valid = best > threshold
    pairs = pairs.where(valid, 0)
    return best.where(valid, NO_BOX), pairs // classes, pairs % classes


def best_rows(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best scores of (N, M), `NO_BOX` where M is smaller, and their rows."""
    return F.pad(scores, (0, count), value=NO_BOX).topk(count)


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Take the rows (N, K) of values (N, M, D): (N, K, D)."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))


def finish(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give rows that hold no box zeros, the score 0 and the label -1."""
    empty = scores < 0
    return (
        boxes.masked_fill(empty[..., None], 0.0),
        scores.masked_fill(empty, 0.0),
        labels.masked_fill(empty, NO_LABEL),
    )
