"""Do the maps of the backbone fit what reads them: in number, channels and strides?

mmdet multiplies anchors and boxes by strides that stand in the config, and no part of it compares
them with the maps: with other maps it trains to the end on boxes of the wrong size.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ...models.backbone import ConvNextBackbone
from ...utils.commandline import one_line
from ..config_walk import as_list, inner_model, iter_named_dicts, list_named, type_name
from .datasets import find_class, is_published
from .errors import UsageError
from .processes import print_once
from .typed import TypedOptions

# Necks that yield `num_outs` levels: those of their inputs, then each of twice the last stride; and
# their default of `start_level`.
_PYRAMIDS: Mapping[str, int] = {
    **dict.fromkeys(("FPN", "FPN_DropBlock", "PAFPN", "FPN_CARAFE", "NASFPN", "FPG"), 0),
    **dict.fromkeys(("CSPNeXtPAFPN", "YOLOXPAFPN", "ChannelMapper", "SSH"), 0),
    "NASFCOS_FPN": 1,
}
# Necks that list their inputs, and yield their levels, from the deepest map on.
_FROM_DEEPEST = ("YOLOV3Neck",)
# Necks that read the last map only.
_OF_LAST = ("DilatedEncoder",)
# Heads whose `strides` are those of their levels; others, as SOLO's, resize what they read.
_HEADS = ("FCOSHead", "VFNetHead", "YOLOXHead", "CenterNetUpdateHead", "Mask2FormerHead")
# What stands on one map of its own: the semantic branch of HTC and SCNet, the masks of CondInst.
_OWN_MAPS = ("semantic_roi_extractor", "mask_head.prior_generator")
# What reads the maps themselves in a model without a neck; a detector of the user's own may have
# something else between them and its heads.
_READERS = ("decode_head", "auxiliary_head", "panoptic_head")
_DETECTOR_READERS = ("rpn_head", "bbox_head", "mask_head")


@dataclass(frozen=True)
class _Maps:
    """The maps of a backbone, for the parts of a model that read them.

    Attributes:
        backbone: The backbone.
        from_zero: The channels that its `out_indices` would choose if the stages counted from 0, as
            in mmpretrain, timm and facebookresearch; None where they could not mean that.
        typed: What the user typed.
    """

    backbone: ConvNextBackbone
    from_zero: Sequence[int] | None
    typed: TypedOptions

    def fill_in(
        self, part: ConfigDict, key: str, where: str, read: Callable[[Sequence[int]], Any]
    ) -> None:
        """Set `part[key]` to what `read` takes of the maps' channels.

        Raises:
            UsageError: The user typed something else, or the file has what only a count from 0
                explains.
        """
        channels = read(self.backbone.channels)
        given = list(part[key]) if isinstance(part[key], Sequence) else part[key]
        if given == channels:
            return
        miscounted = self.from_zero is not None and given == read(self.from_zero)
        if miscounted or self.typed.covers(f"{where}.{key}"):
            reason = f": it has {_describe_maps(self.backbone)}{_index_base(self.backbone)}"
            raise UsageError(
                f"{where}.{key} is {given}, but the backbone's maps have {channels}"
                f"{reason if miscounted else ''}"
            )
        part[key] = tuple(channels) if isinstance(part[key], tuple) else channels


def find_backbone(cfg: Config) -> ConfigDict | None:
    """Return the config of the model's backbone, if it is a `ConvNextBackbone`."""
    backbone = inner_model(cfg).get("backbone") or {}
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
    named = settings.get("out_features") is not None
    # Strides that fit show that the indices are right, whatever ResNet's channels are left over.
    known = _check_strides(cfg.model, backbone, named=named) or named
    maps = _Maps(backbone, None if known else _count_from_zero(backbone), typed)
    necks = list_named(cfg.model.get("neck"), "model.neck")
    if not necks:
        plain = _is_plain(cfg, cfg.model)
        _fit_readers(cfg.model, maps, (*_READERS, *(_DETECTOR_READERS if plain else ())))
        if plain:
            _fit_roi_head(cfg.model.get("roi_head") or {}, maps)
        return
    first, where = necks[0]
    if "in_channels" in first and _is_plain(cfg, first):
        maps.fill_in(first, "in_channels", where, lambda all_: _neck_channels(first, all_))


def build_backbone(settings: Mapping[str, Any]) -> ConvNextBackbone:
    """Build a backbone from its config, without storage.

    Raises:
        UsageError: An argument is unknown, or of another value than it may have.
    """
    arguments = {k: v for k, v in copy.deepcopy(settings).items() if k != "init_cfg"}
    arguments["type"] = ConvNextBackbone  # whatever its scope
    try:
        with torch.device("meta"):
            return MODELS.build(arguments)
    except (TypeError, ValueError) as error:
        hint = ""
        if isinstance(error, ValueError) and settings.get("out_indices") is not None:
            hint = "; in out_indices 0 is the stem, as in Hugging Face, and the stages begin at 1"
        raise UsageError(f"model.backbone: {one_line(error)}{hint}") from error


def _count_from_zero(backbone: ConvNextBackbone) -> Sequence[int] | None:
    sizes, indices = backbone.config.hidden_sizes, backbone.out_indices
    return [sizes[i] for i in indices] if indices[-1] < len(sizes) else None


def _neck_channels(neck: ConfigDict, channels: Sequence[int]) -> int | list[int]:
    """Return the channels of every map, or of the last, in the order in which a neck has them."""
    if not isinstance(neck.in_channels, Sequence):
        return channels[-1]
    return list(channels)[:: -1 if type_name(neck) in _FROM_DEEPEST else 1]


