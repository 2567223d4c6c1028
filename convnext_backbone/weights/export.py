"""Write weights: for transformers with a config.json, or in any other published layout."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..models.config import ConvNextConfig
from ..utils.checks import check_choice
from ..utils.files import atomic_write, write_json
from .layouts import LAYOUTS, Layout, restore
from .native import NativeWeights, arch_name, infer_fields

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
TARGETS = ("facebook", "timm", "torchvision", "huggingface", "mmpretrain", "native")
POINTWISE = MappingProxyType({"linear": "linear", "conv": "conv1x1_to_linear"})

_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
# Where the tensors stand in a PyTorch file of each target; the others write them at the top.
_WRAPPERS = {"facebook": "model", "mmpretrain": "state_dict"}
# timm builds these with 1x1 convolutions for the pointwise layers.
_TIMM_CONV_MLP = tuple(
    f"{family}_{size}"
    for family in ("convnext", "convnextv2")
    for size in ("atto", "femto", "pico", "nano")
)
_DINOV3 = "dinov3_convnext"
_CLASS_PREFIX = {"convnext": "ConvNext", "convnextv2": "ConvNextV2", _DINOV3: "DINOv3ConvNext"}


# ------------------------------------------------------------------------------ transformers


def save_pretrained(module: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write config.json and model.safetensors, which transformers loads as they are.

    A module with norms of its outputs becomes a `ConvNextBackbone`, one with a head a
    `ConvNextForImageClassification`, any other a `ConvNextModel`; with GRN the V2 classes.

    Args:
        module: A `ConvNextBackbone`, `ConvNextModel` or `ConvNextForImageClassification`.
        directory: Where to; made if need be, and files of the two names are replaced.

    Warns:
        UserWarning: transformers fixes a number that this module has otherwise, so that only this
            package will read the files as they were meant.
    """
    config = module.config
    assert isinstance(config, ConvNextConfig)
    gaps = transformers_gaps(config)
    if gaps:
        warnings.warn(
            f"transformers will not compute what this module computes: {'; '.join(gaps)}",
            stacklevel=3,
        )
    state = {key: tensor.detach().cpu() for key, tensor in module.state_dict().items()}
    tensors, values = to_transformers(state, config)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / WEIGHTS_NAME)
    write_json(folder / CONFIG_NAME, values)


def to_transformers(
    state: Mapping[str, Tensor], config: ConvNextConfig
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the config.json of transformers for a native state dict.

    Raises:
        ValueError: The layout has no place for a tensor.
    """
    is_backbone = any(key.startswith("norms.") for key in state)
    is_classifier = "head.weight" in state
    values = config.to_dict()
    model_type = config.model_type or "convnext"
    if model_type == _DINOV3 and (is_backbone or is_classifier):
        # transformers' DINOv3 has no norms of outputs and no classifier; ConvNext is the same net.
        model_type = "convnext"
        values |= {"patch_size": config.patch_size, "num_stages": config.num_stages}
    layout = _transformers_layout(model_type)
    kind = "Backbone" if is_backbone else "ForImageClassification" if is_classifier else "Model"
    tensors = restore(state, layout, prefix=None if is_classifier else "")
    values |= {"architectures": [_CLASS_PREFIX[model_type] + kind], "model_type": model_type}
    return tensors, values


def _transformers_layout(model_type: str) -> Layout:
    names = {"convnext": "v1", "convnextv2": "v2", _DINOV3: "dinov3"}
    return LAYOUTS[f"huggingface-{names[model_type]}"]


def transformers_gaps(config: ConvNextConfig) -> list[str]:
    """List what transformers' ConvNeXt classes cannot be told about this architecture."""
    fixed = {"kernel_size": 7}
    if config.model_type == _DINOV3:
        fixed["patch_size"] = 4
    gaps = [
        f"{name} must be {value}, is {getattr(config, name)}"
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]
    eps = config.layer_norm_eps if config.model_type == _DINOV3 else 1e-6
    if config.norm_eps != eps:
        gaps.append(f"norm_eps must be {eps}, is {config.norm_eps}")
    if config.use_grn and config.layer_scale_init_value > 0:
        gaps.append("GRN and layer scale exclude one another")
    return gaps


# ------------------------------------------------------------------------------ any layout


def convert_weights(
    weights: NativeWeights,
    destination: str | os.PathLike[str],
    to: str,
    *,
    pointwise: str | None = None,
) -> Path:
    """Write opened weights in a published layout.

    Args:
        weights: What `open_weights` returned.
        destination: A `.safetensors` or PyTorch file; for "huggingface" also a directory.
        to: One of `TARGETS`.
        pointwise: For "timm" and "mmpretrain", "linear" or "conv" for the pointwise layers. The
            default is what the named architecture has in timm, else linear.

    Returns:
        The file that was written.

    Raises:
        ValueError: The source has tensors of no known meaning, or the target has no place for one.
    """
    check_choice("to", to, TARGETS)
    check_choice("pointwise", pointwise, (None, *POINTWISE))
    if weights.converted.unexpected:
        raise ValueError(
            f"{weights.source}: {weights.match} does not know "
            f"{', '.join(weights.converted.unexpected)}"
        )
    path = Path(destination)
    if to == "huggingface":
        return _to_huggingface(weights, path)
    if path.suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise ValueError(
            f"destination must end in .safetensors or one of {_TORCH_SUFFIXES}, got {path.name!r}"
        )
    tensors = _in_layout(weights, to, pointwise)
    flat = to not in _WRAPPERS or path.suffix == ".safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors if flat else {_WRAPPERS[to]: tensors}, path)
    return path


def _to_huggingface(weights: NativeWeights, path: Path) -> Path:
    config = ConvNextConfig(**weights.fields())
    gaps = transformers_gaps(config)
    if gaps:
        raise ValueError(f"{weights.source}: transformers cannot hold it: {'; '.join(gaps)}")
    tensors, values = to_transformers(weights.tensors, config)
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(tensors, path)
        return path
    if path.suffix in _TORCH_SUFFIXES:
        raise ValueError(
            f"destination must be a directory or end in .safetensors, got {path.name!r}"
        )
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, path / WEIGHTS_NAME)
    write_json(path / CONFIG_NAME, values)
    return path / WEIGHTS_NAME


