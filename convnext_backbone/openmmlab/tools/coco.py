"""COCO annotation files."""

import json
from collections.abc import Mapping
from typing import Any

from ..config_walk import is_remote
from .errors import UsageError

# What mmdet and pycocotools read of each entry.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}


def read_coco(path: str) -> dict[str, Any]:
    """Read a COCO annotation file.

    Raises:
        UsageError: It is missing, is not JSON, or lacks one of COCO's three lists or in one of
            their entries what mmdet reads.
    """
    if is_remote(path):
        raise UsageError(f"annotation file {path!r} is not a local file")
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except FileNotFoundError as error:
        raise UsageError(f"annotation file {path!r} not found") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"annotation file {path!r} is not readable JSON: {error}") from error
    for kind, keys in _KEYS.items():
        if not isinstance(values, dict) or kind not in values:
            raise UsageError(f"annotation file {path!r} is not in COCO's format: no {kind!r}")
        for key in keys:
            lacking = sum(key not in entry for entry in values[kind])
            if lacking:
                raise UsageError(
                    f"annotation file {path!r}: {lacking} of its {kind} have no {key!r}"
                )
    return values


def category_names(coco: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """Return the names of the categories of a COCO file, in its order.

    Raises:
        UsageError: There are none, or a name occurs twice.
    """
    names = tuple(category["name"] for category in coco["categories"])
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        problem = f"names {twice[0]!r} twice" if twice else "has no categories"
        raise UsageError(f"annotation file {path!r} {problem}")
    return names
