"""From weights, a module or an OpenMMLab config to a network and the way to prepare its images."""

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from ..images.processor import CONFIG_NAME, ConvNextImageProcessor
from ..models.backbone import ConvNextBackbone
from ..models.classifier import ConvNextForImageClassification, ConvNextModel
from ..models.config import ConvNextConfig
from ..weights import (
    LOAD_OPTIONS,
    OPEN_OPTIONS,
    build_blank,
    load_native,
    load_weights,
    open_weights,
)
from ..weights.source import is_hub_id


@dataclass(frozen=True)
class Loaded:
    """A network and the way to prepare images for it.

    Attributes:
        name: What it came from.
        model: A `ConvNextBackbone` or a model with the final norm, its own to change.
        processor: What belongs to the weights.
        size: "native" where images keep their size, as in an OpenMMLab config.
    """

    name: str
    model: Any
    processor: ConvNextImageProcessor
    size: str | None = None


_IMAGENET = ConvNextImageProcessor(
    size=224, image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)
)


def load_network(
    source: Any,
    checkpoint: str | os.PathLike[str] | None,
    wants_cls: bool,
    outputs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Loaded:
    """Build and load the network that a source describes; a module is copied.

    Args:
        source: Weights, a module of this package, or the OpenMMLab config of `checkpoint`.
        checkpoint: The checkpoint of an OpenMMLab config.
        wants_cls: Whether the final norm is needed, which a backbone does not have.
        outputs: The `out_features` or `out_indices` that were asked for.
        options: Options of `load_weights`.

    Raises:
        ValueError: The source does not fit what is asked of it.
        TypeError: The source is of no known kind, or an option is unknown.
    """
    for name in options:
        if name not in LOAD_OPTIONS:
            raise TypeError(
                f"FeatureExtractor has no argument {name!r}; besides its own it takes options of "
                f"load_weights, {LOAD_OPTIONS}"
            )
    kind = ConvNextModel if wants_cls else ConvNextBackbone
    if isinstance(source, nn.Module):
        extra = [*(["checkpoint"] if checkpoint is not None else []), *options]
        if extra:
            raise ValueError(f"a module has its weights already, got {extra} as well")
        return _load_module(source, wants_cls, outputs)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "source must be weights that load_weights reads, a ConvNextBackbone, a ConvNextModel "
            f"or an OpenMMLab config with a checkpoint, got {type(source).__name__}"
        )
    if checkpoint is not None:
        return _load_mm(source, checkpoint, kind, outputs, options)
    return _load_weights(source, kind, outputs, options)


def _load_module(module: nn.Module, wants_cls: bool, outputs: Mapping[str, Any]) -> Loaded:
    models = (ConvNextModel, ConvNextForImageClassification)
    if not isinstance(module, (ConvNextBackbone, *models)):
        raise TypeError(
            "source must be a ConvNextBackbone, a ConvNextModel or a "
            f"ConvNextForImageClassification, got {type(module).__name__}"
        )
    if hasattr(module, "_optimized_for"):
        raise ValueError(
            "source must be the original module, not an optimized one, whose weights are folded: "
            "give the original; dtype= is an argument of FeatureExtractor"
        )
    if wants_cls and not isinstance(module, models):
        raise ValueError(
            "pool='cls' needs the final norm, which a ConvNextBackbone does not have: give the "
            "weights or a ConvNextModel"
        )
    model = copy.deepcopy(module)
    features = tuple(_with_outputs(model.config, outputs).out_features or ())
    if isinstance(model, ConvNextBackbone):
        model.out_features = features
    else:
        model.config.out_features = features
    return Loaded(type(module).__name__, model, _IMAGENET)


def _load_weights(
    source: Any, kind: Any, outputs: Mapping[str, Any], options: Mapping[str, Any]
) -> Loaded:
    opening = {k: v for k, v in options.items() if k in OPEN_OPTIONS}
    filling = {k: v for k, v in options.items() if k not in opening}
    weights = open_weights(source, mmap=False, **opening)
    fields = {k: v for k, v in weights.fields().items() if k != "out_features"}
    model = build_blank(kind, _with_outputs(ConvNextConfig(**fields), outputs))
    load_native(model, weights, **filling)
    return Loaded(os.fspath(source), model, _processor_beside(source, weights))


def _load_mm(
    config: Any, checkpoint: Any, kind: Any, outputs: Mapping[str, Any], options: Mapping[str, Any]
) -> Loaded:
    from ..openmmlab.backbone_config import read_backbone_config

    fields, preprocessing = read_backbone_config(config)
    model = kind(_with_outputs(ConvNextBackbone(**fields).config, outputs))
    load_weights(model, checkpoint, **options)
    return Loaded(os.fspath(checkpoint), model, ConvNextImageProcessor(**preprocessing), "native")


def _with_outputs(config: ConvNextConfig, outputs: Mapping[str, Any]) -> ConvNextConfig:
    if outputs.get("out_features") == "stages":
        outputs = {**outputs, "out_features": config.stage_names[1:]}
    return config.replace(**outputs)


def _processor_beside(source: str | os.PathLike[str], weights: Any) -> ConvNextImageProcessor:
    """Find how images are prepared for weights.

    The order is: a preprocessor_config.json beside them, the catalogue, timm's config.json beside
    them, ImageNet's values.
    """
    path = Path(source)
    beside = (path if path.is_dir() else path.parent) / CONFIG_NAME
    if path.exists() and beside.is_file():
        return ConvNextImageProcessor.from_pretrained(beside)
    if weights.entry is not None:
        named = {name: getattr(weights.entry, name) for name in _PUBLISHED}
        return _published(weights.entry.input_size, **named)
    timm = weights.config.get("pretrained_cfg")
    if isinstance(timm, Mapping) and {"mean", "std", "input_size"} <= timm.keys():
        named = {name: timm[name] for name in _PUBLISHED if name in timm}
        return _published(timm["input_size"][-1], **named)
    if path.exists() or not is_hub_id(source):
        return _IMAGENET
    try:
        return ConvNextImageProcessor.from_pretrained(source)
    except FileNotFoundError:
        return _IMAGENET
    except ConnectionError as error:
        warnings.warn(f"{error}; images are prepared as for ImageNet", stacklevel=5)
        return _IMAGENET


_PUBLISHED = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
_FILTERS: Mapping[str, int] = MappingProxyType({"nearest": 0, "bilinear": 2, "bicubic": 3})


def _published(
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float | None = None,
    crop_mode: str = "center",
) -> ConvNextImageProcessor:
    return ConvNextImageProcessor(
        size=side,
        image_mean=tuple(mean),
        image_std=tuple(std),
        resample=_FILTERS[interpolation],
        crop_pct=crop_pct,
        squash=crop_mode == "squash",
    )
