"""Detectors in two stages: proposals, then a head on the crop of each: Faster, Mask, Cascade R-CNN.

The letters are those of `boxes.py`; P proposals of an image, R = N * P of all images.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .boxes import (
    NO_BOX,
    Size,
    Suppression,
    best_candidates,
    check_coder,
    check_part,
    decode_boxes,
    finish,
    gather_rows,
)
from .dense import PriorHead, level_scores, priors_last
from .ops import roi_align_levels

# The parts that are reproduced, by the names of their classes.
RPN_HEADS = ("RPNHead",)
ROI_HEADS = ("StandardRoIHead", "CascadeRoIHead")
BOX_HEADS = ("BBoxHead", "ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")
MASK_HEADS = ("FCNMaskHead",)
EXTRACTORS = ("SingleRoIExtractor",)


class ProposalHead(PriorHead):
    """A region proposal network (arXiv 1506.01497) with the steps after it."""

    def __init__(self, head: Any) -> None:
        check_part("model.rpn_head", head, RPN_HEADS)
        super().__init__("model.rpn_head", "model.test_cfg.rpn", head)

    def forward(self, features: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        """Return proposals (N, P, 4) and whether each is one, (N, P)."""
        boxes, scores, _ = super().forward(features, size)
        return boxes, scores >= 0

    def _level(
        self, level: int, priors: Tensor, scores: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Choose candidates of a level: scores, the level (N, M), anchors and deltas (N, M, 4)."""
        scores = level_scores(self.head, scores)
        best, rows, _ = best_candidates(scores, self.max_candidates, NO_BOX)
        return (
            best,
            torch.full_like(rows, level),
            priors[rows],
            gather_rows(priors_last(deltas, 4), rows),
        )


class RoIExtractor(nn.Module):
    """Crops of boxes, each from the level of the pyramid that suits its size (arXiv 1612.03144)."""

    def __init__(self, where: str, extractor: Any) -> None:
        super().__init__()
        check_part(where, extractor, EXTRACTORS)
        layer = extractor.roi_layers[0]
        if type(layer).__name__ != "RoIAlign" or layer.pool_mode != "avg":
            raise ValueError(
                f"{where}.roi_layer {layer} cannot be deployed, only an average RoIAlign"
            )
        self.finest = extractor.finest_scale
        self.scales = [float(layer.spatial_scale) for layer in extractor.roi_layers]
        self.size = [int(side) for side in layer.output_size]
        self.sampling_ratio, self.aligned = int(layer.sampling_ratio), bool(layer.aligned)

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return a crop (N * P, C, S, S) of each box (N, P, 4)."""
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
        images = images.expand(-1, boxes.shape[1]).flatten()
        boxes = boxes.flatten(0, 1)
        sides = boxes[:, 2:] - boxes[:, :2]
        scale = (sides[:, 0] * sides[:, 1]).sqrt()
        levels = (scale / self.finest + 1e-6).log2().floor()
        levels = levels.clamp(0, len(self.scales) - 1).long()
        return roi_align_levels(
            list(features[: len(self.scales)]),
            *(boxes, images, levels),
            *(self.scales, self.size, self.sampling_ratio, self.aligned),
        )


class BoxStage(nn.Module):
    """One box head on the crops of one extractor."""

    def __init__(self, extractor: Any, head: Any) -> None:
        super().__init__()
        check_part("model.roi_head.bbox_head", head, BOX_HEADS)
        check_coder("model.roi_head.bbox_head", head.bbox_coder)
        if head.custom_cls_channels or not (head.with_cls and head.with_reg):
            raise ValueError(
                "a roi_head.bbox_head with a custom loss or without a branch cannot be deployed"
            )
        self.extract = RoIExtractor("model.roi_head.bbox_roi_extractor", extractor)
        self.head = head

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, P, C + 1) and deltas (N, P, C or 1, 4) of boxes (N, P, 4)."""
        predicted = self.head(self.extract(features, boxes))
        logits, deltas = (x.unflatten(0, (-1, boxes.shape[1])) for x in predicted)
        return logits, deltas.unflatten(-1, (-1, 4))

    def decode(self, boxes: Tensor, deltas: Tensor, size: Size) -> Tensor:
        """Return the boxes (N, P, C or 1, 4) that deltas of the same shape make of (N, P, 4)."""
        return decode_boxes(self.head.bbox_coder, boxes[:, :, None], deltas, size)

    def refine(self, boxes: Tensor, logits: Tensor, deltas: Tensor, size: Size) -> Tensor:
        """Return the boxes (N, P, 4) of the likeliest class."""
        refined = self.decode(boxes, deltas, size)
        if self.head.reg_class_agnostic:
            return refined.squeeze(2)
        best = logits[..., :-1].argmax(-1)[..., None, None]
        return refined.gather(2, best.expand(-1, -1, -1, 4)).squeeze(2)


