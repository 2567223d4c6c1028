"""Backbones for torchvision's detectors and its DeepLabV3.

The contracts are those of torchvision.models.detection.backbone_utils (`BackboneWithFPN`: an
ordered dict of maps and `out_channels`) and torchvision.models.segmentation (`out` and `aux`).

Axes: N batch, C channels, H height, W width, S stride.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from ..models.backbone import ConvNextBackbone
from .source import Source, as_backbone

_STAGES = ("stage1", "stage2", "stage3", "stage4")
_ANCHOR_SCALE = 8  # side of an anchor over the stride of its level, as in Mask R-CNN's paper
_ASPECT_RATIOS = (0.5, 1.0, 2.0)


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
    pooled from the levels of the backbone, not from the extra one.

    Args:
        source: A `ConvNextBackbone` or weights; see `fpn_backbone`.
        num_classes: Classes with the background.
        options: Arguments of torchvision's `MaskRCNN`, which win over those set here.

    Example:
        >>> model = convnext_maskrcnn("convnext_atto.d2_in1k", num_classes=2).eval()
        >>> sorted(model([torch.rand(3, 96, 128)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    backbone = fpn_backbone(source)
    strides = backbone.body.strides
    levels = [str(i) for i in range(len(strides))]
    sizes = tuple((_ANCHOR_SCALE * stride,) for stride in (*strides, 2 * strides[-1]))
    defaults = {
        "rpn_anchor_generator": AnchorGenerator(sizes, (_ASPECT_RATIOS,) * len(sizes)),
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        "mask_roi_pool": MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
    }
    return MaskRCNN(backbone, num_classes, **{**defaults, **options})


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
