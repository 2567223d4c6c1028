"""Non-maximum suppression of lane lines as `mmcv/ops/line_nms.py` of onedl-mmcv calls it.

Paper: CLRNet, https://arxiv.org/abs/2203.10350 (its NMS is LaneATT's). Semantics:
`mmcv/ops/csrc/common/cuda/line_nms_cuda_kernel.cuh` of onedl-mmcv 2.3.6. A line is a row of 5 + K
numbers: two scores, where it starts (0..1 of the K rows), one more, over how many rows it goes,
and its x at each of the K rows.
"""

import torch
from torch import Tensor

from .precision import at_least_float32

_START, _LENGTH, _FIRST_X = 2, 4, 5


def line_nms_forward(
    boxes: Tensor, scores: Tensor, thresh: float, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the lines `(N, 5 + K)` that run close to no better one, at most `top_k`.

    A line goes when its mean distance in x to a kept one, over the rows that they share, is less
    than `thresh`. Returns the indices `(N,)` of the kept lines, best first, then 0; how many there
    are; and for each line the number, from 1, of the kept line that it is or went for, or 0.
    """
    lines = at_least_float32(boxes)
    rows = lines.shape[1] - _FIRST_X
    first = (lines[:, _START] * (rows - 1) + 0.5).long()
    last = (first + lines[:, _LENGTH].long() - 1).clamp(max=rows - 1)
    row = torch.arange(rows, device=lines.device)
    kept: list[int] = []
    parent = torch.zeros(len(lines), dtype=torch.long, device=lines.device)
    remaining = scores.argsort(descending=True)
    while len(remaining) and len(kept) < top_k:
        best, rest = remaining[0], remaining[1:]
        kept.append(int(best))
        parent[best] = len(kept)
        start, end = torch.maximum(first[best], first[rest]), torch.minimum(last[best], last[rest])
        shared = (row >= start[:, None]) & (row <= end[:, None])
        apart = (lines[rest, _FIRST_X:] - lines[best, _FIRST_X:]).abs()
        close = torch.where(shared, apart, 0).sum(dim=1) < thresh * (end - start + 1)
        close &= (end >= start) & (start >= 0)
        parent[rest[close]] = len(kept)
        remaining = rest[~close]
    keep = torch.zeros_like(parent)
    keep[: len(kept)] = keep.new_tensor(kept)
    return keep, keep.new_tensor(len(kept)), parent
