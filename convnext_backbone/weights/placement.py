"""Which native tensors a module takes, and where the norm after the last stage goes."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from ..archs import NORM_OF_STAGE
from .layouts import LayoutMatch, NativeStateDict

_TOP = ("norms.", "head.", "pre_logits.")  # what a module may do without


@dataclass
class Assignment:
    """What a module takes of a source."""

    tensors: dict[str, Tensor]  # by native key
    dropped: list[str]  # source keys that are left out
    notes: list[str]


def assign_to_target(
    converted: NativeStateDict,
    match: LayoutMatch,
    target: Collection[str],
    final_norm: str | None = None,
) -> Assignment:
    """Decide which native tensors the target's keys take, and where the final norm goes.

    `final_norm` is `archs.NORM_OF_STAGE` or `archs.NORM_DROPPED`; None goes by the layout.
    """
    tensors, dropped = dict(converted.tensors), list(converted.dropped)
    notes: list[str] = []
    last, layout = converted.last_norm, match.layout
    # Without a classifier, a norm of this shared name is the norm of the map.
    is_of_map = layout.shared_final_norm and "head.weight" not in tensors
    goes_to = final_norm or (NORM_OF_STAGE if is_of_map else layout.final_norm)
    for name, part in product(("norm", "norm_pre"), ("weight", "bias")):
        key = f"{name}.{part}"
        if key in tensors and key not in target:
            tensor = tensors.pop(key)
            if goes_to == NORM_OF_STAGE and last + part in target:
                tensors[last + part] = tensor
                notes += [f"the final norm is the norm of {last[6:-1]}"] * (part == "weight")
            else:
                dropped.append(converted.source_of(key, last + part))
    # A classifier without the hidden layer of the source's would give other logits.
    optional = _TOP[:2] if "head.weight" in target else _TOP
    for key in [k for k in tensors if k not in target and k.startswith(optional)]:
        del tensors[key]
        dropped.append(converted.source_of(key))
    return Assignment(tensors, dropped, notes)
