"""Reading of COCO annotation files."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from ..config_walk import is_remote
from ..patches.mmdet_coco import names_to_text
from .errors import UsageError

Annotation = Mapping[str, Any]
_ID, _NUMBER = (int, float, str), (int, float)
# What mmdet and pycocotools read of each entry. Boxes and areas are checked with their ids.
_KEYS: Mapping[str, Mapping[str, Any]] = {
    "images": {"id": _ID, "file_name": str, "width": _NUMBER, "height": _NUMBER},
    "annotations": {
        "id": _ID,
        "image_id": (*_ID, NoneType),  # mmdet passes over an annotation of none
        "category_id": (*_ID, NoneType),
        "bbox": object,
        "area": object,
    },
    "categories": {"id": _ID, "name": object},
}


def read_coco(path: str, *, unlabelled: bool = False) -> dict[str, Any]:
    """Read a COCO annotation file; once, until `forget_coco`. The result is not to be changed.

    An `unlabelled` one may lack annotations, as files of images to predict on do.

    Raises:
        UsageError: It is missing, is not JSON, or lacks one of COCO's three lists or in one of
            their entries what mmdet reads.
    """
    if is_remote(path):
        raise UsageError(f"annotation file {path!r} is not a local file")
    try:
        state = os.stat(path)
        values = _read(path, state.st_mtime_ns, state.st_size)
    except FileNotFoundError as error:
        raise UsageError(f"annotation file {path!r} not found") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"annotation file {path!r} is not readable JSON: {error}") from error
    if "annotations" not in values and not unlabelled:
        raise UsageError(f"annotation file {path!r} is not in COCO's format: no 'annotations'")
    return values


@functools.cache
def _read(path: str, mtime: int, size: int) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        values = json.load(file)
    for kind, keys in _KEYS.items():
        entries = values.get(kind) if isinstance(values, dict) else None
        if kind == "annotations" and isinstance(values, dict) and kind not in values:
            continue
        if not isinstance(entries, list):
            raise UsageError(f"annotation file {path!r} is not in COCO's format: no {kind!r}")
        for key, types in keys.items():
            lacking = [i for i, e in enumerate(entries) if not isinstance(e, dict) or key not in e]
            if lacking:
                raise UsageError(
                    f"annotation file {path!r}: {len(lacking)} of its {kind} have no {key!r}, "
                    f"the first at position {lacking[0]}"
                )
            wrong = [i for i, e in enumerate(entries) if not isinstance(e[key], types)]
            if wrong:
                raise UsageError(
                    f"annotation file {path!r}: the {key} of {kind}, position {wrong[0]}, is "
                    f"{entries[wrong[0]][key]!r}"
                )
    names_to_text(values["categories"])
    return values


def forget_coco() -> None:
    """Free the annotation files that `read_coco` holds."""
    _read.cache_clear()


def category_names(
    coco: Mapping[str, Any], path: str, classes: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the names of the categories of a COCO file, in its order.

    Those among `classes` are in use; by default all.

    Raises:
        UsageError: There are none, or one that is in use occurs twice or is no text.
    """
    names = tuple(category["name"] for category in coco["categories"])
    odd = [n for n in names if not isinstance(n, str) and (classes is None or n in classes)]
    if odd:
        raise UsageError(f"annotation file {path!r} has a category whose name is {odd[0]!r}")
    used = names if classes is None else [name for name in names if name in classes]
    twice = sorted({name for name in used if used.count(name) > 1})
    if not names or twice:
        problem = f"names {twice[0]!r} twice" if twice else "has no categories"
        raise UsageError(f"annotation file {path!r} {problem}")
    return names


def kept_categories(coco: Mapping[str, Any], classes: Sequence[str]) -> set[Any]:
    """Return the ids of the categories that are among the classes."""
    return {category["id"] for category in coco["categories"] if category["name"] in classes}
