"""Do the maps of the backbone fit what reads them: in number, channels and strides?

mmdet multiplies anchors and boxes by strides that stand in the config, and no part of it compares
them with the maps: with other maps it trains to the end on boxes of the wrong size.
"""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from ...models.backbone import ConvNextBackbone
from ...models.config import ConvNextConfig
from ..config_walk import iter_named_dicts, type_name
from .errors import UsageError, describe_error
from .typed import TypedOptions

# Necks that yield `num_outs` levels: those of their inputs, then each of twice the last stride.
_PYRAMIDS = ("FPN", "PAFPN", "FPN_CARAFE", "NASFPN", "CSPNeXtPAFPN", "YOLOXPAFPN", "ChannelMapper")
# Necks that list the channels of their inputs from the deepest map on.
_FROM_DEEPEST = ("YOLOV3Neck",)
# Heads whose `strides` are those of their levels; others, as SOLO's, resize what they read.
_HEADS = ("FCOSHead", "VFNetHead", "YOLOXHead", "CenterNetUpdateHead", "Mask2FormerHead")
# What stands on one map of its own: the semantic branch of HTC and SCNet, the masks of CondInst.
_OWN_MAPS = ("semantic_roi_extractor", "mask_head.prior_generator")
# What other implementations call an argument of ours.
_ARGUMENTS: Mapping[str, str] = {
    "in_channels": "num_channels",
    "in_chans": "num_channels",
    "dims": "hidden_sizes",
    "channels": "hidden_sizes",
    "pretrained": "init_cfg=dict(type='Pretrained', checkpoint=...)",
}


def find_backbone(cfg: Config) -> ConfigDict | None:
    """Return the config of the model's backbone, if it is a `ConvNextBackbone`."""
    model = cfg.model.get("module", cfg.model)  # --tta wraps the model of the config
    backbone = model.get("backbone") or {}
    return backbone if type_name(backbone) == ConvNextBackbone.__name__ else None


def fit_channels(cfg: Config, typed: TypedOptions) -> None:
    """Give the neck, or the heads where there is none, the channels of the backbone.

    Nothing but a `ConvNextBackbone` is touched, and nothing that was typed.

    Raises:
        UsageError: The maps are not those that anchors, RoI extractors or heads expect.
    """
    settings = find_backbone(cfg)
    if settings is None:
        return
    names, indices = (f"model.backbone.{key}" for key in ("out_features", "out_indices"))
    if typed.covers(indices) and not typed.covers(names):
        settings.pop("out_features", None)
    if typed.covers(names) and not typed.covers(indices):
        settings.pop("out_indices", None)
    backbone = build_backbone(settings)
    _check_strides(settings, cfg.model, backbone)
    neck = cfg.model.get("neck")
    if neck:
        several = isinstance(neck, Sequence)
        first, where = (neck[0], "model.neck.0") if several else (neck, "model.neck")
        if "in_channels" in first:
            channels = _neck_channels(first, backbone)
            _set_channels(first, "in_channels", channels, where, typed)
        return
    for key in ("decode_head", "auxiliary_head", "panoptic_head"):
        heads = cfg.model.get(key) or []
        single = isinstance(heads, Mapping)
        for index, head in enumerate([heads] if single else heads):
            name = f"model.{key}" if single else f"model.{key}.{index}"
            for part, where in iter_named_dicts(head, name):  # K-Net's head holds another
                if "in_channels" in part and (part is head or "in_index" in part):
                    _fit_head(part, backbone, where, typed)


def build_backbone(settings: Mapping[str, Any]) -> ConvNextBackbone:
    """Build a backbone from its config, without storage.

    Raises:
        UsageError: An argument is unknown, and the message lists the known ones; or the outputs are
            not a valid choice.
    """
    arguments = {k: v for k, v in copy.deepcopy(settings).items() if k != "init_cfg"}
    arguments["type"] = ConvNextBackbone  # whatever its scope
    try:
        with torch.device("meta"):
            return MODELS.build(arguments)
    except TypeError as error:
        known = {*inspect.signature(ConvNextBackbone).parameters, *ConvNextConfig().to_dict()}
        unknown = sorted(set(settings) - known - {"type", "_scope_"})
        if not unknown:
            raise UsageError(f"model.backbone: {describe_error(error)}") from error
        name = unknown[0]
        hint = f"; it is {_ARGUMENTS[name]} here" if name in _ARGUMENTS else ""
        raise UsageError(
            f"model.backbone: ConvNextBackbone has no argument {name!r}{hint}; "
            f"it takes {', '.join(sorted(known - {'fields'}))}"
        ) from error
    except ValueError as error:
        if settings.get("out_indices") is None:
            raise UsageError(f"model.backbone: {describe_error(error)}") from error
        raise UsageError(
            f"model.backbone: {error}; in out_indices 0 is the stem, as in Hugging Face, and the "
            "stages begin at 1"
        ) from error


def _neck_channels(neck: ConfigDict, backbone: ConvNextBackbone) -> int | list[int]:
    """Return the channels of every map, or of the last, in the order in which the neck lists them.

    A neck that is not known may read them in reverse, which a list that falls shows.
    """
    given, channels, name = neck.in_channels, list(backbone.channels), type_name(neck)
    if not isinstance(given, Sequence):
        return channels[-1]
    falls = name not in _PYRAMIDS and sorted(given) != list(given) == sorted(given, reverse=True)
    return channels[::-1] if falls or name in _FROM_DEEPEST else channels


