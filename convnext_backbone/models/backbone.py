"""ConvNextBackbone: multi-stage feature maps for detectors, segmentors and plain PyTorch.

Papers: arXiv 2201.03545 (V1), 2301.00808 (V2), 2508.10104 (DINOv3). The per-stage norms are those
of facebookresearch/ConvNeXt, object_detection/mmdet/models/backbones/convnext.py; `out_features`
and `out_indices` are transformers' (models/convnext/modeling_convnext.py).
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import Self, Unpack

from ..utils.checks import as_int
from ..weights.load import LOAD_OPTIONS, load_weights
from .config import ConfigFields, ConvNextConfig, resolve_config, show_config_fields
from .layers import build_norm2d
from .outputs import BackboneOutput, FeatureMaps, ShapeSpec
from .pretrained import PretrainedTrunk

# mmengine's own keys. `map_location` has nothing to decide here: weights are read on the CPU and
# copied to where the parameters are.
_INIT_CFG_KEYS = ("type", "checkpoint", "map_location")
# An attribute of modules, the names of their parameters that the backbone froze, and of these
# parameters. Kept in both, since either may be exchanged: the parameter by loading with assign=True
# or by a copy, the module by a layer that takes over its parameters.
_FROZEN_HERE = "_requires_grad_before_freezing"


class ConvNextBackbone(PretrainedTrunk):
    """A ConvNeXt that returns the maps of the requested stages, each through its own LayerNorm.

    Stages after the last output are not run and take no gradient, so DistributedDataParallel needs
    no `find_unused_parameters`. Where hidden states are asked for all stages are run and trained:
    set `output_hidden_states` of the config, or ask in a call, from which on they take gradients.
    A call in a compiled graph cannot change that, nor parameters that an optimizer or
    DistributedDataParallel has taken before.

    Args:
        config: A `ConvNextConfig`, or the name of an architecture (as `arch`).
        arch: The name of an architecture, one of `list_archs()`. With neither, the architecture is
            that of the default `ConvNextConfig`, ConvNeXt-Tiny.
        frozen_stages: As in mmdet: -1 freezes nothing, 0 the stem, k the stem and stages 1 to k.
            Frozen parameters take no gradient, and their modules stay in eval mode. The norms of
            the outputs are never frozen.
        with_cp: What the blocks hold for the backward pass: False, all activations; "selective",
            the outputs of convolutions and linear layers; True, the inputs of blocks and
            downsampling layers.
        init_cfg: `dict(type='Pretrained', checkpoint=SOURCE)`, applied by `init_weights()`; SOURCE
            is anything that `load_weights` reads, and options of `load_weights` may be added.
        fields: Fields of `ConvNextConfig` that replace those of `config` or `arch`.

    Attributes:
        config: This backbone's own `ConvNextConfig`.
        load_report: The `LoadReport` of the last loading of weights, or None.

    Raises:
        ValueError: An argument is out of its range or the outputs are not a valid choice.
        TypeError: An argument is of the wrong type or unknown.

    Example:
        >>> backbone = ConvNextBackbone("convnext_tiny", out_indices=(1, 2, 3, 4))
        >>> [tuple(x.shape) for x in backbone(torch.randn(1, 3, 224, 224))]
        [(1, 96, 56, 56), (1, 192, 28, 28), (1, 384, 14, 14), (1, 768, 7, 7)]
    """

    has_attentions = False

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
        self._trains_all_stages = False
        self._untrained_stages: set[int] = set()
        self._rebuild_outputs()
        self.train()
        self.reset_parameters()

    # Names, positions, channels and strides of the outputs, in stage order.

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of all possible outputs: the stem, then stage1 to stageN."""
        return tuple(self.config.stage_names)

    @property
    def out_features(self) -> tuple[str, ...]:
        """The names of the outputs. Assignable; the norms of new outputs are newly initialized."""
        return tuple(self.config.out_features)

    @out_features.setter
    def out_features(self, names: Sequence[str]) -> None:
        self.config.out_features = names
        self._rebuild_outputs()

    @property
    def out_indices(self) -> tuple[int, ...]:
        """The outputs as positions in `stage_names`, never negative. Assignable."""
        return tuple(self.stage_names.index(name) for name in self.out_features)

    @out_indices.setter
    def out_indices(self, indices: Sequence[int]) -> None:
        self.config.out_indices = indices
        self._rebuild_outputs()

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

    # detectron2's description of a backbone.

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and the stride of each output, by name."""
        sizes = zip(self.out_features, self.channels, self.strides, strict=True)
        return {name: ShapeSpec(channels=c, stride=stride) for name, c, stride in sizes}

    @property
    def size_divisibility(self) -> int:
        """What sides are padded to a multiple of, so that no border is lost: the last stride."""
        return self.strides[-1]

    @property
    def padding_constraints(self) -> dict[str, int]:
        """`size_divisibility`, as detectron2's data loading asks for it."""
        return {"size_divisibility": self.size_divisibility}

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> FeatureMaps | tuple[Any, ...]:
        """Return the normed map of each requested stage.

        Stages after the last requested one are not run, unless their hidden states are asked for.
        Where a stride does not divide a side, the size of the map is rounded down, or up with
        `pad_to_stride`.

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
        return self._format_output(self._run(pixel_values, output_hidden_states), return_dict)

    def _run(self, pixel_values: Tensor, output_hidden_states: bool | None) -> FeatureMaps:
        keep_all = self._wants_hidden_states(output_hidden_states)
        if (self.config.out_features, self.config.out_indices) != self._built_outputs:
            self.config.update({})  # checks lists that were edited in place
            self._rebuild_outputs()
        last = len(self.config.depths) if keep_all else self.out_indices[-1]
        maps, hidden = [], []
        for name, x in zip(self.stage_names, self.iter_maps(pixel_values, last), strict=False):
            if name in self.out_features:
                maps.append(self._norm(name, x).contiguous())
            if keep_all:
                hidden.append(x)
        return FeatureMaps(maps, hidden_states=tuple(hidden) if keep_all else None)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        # A norm that the user has deleted leaves the map as it is.
        return self.norms[name](x) if name in self.norms else x

    def iter_maps(self, pixel_values: Tensor, last: int) -> Iterator[Tensor]:
        """Yield the maps of the stem and of stages 1 to `last`; see `ConvNextTrunk.iter_maps`."""
        asks = last > self.out_indices[-1] and not self._trains_all_stages and _is_training_step()
        # In torch.func.functional_call there are tensors in the parameters' places.
        if asks and all(isinstance(p, nn.Parameter) for p in self.parameters()):
            self._trains_all_stages = True
            self._freeze(self._is_frozen_whole())
        return super().iter_maps(pixel_values, last)

    def forward_with_filtered_kwargs(
        self, *args: Any, **kwargs: Any
    ) -> BackboneOutput | tuple[Any, ...]:
        """Return what transformers' segmentors and detectors expect of a backbone.

        Its UperNet, for one, calls backbones by this name. Positions mean what they mean there:
        `output[0]` is the tuple of maps. Arguments are those of a call; other keywords are ignored.
        """
        call = inspect.signature(self.forward)
        known = {name: value for name, value in kwargs.items() if name in call.parameters}
        arguments = call.bind(*args, **known).arguments
        return_dict = arguments.pop("return_dict", None)
        maps = self(**arguments, return_dict=True)
        output = BackboneOutput(feature_maps=maps.feature_maps, hidden_states=maps.hidden_states)
        return self._format_output(output, return_dict)

    # Freezing, and the mode of frozen modules.

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but keep frozen modules in eval mode. Returns self."""
        super().train(mode)
        for stage in range(self.frozen_stages + 1):
            self._set_mode(stage)
        return self

    def _set_mode(self, stage: int) -> None:
        for module in self._modules_of(stage):
            module.train(self.training and stage > self.frozen_stages)

    def _modules_of(self, stage: int) -> list[nn.Module]:
        """Return the stem for 0, else a stage and the downsampling before it, where it is there."""
        if stage == 0:
            return [*self.downsample_layers[:1]]
        downsampling = self.downsample_layers[stage - 1 : stage] if stage > 1 else ()
        return [*downsampling, *self.stages[stage - 1 : stage]]

    def _rebuild_outputs(self) -> None:
        """Hold one norm per output, and gradients for what is run and not frozen.

        A norm that stays keeps its weights.
        """
        frozen_whole = self._is_frozen_whole()  # before new norms, which are to train
        norms = dict(self.norms)
        for name in self.out_features:
            if name not in norms:
                width, c = self.out_feature_channels[name], self.config
                norm = build_norm2d(c.norm_layer, width, c.norm_eps)
                norms[name] = norm.to(self.device, self.dtype).train(self.training)
        self.norms = nn.ModuleDict({name: norms[name] for name in self.out_features})
        # Copies: the lists of the config may be edited in place.
        self._built_outputs = [*self.config.out_features], [*self.config.out_indices]
        self._freeze(frozen_whole)

    def _freeze(self, frozen_whole: bool) -> None:
        """Freeze the stages that are not to train any more, unfreeze those that are again.

        Only what has changed since the last time is touched, and only parameters that this froze
        are unfrozen: whatever the user has frozen, unfrozen or put there in between stays so. Where
        that is the whole backbone, nothing is unfrozen.
        """
        num = len(self.config.depths)
        trains_all = self._trains_all_stages or self.config.output_hidden_states
        last = num if trains_all else self.out_indices[-1]
        untrained = {s for s in range(num + 1) if s <= self.frozen_stages or s > last}
        modules = {stage: self._modules_of(stage) for stage in untrained}
        # Parameters may be tied across stages: what one of them may not train stays frozen.
        still = {p for group in modules.values() for module in group for p in module.parameters()}
        for module in self.modules():
            here = vars(module).get(_FROZEN_HERE, set())
            for name, p in _own_parameters(module):
                if p not in still and (name in here or hasattr(p, _FROZEN_HERE)):
                    # Not requires_grad_(), which transforms of torch.func refuse.
                    p.requires_grad = p.requires_grad or not frozen_whole
                    vars(p).pop(_FROZEN_HERE, None)
            here -= {name for name, p in _own_parameters(module) if p not in still}
        for stage in untrained - self._untrained_stages:
            for module in (part for group in modules[stage] for part in group.modules()):
                for name, p in _own_parameters(module):
                    if p.requires_grad:
                        p.requires_grad_(False)
                        vars(p)[_FROZEN_HERE] = True
                        vars(module).setdefault(_FROZEN_HERE, set()).add(name)
        self._untrained_stages = untrained

    def _is_frozen_whole(self) -> bool:
        """Whether the user has frozen all that was to train, and so meant all that there is."""
        to_train = set(range(len(self.stage_names))) - self._untrained_stages
        parts = (module for stage in to_train for module in self._modules_of(stage))
        has_some = any(p.numel() for module in parts for p in module.parameters())
        return has_some and not any(p.requires_grad for p in self.parameters())

    @property
    def frozen_stages(self) -> int:
        """-1 for nothing, 0 for the stem, k for the stem and stages 1 to k. Assignable."""
        return self._frozen_stages

    @frozen_stages.setter
    def frozen_stages(self, value: int) -> None:
        before, self._frozen_stages = self._frozen_stages, self._check_frozen_stages(value)
        self._freeze(self._is_frozen_whole())
        low, high = sorted((before, self._frozen_stages))
        for stage in range(low + 1, high + 1):
            self._set_mode(stage)

    def _check_frozen_stages(self, value: Any) -> int:
        last, stage = len(self.config.depths), as_int(value)
        if stage is None or not -1 <= stage <= last:
            raise ValueError(f"frozen_stages must be an integer from -1 to {last}, got {value!r}")
        return stage

    def init_weights(self) -> None:
        """Initialize the parameters, then load what `init_cfg` names. mmengine calls this."""
        if self.is_init:
            return
        self.reset_parameters()
        if self.init_cfg is not None:
            options = {k: v for k, v in self.init_cfg.items() if k in LOAD_OPTIONS}
            load_weights(self, self.init_cfg["checkpoint"], **options)
        self.is_init = True


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield a module's own parameters by the names that they have without reparametrization."""
    for name, p in module.named_parameters(recurse=False):
        yield name.removesuffix("_orig"), p  # torch.nn.utils.prune
    if parametrize.is_parametrized(module):
        for name, originals in module.get_submodule("parametrizations").named_children():
            yield from ((name, p) for p in originals.parameters(recurse=False))


def _is_training_step() -> bool:
    return (
        torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    )


def _check_init_cfg(init_cfg: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if init_cfg is None:
        return None
    if not isinstance(init_cfg, Mapping) or init_cfg.get("type") != "Pretrained":
        raise ValueError(
            "init_cfg must be None or dict(type='Pretrained', checkpoint=...); initial values are "
            f"governed by initializer_range and layer_scale_init_value; got {init_cfg!r}"
        )
    if "checkpoint" not in init_cfg:
        raise ValueError(f"init_cfg must name a checkpoint, got {init_cfg!r}")
    unknown = [k for k in init_cfg if k not in (*_INIT_CFG_KEYS, *LOAD_OPTIONS)]
    if unknown:
        raise ValueError(f"init_cfg takes {(*_INIT_CFG_KEYS, *LOAD_OPTIONS)}, got {unknown}")
    return init_cfg
