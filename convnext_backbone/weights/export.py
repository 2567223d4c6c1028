"""Write weights: for transformers with a config.json, or in any other published layout."""

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..archs import FAMILIES, NORM_HAS_BIAS, NOT_IN_TENSORS, ORIGINAL_MODEL_TYPE, trunk_shapes
from ..models.config import CONFIG_NAME, VARIANT, ConvNextConfig
from ..models.layers import DropPath
from ..utils.checks import check_choice, errors_about, shorten_list
from ..utils.files import atomic_write, expand_path, write_json
from .containers import SUFFIXES
from .layouts import LAYOUTS, STEM_KEY, TRUNK, Layout, LayoutMatch, restore
from .load import build_blank
from .native import NativeWeights, arch_name, infer_fields

WEIGHTS_NAME = "model.safetensors"
TARGETS = tuple(sorted({layout.target for layout in LAYOUTS.values()} - {""}))
POINTWISE = {"linear": "linear", "conv": "conv1x1_to_linear"}

_BACKBONE, _CLASSIFIER, _MODEL = "Backbone", "ForImageClassification", "Model"
# What decides what is computed, and neither tensors nor the names of a layout show.
_ONLY_IN_CONFIG = (*NOT_IN_TENSORS, "layer_norm_eps", "dilations", "pad_to_stride")
_SMALL_EPS = 1e-5  # below it, one epsilon of the final norm is as good as another
# What torch's wrappers of single layers (compiled, checkpointed, sharded) add to a name.
_WRAPPERS = re.compile(r"\.(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.|$)")
_NETWORKS = f"{__name__.partition('.')[0]}.models."  # the modules of this package's networks


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
            package will read the files as they were meant; or layers were altered, so that they are
            not those that the config describes.
    """
    folder = Path(expand_path(directory, "directory"))
    config: ConvNextConfig = module.config  # type: ignore[assignment]
    state = {
        _WRAPPERS.sub("", key): tensor.detach().cpu()
        for key, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)  # quantized layers hold other things, and are refused below
    }
    tensors, values = to_transformers(state, config)
    altered = altered_layers(module)
    if altered:
        warnings.warn(
            "config.json does not describe this network, and loading builds what it describes: "
            f"{shorten_list(altered)}",
            stacklevel=3,
        )
    gaps = transformers_gaps(config, state)
    if gaps:
        warnings.warn(
            f"transformers will not compute what this module computes: {'; '.join(gaps)}",
            stacklevel=3,
        )
    _write_folder(folder, tensors, values)


def _write_folder(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    write_tensors(tensors, folder / WEIGHTS_NAME)
    write_json(folder / CONFIG_NAME, config)
    return folder / WEIGHTS_NAME


def to_transformers(
    state: Mapping[str, Tensor], config: ConvNextConfig
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the config.json of transformers for a native state dict.

    What transformers has no names for keeps those of this package, so that it will not be taken for
    another network there.
    """
    kind, written = _kind_of(state), _written_config(config, state)
    family = FAMILIES[written.model_type]
    layout = LAYOUTS["native" if _variant(state, written) else family.layout]
    tensors = restore(state, layout, prefix=None if kind == _CLASSIFIER else "")
    values = {**written.to_dict(), "architectures": [family.class_prefix + kind]}
    if written.model_type != config.model_type:
        values[ORIGINAL_MODEL_TYPE] = config.model_type
    return tensors, values


def _kind_of(state: Mapping[str, Tensor]) -> str:
    """Return how the name of transformers' class of a network ends."""
    if any(key.startswith("norms.") for key in state):
        return _BACKBONE
    return _CLASSIFIER if "head.weight" in state else _MODEL


def _written_config(config: ConvNextConfig, state: Mapping[str, Tensor]) -> ConvNextConfig:
    """Return the config that is written: of another family where this one has no such class."""
    written_as = FAMILIES[config.model_type].written_as
    if not written_as or _kind_of(state) == _MODEL:
        return config
    # Epsilons that were derived for the one family must not be derived anew for the other.
    return config.replace(
        model_type=written_as, layer_norm_eps=config.layer_norm_eps, norm_eps=config.norm_eps
    )


def _variant(state: Mapping[str, Tensor], config: ConvNextConfig) -> dict[str, Any]:
    """Return the fields of `VARIANT` that this network has otherwise than most."""
    heads = {"head_norm_first": "norm_pre.weight", "head_hidden_size": "pre_logits.fc.weight"}
    return {
        name: getattr(config, name)
        for name in VARIANT
        if getattr(config, name) != getattr(ConvNextConfig, name)
        and heads.get(name, STEM_KEY) in state
    }


def transformers_gaps(config: ConvNextConfig, state: Mapping[str, Tensor]) -> list[str]:
    """List what of this network transformers' class does not have."""
    config = _written_config(config, state)
    family = FAMILIES[config.model_type]
    fixed = dict(family.fixed)
    if family.single_eps:
        fixed["norm_eps"] = config.layer_norm_eps
    if max(config.dilations) > 1:
        fixed["output_stride"] = config.patch_size * 2 ** (config.num_stages - 1)
    for name in ("pad_to_stride", *_variant(state, config)):
        fixed[name] = getattr(ConvNextConfig, name)
    return [
        f"{name} must be {value}, is {getattr(config, name)}"
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]


