"""Backbones for transformers' detectors and segmentors; importing this module registers them.

With it, `backbone_config=` of UperNet, DETR, RT-DETR, D-FINE, Mask2Former and the like takes a
`ConvNextAutoBackboneConfig`, and directories that such models have saved load again. Written for
transformers 5. The contract is that of transformers' backbone_utils.py and `AutoBackbone`.

Axes: N batch, C channels, H height, W width.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from ..models.backbone import ConvNextBackbone
from ..models.config import ConvNextConfig
from ..weights import LoadReport, load_weights
from .source import Source


class ConvNextAutoBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    """What transformers stores of a backbone.

    Attributes:
        architecture: The contents of the config.json of a `ConvNextConfig`.
        frozen_stages: As in `ConvNextBackbone`.
        with_cp: As in `ConvNextBackbone`.
        out_features: The outputs by name; with `out_indices` as in `ConvNextConfig`.
    """

    model_type = "convnext_backbone"

    architecture: dict[str, Any] | None = None
    frozen_stages: int = -1
    with_cp: bool | str = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        native = ConvNextConfig.from_dict(self.architecture or {})
        outputs = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        if any(value is not None for value in outputs.values()):
            native = native.replace(**outputs)
        self.architecture = native.to_dict()
        self.stage_names = native.stage_names
        self.set_output_features_output_indices(list(native.out_features), list(native.out_indices))
        super().__post_init__(**kwargs)


class ConvNextAutoBackbone(BackboneMixin, PreTrainedModel):
    """A `ConvNextBackbone` as transformers' models build, call, save and load theirs.

    Attributes:
        backbone: The `ConvNextBackbone`.
    """

    config_class = ConvNextAutoBackboneConfig
    main_input_name = "pixel_values"
    has_attentions = False
    supports_gradient_checkpointing = True

    def __init__(self, config: ConvNextAutoBackboneConfig) -> None:
        super().__init__(config)
        native = ConvNextConfig.from_dict(config.architecture or {})
        native.out_features = config.out_features
        self.backbone = ConvNextBackbone(
            native, frozen_stages=config.frozen_stages, with_cp=config.with_cp
        )
        self.num_features = list(self.backbone.num_features)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        self.backbone._reset(module)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed; `gradient_checkpointing_enable()` assigns it."""
        return self.backbone.is_activation_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.backbone.with_cp = enable

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Return the normed map (N, C, H, W) of each output, as `feature_maps`.

        Args:
            pixel_values: Images (N, num_channels, H, W), floating point.
            output_hidden_states: Return the map of the stem and of every stage before the norms.
            output_attentions: A ConvNeXt has none, and gives None.
            return_dict: False gives a plain tuple.
            kwargs: What transformers' models pass to any backbone; not used.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        maps = self.backbone(pixel_values, output_hidden_states)
        output = BackboneOutput(feature_maps=maps.feature_maps, hidden_states=maps.hidden_states)
        named = self.config.return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()


def to_transformers(backbone: ConvNextBackbone) -> ConvNextAutoBackbone:
    """Return a backbone as a model of transformers; the two share their parameters.

    Its `config` is what `backbone_config=` takes. A model that is built from a config has initial
    weights, as always in transformers: see `load_backbone_weights`.

    Example:
        >>> from transformers import UperNetConfig, UperNetForSemanticSegmentation
        >>> backbone = ConvNextBackbone("convnext_atto", out_indices=(1, 2, 3, 4))
        >>> config = UperNetConfig(backbone_config=to_transformers(backbone).config,
        ...                        use_auxiliary_head=False)
        >>> model = UperNetForSemanticSegmentation(config)
        >>> report = load_backbone_weights(model, "convnext_atto.d2_in1k")
    """
    config = ConvNextAutoBackboneConfig(
        architecture=backbone.config.to_dict(),
        frozen_stages=backbone.frozen_stages,
        with_cp=backbone.with_cp,
    )
    model = ConvNextAutoBackbone(config)
    model.backbone = backbone
    return model


def load_backbone_weights(model: nn.Module, source: Source, **options: Any) -> LoadReport | None:
    """Load weights into the backbone of one of transformers' models.

    Args:
        model: A model that holds one `ConvNextAutoBackbone`.
        source: A `ConvNextBackbone` of the same architecture, or what `load_weights` reads.
        options: Options of `load_weights`.

    Returns:
        What became of every tensor of the source; None for a `ConvNextBackbone`, whose tensors are
        all copied.

    Raises:
        ValueError: The model does not hold one such backbone, or the weights do not fit.
    """
    found = [m for m in model.modules() if isinstance(m, ConvNextAutoBackbone)]
    if len(found) != 1:
        raise ValueError(
            f"model must hold one ConvNextAutoBackbone, {type(model).__name__} has {len(found)}"
        )
    if not isinstance(source, ConvNextBackbone):
        return load_weights(found[0].backbone, source, **options)
    found[0].backbone.load_state_dict(source.state_dict())
    return None


AutoConfig.register(ConvNextAutoBackboneConfig.model_type, ConvNextAutoBackboneConfig)
AutoBackbone.register(ConvNextAutoBackboneConfig, ConvNextAutoBackbone)
