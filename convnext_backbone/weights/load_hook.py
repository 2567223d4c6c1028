"""Convert a state dict of another layout while `load_state_dict` runs, whoever calls it."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from .layouts import UnknownLayoutError, convert, recognise
from .placement import assign_to_target


def convert_state_dict_(
    state_dict: dict[str, Any], prefix: str, module_keys: Collection[str]
) -> None:
    """Rename the keys under `prefix` to native ones, in place; for a `load_state_dict` pre-hook.

    A native state dict is left as it is, and so is one of no known layout: torch then reports what
    is missing and unexpected. From any other, and from a native one inside a larger model's, heads
    and norms that the module does not have, and what is beside the trunk, are taken out.
    ValueError: it is a relative of ConvNeXt that the module cannot hold, holds several, or has a
    tensor of a shape that its layout has not.
    """
    inside = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
    inner = {k[len(prefix) :]: v for k, v in inside.items() if isinstance(v, Tensor)}
    if not inner or _is_native(inner, module_keys):
        return
    try:
        match = recognise({k: tuple(v.shape) for k, v in inner.items()})
    except UnknownLayoutError:
        return
    layout = match.layout
    if layout.is_native and not match.prefix:
        return
    if layout.shared_final_norm:
        # The head beside the trunk decides what the last norm is, and torch's prefix hides it.
        head = {k for k in state_dict if layout.native_key(k, outer=True)[1] == "head.weight"}
        inner |= {k: state_dict[k] for k in head}
    converted = convert(inner, match)
    assignment = assign_to_target(converted, match, module_keys)
    for key in inside:
        del state_dict[key]
    state_dict.update({prefix + k: v for k, v in assignment.tensors.items()})
    state_dict.update({prefix + k: inner[k] for k in converted.unexpected})


def _is_native(tensors: Mapping[str, Tensor], module_keys: Collection[str]) -> bool:
    # The original V2 has these names too, and differs in the rank of GRN's parameters alone.
    return tensors.keys() <= set(module_keys) and not any(
        tensor.dim() > 1 for key, tensor in tensors.items() if ".grn." in key
    )
