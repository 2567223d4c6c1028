"""Detectors of mmdet as one graph: RGB images in, a fixed number of boxes out."""

from typing import Any

from torch import Tensor, nn

from . import dense, detr, two_stage
from .boxes import check_part
from .inputs import Features, InputLayer


class Detector(nn.Module):
    """A detector of mmdet, from RGB images (N, 3, H, W) to padded boxes.

    Args:
        model: The detector.

    Attributes:
        output_names: Of what `forward` returns.
        description: What deploy.json says of the results.

    Raises:
        ValueError: A part or a setting is not reproduced; the message names it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inputs = InputLayer(model.data_preprocessor)
        self.features = Features(model)
        heads: Any = _heads(model, self.inputs)
        self.heads = heads
        self.output_names: tuple[str, ...] = ("boxes", "scores", "labels")
        self.description = {
            "score_threshold": heads.limits.score_threshold,
            "max_boxes": heads.limits.max_per_image,
        }
        if getattr(heads, "masks", None):
            self.output_names += ("masks",)
            self.description["mask_threshold"] = heads.mask_threshold

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (N, K, 4), scores and labels (N, K) and, of some, masks (N, K, 28, 28)."""
        height, width = image.shape[-2:]
        return self.heads(self.features(self.inputs(image)), (height, width))


def _heads(model: Any, inputs: InputLayer) -> nn.Module:
    if type(model).__name__ in detr.DETECTORS:
        return detr.DetrHeads(model, inputs.padded)
    if getattr(model, "roi_head", None) is not None:
        return two_stage.TwoStageHeads(model)
    head = getattr(model, "bbox_head", None)
    check_part("model.bbox_head", head, dense.DENSE_HEADS)
    if getattr(model, "mask_head", None) is not None:
        raise ValueError(f"model.mask_head {type(model.mask_head).__name__!r} cannot be deployed")
    return dense.DenseHead(head)
