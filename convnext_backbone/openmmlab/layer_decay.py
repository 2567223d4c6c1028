"""Layer-wise learning-rate decay for any model that holds a ConvNeXt, and its dry run.

The rules are those of facebookresearch/ConvNeXt (object_detection/mmcv_custom/
layer_decay_optimizer_constructor.py and optim_factory.py) and ConvNeXt-V2 (optim_factory.py), which
mmdet and mmsegmentation carry as `LearningRateDecayOptimizerConstructor`. They use the depths in
the trunk's own config instead of class names and fixed prefixes.

A parameter's learning rate is `lr * decay_rate ** (num_layers + 1 - id)`. Id 0 is the stem and id
`num_layers + 1`, with the full rate, is everything outside the trunk: the norms of the outputs,
necks and heads.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS
from torch import nn

from ..models.layers import GlobalResponseNorm
from ..models.trunk import BLOCK, DOWNSAMPLING, STAGE, ConvNextTrunk
from ..utils.checks import check_choice

_BLOCKS_PER_LAYER = 3  # how many blocks of the deep third stage share one rate
_GROUP_NUM_LAYERS = 12  # `group` of the ImageNet recipes, whatever the depth
_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,  # every BatchNorm, SyncBatchNorm and InstanceNorm
    GlobalResponseNorm,
)
# Their weights decay whatever shape they have: a wrapper that shards parameters flattens them.
_MATRICES = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)
_NO_DECAY_NAME = re.compile(r"(^|\.)(bias|gamma|beta|grn\.weight)$")
# Name components that wrappers put between a trunk and its parts.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_OPTIONS = ("decay_rate", "decay_type", "num_layers", "custom_keys", "bypass_duplicate")
_CUSTOM_OPTIONS = ("lr_mult", "decay_mult")

Depths = Sequence[int]


# --------------------------------------------------------------------------- numbering of layers
# A rule takes the depths, num_layers, the stage from 0, and the block, which is None for the stem
# or the downsampling layer in front of the stage.


def _layer_wise_id(depths: Depths, num_layers: int, stage: int, block: int | None) -> int:
    last = len(depths) - 1
    if stage == 0 and block is None:
        return 0
    if stage == last:
        return num_layers
    if stage == last - 1:
        return stage + 1 + (block or 0) // _BLOCKS_PER_LAYER
    return stage + 1


def _stage_wise_id(depths: Depths, num_layers: int, stage: int, block: int | None) -> int:
    return 0 if block is None else stage + 1


def _single_id(depths: Depths, num_layers: int, stage: int, block: int | None) -> int:
    return sum(depths[:stage]) + (block or 0) + 1


def _published_num_layers(depths: Depths) -> int:
    # 6 for tiny and 12 for small to huge: the last stage but one counts as several.
    if len(depths) == 1:
        return 1
    return len(depths) - 1 + ceil(depths[-2] / _BLOCKS_PER_LAYER)


@dataclass(frozen=True)
class DecayType:
    """How one `decay_type` numbers the layers."""

    layer_id: Callable[[Depths, int, int, int | None], int]
    default: Callable[[Depths], int]  # `num_layers` of an architecture when the user gives none
    least: Callable[[Depths], int]  # the smallest with which deeper layers have higher ids
    exact: bool = False  # whether `least` is the only `num_layers` that makes sense


DECAY_TYPES: Mapping[str, DecayType] = {
    "layer_wise": DecayType(_layer_wise_id, _published_num_layers, _published_num_layers),
    "stage_wise": DecayType(_stage_wise_id, _published_num_layers, len),
    "group": DecayType(
        _layer_wise_id,
        lambda depths: max(_GROUP_NUM_LAYERS, _published_num_layers(depths)),
        _published_num_layers,
    ),
    "single": DecayType(_single_id, sum, sum, exact=True),
}


@dataclass(frozen=True)
class _TrunkLayers:
    name: str  # of the trunk in the model, "" for the model itself
    depths: Depths
    num_layers: int
    decay: DecayType

    def holds(self, param_name: str) -> bool:
        return not self.name or param_name.startswith(f"{self.name}.")

    def layer_id(self, param_name: str) -> int:
        parts = param_name[len(self.name) :].split(".")
        name = ".".join(part for part in parts if part and part not in _WRAPPERS)
        block: int | None = None
        if match := re.match(DOWNSAMPLING, name):
            stage = int(match[1])
        elif match := re.match(BLOCK, name):
            stage, block = int(match[1]), int(match[2])
        elif match := re.match(STAGE, name):  # learns as the stage's last block does
            stage = int(match[1])
            block = self.depths[stage] - 1
        else:
            return self.num_layers + 1  # a norm of an output
        return self.decay.layer_id(self.depths, self.num_layers, stage, block)


# --------------------------------------------------------------------------- parameter groups


@dataclass
class LayerGroup:
    """One parameter group: what shares a layer id, a learning rate and a weight decay.

    Its name is `layer_{id}_{decay|no_decay}`, after the trunk's own name where a model holds
    several trunks and before the custom key where one matched.
    """

    name: str
    layer_id: int  # from 0 at the stem to `num_layers + 1` outside the trunk
    lr_scale: float  # factor on the base learning rate
    weight_decay: float
    param_names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list, repr=False)


def layer_groups(
    model: nn.Module,
    *,
    decay_rate: float,
    decay_type: str = "layer_wise",
    num_layers: int | None = None,
    weight_decay: float = 0.0,
    custom_keys: Mapping[str, Mapping[str, float]] | None = None,
    bypass_duplicate: bool = False,
) -> list[LayerGroup]:
    """Sort the trainable parameters of `model` into groups of one learning rate each.

    Norms, biases, layer scales and everything one-dimensional have no weight decay. Frozen
    parameters are in no group.

    Args:
        model: Any module that holds one or more ConvNeXt trunks, under any name.
        decay_rate: Factor from one layer to the one before it, in (0, 1].
        decay_type: One of `DECAY_TYPES`.
        num_layers: Number of layers of the decay. None takes it from the depths of each trunk: 6
            for tiny and 12 for small to huge, as published; `group` takes 12 and `single` the
            number of blocks.
        weight_decay: Weight decay of the parameters that have any.
        custom_keys: `{part of a name: dict(lr_mult=..., decay_mult=...)}`. The longest key that
            occurs in a parameter's name applies: `lr_mult` on top of the layer's rate, `decay_mult`
            on `weight_decay` in place of the rule above.
        bypass_duplicate: Not used; a shared parameter is grouped once, under its first name.

    Raises:
        ValueError: An option is out of its range, `num_layers` does not fit the depths of a trunk,
            or the model holds no trunk.
    """
    check_choice("decay_type", decay_type, DECAY_TYPES)
    if not isinstance(decay_rate, int | float) or not 0.0 < decay_rate <= 1.0:
        raise ValueError(f"decay_rate must lie in (0, 1], got {decay_rate!r}")
    custom_keys = custom_keys or {}
    for part, options in custom_keys.items():
        unknown = sorted(set(options) - set(_CUSTOM_OPTIONS))
        if unknown:
            raise ValueError(f"custom_keys[{part!r}] takes {_CUSTOM_OPTIONS}, got {unknown}")
    keys = sorted(sorted(custom_keys), key=len, reverse=True)  # in mmengine's order
    trunks = _number_layers(model, decay_type, num_layers)
    outside = max(trunk.num_layers for trunk in trunks) + 1
    undecayed = set(_undecayed_names(model))
    groups: dict[str, LayerGroup] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        trunk = next((trunk for trunk in trunks if trunk.holds(name)), None)
        layer_id = trunk.layer_id(name) if trunk else outside
        layers_above = trunk.num_layers + 1 - layer_id if trunk else 0
        key = next((key for key in keys if key in name), None)
        custom = {} if key is None else custom_keys[key]
        owner = trunk.name if trunk and len(trunks) > 1 else ""
        kind = "no_decay" if name in undecayed else "decay"
        group_name = "_".join(filter(None, (owner, f"layer_{layer_id}", kind, key)))
        lr_scale = decay_rate**layers_above * custom.get("lr_mult", 1.0)
        wd = weight_decay * custom.get("decay_mult", float(name not in undecayed))
        group = groups.setdefault(group_name, LayerGroup(group_name, layer_id, lr_scale, wd))
        group.param_names.append(name)
        group.params.append(param)
    return list(groups.values())


def base_weight_decay(optimizer: Mapping[str, Any]) -> float:
    """Return the weight decay of an optimizer's config: where it has none, its class's default."""
    given = optimizer.get("weight_decay")
    if given is not None:
        return given
    type_ = optimizer["type"]
    found = OPTIMIZERS.get(type_) if isinstance(type_, str) else type_
    parameter = inspect.signature(found).parameters.get("weight_decay")
    default = parameter.default if parameter else 0.0
    return default if isinstance(default, int | float) else 0.0


def _number_layers(model: nn.Module, decay_type: str, num_layers: int | None) -> list[_TrunkLayers]:
    decay, numbered = DECAY_TYPES[decay_type], []
    for name, trunk in model.named_modules():
        if not isinstance(trunk, ConvNextTrunk):
            continue
        depths = trunk.config.depths
        least, default = decay.least(depths), decay.default(depths)
        number = default if num_layers is None else num_layers
        fits = isinstance(number, int) and not isinstance(number, bool)
        if not fits or number < least or (decay.exact and number > least):
            raise ValueError(
                f"num_layers must be {least if decay.exact else f'at least {least}'} for "
                f"decay_type {decay_type!r} and depths {tuple(depths)} (None takes {default}), "
                f"got {num_layers!r}"
            )
        numbered.append(_TrunkLayers(name, depths, number, decay))
    if not numbered:
        raise ValueError(
            f"layer decay needs a ConvNeXt in the model, found none in {type(model).__name__}"
        )
    return numbered


def _undecayed_names(model: nn.Module) -> Iterator[str]:
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(prefix=prefix, recurse=False):
            is_matrix = isinstance(module, _MATRICES) and name.endswith("weight")
            if (
                isinstance(module, _NORMS)
                or (param.ndim <= 1 and not is_matrix)
                or _NO_DECAY_NAME.search(name)
            ):
                yield name


def format_layer_groups(groups: Sequence[LayerGroup], lr: float) -> str:
    """Return `groups` as a table, one line per group, lowest learning rate first.

    Raises:
        ValueError: `lr`, the full rate, is no number.
    """
    if not isinstance(lr, int | float):
        raise ValueError(f"the optimizer's lr must be a number, got {lr!r}")
    rows = [("group", "lr scale", "lr", "weight decay", "tensors", "parameters")]
    rows += [
        (
            group.name,
            f"{group.lr_scale:.4g}",
            f"{group.lr_scale * lr:.4g}",
            f"{group.weight_decay:.4g}",
            str(len(group.params)),
            f"{sum(p.numel() for p in group.params):,}",
        )
        for group in sorted(groups, key=lambda g: (g.lr_scale, g.name))
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


class ConvNextLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give each layer of a ConvNeXt its own learning rate.

    In a config::

        optim_wrapper = dict(
            constructor="ConvNextLayerDecayOptimWrapperConstructor",
            paramwise_cfg=dict(decay_rate=0.9, decay_type="stage_wise"),
            ...)

    `paramwise_cfg` takes the options of `layer_groups`; `decay_rate` is required, and so is the
    optimizer's `lr`. The table of the groups goes to the log.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = sorted(set(self.paramwise_cfg) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"paramwise_cfg takes {_OPTIONS}, got {unknown}")
        if "decay_rate" not in self.paramwise_cfg:
            raise ValueError("paramwise_cfg must give decay_rate, a factor in (0, 1]")
        if self.base_lr is None:
            raise ValueError("layer decay scales the optimizer's lr, and the optimizer has none")

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Append the parameter groups of `module` to `params`."""
        decay = base_weight_decay(self.optimizer_cfg)
        groups = layer_groups(module, weight_decay=decay, **self.paramwise_cfg)
        if is_main_process():
            table = format_layer_groups(groups, self.base_lr)
            MMLogger.get_current_instance().info(f"Layer decay {self.paramwise_cfg}:\n{table}")
        params.extend(
            {
                "params": group.params,
                "param_names": group.param_names,
                "group_name": group.name,
                "lr_scale": group.lr_scale,
                "lr": group.lr_scale * self.base_lr,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        )
