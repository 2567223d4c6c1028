"""ConvNeXt encoders for segmentation_models_pytorch; importing this module registers them.

The contract is that of segmentation_models_pytorch.encoders (`get_encoder`, `EncoderMixin`): an
encoder gives the image and its maps of strides 2, 4, 8, ... A ConvNeXt has no map of stride 2; as
in smp's own encoder of timm's ConvNeXts, a map without channels stands there.

Axes: N batch, C channels, H height, W width.
"""

from typing import Any

from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

from ..archs import list_archs
from ..models.backbone import ConvNextBackbone
from ..models.config import ConvNextConfig, resolve_config
from ..utils.checks import check_choice
from ..weights.load import STEM_KEY, adapt_input_channels, build_blank

_DEPTHS = (2, 3, 4, 5)
_STEM_STRIDE = 4
_STEM_CONV = STEM_KEY.removesuffix(".weight")
_GEOMETRY = ("stride", "padding", "dilation")  # what `output_stride` decides of a convolution


class ConvNextEncoder(nn.Module):
    """A ConvNeXt as an encoder: images (N, C, H, W) to a list of maps.

    Args:
        config: The architecture, with a stem of stride 4.
        output_norm: Whether every map passes the LayerNorm of its output.
        depth: The number of halvings, 2 to 5. Stages beyond it exist, so that published weights
            fit, but are neither run nor trained.
        output_stride: The largest stride; stages that would exceed it are dilated.

    Attributes:
        backbone: The `ConvNextBackbone`, into which `load_weights` loads weights of any origin.
        out_channels: The channels of each map, from the image on.

    Raises:
        ValueError: The depth or the stride is none that the architecture has.
    """

    def __init__(
        self, config: ConvNextConfig, output_norm: bool, depth: int = 5, output_stride: int = 32
    ) -> None:
        super().__init__()
        check_choice("depth", depth, _DEPTHS)
        check_choice("patch_size", config.patch_size, (_STEM_STRIDE,))
        stride = min(output_stride, config.strides[-1])
        self.backbone = ConvNextBackbone(
            config.replace(out_indices=range(1, depth), output_stride=stride)
        )
        if not output_norm:
            norms = {name: nn.Identity() for name in self.backbone.out_features}
            self.backbone.norms = nn.ModuleDict(norms)

    @property
    def out_channels(self) -> list[int]:
        """The channels of the image, of the empty map and of each stage."""
        return [self.backbone.config.num_channels, 0, *self.backbone.channels]

    @property
    def output_stride(self) -> int:
        """What the sides of an image must be a multiple of."""
        return self.backbone.strides[-1]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Take images of another number of channels; smp calls it while it builds.

        The weight of the stem's first convolution becomes a new parameter, which an optimizer that
        was made before does not have.

        Args:
            in_channels: The number of channels.
            pretrained: Adapt the stem's weights, as `load_weights(adapt_in_channels=True)` does,
                instead of initializing them anew.

        Raises:
            ValueError: The number is not positive.
            TypeError: It is not an integer.
        """
        config, conv = self.backbone.config, self.backbone.get_submodule(_STEM_CONV)
        if in_channels == config.num_channels:
            return
        assert isinstance(conv, nn.Conv2d)
        config.num_channels = in_channels
        weight = adapt_input_channels(conv.weight.detach(), in_channels)
        conv.weight = nn.Parameter(weight, conv.weight.requires_grad)
        conv.in_channels = in_channels
        if not pretrained:
            self.backbone._reset(conv)

    def make_dilated(self, output_stride: int) -> None:
        """Dilate the stages beyond a stride, with equal weights; smp calls it while it builds.

        Raises:
            ValueError: The stride is none that the architecture has.
        """
        self.backbone.config.output_stride = output_stride
        dilated = build_blank(ConvNextBackbone, self.backbone.config)
        for name, module in dilated.named_modules():
            if isinstance(module, nn.Conv2d):
                conv = self.backbone.get_submodule(name)
                for attribute in _GEOMETRY:
                    setattr(conv, attribute, getattr(module, attribute))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the image, an empty map (N, 0, H / 2, W / 2) and the map of each stage."""
        n, _, h, w = x.shape
        return [x, x.new_empty(n, 0, h // 2, w // 2), *self.backbone(x)]


def register_encoder(
    name: str,
    config: ConvNextConfig | str | None = None,
    *,
    output_norm: bool = False,
    **fields: Any,
) -> None:
    """Register an encoder for smp's models; all of `list_archs()` are, under their names.

    Args:
        name: What `encoder_name=` takes.
        config: A `ConvNextConfig` or the name of an architecture.
        output_norm: Whether each map passes the LayerNorm of its output, as in detectors. Without,
            maps are those of smp's own encoders of timm's ConvNeXts.
        fields: Fields of `ConvNextConfig` that replace those of `config`.

    Raises:
        ValueError: smp has an encoder of this name, or a field is out of its range.
        TypeError: A field is unknown.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> register_encoder("atto_stride16", "convnext_atto", output_stride=16)
        >>> model = smp.Unet("atto_stride16", encoder_weights=None)
        >>> report = load_weights(model.encoder.backbone, "convnext_atto.d2_in1k")
    """
    if name in encoders and encoders[name]["encoder"] is not ConvNextEncoder:
        raise ValueError(f"name must be one that smp does not use itself, got {name!r}")
    built = resolve_config(ConvNextConfig, config, None, **fields)
    params = {"config": built, "output_norm": output_norm}
    encoders[name] = {"encoder": ConvNextEncoder, "pretrained_settings": {}, "params": params}


for _arch in list_archs():
    register_encoder(_arch, _arch)