def _fit_head(
    head: ConfigDict, backbone: ConvNextBackbone, where: str, typed: TypedOptions
) -> None:
    channels = backbone.channels
    several = isinstance(head.in_channels, Sequence)
    chosen = head.get("in_index", range(len(channels)) if several else -1)
    positions = list(chosen) if several else [chosen]
    beyond = [i for i in positions if not -len(channels) <= i < len(channels)]
    if beyond:
        raise UsageError(
            f"{where}.in_index {beyond[0]} is beyond the maps of the backbone, which has "
            f"{_describe_maps(backbone)}; its in_index is {positions}"
        )
    read = [channels[i] for i in positions]
    _set_channels(head, "in_channels", read if several else read[0], where, typed)
    if "c1_in_channels" in head:
        _set_channels(head, "c1_in_channels", channels[0], where, typed)


def _set_channels(
    part: ConfigDict, key: str, channels: Any, where: str, typed: TypedOptions
) -> None:
    given = list(part[key]) if isinstance(part[key], Sequence) else part[key]
    if typed.covers(f"{where}.{key}") and given != channels:
        raise UsageError(f"{where}.{key} is {given}, but the backbone's maps have {channels}")
    part[key] = channels


# --------------------------------------------------------------------------- strides


def check_built_strides(cfg: Config, model: nn.Module) -> None:
    """Compare the strides of the levels with those that a built model has, as its defaults may be.

    Raises:
        UsageError: Anchors, points or RoI extractors stand on other levels than there are.
    """
    backbone = next((part for part in model.modules() if isinstance(part, ConvNextBackbone)), None)
    if find_backbone(cfg) is not None and backbone is not None:
        _compare_strides(_iter_built_strides(model), cfg.model.get("module", cfg.model), backbone)


def _check_strides(settings: ConfigDict, model: ConfigDict, backbone: ConvNextBackbone) -> None:
    if not model.get("neck") and not settings.get("out_features"):
        _check_index_base(backbone)
    _compare_strides(_iter_strides(model), model, backbone)


def _compare_strides(
    found: Iterable[tuple[str, list[int]]], model: ConfigDict, backbone: ConvNextBackbone
) -> None:
    strides = _level_strides(model.get("neck"), backbone)
    if strides is None:
        return
    for name, expected in found:
        if any(part in name for part in _OWN_MAPS):
            continue
        # A RoI extractor reads the first levels only; anchors and points stand on each.
        levels = strides[: len(expected) if name.endswith("featmap_strides") else None]
        if expected != levels:
            raise UsageError(
                f"{name} is {expected}, but the levels that it reads have the strides {levels}: "
                f"the backbone has {_describe_maps(backbone)}{_index_base(backbone)}"
            )


def _iter_strides(model: ConfigDict) -> Iterator[tuple[str, list[int]]]:
    """Yield the strides that a model expects its levels to have, each with its name."""
    for part, where in iter_named_dicts(model, "model"):
        anchors = where.endswith(("anchor_generator", "prior_generator"))
        head = type_name(part) in _HEADS
        keys = ("feature_strides", "featmap_strides", *(["strides"] if anchors or head else []))
        for key in keys:
            strides = _plain_strides(part.get(key))
            if strides:
                yield f"{where}.{key}", strides


def _iter_built_strides(model: nn.Module) -> Iterator[tuple[str, list[int]]]:
    """Yield the strides that the parts of a built model expect, as `_iter_strides` does."""
    for where, part in model.named_modules(prefix="model"):
        for name in ("prior_generator.strides", "point_generator.strides", "featmap_strides"):
            value = part
            for key in name.split("."):
                value = getattr(value, key, None)
            strides = _plain_strides(value)
            if strides:
                yield f"{where}.{name}", strides


def _level_strides(neck: Any, backbone: ConvNextBackbone) -> list[int] | None:
    """List the strides of the levels after the first neck; None for a neck that is not known."""
    if isinstance(neck, Sequence):
        neck = neck[0] if neck else None
    if not neck:
        return list(backbone.strides)
    if type_name(neck) not in _PYRAMIDS:
        return None
    start, end = neck.get("start_level", 0), neck.get("end_level", -1)
    levels = list(backbone.strides)[start : None if end == -1 else end + 1]
    while levels and len(levels) < neck.get("num_outs", 0):
        levels.append(levels[-1] * 2)
    return levels


def _plain_strides(value: Any) -> list[int]:
    """Return a config's list of strides as integers; empty where it is anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    squares = [v[0] if isinstance(v, Sequence) and len(set(v)) == 1 else v for v in value]
    return squares if all(isinstance(v, int) for v in squares) else []


def _check_index_base(backbone: ConvNextBackbone) -> None:
    """Refuse the habit of counting stages from 0 where no strides give it away."""
    if backbone.stage_names[:-1] == backbone.out_features:
        raise UsageError(
            f"model.backbone has {_describe_maps(backbone)}, so the last stage is not "
            f"used{_index_base(backbone)}"
        )


def _describe_maps(backbone: ConvNextBackbone) -> str:
    maps = zip(backbone.out_features, backbone.strides, strict=True)
    return "the maps " + ", ".join(f"{name} (stride {stride})" for name, stride in maps)


def _index_base(backbone: ConvNextBackbone) -> str:
    last = len(backbone.stage_names) - 1
    return (
        "; in out_indices 0 is the stem, as in Hugging Face, and "
        f"({', '.join(map(str, range(1, last + 1)))}) are the stages"
    )