def altered_layers(module: nn.Module) -> list[str]:
    """List the layers of a network that are not those that its config describes.

    A layer is as described where its class has the same forward method and it prints the same
    numbers. Names that torch's wrappers add are passed over, and so is what acts in training alone.
    """
    networks = [c for c in type(module).__mro__ if c.__module__.startswith(_NETWORKS)]
    if not networks:
        return []
    network: type[nn.Module] = networks[0]
    described = dict(build_blank(network, module.config).named_modules())
    layers = {
        _WRAPPERS.sub("", name): layer
        for name, layer in module.named_modules(remove_duplicate=False)
    }
    altered: dict[str, str] = {}
    for name, layer in described.items():
        if name.rpartition(".")[0] in altered:
            altered[name] = ""  # a part of what is listed
        elif name and not _is_as_described(layers.get(name), layer):
            altered[name] = f"{name} is {_show(layers.get(name))}, not {_show(layer)}"
    added = [
        f"{name} is {_show(layer)}, not there"
        for name, layer in layers.items()
        if name not in described
        and isinstance(described.get(name.rpartition(".")[0]), nn.Sequential)
    ]
    return [*filter(None, altered.values()), *added]


def _is_as_described(layer: nn.Module | None, described: nn.Module) -> bool:
    if layer is None or isinstance(described, DropPath):
        return layer is not None
    ours, theirs = type(described), type(layer)
    is_chain = issubclass(ours, nn.Sequential) and theirs.forward is nn.Sequential.forward
    return (
        (issubclass(theirs, ours) or issubclass(ours, theirs))
        and (theirs.forward is ours.forward or is_chain)
        and theirs.extra_repr(layer) == ours.extra_repr(described)
    )


def _show(layer: nn.Module | None) -> str:
    return (
        "missing" if layer is None else f"{type(layer).__name__}({type(layer).extra_repr(layer)})"
    )


# ------------------------------------------------------------------------------ any layout


def convert_weights(
    weights: NativeWeights,
    destination: str | os.PathLike[str],
    to: str,
    *,
    pointwise: str | None = None,
) -> Path:
    """Write opened weights in a published layout.

    Example:
        >>> from convnext_backbone.weights import open_weights
        >>> convert_weights(open_weights("convnext_atto.d2_in1k"), "timm.safetensors", "timm").name
        'timm.safetensors'

    Args:
        weights: What `open_weights` returned.
        destination: A `.safetensors` or PyTorch file; for "huggingface" also a directory.
        to: One of `TARGETS`.
        pointwise: For "timm" and "mmpretrain", "linear" or "conv" for the pointwise layers. The
            default is what the named architecture has in timm, else linear.

    Returns:
        The file that was written.

    Warns:
        UserWarning: The network has an epsilon, an activation or dilations that the file does not
            say, and that a reader of the file would not conclude.

    Raises:
        ValueError: The source has tensors of no known meaning, or the target cannot represent one.
    """
    check_choice("to", to, TARGETS)
    check_choice("pointwise", pointwise, (None, *POINTWISE))
    path = Path(expand_path(destination, "destination"))
    if weights.converted.unexpected:
        raise ValueError(
            f"{weights.source}: {weights.match} does not know "
            f"{', '.join(weights.converted.unexpected)}"
        )
    _refuse_incomplete(weights)
    if to == "huggingface":
        return _to_huggingface(weights, path)
    written = (*SUFFIXES["safetensors"], *SUFFIXES["PyTorch"])
    if path.suffix not in written:
        raise ValueError(f"destination must end in one of {written}, got {path.name!r}")
    layout = _choose_layout(weights, to)
    tensors = _in_layout(weights, layout, pointwise)
    _warn_only_in_config(weights, layout)
    is_wrapped = layout.wrapper and path.suffix != ".safetensors"
    write_tensors({layout.wrapper: tensors} if is_wrapped else tensors, path)
    return path


def _to_huggingface(weights: NativeWeights, path: Path) -> Path:
    config = _config_of(weights)
    gaps = transformers_gaps(config, weights.tensors)
    if gaps:
        raise ValueError(f"{weights.source}: transformers has no such network: {'; '.join(gaps)}")
    with errors_about(weights.source):
        tensors, values = to_transformers(weights.tensors, config)
    if path.suffix == ".safetensors":
        _warn_only_in_config(weights, LAYOUTS[FAMILIES[config.model_type].layout])
        write_tensors(tensors, path)
        return path
    if path.suffix in SUFFIXES["PyTorch"]:
        raise ValueError(
            f"destination must be a directory or end in .safetensors, got {path.name!r}"
        )
    return _write_folder(path, tensors, values)


def _config_of(weights: NativeWeights) -> ConvNextConfig:
    with errors_about(weights.source):
        return ConvNextConfig(**weights.fields())


