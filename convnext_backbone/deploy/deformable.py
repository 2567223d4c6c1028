"""Multi-scale deformable attention (arXiv 2010.04159) on levels whose sizes are free.

mmcv and mmdet pass the sizes of the levels as a tensor, whose values torch.export cannot use as
shapes. Here they are a list of (height, width), and everything that computes with them is replaced.

N images, K pixels of all levels in a row, Q queries, M heads, D channels of a head, L levels,
P points.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..openmmlab.mmcv_ops.sampling import sample_levels
from .boxes import Size

Sizes = Sequence[Size]


class DeformableAttention(nn.Module):
    """mmcv's `MultiScaleDeformableAttention` with the sizes of the levels as a list."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Sizes = (),
        **_: Any,
    ) -> Tensor:
        """Return the attended query (N, Q, M * D), or (Q, N, M * D) as mmcv's `batch_first`."""
        own = self.attention
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not own.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = own.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (own.num_heads, -1))
        points = (own.num_heads, own.num_levels, own.num_points)
        offsets = own.sampling_offsets(query).unflatten(-1, (*points, 2))
        weights = own.attention_weights(query).unflatten(-1, (own.num_heads, -1))
        weights = weights.softmax(-1).unflatten(-1, points[1:])
        assert reference_points is not None
        locations = self._locations(reference_points, offsets, spatial_shapes)
        output = own.output_proj(sample_levels(spatial_shapes, value, locations, weights))
        if not own.batch_first:
            output = output.transpose(0, 1)
        return own.dropout(output) + identity

    def _locations(self, references: Tensor, offsets: Tensor, sizes: Sizes) -> Tensor:
        """Return where to sample (N, Q, M, L, P, 2), from points or boxes (N, Q, L, 2 or 4)."""
        centres = references[:, :, None, :, None, :2]
        if references.shape[-1] == 4:
            sides = references[:, :, None, :, None, 2:]
            return centres + offsets / self.attention.num_points * sides * 0.5
        # Offsets are in pixels of each level.
        levels = [
            offsets[:, :, :, level] / as_tensor(size, offsets) for level, size in enumerate(sizes)
        ]
        return centres + torch.stack(levels, dim=3)


def replace_attention(model: nn.Module) -> None:
    """Put `DeformableAttention` in the place of every `MultiScaleDeformableAttention`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "MultiScaleDeformableAttention":
                setattr(parent, name, DeformableAttention(child))


def encoder_references(sizes: Sizes, valid_ratios: Tensor, device: Any = None) -> Tensor:
    """Return the centre of every pixel relative to every level, (N, K, L, 2) as (x, y)."""
    points = []
    for level, size in enumerate(sizes):
        extent = valid_ratios[:, None, level] * as_tensor(size, valid_ratios)
        points.append(pixel_centres(size, valid_ratios) / extent)
    return torch.cat(points, dim=1)[:, :, None] * valid_ratios[:, None]


def pixel_centres(size: Size, like: Tensor) -> Tensor:
    """Return the centres (1, H * W, 2) of the pixels of a map, as (x, y)."""
    y, x = (torch.arange(side, device=like.device).to(like.dtype) + 0.5 for side in size)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x.flatten(), grid_y.flatten()], dim=-1)[None]


def as_tensor(size: Size, like: Tensor) -> Tensor:
    """Return (width, height) as a tensor (2,)."""
    return torch.stack([like.new_full((), side) for side in size[::-1]])
