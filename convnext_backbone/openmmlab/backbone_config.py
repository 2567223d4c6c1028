"""The backbone of an OpenMMLab config, and how its images are prepared."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

_BACKBONE = "ConvNextBackbone"


def read_backbone_config(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a config of mmdet, mmsegmentation or mmpretrain style.

    Returns:
        The arguments of `ConvNextBackbone` without those that say how it trains, and arguments of
        `ConvNextImageProcessor` that prepare images as the config's data preprocessor does, at
        their own size.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: mmengine is not installed.
        ValueError: The config has no ConvNextBackbone, or feeds it BGR.
    """
    try:
        from mmengine import Config
    except ImportError as error:
        raise ImportError(
            "an OpenMMLab config needs mmengine: pip install 'convnext-backbone[openmmlab]'"
        ) from error
    model = Config.fromfile(os.fspath(path)).to_dict().get("model", {})
    backbone = next((d for d in _dicts(model) if d.get("type") == _BACKBONE), None)
    if backbone is None:
        raise ValueError(f"{os.fspath(path)} has no model with a backbone of type {_BACKBONE!r}")
    training = ("type", "init_cfg", "frozen_stages", "with_cp", "_scope_")
    fields = {k: v for k, v in backbone.items() if k not in training}
    return fields, _preprocessing(model, os.fspath(path))


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every dict inside a nested config, outer ones first."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _dicts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _dicts(inner)


def _preprocessing(model: Mapping[str, Any], path: str) -> dict[str, Any]:
    found = next((d for d in _dicts(model) if "mean" in d and "std" in d), {})
    if not found:
        raise ValueError(f"{path} has no data_preprocessor with mean and std")
    if not found.get("bgr_to_rgb"):
        raise ValueError(f"{path} feeds its backbone BGR; bgr_to_rgb=True is what is supported")
    # OpenMMLab counts in levels of 0 .. 255.
    return {
        "image_mean": tuple(v / 255 for v in found["mean"]),
        "image_std": tuple(v / 255 for v in found["std"]),
    }
