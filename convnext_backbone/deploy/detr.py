"""Detectors of the DETR family with deformable attention: a fixed number of queries, no NMS.

DINO, arXiv 2203.03605; Deformable DETR, arXiv 2010.04159. The letters are those of `boxes.py` and
`deformable.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import Limits, Size, clip_boxes, gather_rows
from .deformable import Sizes, encoder_references, pixel_centres, replace_attention

# Detectors by the name of their class.
DETECTORS = ("DINO", "DeformableDETR")


class DetrHeads(nn.Module):
    """Everything after the neck.

    Args:
        model: A detector of `DETECTORS`; its attention is replaced.
        padded: Gives the size that the images are padded to.

    Raises:
        ValueError: A setting of the detector is not reproduced.
    """

    def __init__(self, model: Any, padded: Any) -> None:
        super().__init__()
        if not model.bbox_head.loss_cls.use_sigmoid:
            raise ValueError("model.bbox_head.loss_cls without use_sigmoid cannot be deployed")
        replace_attention(model)
        model.encoder.get_encoder_reference_points = encoder_references
        model.gen_encoder_output_proposals = self._encoder_proposals
        # Backbone and neck are the caller's.
        model.backbone = model.neck = nn.Identity()
        self.model = model
        self.padded = padded
        count = int(model.bbox_head.test_cfg.get("max_per_img", model.num_queries))
        self.limits = Limits(None, None, count)

    def forward(self, features: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, K, 4), scores (N, K) and labels (N, K)."""
        model = self.model
        inputs, shared = self._flatten(features, size)
        memory = model.forward_encoder(**inputs, **shared)
        queries, _ = model.pre_decoder(**memory)
        states = model.forward_decoder(**queries, memory_mask=memory["memory_mask"], **shared)
        logits, boxes = model.bbox_head(**states)
        return self._best(logits[-1], boxes[-1], size)

    def _flatten(
        self, features: Sequence[Tensor], size: Size
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the encoder takes of all levels in a row, and what the decoder takes too."""
        (height, width), (bottom, right) = size, self.padded(size)
        mask = features[0].new_zeros(features[0].shape[0], height, width)
        mask = F.pad(mask, (0, right - width, 0, bottom - height), value=1.0)[None]
        sizes: Sizes = [(level.shape[-2], level.shape[-1]) for level in features]
        masks = [F.interpolate(mask, size=tuple(s)).squeeze(0).to(torch.bool) for s in sizes]
        places = [
            self.model.positional_encoding(m) + embedding[:, None, None]
            for m, embedding in zip(masks, self.model.level_embed, strict=True)
        ]
        rows = [torch.cat([x.flatten(2) for x in maps], 2).mT for maps in (features, places)]
        inputs = {
            "feat": rows[0],
            "feat_pos": rows[1],
            "feat_mask": torch.cat([m.flatten(1) for m in masks], dim=1),
        }
        ratios = torch.stack([self.model.get_valid_ratio(m) for m in masks], dim=1)
        shared = {"spatial_shapes": sizes, "level_start_index": None, "valid_ratios": ratios}
        return inputs, shared

    def _encoder_proposals(
        self, memory: Tensor, memory_mask: Tensor, sizes: Sizes
    ) -> tuple[Tensor, Tensor]:
        """Return the encoder's pixels (N, K, C) and the logits of a box for each (N, K, 4)."""
        boxes = []
        masks = memory_mask.split([h * w for h, w in sizes], dim=1)
        for level, (size, mask) in enumerate(zip(sizes, masks, strict=True)):
            valid = ~mask.unflatten(1, tuple(size))
            extent = torch.stack([valid[:, 0].sum(1), valid[:, :, 0].sum(1)], dim=-1)
            centres = pixel_centres(size, memory) / extent[:, None].to(memory)
            boxes.append(torch.cat([centres, torch.full_like(centres, 0.05 * 2.0**level)], -1))
        proposals = torch.cat(boxes, dim=1)
        inside = ((proposals > 0.01) & (proposals < 0.99)).all(-1, keepdim=True)
        inside = inside & ~memory_mask[..., None]
        logits = (proposals / (1 - proposals)).log().masked_fill(~inside, torch.inf)
        memory = self.model.memory_trans_fc(memory.masked_fill(~inside, 0.0))
        return self.model.memory_trans_norm(memory), logits

    def _best(self, logits: Tensor, boxes: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the best pairs of a query and a class; boxes are (cx, cy, w, h) in 0..1."""
        classes = logits.shape[-1]
        scores, pairs = logits.sigmoid().flatten(1).topk(self.limits.max_per_image)
        centre, sides = gather_rows(boxes, pairs // classes).split(2, dim=-1)
        corners = torch.cat([centre - 0.5 * sides, centre + 0.5 * sides], dim=-1)
        height, width = size
        scaled = torch.stack([corners[..., 0::2] * width, corners[..., 1::2] * height], dim=-1)
        return clip_boxes(scaled.flatten(-2), size), scores, pairs % classes
