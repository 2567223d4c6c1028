"""COCO annotations that pycocotools scores wrongly or not at all, repaired as mmdet reads them.

pycocotools 2.0.11 takes the id 0 for "no match", so that a perfect detection of such an object
counts as a false positive (cocoapi issue 332), keeps ids as numbers, and reads `iscrowd` of every
object that is evaluated. Files of other tools number from 0, have strings for ids, and leave
`iscrowd` out; names of theirs that are numbers, as of digits, cannot be drawn. Only what is in
memory is changed. Unnecessary once pycocotools does this itself.
"""

import warnings
from collections.abc import MutableMapping, Sequence
from types import ModuleType
from typing import Any


def repair(coco_api: ModuleType) -> None:
    """Let `mmdet.datasets.api_wrappers.coco_api.COCO` repair the annotations that it reads."""
    original_init, original_index = coco_api.COCO.__init__, coco_api.COCO.createIndex

    def init(self: Any, annotation_file: str | None = None) -> None:
        self.annotation_file = annotation_file
        original_init(self, annotation_file)

    def create_index(self: Any) -> None:
        number_annotations(self.dataset.get("annotations") or (), self.annotation_file)
        names_to_text(self.dataset.get("categories") or ())
        original_index(self)

    def get_cat_ids(self: Any, cat_names: Any = (), sup_names: Any = (), cat_ids: Any = ()) -> Any:
        names = [cat_names] if isinstance(cat_names, str) else cat_names
        return self.getCatIds([*names, *map(_as_text, names)], sup_names, cat_ids)

    coco_api.COCO.__init__, coco_api.COCO.createIndex = init, create_index
    coco_api.COCO.get_cat_ids = get_cat_ids


def names_to_text(categories: Sequence[MutableMapping[str, Any]]) -> None:
    """Make names that are numbers text, which any config's classes are compared with."""
    for category in categories:
        if "name" in category:
            category["name"] = _as_text(category["name"])


def _as_text(name: Any) -> Any:
    return str(name) if isinstance(name, int | float) else name


def number_annotations(annotations: Sequence[MutableMapping[str, Any]], path: str | None) -> None:
    """Number ids of 0 and strings from 1, and take a missing `iscrowd` for 0, with a warning."""
    ids = [annotation.get("id") for annotation in annotations]
    texts = any(isinstance(number, str) for number in ids)
    if texts or 0 in ids:
        reason = "are strings" if texts else "begin at 0, which pycocotools takes for no match"
        warnings.warn(
            f"annotation file {path!r}: its ids {reason}; in memory they are numbered from 1",
            stacklevel=3,
        )
        numbers: dict[Any, int] = {}  # an id that occurs twice still does
        for annotation, number in zip(annotations, ids, strict=True):
            annotation["id"] = numbers.setdefault(number, len(numbers) + 1)
    without = [annotation for annotation in annotations if annotation.get("iscrowd") is None]
    if without:
        warnings.warn(
            f"annotation file {path!r}: {len(without)} annotations have no 'iscrowd', which "
            "pycocotools needs; it is taken as 0",
            stacklevel=3,
        )
        for annotation in without:
            annotation["iscrowd"] = 0
