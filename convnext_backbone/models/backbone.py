"""ConvNextBackbone: multi-stage feature maps for detectors, segmentors and plain PyTorch.

Papers: arXiv 2201.03545 (V1), 2301.00808 (V2), 2508.10104 (DINOv3). The per-stage norms are those
of facebookresearch/ConvNeXt, object_detection/mmdet/models/backbones/convnext.py; `out_features`
and `out_indices` are transformers' (models/convnext/modeling_convnext.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from ..weights import LOAD_OPTIONS, load_weights
from .config import ConfigFields, ConvNextConfig, resolve_config, show_config_fields
from .layers import LayerNorm2d
from .outputs import BackboneOutput, FeatureMaps
from .pretrained import PretrainedTrunk

# mmengine's own keys. `map_location` has nothing to decide here: weights are read on the CPU and
# copied to where the parameters are.
_INIT_CFG_KEYS = ("type", "checkpoint", "map_location")


class ConvNextBackbone(PretrainedTrunk):
    """A ConvNeXt that returns the maps of the requested stages, each through its own LayerNorm.

    Args:
        config: A `ConvNextConfig`, or the name of an architecture (as `arch`).
        arch: The name of an architecture, one of `list_archs()`. With neither, the architecture is
            that of the default `ConvNextConfig`, ConvNeXt-Tiny.
        frozen_stages: As in mmdet: -1 freezes nothing, 0 the stem, k the stem and stages 1 to k.
            Frozen parameters take no gradient, and their modules stay in eval mode. The norms of
            the outputs are never frozen.
        with_cp: False keeps the blocks' activations for the backward pass, "selective" only those
            that are dear to recompute, True none.
        init_cfg: `dict(type='Pretrained', checkpoint=SOURCE)`, applied by `init_weights()`; SOURCE
            is anything that `load_weights` reads, and options of `load_weights` may be added.
        fields: Fields of `ConvNextConfig` that replace those of `config` or `arch`.

    Attributes:
        config: This backbone's own `ConvNextConfig`.
        load_report: What the last loading of weights did, or None.

    Raises:
        ValueError: An argument is out of its range or the outputs are not a valid choice.
        TypeError: An argument is of the wrong type or unknown.
    """

    @show_config_fields
    def __init__(
        self,
        config: ConvNextConfig | str | None = None,
        *,
        arch: str | None = None,
        frozen_stages: int = -1,
        with_cp: bool | str = False,
        init_cfg: Mapping[str, Any] | None = None,
        **fields: Unpack[ConfigFields],
    ) -> None:
        super().__init__(resolve_config(type(self), config, arch, **fields), with_cp=with_cp)
        self._frozen_stages = self._check_frozen_stages(frozen_stages)
        self.init_cfg = _check_init_cfg(init_cfg)
        self.norms = nn.ModuleDict()
        # Parameters that are frozen or behind the outputs, and whether they took a gradient before.
        self._idle: dict[str, bool] = {}
        self._align()
        self.reset_parameters()

    has_attentions = False

    # What it gives: names, positions, channels and strides of the outputs, in stage order.

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of all possible outputs: the stem, then stage1 to stageN."""
        return tuple(self.config.stage_names)

    @property
    def out_features(self) -> tuple[str, ...]:
        """The names of the outputs. Assigning another choice gives new outputs fresh norms."""
        return tuple(self.config.out_features)

    @out_features.setter
    def out_features(self, names: Sequence[str]) -> None:
        self.config.out_features = names
        self._align()

    @property
    def out_indices(self) -> tuple[int, ...]:
        """The outputs as positions in `stage_names`, never negative. Assignable."""
        return tuple(self.stage_names.index(name) for name in self.out_features)

    @out_indices.setter
    def out_indices(self, indices: Sequence[int]) -> None:
        self.config.out_indices = indices
        self._align()

    @property
    def num_features(self) -> tuple[int, ...]:
        """The channels of every entry of `stage_names`."""
        return (self.config.hidden_sizes[0], *self.config.hidden_sizes)

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """The channels of every entry of `stage_names`, by name."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of each output."""
        return tuple(self.num_features[i] for i in self.out_indices)

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each output, in input pixels."""
        return tuple(self.config.strides[i] for i in self.out_indices)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> FeatureMaps | tuple[Any, ...]:
        """Return the normed map of each requested stage.

        Stages after the last requested one are not run, unless their hidden states are asked for.
        A side that a stride does not divide is floored, as in every other ConvNeXt.

        Args:
            pixel_values: Images (N, num_channels, H, W), floating point.
            output_hidden_states: Also give, as `hidden_states`, the maps of the stem and of every
                stage before the norms of the outputs. None leaves it to the config.
            return_dict: False gives transformers' plain tuple: the tuple of maps, then the hidden
                states where they are asked for. None leaves it to the config.
            output_attentions: For transformers' callers; a ConvNeXt has none, and gives None.

        Returns:
            A tuple, which is also its own `feature_maps`: one contiguous
            (N, C_i, H // stride_i, W // stride_i) per output, in stage order.

        Raises:
            ValueError: The shape does not fit, or the image is smaller than the last stride.
            TypeError: The input is not a floating-point tensor.
        """
        return self._answer(self._run(pixel_values, output_hidden_states), return_dict)

    def _run(self, pixel_values: Tensor, output_hidden_states: bool | None) -> FeatureMaps:
        if self.out_features != tuple(self.norms.keys()):
            # The user changed the config, or its list, which has not been checked yet.
            self.out_features = self.out_features
        keep_all = self._wants_hidden_states(output_hidden_states)
        last = len(self.config.depths) if keep_all else self.out_indices[-1]
        maps, hidden = [], []
        for name, x in zip(self.stage_names, self.iter_maps(pixel_values, last), strict=False):
            if name in self.norms:
                maps.append(self.norms[name](x).contiguous())
            if keep_all:
                hidden.append(x)
        return FeatureMaps(maps, tuple(hidden) if keep_all else None)

    def forward_with_filtered_kwargs(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Return what transformers' segmentors and detectors expect of a backbone.

        Its UperNet, for one, calls backbones by this name. Positions mean what they mean there:
        `output[0]` is the tuple of maps. Arguments are those of a call.
        """
        maps = self(pixel_values, output_hidden_states, return_dict=True)
        output = BackboneOutput(feature_maps=maps.feature_maps, hidden_states=maps.hidden_states)
        return self._answer(output, return_dict)

    # How it trains: which parts are frozen, and their mode.

    def train(self, mode: bool = True) -> "ConvNextBackbone":
        """Set training mode, but keep frozen modules in eval mode. Returns self."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        k = self.frozen_stages
        return [self.downsample_layers[0], *self.downsample_layers[1:k], *self.stages[:k]]

    def _unused_modules(self) -> list[nn.Module]:
        last = self.out_indices[-1]
        return [*self.downsample_layers[max(last, 1) :], *self.stages[last:]]

    def _align(self) -> None:
        """Hold one norm per output, and gradients for what is run and not frozen.

        A norm that stays keeps its weights. A stage that is not run would have no gradient, which
        DistributedDataParallel refuses unless it is told to look for such parameters. Whatever else
        the user has frozen stays so.
        """
        like = next(self.parameters())
        norms = dict(self.norms)
        self.norms = nn.ModuleDict(
            {
                name: norms.get(name)
                or LayerNorm2d(
                    channels, eps=self.config.norm_eps, device=like.device, dtype=like.dtype
                )
                for name, channels in self.out_feature_channels.items()
                if name in self.out_features
            }
        )
        named = dict(self.named_parameters())
        for name, before in self._idle.items():
            named[name].requires_grad_(before)
        modules = (*self._frozen_modules(), *self._unused_modules())
        idle = {p for module in modules for p in module.parameters()}
        self._idle = {name: p.requires_grad for name, p in named.items() if p in idle}
        for p in idle:
            p.requires_grad_(False)
        self.train(self.training)

    @property
    def frozen_stages(self) -> int:
        """-1 for nothing, 0 for the stem, k for the stem and stages 1 to k. Assignable."""
        return self._frozen_stages

    @frozen_stages.setter
    def frozen_stages(self, value: int) -> None:
        self._frozen_stages = self._check_frozen_stages(value)
        self._align()

    def _check_frozen_stages(self, value: Any) -> int:
        last = len(self.config.depths)
        if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= last:
            raise ValueError(f"frozen_stages must be an integer from -1 to {last}, got {value!r}")
        return value

    def init_weights(self) -> None:
        """Fill the parameters afresh, then load what `init_cfg` names. mmengine calls this."""
        if self.is_init:
            return
        self.reset_parameters()
        if self.init_cfg is not None:
            options = {k: v for k, v in self.init_cfg.items() if k in LOAD_OPTIONS}
            load_weights(self, self.init_cfg["checkpoint"], **options)
        self.is_init = True


def _check_init_cfg(init_cfg: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if init_cfg is None:
        return None
    if not isinstance(init_cfg, Mapping) or init_cfg.get("type") != "Pretrained":
        raise ValueError(
            "init_cfg must be None or dict(type='Pretrained', checkpoint=...); a fresh start is "
            f"governed by initializer_range and layer_scale_init_value; got {init_cfg!r}"
        )
    if "checkpoint" not in init_cfg:
        raise ValueError(f"init_cfg must name a checkpoint, got {init_cfg!r}")
    unknown = [k for k in init_cfg if k not in (*_INIT_CFG_KEYS, *LOAD_OPTIONS)]
    if unknown:
        raise ValueError(f"init_cfg takes {(*_INIT_CFG_KEYS, *LOAD_OPTIONS)}, got {unknown}")
    return init_cfg
