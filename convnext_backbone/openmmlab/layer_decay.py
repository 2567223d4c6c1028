"""Layer-wise learning-rate decay for any model that holds a ConvNeXt, and its dry run.

The rules are those of facebookresearch/ConvNeXt (object_detection/mmcv_custom/
layer_decay_optimizer_constructor.py and optim_factory.py) and ConvNeXt-V2 (optim_factory.py), which
mmdet and mmsegmentation carry as `LearningRateDecayOptimizerConstructor`. They are keyed on what
the trunk says of its own depths instead of on class names and fixed prefixes.

A parameter's learning rate is `lr * decay_rate ** (num_layers + 1 - id)`. Id 0 is the stem and id
`num_layers + 1`, with the full rate, is everything outside the trunk: the norms of the outputs,
necks and heads.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from types import MappingProxyType
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..models.layers import GlobalResponseNorm
from ..models.trunk import ConvNextTrunk

_BLOCKS_PER_LAYER = 3  # how many blocks of the deep third stage share one rate
_GROUP_NUM_LAYERS = 12  # `group` of the ImageNet recipes, whatever the depth
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,  # every BatchNorm, SyncBatchNorm and InstanceNorm
    GlobalResponseNorm,
)
# Their weights decay whatever shape they have: a wrapper that shards parameters flattens them.
_MATRICES = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)
_NO_DECAY_NAME = re.compile(r"(^|\.)(bias|gamma|beta|grn\.weight)$")
# Name components that wrappers put between a trunk and its parts.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# A rule: (depths, num_layers, stage, block or None for the downsampling layer) -> layer id.
_Rule = Callable[[Sequence[int], int, int, int | None], int]


def _layer_wise_id(depths: Sequence[int], num_layers: int, stage: int, block: int | None) -> int:
    last = len(depths) - 1
    if stage == 0 and block is None:
        return 0
    if stage == last:
        return num_layers
    if stage == last - 1:
        return stage + 1 + (block or 0) // _BLOCKS_PER_LAYER
    return stage + 1


def _stage_wise_id(depths: Sequence[int], num_layers: int, stage: int, block: int | None) -> int:
    return 0 if block is None else stage + 1


def _single_id(depths: Sequence[int], num_layers: int, stage: int, block: int | None) -> int:
    return sum(depths[:stage]) + (block or 0) + 1


def _num_layers_of_groups(depths: Sequence[int]) -> int:
    if len(depths) == 1:
        return 1
    return len(depths) - 1 + ceil(depths[-2] / _BLOCKS_PER_LAYER)


def _at_least_twelve(depths: Sequence[int]) -> int:
    return max(_GROUP_NUM_LAYERS, _num_layers_of_groups(depths))


@dataclass(frozen=True)
class _DecayType:
    """How one `decay_type` numbers the layers.

    Attributes:
        layer_id: The rule that numbers a layer.
        default: `num_layers` of an architecture when the user gives none.
        least: The smallest `num_layers` with which no two ids swap their order.
        exact: Whether any other `num_layers` than `least` makes no sense.
    """

    layer_id: _Rule
    default: Callable[[Sequence[int]], int]
    least: Callable[[Sequence[int]], int]
    exact: bool = False


DECAY_TYPES: Mapping[str, _DecayType] = MappingProxyType(
    {
        "layer_wise": _DecayType(_layer_wise_id, _num_layers_of_groups, _num_layers_of_groups),
        "stage_wise": _DecayType(_stage_wise_id, _num_layers_of_groups, len),
        "group": _DecayType(_layer_wise_id, _at_least_twelve, _num_layers_of_groups),
        "single": _DecayType(_single_id, sum, sum, exact=True),
    }
)
_OPTIONS = ("decay_rate", "decay_type", "num_layers", "custom_keys", "bypass_duplicate")
_CUSTOM_OPTIONS = ("lr_mult", "decay_mult")


@dataclass
class LayerGroup:
    """One parameter group: what shares a layer id, a learning rate and a weight decay.

    Attributes:
        name: `layer_{id}_{decay|no_decay}`, after the trunk's own name where a model holds several
            trunks and before the custom key where one matched.
        layer_id: Position in the decay, from 0 at the stem to `num_layers + 1` outside the trunk.
        lr_scale: Factor on the base learning rate.
        weight_decay: Weight decay of the group.
        param_names: Names of the parameters.
        params: The parameters.
    """

    name: str
    layer_id: int
    lr_scale: float
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

    Norms, biases, layer scales and everything one-dimensional have no weight decay.

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
        bypass_duplicate: Accepted for mmengine's sake; a shared parameter is always grouped once,
            under its first name.

    Returns:
        The groups in the order of the parameters. Frozen parameters are in none.

    Raises:
        ValueError: An option is out of its range, `num_layers` does not fit the depths of a trunk,
            or the model holds no trunk.
    """
    decay = _check_choice(decay_type)
    _check_rate(decay_rate)
    keys = _check_custom_keys(custom_keys or {})
    trunks = find_trunks(model)
    layers = {
        name: _check_num_layers(num_layers, trunk, decay, decay_type)
        for name, trunk in trunks.items()
    }
    norms = set(_names_in(model, _NORMS))
    matrices = {name for name in _names_in(model, _MATRICES) if name.endswith("weight")}
    groups: dict[str, LayerGroup] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        owner = _owner(name, trunks)
        layer_id, above = _place(name, owner, trunks, layers, decay)
        flat = param.ndim <= 1 and name not in matrices
        no_decay = flat or name in norms or bool(_NO_DECAY_NAME.search(name))
        key = next((key for key in keys if key in name), None)
        custom = keys[key] if key is not None else {}
        wd = weight_decay * custom.get("decay_mult", 0.0 if no_decay else 1.0)
        parts = [f"layer_{layer_id}", "no_decay" if no_decay else "decay"]
        parts = [*([owner] if owner and len(trunks) > 1 else []), *parts, *([key] if key else [])]
        scale = decay_rate**above * custom.get("lr_mult", 1.0)
        group = groups.setdefault("_".join(parts), LayerGroup("_".join(parts), layer_id, scale, wd))
        group.param_names.append(name)
        group.params.append(param)
    return list(groups.values())


