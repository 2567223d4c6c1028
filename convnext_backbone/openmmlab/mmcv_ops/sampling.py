"""Sampling of several levels, for mmcv's operation and for the export of whole detectors.

N images, K pixels of all levels in a row, Q queries, M heads, D channels of a head, L levels,
P points.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_levels(
    sizes: Sequence[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Return the weighted sum of bilinear samples of every level, (N, Q, M * D).

    Args:
        sizes: Height and width of each level.
        value: (N, K, M, D).
        locations: (N, Q, M, L, P, 2) as (x, y), the map being 0..1; outside reads 0.
        weights: (N, Q, M, L, P).
    """
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    # (N, Q, M, L, P, 2) -> (L, N * M, Q, P, 2), in grid_sample's -1 .. 1
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]  # (L, N * M, 1, Q, P)
    samples = []
    for level, pixels in enumerate(value.split([h * w for h, w in sizes], dim=1)):
        # (N, H * W, M, D) -> (N * M, D, H, W)
        maps = pixels.permute(0, 2, 3, 1).reshape(batch * heads, channels, *sizes[level])
        sampled = F.grid_sample(maps, grids[level], padding_mode="zeros", align_corners=False)
        samples.append((sampled * weights[level]).sum(dim=3))
    total = torch.stack(samples).sum(dim=0)  # (N * M, D, Q)
    return total.reshape(batch, heads * channels, queries).transpose(1, 2)
