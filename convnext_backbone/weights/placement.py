"""Which native tensors a module takes, and what the norm after the last stage is to it."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .layouts import Converted, Match


def depths_of(keys: Iterable[str]) -> tuple[int, ...]:
    """Return the number of blocks of each stage that native keys name."""
    found: dict[int, int] = {}
    for key in keys:
        place = re.match(r"stages\.(\d+)\.(\d+)\.", key)
        if place is not None:
            stage, block = int(place[1]), int(place[2])
            found[stage] = max(found.get(stage, 0), block + 1)
    return tuple(found.get(stage, 0) for stage in range(max(found, default=-1) + 1))


def name_final_norm(converted: Converted, match: Match) -> Converted:
    """Tell mmpretrain's final norm from the norms of outputs.

    mmpretrain names the norm after the last stage alike whether it stands before or after the
    pooling. Where it is the only one, or there is a classifier, it is the final norm.
    """
    last = f"norms.stage{len(depths_of(converted.tensors))}."
    norms = {k for k in converted.tensors if k.startswith("norms.")}
    lone = all(k.startswith(last) for k in norms)
    if match.layout.name != "mmpretrain" or not (lone or "head.weight" in converted.tensors):
        return converted

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k.replace(last, "norm."): v for k, v in values.items()}

    return replace(
        converted,
        tensors=renamed(converted.tensors),
        sources=renamed(converted.sources),
        storage=renamed(converted.storage),
    )


@dataclass
class Placed:
    """What a module takes of a source.

    Attributes:
        tensors: By native key.
        dropped: Source keys that are left out.
        notes: What a user should know.
    """

    tensors: dict[str, Tensor]
    dropped: list[str]
    notes: list[str]


def place(
    converted: Converted, match: Match, target: Collection[str], final_norm: str | None
) -> Placed:
    """Decide which native tensors the target takes, and where the final norm goes."""
    tensors, dropped = dict(converted.tensors), list(converted.dropped)
    notes: list[str] = []
    last = f"norms.stage{len(depths_of(tensors))}."
    default = match.layout.final_norm
    if match.layout.name == "mmpretrain" and "head.weight" not in tensors:
        default = "stage"  # without a classifier, it is the norm of the map
    where = final_norm or default
    for part in ("weight", "bias"):
        if f"norm.{part}" in tensors and f"norm.{part}" not in target:
            tensor = tensors.pop(f"norm.{part}")
            if where == "stage" and last + part in target:
                tensors[last + part] = tensor
                notes += [f"the final norm is the norm of {last[6:-1]}"] * (part == "weight")
            else:
                dropped.append(source_of(converted, f"norm.{part}", last + part))
    for key in [k for k in tensors if k not in target and k.startswith(("norms.", "head."))]:
        del tensors[key]
        dropped.append(source_of(converted, key))
    return Placed(tensors, dropped, notes)


def source_of(converted: Converted, *keys: str) -> str:
    """Return the source's name of the first of the native keys that it has."""
    return next((converted.sources[key] for key in keys if key in converted.sources), keys[0])