class MaskStage(nn.Module):
    """One mask head on the crops of one extractor."""

    def __init__(self, extractor: Any, head: Any) -> None:
        super().__init__()
        check_part("model.roi_head.mask_head", head, MASK_HEADS)
        self.extract = RoIExtractor("model.roi_head.mask_roi_extractor", extractor)
        self.head = head

    def forward(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the probabilities (N, K, S, S) within boxes (N, K, 4), each of its own class."""
        masks = self.head(self.extract(features, boxes))
        if self.head.class_agnostic:
            masks = masks.squeeze(1)
        else:
            channel = labels.clamp(min=0).flatten()[:, None, None, None]
            masks = masks.gather(1, channel.expand(-1, 1, *masks.shape[2:])).squeeze(1)
        return masks.sigmoid().unflatten(0, (-1, boxes.shape[1]))


class TwoStageHeads(nn.Module):
    """Everything after the neck.

    Args:
        model: A detector with `rpn_head` and `roi_head`.

    Raises:
        ValueError: A part or a setting is not reproduced; the message names it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        roi = model.roi_head
        check_part("model.roi_head", roi, ROI_HEADS)
        if roi.with_shared_head:
            raise ValueError("model.roi_head.shared_head cannot be deployed")
        self.propose = ProposalHead(model.rpn_head)
        self.stages = nn.ModuleList(
            map(BoxStage, *map(_listed, (roi.bbox_roi_extractor, roi.bbox_head)))
        )
        parts = (roi.mask_roi_extractor, roi.mask_head) if roi.with_mask else ([], [])
        self.masks = nn.ModuleList(map(MaskStage, *map(_listed, parts)))
        self.suppress = Suppression("model.test_cfg.rcnn", roi.test_cfg)
        self.mask_threshold = float(roi.test_cfg.get("mask_thr_binary", 0.5))
        self.limits = self.suppress.limits

    def forward(self, features: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        """Return boxes (N, K, 4), scores, labels (N, K) and, with a mask head, masks."""
        proposals, valid = self.propose(features, size)
        boxes, scores, labels = finish(*self._detect(features, proposals, valid, size))
        if not self.masks:
            return boxes, scores, labels
        stages = [stage(features, boxes, labels) for stage in self.masks]
        masks = torch.stack(stages).mean(dim=0)
        return boxes, scores, labels, masks.masked_fill((labels < 0)[..., None, None], 0.0)

    def _detect(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, size: Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        all_logits = []
        stage: Any
        for index, stage in enumerate(self.stages):
            logits, deltas = stage(features, boxes)
            all_logits.append(logits)
            if index < len(self.stages) - 1:
                boxes = stage.refine(boxes, logits, deltas, size)
        # The last stage decodes a box for each class; the scores are the mean of all stages'.
        scores = (sum(all_logits) / len(all_logits)).softmax(-1)[..., :-1]
        boxes = stage.decode(boxes, deltas, size).expand(-1, -1, scores.shape[-1], -1)
        keep = valid[..., None] & (scores > self.limits.score_threshold)
        labels = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
        scores = scores.where(keep, NO_BOX)
        return self.suppress(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1))


def _listed(parts: Any) -> Any:
    """Return the parts of a cascade, or the one of a head without stages, as a sequence."""
    return parts if isinstance(parts, nn.ModuleList | list) else [parts]
