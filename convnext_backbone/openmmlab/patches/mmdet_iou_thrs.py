"""COCO's metrics at thresholds that a config names.

mmdet 3.3.0 hands `iou_thrs=[0.5]`, or one number, to pycocotools 2.0.11 as it is, which looks for
0.5 and 0.75 among them as in an array: with NumPy >= 2.1 the comparison of a list fails, after an
epoch of training. Goes when either makes an array of them.
"""

from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np


def repair(module: ModuleType) -> None:
    """Make the thresholds of a `CocoMetric` an array."""
    metric = module.CocoMetric
    original = metric.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.iou_thrs = np.atleast_1d(self.iou_thrs)

    metric.__init__ = init