def _in_layout(weights: NativeWeights, to: str, pointwise: str | None) -> dict[str, Tensor]:
    tensors = dict(weights.tensors)
    fields = infer_fields(tensors)
    storage: dict[str, str] = {}
    if to in ("timm", "mmpretrain"):
        usual = "conv" if to == "timm" and arch_name(fields) in _TIMM_CONV_MLP else "linear"
        storage["pointwise"] = POINTWISE[pointwise or usual]
    elif pointwise is not None:
        raise ValueError(f"pointwise is for timm and mmpretrain, the target is {to}")
    if to == "mmpretrain" and "norm.weight" in tensors:
        for part in ("weight", "bias"):  # mmpretrain names the final norm after the last stage
            tensors[f"norms.stage{len(fields['depths'])}.{part}"] = tensors.pop(f"norm.{part}")
    layout = LAYOUTS[_layout_name(weights, to, tensors, bool(fields["use_grn"]))]
    written = restore(tensors, layout, storage=storage)
    if layout.name == "facebook-dinov3":  # whose model holds its final norm under two names
        for part in ("weight", "bias"):
            written[f"norms.{len(fields['depths']) - 1}.{part}"] = written[f"norm.{part}"].clone()
    return written


def _layout_name(
    weights: NativeWeights, to: str, tensors: Mapping[str, Tensor], use_grn: bool
) -> str:
    if to != "facebook":
        return to
    if any(key.startswith("norms.") for key in tensors):
        return "facebook-dense"
    if use_grn:
        return "facebook-v2"
    is_dinov3 = weights.match.layout.final_norm == "stage" and "norm.weight" in tensors
    return "facebook-dinov3" if is_dinov3 else "facebook-v1"


# ------------------------------------------------------------------------------ files


def write_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Write a safetensors or PyTorch file, by its suffix, in one step.

    Raises:
        OSError: The file cannot be written; what was there stays.
    """
    write = _save_safetensors if path.suffix == ".safetensors" else _save_torch
    with atomic_write(path) as partial:
        write(dict(tensors), partial)


def _save_safetensors(tensors: dict[str, Any], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what a full disk is to it
        raise OSError(str(error)) from error


def _save_torch(tensors: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        try:
            torch.save(tensors, file)
        except RuntimeError as error:
            # torch's writer, cut off by the file's error, stumbles over its own length.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
