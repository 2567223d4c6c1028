"""From weights, a module or an OpenMMLab config to a network and how its images are prepared."""

import copy
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import nn

from ..images.processor import PROCESSOR_CONFIG, ConvNextImageProcessor
from ..inference import OptimizedModule
from ..models.backbone import ConvNextBackbone
from ..models.classifier import ConvNextForImageClassification, ConvNextModel
from ..models.config import ConvNextConfig
from ..utils.checks import check_choice
from ..weights.download import DownloadError
from ..weights.load import LOAD_OPTIONS, OPEN_OPTIONS, build_blank, load_native, load_weights
from ..weights.native import NativeWeights, open_weights
from .options import CLS, OutputOptions

_Model = ConvNextBackbone | ConvNextModel | ConvNextForImageClassification
_PathLike = str | os.PathLike[str]
# What a published ConvNeXt was trained with where its weights do not say.
_IMAGENET = ConvNextImageProcessor(
    size=224, image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225)
)
# Fields of the catalogue and of timm's `pretrained_cfg` that say how images are prepared.
_PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
# timm's name -> Pillow's code; "random" is one of two for each image of a training.
_RESAMPLE_CODES = {
    **{code.name.lower(): int(code) for code in Image.Resampling},
    "random": int(Image.Resampling.BICUBIC),
}


@dataclass(frozen=True)
class Network:
    """A network and how its images are prepared."""

    name: str  # of the source
    model: _Model  # the extractor's own copy, which computes the outputs asked for
    processor: ConvNextImageProcessor
    licence: str | None = None  # of the weights, where they are the catalogue's


def build_network(
    source: _PathLike | nn.Module,
    checkpoint: _PathLike | None,
    output: OutputOptions,
    load_options: Mapping[str, Any],
    processor: ConvNextImageProcessor | None = None,
) -> Network:
    """Build and load the network of weights, a module (copied) or the config of `checkpoint`.

    A `processor` takes the place of the one that belongs to the weights.

    Raises:
        ValueError: The source does not fit what is asked of it.
        TypeError: The source is of no known kind, or an option is unknown.
    """
    for name in load_options:
        if name not in LOAD_OPTIONS:
            raise TypeError(
                f"FeatureExtractor has no argument {name!r}; besides its own it takes options of "
                f"load_weights, {LOAD_OPTIONS}"
            )
    if isinstance(source, nn.Module):
        extra = [*(["checkpoint"] if checkpoint is not None else []), *load_options]
        if extra:
            raise ValueError(f"a module has its weights already, got {extra} as well")
        network = _from_module(source, output)
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(
            "source must be weights that load_weights reads, a ConvNextBackbone, a ConvNextModel "
            f"or an OpenMMLab config with a checkpoint, got {type(source).__name__}"
        )
    elif checkpoint is None:
        network = _from_weights(source, output, load_options, processor)
    else:
        network = _from_openmmlab(source, checkpoint, output, load_options)
    network.model.config.update({"output_hidden_states": False, "return_dict": True})
    return network


def _from_module(module: nn.Module, output: OutputOptions) -> Network:
    if isinstance(module, OptimizedModule):
        raise ValueError(
            "source must be the original module, not an optimized one, whose weights are folded: "
            "give the original; dtype= is an argument of FeatureExtractor"
        )
    if not isinstance(module, _Model):
        raise TypeError(
            "source must be a ConvNextBackbone, a ConvNextModel or a "
            f"ConvNextForImageClassification, got {type(module).__name__}"
        )
    if output.pool == CLS and isinstance(module, ConvNextBackbone):
        raise ValueError(
            "pool='cls' needs the final norm, which a ConvNextBackbone does not have: give the "
            "weights or a ConvNextModel"
        )
    model = copy.deepcopy(module)
    features = output.apply_to(model.config).out_features
    owner = model if isinstance(model, ConvNextBackbone) else model.config
    owner.out_features = features
    return Network(type(module).__name__, model, _default_processor(model.config))


def _model_class(output: OutputOptions) -> type[ConvNextBackbone] | type[ConvNextModel]:
    return ConvNextModel if output.pool == CLS else ConvNextBackbone  # "cls" needs the final norm


def _from_weights(
    source: _PathLike,
    output: OutputOptions,
    options: Mapping[str, Any],
    processor: ConvNextImageProcessor | None,
) -> Network:
    open_options = {k: v for k, v in options.items() if k in OPEN_OPTIONS}
    fill_options = {k: v for k, v in options.items() if k not in OPEN_OPTIONS}
    weights = open_weights(source, mmap=False, **open_options)
    fields = {k: v for k, v in weights.fields().items() if k != "out_features"}
    config = output.apply_to(ConvNextConfig(**fields))
    model = build_blank(_model_class(output), config)
    load_native(model, weights, **fill_options)
    licence = weights.entry.licence if weights.entry else None
    processor = processor or _processor_of(weights, config)
    return Network(os.fspath(source), model, processor, licence)


def _from_openmmlab(
    config_path: _PathLike, checkpoint: _PathLike, output: OutputOptions, options: Mapping[str, Any]
) -> Network:
    from ..openmmlab.backbone_config import read_backbone_config

    fields, preprocessing = read_backbone_config(config_path)
    model = _model_class(output)(output.apply_to(ConvNextBackbone(**fields).config))
    load_weights(model, checkpoint, **options)
    # The pipeline's resizing is not read: images keep their size.
    processor = ConvNextImageProcessor(do_resize=False, **preprocessing)
    return Network(os.fspath(checkpoint), model, processor)


# ------------------------------------------------------------------------------ processors


def _processor_of(weights: NativeWeights, config: ConvNextConfig) -> ConvNextImageProcessor:
    """Return the processor that belongs to weights, else ImageNet's.

    First the preprocessor_config.json beside them, then the catalogue, then timm's config.json.
    """
    unreachable = None
    try:
        return ConvNextImageProcessor.from_pretrained(weights.origin.file(PROCESSOR_CONFIG))
    except FileNotFoundError:
        pass
    except DownloadError as error:
        unreachable = error
    entry, timm = weights.entry, weights.config.get("pretrained_cfg")
    if entry is not None:
        return _published(entry.input_size, {name: getattr(entry, name) for name in _PREPROCESSING})
    if isinstance(timm, Mapping) and {"mean", "std", "input_size"} <= timm.keys():
        return _published(timm["input_size"][-1], timm)
    if unreachable is not None:
        warnings.warn(f"{unreachable}; images are prepared as for ImageNet", stacklevel=6)
    return _default_processor(config)


def _default_processor(config: ConvNextConfig) -> ConvNextImageProcessor:
    if config.num_channels == 3:
        return _IMAGENET
    # ImageNet has no values for other channels: the average over its own, for each.
    mean, std = (
        (round(sum(values) / 3, 3),) * config.num_channels
        for values in (_IMAGENET.image_mean, _IMAGENET.image_std)
    )
    return replace(_IMAGENET, image_mean=mean, image_std=std)


def _published(side: int, values: Mapping[str, Any]) -> ConvNextImageProcessor:
    """Return the processor that timm's values describe."""
    interpolation = values.get("interpolation", "bicubic")
    check_choice("interpolation", interpolation, _RESAMPLE_CODES)
    return ConvNextImageProcessor(
        size=side,
        image_mean=tuple(values["mean"]),
        image_std=tuple(values["std"]),
        resample=_RESAMPLE_CODES[interpolation],
        crop_pct=values.get("crop_pct"),
        squash=values.get("crop_mode", "center") == "squash",
    )