def _is_plain(cfg: Config, part: ConfigDict) -> bool:
    """Return whether a model or neck is one of OpenMMLab's, which reads all maps as they are."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        return is_published(find_class(part.get("type"), MODELS))


def _fit_readers(model: ConfigDict, maps: _Maps, readers: Sequence[str]) -> None:
    """Give the heads of a model without a neck the channels."""
    for key in readers:
        for head, name in list_named(model.get(key), f"model.{key}"):
            for part, where in iter_named_dicts(head, name):  # K-Net's head holds another
                if "in_channels" in part and (part is head or "in_index" in part):
                    _fit_head(part, where, maps)


def _fit_roi_head(roi_head: Mapping[str, Any], maps: _Maps) -> None:
    """Give what crops regions of the map, and the heads behind it, its channels."""
    crops = [("bbox_roi_extractor", "out_channels"), ("mask_roi_extractor", "out_channels")]
    if not roi_head.get("shared_head"):  # which has channels of its own
        crops += [("bbox_head", "in_channels"), ("mask_head", "in_channels")]
    for name, key in crops:
        for part, where in list_named(roi_head.get(name), f"model.roi_head.{name}"):
            if key in part:
                maps.fill_in(part, key, where, lambda all_: all_[-1])


def _fit_head(head: ConfigDict, where: str, maps: _Maps) -> None:
    number = len(maps.backbone.channels)
    several = isinstance(head.in_channels, Sequence)
    chosen = head.get("in_index", range(number) if several else -1)
    positions = list(chosen) if several else [chosen]
    beyond = [i for i in positions if not -number <= i < number]
    if beyond:
        raise UsageError(
            f"{where}.in_index {beyond[0]} is beyond the maps of the backbone, which has "
            f"{_describe_maps(maps.backbone)}; its in_index is {positions}"
        )

    def read(channels: Sequence[int]) -> Any:
        return [channels[i] for i in positions] if several else channels[positions[0]]

    maps.fill_in(head, "in_channels", where, read)
    if "c1_in_channels" in head:
        maps.fill_in(head, "c1_in_channels", where, lambda all_: all_[0])


# --------------------------------------------------------------------------- strides


def check_built_maps(cfg: Config, model: nn.Module) -> None:
    """Compare the maps with what a built model expects of them, as its defaults may be.

    Where it says nothing of strides, a last stage that nothing reads is worth a warning only: a
    model of smaller strides trains as well.

    Raises:
        UsageError: Anchors, points or RoI extractors stand on other levels than there are.
    """
    settings = find_backbone(cfg)
    backbone = next((part for part in model.modules() if isinstance(part, ConvNextBackbone)), None)
    if settings is None or backbone is None:
        return
    own = inner_model(cfg)
    compared = _compare_strides(_iter_built_strides(model), own, backbone)
    named = settings.get("out_features") is not None
    if not compared and not named and _count_from_zero(backbone) is not None:
        print_once(f"warning: {_describe_unused(backbone)}")


def _check_strides(model: ConfigDict, backbone: ConvNextBackbone, *, named: bool) -> bool:
    """Check the strides that the config names, and return whether it names any."""
    # The stem and the first stage have one stride, so whoever lists both counts from 0.
    if not named and list(backbone.stage_names[:-1]) == list(backbone.out_features):
        raise UsageError(_describe_unused(backbone))
    return _compare_strides(_iter_strides(model), model, backbone)


def _compare_strides(
    found: Iterable[tuple[str, list[int]]], model: ConfigDict, backbone: ConvNextBackbone
) -> bool:
    """Return whether there were strides to compare."""
    neck: Mapping[str, Any] = next(iter(as_list(model.get("neck"))), {})
    compared = False
    strides = _level_strides(neck, backbone)
    if strides is None:
        return False
    for name, expected in found:
        if any(part in name for part in _OWN_MAPS):
            continue
        # A RoI extractor reads the first levels only; anchors and points stand on each.
        levels = strides[: len(expected) if name.endswith("featmap_strides") else None]
        if type_name(neck) in _FROM_DEEPEST and len(expected) != len(levels):
            continue  # mmdet refuses another number, and order is all that such a neck changes
        if expected != levels:
            raise UsageError(
                f"{name} is {expected}, but the levels that it reads have the strides {levels}: "
                f"the backbone has {_describe_maps(backbone)}{_index_base(backbone)}"
            )
        compared = True
    return compared


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


def _level_strides(neck: Mapping[str, Any], backbone: ConvNextBackbone) -> list[int] | None:
    """List the strides of the levels after a neck, if any; None for one that is not known."""
    if not neck:
        return list(backbone.strides)
    name, strides = type_name(neck), list(backbone.strides)
    if name in _FROM_DEEPEST or name in _OF_LAST:
        return strides[::-1] if name in _FROM_DEEPEST else strides[-1:]
    if name not in _PYRAMIDS:
        return None
    start, end = neck.get("start_level", _PYRAMIDS[name]), neck.get("end_level", -1)
    levels = strides[start : None if end == -1 else end + 1]
    while levels and len(levels) < neck.get("num_outs", 0):
        levels.append(levels[-1] * 2)
    return levels


def _plain_strides(value: Any) -> list[int]:
    """Return a config's list of strides as integers; empty where it is anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    squares = [v[0] if isinstance(v, Sequence) and len(set(v)) == 1 else v for v in value]
    return squares if all(isinstance(v, int) for v in squares) else []


def _describe_unused(backbone: ConvNextBackbone) -> str:
    return (
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
        f"({', '.join(map(str, range(1, last + 1)))}) are the stages; out_features names them"
    )
