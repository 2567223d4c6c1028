"""Backbones for torchvision's detectors and its DeepLabV3.

The contracts are those of torchvision.models.detection.backbone_utils (`BackboneWithFPN`: an
ordered dict of maps and `out_channels`) and torchvision.models.segmentation (`out` and `aux`).

Axes: N batch, C channels, H height, W width, S stride.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from ..models.backbone import ConvNextBackbone
from .backbone import Source, as_backbone

_STAGES = ("stage1", "stage2", "stage3", "stage4")
_ANCHOR_SCALE = 8  # side of an anchor over the stride of its level, as in Mask R-CNN's paper
_ASPECT_RATIOS = (0.5, 1.0, 2.0)
_ROI_SIZES = {"box_roi_pool": 7, "mask_roi_pool": 14}  # sides of pooled regions, torchvision's


class FPNBackbone(nn.Module):
    """A ConvNeXt and a feature pyramid: images (N, 3, H, W) to maps by name.

    Attributes:
        body: The `ConvNextBackbone`.
        fpn: torchvision's `FeaturePyramidNetwork`.
        out_channels: The channels of every level.
    """

    def __init__(
        self, body: ConvNextBackbone, fpn: FeaturePyramidNetwork, out_channels: int
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the levels: "0", "1", ... (N, out_channels, H / S, W / S), then extra ones."""
        maps = OrderedDict((str(i), m) for i, m in enumerate(self.body(x)))
        return self.fpn(maps)


def fpn_backbone(
    source: Source,
    out_channels: int = 256,
    extra_blocks: ExtraFPNBlock | None = None,
    **fields: Any,
) -> FPNBackbone:
    """Return a backbone for torchvision's FasterRCNN, MaskRCNN, KeypointRCNN, RetinaNet and FCOS.

    torchvision pads images to multiples of 32, and takes the stride of a level's anchors from its
    size: give the detector the backbone's last stride as `size_divisible` where that is larger. Its
    `MultiScaleRoIAlign` takes strides that are powers of two, each twice the one before.

    Args:
        source: A `ConvNextBackbone`, whose outputs become the levels, or weights.
        out_channels: The channels of every level.
        extra_blocks: What adds levels: `LastLevelMaxPool` if None; `LastLevelP6P7(out_channels,
            out_channels)` for RetinaNet and FCOS.
        fields: With weights, arguments of `from_pretrained`; the outputs are stages 1 to 4 unless
            `out_features` says otherwise.

    Raises:
        ValueError: The weights do not fit, or a given backbone differs from `fields`.
        TypeError: The source is neither a backbone nor weights.

    Example:
        >>> from torchvision.models.detection import FCOS
        >>> from torchvision.ops.feature_pyramid_network import LastLevelP6P7
        >>> body = fpn_backbone("convnext_atto.d2_in1k", out_indices=(2, 3, 4),
        ...                     extra_blocks=LastLevelP6P7(256, 256))
        >>> model = FCOS(body, num_classes=91)
    """
    is_built = isinstance(source, nn.Module)
    if not is_built and not {"out_features", "out_indices"} & fields.keys():
        fields["out_features"] = _STAGES
    body = as_backbone(source, **fields)
    extra = LastLevelMaxPool() if extra_blocks is None else extra_blocks
    fpn = FeaturePyramidNetwork(list(body.channels), out_channels, extra)
    return FPNBackbone(body, fpn, out_channels)


def convnext_maskrcnn(source: Source, num_classes: int, **options: Any) -> MaskRCNN:
    """Return torchvision's Mask R-CNN with a feature pyramid on a ConvNeXt.

    Each level has anchors of one size, eight times its stride, in three aspect ratios; regions are
    pooled from the levels of the backbone, not from the extra one. Images are padded to multiples
    of the largest stride.

    Args:
        source: A `ConvNextBackbone` or weights; see `fpn_backbone`.
        num_classes: Classes with the background.
        options: Arguments of torchvision's `MaskRCNN`, which win over those set here.

    Raises:
        ValueError: The weights do not fit, or `MultiScaleRoIAlign` cannot pool from levels of these
            strides and `box_roi_pool` or `mask_roi_pool` is not given.
        TypeError: The source is neither a backbone nor weights.

    Example:
        >>> model = convnext_maskrcnn("convnext_atto.d2_in1k", num_classes=2).eval()
        >>> sorted(model([torch.rand(3, 96, 128)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    backbone = fpn_backbone(source)
    strides = backbone.body.strides
    sizes = tuple((_ANCHOR_SCALE * stride,) for stride in (*strides, 2 * strides[-1]))
    defaults = {
        "rpn_anchor_generator": AnchorGenerator(sizes, (_ASPECT_RATIOS,) * len(sizes)),
        # torchvision divides sides of images by sides of maps for the stride of the anchors.
        "size_divisible": strides[-1],
    }
    pools = {k: _roi_pool(strides, n) for k, n in _ROI_SIZES.items() if options.get(k) is None}
    return MaskRCNN(backbone, num_classes, **{**defaults, **options, **pools})


def _roi_pool(strides: Sequence[int], output_size: int) -> MultiScaleRoIAlign:
    """Return a pooler of regions from levels "0", "1", ... of these strides.

    Raises:
        ValueError: torchvision's choice of a region's level does not fit the strides.
    """
    levels = [math.log2(stride) for stride in strides]
    if not levels[0].is_integer() or any(new != old + 1 for old, new in pairwise(levels)):
        raise ValueError(
            "strides of the levels that regions are pooled from must be powers of two, each twice "
            f"the one before, got {strides}; other levels need box_roi_pool and mask_roi_pool"
        )
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], output_size, sampling_ratio=2)
    # Otherwise they are inferred from the first images, whose padding counts as a larger scale.
    scales = [1 / stride for stride in strides]
    vars(pool).update(scales=scales, map_levels=LevelMapper(int(levels[0]), int(levels[-1])))
    return pool


class DeepLabBackbone(nn.Module):
    """A dilated ConvNeXt for torchvision's `DeepLabV3` and `FCN`.

    Attributes:
        body: The `ConvNextBackbone`.
        out_channels: Channels of the map "out", for `DeepLabHead`.
        aux_channels: Channels of the map "aux", for an auxiliary `FCNHead`.
    """

    def __init__(self, body: ConvNextBackbone) -> None:
        super().__init__()
        self.body = body
        self.aux_channels, self.out_channels = body.channels

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return the last stage (N, C, H / S, W / S) as "out" and the one before as "aux"."""
        aux, out = self.body(x)
        return OrderedDict(out=out, aux=aux)


def deeplab_backbone(source: Source, output_stride: int = 8, **fields: Any) -> DeepLabBackbone:
    """Return a backbone whose last two stages are dilated to `output_stride`, with equal weights.

    Args:
        source: Weights, or a `ConvNextBackbone` with this `output_stride` and the last two stages
            as outputs.
        output_stride: 8 or 16, or 32 for none.
        fields: With weights, further arguments of `from_pretrained`.

    Raises:
        ValueError: The weights do not fit, or a given backbone has other outputs or strides.
        TypeError: The source is neither a backbone nor weights, or `fields` has `out_indices`.

    Example:
        >>> from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
        >>> body = deeplab_backbone("convnext_atto.d2_in1k")
        >>> model = DeepLabV3(body, DeepLabHead(body.out_channels, 21))
    """
    outputs = {"output_stride": output_stride, "out_indices": (-2, -1)}
    return DeepLabBackbone(as_backbone(source, **outputs, **fields))