def _warn_only_in_config(weights: NativeWeights, layout: Layout) -> None:
    """Warn of what a file alone does not say, and is not what its reader concludes."""
    alone = replace(
        weights,
        origin=replace(weights.origin, entry=None),
        match=LayoutMatch(layout, ""),
        config={},
    )
    config, concluded = _config_of(weights), _config_of(alone)
    lost = [
        f"{name}={getattr(config, name)!r}"
        for name in _ONLY_IN_CONFIG
        if getattr(config, name) != getattr(concluded, name)
    ]
    if max(config.layer_norm_eps, concluded.layer_norm_eps) <= _SMALL_EPS:
        lost = [text for text in lost if not text.startswith("layer_norm_eps")]
    if lost:
        warnings.warn(
            f"{weights.source}: the written file does not store {', '.join(lost)}; pass it when "
            "loading",
            stacklevel=4,
        )


def _choose_layout(weights: NativeWeights, to: str) -> Layout:
    """Return the layout of the target in which weights of this family and content are published.

    ValueError: there is none.
    """
    config = _config_of(weights)
    variant = _variant(weights.tensors, config)
    layouts = [
        layout
        for layout in LAYOUTS.values()
        if layout.target == to
        and layout.model_type in (None, weights.match.layout.model_type)
        and _can_hold(layout, variant, config)
    ]
    if not layouts:
        values = ", ".join(f"{name}={value!r}" for name, value in variant.items())
        raise ValueError(f"{weights.source}: layout {to!r} cannot represent {values}")
    for layout in layouts:
        keys = layout.source_keys(weights.tensors, prefix="")
        aliases = [alias for native, alias in layout.aliases(keys).items() if native in keys]
        if layout.fits([*keys.values(), *aliases]):
            return layout
    return layouts[-1]


def _can_hold(layout: Layout, variant: Mapping[str, Any], config: ConvNextConfig) -> bool:
    if variant.get("stem_type") == "patch_no_norm":
        # Without a config.json, several stages without the norm are taken for a file that was cut.
        return layout.holds_isotropic and config.num_stages == 1
    return layout.holds_variants or not variant


def _refuse_incomplete(weights: NativeWeights) -> None:
    """Refuse to write a file of which a part is missing or cut, with a ValueError."""
    tensors, fields = weights.tensors, weights.fields()
    shapes, last = trunk_shapes(fields), fields["hidden_sizes"][-1]
    shapes |= {k: (last,) for k in tensors if k.startswith(("norm.", "norm_pre."))}
    if hidden := fields["head_hidden_size"]:
        shapes["pre_logits.fc.weight"], last = (hidden, last), hidden
    if weights.num_labels is not None:
        shapes["head.weight"] = (weights.num_labels, last)
    # Of a norm or a head there is nothing, or both its tensors.
    others = dict.fromkeys(k.rpartition(".")[0] for k in tensors if not k.startswith(TRUNK))
    has_bias = NORM_HAS_BIAS[fields["norm_layer"]]
    pairs = [f"{name}.weight" for name in others]
    pairs += [f"{name}.bias" for name in others if has_bias or not name.startswith("norm")]
    expected = dict.fromkeys((*shapes, *pairs))
    problems = {
        "missing": [key for key in expected if key not in tensors],
        "of an incomplete stage": [k for k in tensors if k.startswith(TRUNK) and k not in shapes],
        "of the wrong shape": [
            f"{key} is {tuple(tensors[key].shape)}, must be {shape}"
            for key, shape in shapes.items()
            if key in tensors and tuple(tensors[key].shape) != shape
        ],
    }
    text = "; ".join(f"{what}: {shorten_list(keys)}" for what, keys in problems.items() if keys)
    if text:
        raise ValueError(f"{weights.source}: the weights are incomplete: {text}")


def _in_layout(weights: NativeWeights, layout: Layout, pointwise: str | None) -> dict[str, Tensor]:
    fields = infer_fields(weights.tensors)
    storage: dict[str, str] = {}
    if layout.conv_pointwise is not None:
        has_convs = arch_name(fields) in layout.conv_pointwise
        storage["pointwise"] = POINTWISE[pointwise or ("conv" if has_convs else "linear")]
    elif pointwise is not None:
        raise ValueError(f"pointwise is for timm and mmpretrain, the target is {layout.name}")
    with errors_about(weights.source):
        tensors = restore(weights.tensors, layout, storage=storage)
    keys = layout.source_keys(weights.tensors)
    for native, alias in layout.aliases(keys).items():
        if native in keys:
            tensors[alias] = tensors[keys[native]].clone()
    return tensors


# ------------------------------------------------------------------------------ files


def write_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Write a safetensors or PyTorch file, by its suffix, in one step: all of it or an OSError."""
    write = _save_safetensors if path.suffix == ".safetensors" else _save_torch
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        write(dict(tensors), partial)


def _save_safetensors(tensors: dict[str, Any], path: Path) -> None:
    seen: set[int] = set()
    for key, tensor in tensors.items():  # the format holds nothing twice: tied ones are copied
        address = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors raises it for a full disk, too
        raise OSError(str(error)) from error


def _save_torch(tensors: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        try:
            torch.save(tensors, file)
        except RuntimeError as error:
            # After the file's own error, torch's writer raises another about its length.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
