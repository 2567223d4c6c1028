"""Rename a foreign state dict while it is being loaded, whoever loads it."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from .layouts import UnknownLayoutError, convert, recognise
from .placement import name_final_norm, place


def to_native_(state_dict: dict[str, Any], prefix: str, module_keys: Collection[str]) -> None:
    """Rename the keys under `prefix` to native ones, in place; for a `load_state_dict` pre-hook.

    A native state dict is left as it is, and so is one of no known layout: torch then reports what
    is missing and unexpected. From any other, and from a native one inside a larger model's, heads
    and norms that the module does not have are taken out.

    Args:
        state_dict: The state dict that is being loaded.
        prefix: The prefix of the module whose hook runs, as torch passes it.
        module_keys: The module's own keys, without the prefix.
    """
    inside = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
    inner = {k[len(prefix) :]: v for k, v in inside.items() if isinstance(v, Tensor)}
    if not inner or _is_native(inner, module_keys):
        return
    try:
        match = recognise({k: tuple(v.shape) for k, v in inner.items()})
    except UnknownLayoutError:
        return
    if match.layout.name == "native" and not match.prefix:
        return
    if prefix and "head.fc.weight" in state_dict:
        inner["head.fc.weight"] = state_dict["head.fc.weight"]  # marks mmpretrain's final norm
    converted = name_final_norm(convert(inner, match), match)
    placed = place(converted, match, module_keys, None)
    for key in inside:
        del state_dict[key]
    state_dict.update({prefix + k: v for k, v in placed.tensors.items()})
    state_dict.update({prefix + k: inner[k] for k in converted.unexpected})


def _is_native(tensors: Mapping[str, Tensor], module_keys: Collection[str]) -> bool:
    return tensors.keys() <= set(module_keys) and not any(
        tensor.dim() > 1 for key, tensor in tensors.items() if ".grn." in key
    )
