"""COCO annotations that pycocotools scores wrongly or not at all, mended as mmdet reads them.

pycocotools 2.0.11 takes the id 0 for "no match", so that a perfect detection of such an object
counts as a false positive (cocoapi issue 332), and reads `iscrowd` of every object that is
evaluated. Files of other tools number from 0 and leave `iscrowd` out. Only what is in memory is
changed. Unnecessary once pycocotools does both itself.
"""

import warnings
from collections.abc import MutableMapping, Sequence
from types import ModuleType
from typing import Any


def repair(coco_api: ModuleType) -> None:
    """Let `mmdet.datasets.api_wrappers.coco_api.COCO` mend the annotations that it reads."""
    original = coco_api.COCO.createIndex

    def create_index(self: Any) -> None:
        mend_annotations(self.dataset.get("annotations") or ())
        original(self)

    coco_api.COCO.createIndex = create_index


def mend_annotations(annotations: Sequence[MutableMapping[str, Any]]) -> None:
    """Shift ids that begin at 0 by one, and take a missing `iscrowd` for 0, with a warning."""
    if any(annotation.get("id") == 0 for annotation in annotations):
        warnings.warn(
            "annotation ids begin at 0, which pycocotools takes for no match: they are shifted by "
            "one in memory",
            stacklevel=2,
        )
        for annotation in annotations:
            annotation["id"] += 1
    without = [annotation for annotation in annotations if "iscrowd" not in annotation]
    if without:
        warnings.warn(
            f"{len(without)} annotations have no 'iscrowd', which pycocotools needs: taken as 0",
            stacklevel=2,
        )
        for annotation in without:
            annotation["iscrowd"] = 0
