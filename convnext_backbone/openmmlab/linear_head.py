"""LinearHead: batch norm and a 1x1 convolution on one map, the probe of frozen features.

Source of the recipe: facebookresearch/dinov3, dinov3/eval/segmentation (arXiv 2508.10104). Not
imported with the package, since it imports mmsegmentation: a config names this module in its
`custom_imports`.
"""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Classify every pixel of one map linearly, after the norm `norm_cfg`.

    `options` are arguments of mmsegmentation's `BaseDecodeHead`; `channels` follows `in_channels`.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int, norm_cfg: dict[str, Any], **options: Any
    ) -> None:
        options.update(in_channels=in_channels, channels=in_channels)
        super().__init__(num_classes=num_classes, norm_cfg=norm_cfg, **options)
        self.norm = build_norm_layer(norm_cfg, in_channels)[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits `(N, num_classes, H, W)` of the map that `in_index` selects."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
