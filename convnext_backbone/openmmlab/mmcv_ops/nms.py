"""Non-maximum suppression: `nms`, `softnms`, `nms_match` as `mmcv/ops/nms.py` calls them.

Boxes are `(N, 4)` as `(x1, y1, x2, y2)` in pixels. `offset` is 1 where a box of one pixel has
`x1 == x2` (mmdet 1.x), else 0: widths, heights, areas and intersections all count it.

Papers: Soft-NMS, https://arxiv.org/abs/1704.04503 (softnms); Prime Sample Attention,
https://arxiv.org/abs/1904.04821 (nms_match). Semantics: `mmcv/ops/csrc/pytorch/cpu/nms.cpp`.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from .precision import at_least_float32

# Factors of `softnms` on the scores of overlapping boxes, by (IoU, sigma): naive, linear and
# Gaussian. The first two act from the threshold on, the Gaussian on every box.
_GAUSSIAN = 2
_DECAYS: Mapping[int, Callable[[np.ndarray, float], np.ndarray]] = {
    0: lambda iou, sigma: np.zeros_like(iou),
    1: lambda iou, sigma: 1 - iou,
    _GAUSSIAN: lambda iou, sigma: np.exp(-(iou**2) / sigma),
}


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that overlap no better one, best score first.

    A box goes when its IoU with a kept one is greater than `iou_threshold`, not when it is equal.
    """
    boxes = at_least_float32(boxes)
    scores = at_least_float32(scores)
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    # Moving the far corner by `offset` adds it to every width, height and intersection at once.
    grown = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision_nms(grown.to(dtype), scores.to(dtype), iou_threshold)


def softnms(
    boxes: Tensor,  # (N, 4)
    scores: Tensor,  # (N,)
    dets: Tensor,  # (N, 5), gets the picks with their lowered scores; the rows behind stay
    iou_threshold: float,
    sigma: float,  # width of the Gaussian, in units of squared IoU
    min_score: float,  # a lower score drops a box, but never the first pick
    method: int,  # a key of _DECAYS
    offset: int,
) -> Tensor:
    """Lower the scores of overlapping boxes instead of dropping them, best box first.

    Returns the indices of the picks into `boxes`, in the order of `dets`.
    """
    # One small step per pick: numpy's take a fraction of torch's time. mmcv passes CPU tensors.
    corners = _numpy(boxes)
    # One table, so that a swap or a deletion moves all that belongs to a box: x1 y1 x2 y2 score.
    rows = np.column_stack([corners, _numpy(scores).astype(corners.dtype)])
    order = np.arange(len(rows))
    picked = 0
    while picked < len(rows):
        best = picked + int(rows[picked:, 4].argmax())
        for table in (rows, order):
            table[[picked, best]] = table[[best, picked]]
        rest = rows[picked + 1 :]
        iou = _iou_with_one(rows[picked, :4], rest[:, :4], offset)
        decay = _DECAYS[method](iou, sigma)
        rest[:, 4] *= decay if method == _GAUSSIAN else np.where(iou >= iou_threshold, decay, 1)
        low = rest[:, 4] < min_score
        if low.any():
            keep = _close_gaps_from_the_end(~low) + picked + 1
            keep = np.concatenate([np.arange(picked + 1), keep])
            rows, order = rows[keep], order[keep]
        picked += 1
    dets[: len(rows)] = torch.from_numpy(rows).to(dets)
    return torch.from_numpy(order).to(boxes.device)


def _close_gaps_from_the_end(keep: np.ndarray) -> np.ndarray:
    """Indices of the kept entries, each gap filled by the last kept one that is still free.

    Compiled mmcv drops a box by moving the last one into its row, so this order decides which
    of two equal scores is picked first later on.
    """
    count = int(keep.sum())
    filled = np.arange(count)
    filled[~keep[:count]] = np.flatnonzero(keep[count:])[::-1] + count
    return filled


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group every row of `dets` `(N, 5)`, box and score, with the better one that suppresses it.

    A box joins a group from `iou_threshold` on (equality counts, unlike `nms`). In a group of
    indices the kept box comes first, then the suppressed ones by falling score.
    """
    rows = _numpy(dets)
    remaining = np.argsort(-rows[:, 4], kind="stable")
    groups = []
    while len(remaining):
        kept, rest = remaining[0], remaining[1:]
        matched = _iou_with_one(rows[kept, :4], rows[rest, :4], offset=0) >= iou_threshold
        groups.append([int(kept), *rest[matched].tolist()])
        remaining = rest[~matched]
    return groups


def _numpy(tensor: Tensor) -> np.ndarray:
    return at_least_float32(tensor.detach()).cpu().numpy()


def _iou_with_one(box: np.ndarray, boxes: np.ndarray, offset: int) -> np.ndarray:
    """IoU of one box `(4,)` with each of `(N, 4)`; 0 where both areas are 0."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    inter = np.maximum(high - low + offset, 0).prod(axis=1)
    area = (box[2:] - box[:2] + offset).prod()
    union = area + (boxes[:, 2:] - boxes[:, :2] + offset).prod(axis=1) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
