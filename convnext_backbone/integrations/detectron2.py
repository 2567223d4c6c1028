"""A backbone for detectron2's detectors and its feature pyramid.

The contract is that of detectron2.modeling.Backbone (modeling/backbone/backbone.py): a dict of maps
by name, `output_shape()`, `size_divisibility`, `padding_constraints`.

Axes: N batch, C channels, H height, W width.
"""

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from .backbone import Source, as_backbone


class ConvNextDetectron2(Backbone):
    """A ConvNeXt as detectron2's models call theirs.

    Args:
        source: A `ConvNextBackbone`, or weights that `from_pretrained` reads.
        fields: With weights, arguments of `from_pretrained`.

    Raises:
        ValueError: The weights do not fit, or a given backbone differs from `fields`.
        TypeError: The source is neither a backbone nor weights.

    Example:
        >>> body = ConvNextDetectron2("convnext_tiny.fb_in1k",
        ...                           out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> fpn = FPN(body, in_features=list(body.output_shape()), out_channels=256,
        ...           top_block=LastLevelMaxPool())
    """

    def __init__(self, source: Source, **fields: Any) -> None:
        super().__init__()
        self.body = as_backbone(source, **fields)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the map (N, C, H, W) of each output by its name."""
        return dict(zip(self.body.out_features, self.body(x), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and the stride of each output by its name."""
        return {
            name: ShapeSpec(channels=shape.channels, stride=shape.stride)
            for name, shape in self.body.output_shape().items()
        }

    @property
    def size_divisibility(self) -> int:
        """What sides are padded to a multiple of."""
        return self.body.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """`size_divisibility`, as newer releases ask for it."""
        return self.body.padding_constraints
