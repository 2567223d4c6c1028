"""Mask2Former's head (arXiv 2112.01527) with levels whose sizes are free."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import Size
from .deformable import encoder_references, replace_attention


class PixelDecoder(nn.Module):
    """mmdet's `MSDeformAttnPixelDecoder` with the sizes of the levels as a list.

    Args:
        decoder: Its attention is replaced.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        replace_attention(decoder)
        self.decoder = decoder

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the mask features of the finest level, and those of all from coarse to fine."""
        own = self.decoder
        count = own.num_encoder_levels
        coarse = list(features[::-1])[:count]
        sizes: list[Size] = [(level.shape[-2], level.shape[-1]) for level in coarse]
        memory = self._encode(coarse, sizes).mT
        rows = memory.split([h * w for h, w in sizes], dim=-1)
        outputs = [row.unflatten(-1, tuple(size)) for row, size in zip(rows, sizes, strict=True)]
        for index in range(own.num_input_levels - count - 1, -1, -1):
            lateral = own.lateral_convs[index](features[index])
            above = F.interpolate(outputs[-1], size=lateral.shape[-2:], mode="bilinear")
            outputs.append(own.output_convs[index](lateral + above))
        return own.mask_feature(outputs[-1]), outputs[: own.num_outs]

    def _encode(self, coarse: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
        """Return the encoder's output for all levels in a row, (N, K, C)."""
        own, batch = self.decoder, coarse[0].shape[0]
        queries, places, masks = [], [], []
        for index, (feature, size) in enumerate(zip(coarse, sizes, strict=True)):
            mask = feature.new_zeros(batch, *size, dtype=torch.bool)
            embedding = own.level_encoding.weight[index][:, None, None]
            queries.append(own.input_convs[index](feature).flatten(2).mT)
            places.append((own.postional_encoding(mask) + embedding).flatten(2).mT)
            masks.append(mask.flatten(1))
        ratios = coarse[0].new_ones(batch, len(sizes), 2)
        return own.encoder(
            query=torch.cat(queries, dim=1),
            query_pos=torch.cat(places, dim=1),
            key_padding_mask=torch.cat(masks, dim=1),
            spatial_shapes=sizes,
            reference_points=encoder_references(sizes, ratios),
            level_start_index=None,
            valid_ratios=ratios,
        )


def mask2former_logits(head: Any, features: Sequence[Tensor], size: Size) -> Tensor:
    """Return scores (N, C, H, W) at a size: the queries' masks weighted by their classes."""
    classes, masks = (layers[-1] for layers in head(features, []))
    masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("nqc,nqhw->nchw", classes.softmax(-1)[..., :-1], masks)