def find_trunks(model: nn.Module) -> dict[str, ConvNextTrunk]:
    """Return every ConvNeXt trunk in `model` by the name that its parameters start with.

    Raises:
        ValueError: There is none.
    """
    trunks = {n: m for n, m in model.named_modules() if isinstance(m, ConvNextTrunk)}
    if not trunks:
        raise ValueError(
            f"layer decay needs a ConvNeXt in the model, found none in {type(model).__name__}"
        )
    return trunks


def format_layer_groups(groups: Sequence[LayerGroup], lr: float) -> str:
    """Draw `groups` as a table, one line per group, slowest first."""
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

    `paramwise_cfg` takes the options of `layer_groups`. The table of the groups goes to the log.

    Raises:
        ValueError: `paramwise_cfg` holds an option that is not one of those, lacks `decay_rate`, or
            the optimizer has no `lr`.
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
        groups = layer_groups(module, weight_decay=self.base_wd or 0.0, **self.paramwise_cfg)
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


def _owner(name: str, trunks: Mapping[str, ConvNextTrunk]) -> str | None:
    """Return the name of the trunk that parameter `name` belongs to."""
    return next((t for t in trunks if not t or name.startswith(f"{t}.")), None)


def _place(
    name: str,
    owner: str | None,
    trunks: Mapping[str, ConvNextTrunk],
    layers: Mapping[str, int],
    decay: _DecayType,
) -> tuple[int, int]:
    """Return the layer id of a parameter and the number of layers above it."""
    if owner is None:
        return max(layers.values()) + 1, 0
    num_layers = layers[owner]
    inside = name[len(owner) :].split(".")
    parts = [p for p in inside if p and p not in _WRAPPERS]
    depths = trunks[owner].config.depths
    if parts[0] == "downsample_layers":
        layer_id = decay.layer_id(depths, num_layers, int(parts[1]), None)
    elif parts[0] == "stages":
        layer_id = decay.layer_id(depths, num_layers, int(parts[1]), int(parts[2]))
    else:
        layer_id = num_layers + 1
    return layer_id, num_layers + 1 - layer_id


def _names_in(model: nn.Module, types: tuple[type[nn.Module], ...]) -> Iterator[str]:
    """Yield the names of the parameters that modules of these types hold themselves."""
    for prefix, module in model.named_modules():
        if isinstance(module, types):
            for name, _ in module.named_parameters(prefix=prefix, recurse=False):
                yield name


def _check_choice(decay_type: str) -> _DecayType:
    if decay_type not in DECAY_TYPES:
        raise ValueError(f"decay_type must be one of {tuple(DECAY_TYPES)}, got {decay_type!r}")
    return DECAY_TYPES[decay_type]


def _check_rate(decay_rate: float) -> None:
    if not isinstance(decay_rate, int | float) or not 0.0 < decay_rate <= 1.0:
        raise ValueError(f"decay_rate must lie in (0, 1], got {decay_rate!r}")


def _check_custom_keys(
    custom_keys: Mapping[str, Mapping[str, float]],
) -> dict[str, Mapping[str, float]]:
    """Return the keys, longest first and then in alphabetical order, as mmengine tries them."""
    for key, options in custom_keys.items():
        unknown = sorted(set(options) - set(_CUSTOM_OPTIONS))
        if unknown:
            raise ValueError(f"custom_keys[{key!r}] takes {_CUSTOM_OPTIONS}, got {unknown}")
    return {key: custom_keys[key] for key in sorted(custom_keys, key=lambda k: (-len(k), k))}


def _check_num_layers(
    num_layers: int | None, trunk: ConvNextTrunk, decay: _DecayType, decay_type: str
) -> int:
    depths = trunk.config.depths
    if num_layers is None:
        return decay.default(depths)
    least = decay.least(depths)
    fits = isinstance(num_layers, int) and not isinstance(num_layers, bool)
    fits = fits and (num_layers == least if decay.exact else num_layers >= least)
    if not fits:
        need = f"{least}" if decay.exact else f"at least {least}"
        raise ValueError(
            f"num_layers must be {need} for decay_type {decay_type!r} and depths {tuple(depths)} "
            f"(None takes {decay.default(depths)}), got {num_layers!r}"
        )
    return num_layers
