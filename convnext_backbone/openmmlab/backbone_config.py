"""The backbone of an OpenMMLab config, and how its images are prepared."""

import os
from collections.abc import Mapping
from typing import Any

from .config_walk import iter_dicts, type_name

_BACKBONE = "ConvNextBackbone"
# Arguments that concern the training, not the features.
_TRAINING = ("type", "init_cfg", "frozen_stages", "with_cp", "_scope_")


def read_backbone_config(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a config of mmdet, mmsegmentation or mmpretrain style.

    Returns the arguments of `ConvNextBackbone` without those that concern its training, and
    arguments of `ConvNextImageProcessor` that prepare images as the config's data preprocessor
    does, at their own size. ValueError where the backbone is another one or takes BGR.
    """
    try:
        from mmengine.config import Config
    except ImportError as error:
        raise ImportError(
            "an OpenMMLab config needs mmengine: pip install 'convnext-backbone[openmmlab]'"
        ) from error
    path = os.fspath(path)
    model = Config.fromfile(path).to_dict().get("model", {})
    backbone = next((d for d in iter_dicts(model) if type_name(d) == _BACKBONE), None)
    if backbone is None:
        raise ValueError(f"{path} has no model with a backbone of type {_BACKBONE!r}")
    return {k: v for k, v in backbone.items() if k not in _TRAINING}, _preprocessing(model, path)


def _preprocessing(model: Mapping[str, Any], path: str) -> dict[str, Any]:
    found = next((d for d in iter_dicts(model) if "mean" in d and "std" in d), None)
    if found is None:
        raise ValueError(f"{path} has no data_preprocessor with mean and std")
    if not found.get("bgr_to_rgb"):
        raise ValueError(f"{path} feeds its backbone BGR; bgr_to_rgb=True is what is supported")
    # OpenMMLab's mean and std are for values of 0 .. 255.
    return {
        "image_mean": tuple(v / 255 for v in found["mean"]),
        "image_std": tuple(v / 255 for v in found["std"]),
    }
