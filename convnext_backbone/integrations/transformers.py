"""Backbones for transformers' detectors and segmentors; importing this module registers them.

With it, `backbone_config=` of UperNet, DETR, RT-DETR, D-FINE, Mask2Former and the like takes a
`ConvNextAutoBackboneConfig`, and directories that such models have saved load again. Written for
transformers 5. The contract is that of transformers' backbone_utils.py and `AutoBackbone`.

Axes: N batch, C channels, H height, W width.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from ..models.backbone import ConvNextBackbone
from ..models.config import ConvNextConfig
from ..utils.checks import shorten_list
from ..weights.load import build_blank, load_weights
from ..weights.report import LoadReport
from .backbone import Source


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

    def update_from(self, backbone: ConvNextBackbone) -> None:
        """Take over what can be assigned to a built backbone."""
        now = {name: getattr(backbone, name) for name in ("frozen_stages", "with_cp")}
        now["out_features"] = [*backbone.out_features]
        # Written where something has changed only: forward passes, also compiled ones, come here.
        if any(getattr(self, name) != value for name, value in now.items()):
            self.architecture = backbone.config.to_dict()
            for name, value in now.items():
                setattr(self, name, value)


class ConvNextAutoBackbone(BackboneMixin, PreTrainedModel):
    """A `ConvNextBackbone` as transformers' models build, call, save and load theirs.

    Attributes:
        backbone: The `ConvNextBackbone`. Its outputs, `frozen_stages` and `with_cp` are what runs;
            `config` follows them whenever it is read, and in every call. The config of a model that
            holds this one has them from then on.
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

    def _initialize_weights(self, module: nn.Module, *args: Any) -> None:
        super()._initialize_weights(module, *args)
        # The last call is for the model itself, also after loading, which has then exchanged all
        # parameters for ones that take gradients.
        if module is self:
            body = self.backbone
            built = build_blank(ConvNextBackbone, body.config, frozen_stages=body.frozen_stages)
            frozen = {name for name, p in built.named_parameters() if not p.requires_grad}
            for name, p in body.named_parameters():
                p.requires_grad_(p.requires_grad and name not in frozen)

    @property
    def config(self) -> PreTrainedConfig:
        """What transformers stores, as the backbone is now."""
        if "backbone" in self._modules:  # not yet while PreTrainedModel is set up
            self._config.update_from(self.backbone)
        return self._config

    @config.setter
    def config(self, config: Any) -> None:
        self._config = config

    # BackboneMixin's are those of the config. `channels` is derived from them there.

    @property
    def out_features(self) -> list[str]:
        """The names of the outputs. Assignable, as `ConvNextBackbone.out_features`."""
        return [*self.backbone.out_features]

    @out_features.setter
    def out_features(self, names: Sequence[str]) -> None:
        self.backbone.out_features = names

    @property
    def out_indices(self) -> list[int]:
        """The outputs as positions in `stage_names`. Assignable."""
        return [*self.backbone.out_indices]

    @out_indices.setter
    def out_indices(self, indices: Sequence[int]) -> None:
        self.backbone.out_indices = indices

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
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        maps = self.backbone(pixel_values, output_hidden_states)
        output = BackboneOutput(feature_maps=maps.feature_maps, hidden_states=maps.hidden_states)
        named = config.return_dict if return_dict is None else return_dict
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
        source: A `ConvNextBackbone` of the same architecture and outputs, or what `load_weights`
            reads.
        options: Options of `load_weights`; none with a `ConvNextBackbone`.

    Returns:
        What became of every tensor of the source; None for a `ConvNextBackbone`, whose tensors are
        all copied.

    Raises:
        ValueError: The model does not hold one such backbone, or the weights do not fit; nothing is
            loaded then.
        TypeError: There are options with a `ConvNextBackbone`.
    """
    found = [m for m in model.modules() if isinstance(m, ConvNextAutoBackbone)]
    if len(found) != 1:
        raise ValueError(
            f"model must hold one ConvNextAutoBackbone, {type(model).__name__} has {len(found)}"
        )
    target = found[0].backbone
    if not isinstance(source, ConvNextBackbone):
        return load_weights(target, source, **options)
    if options:
        raise TypeError(f"a ConvNextBackbone as source takes no options, got {[*options]}")
    theirs, ours = ({(k, v.shape) for k, v in m.state_dict().items()} for m in (source, target))
    if theirs != ours:
        keys = sorted({key for key, _ in theirs ^ ours})
        raise ValueError(
            "source must have the tensors of the model's backbone, but they differ in "
            f"{shorten_list(keys)}"
        )
    target.load_state_dict(source.state_dict())
    return None


AutoConfig.register(ConvNextAutoBackboneConfig.model_type, ConvNextAutoBackboneConfig)
AutoBackbone.register(ConvNextAutoBackboneConfig, ConvNextAutoBackbone)
