"""Pictures of any memory layout for mmseg's visualizer.

mmseg 1.2.2 draws the names of classes with OpenCV on an array of its picture's layout, and OpenCV
takes contiguous ones only: mmseg's own browse_dataset, which turns channels-first tensors into
pictures, stops at the first one. Goes when mmseg makes them contiguous.
"""

from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np


def repair(module: ModuleType) -> None:
    """Let `SegLocalVisualizer` draw on a contiguous copy where the picture is not contiguous."""
    visualizer = module.SegLocalVisualizer
    original = visualizer._draw_sem_seg

    @wraps(original)
    def draw(self: Any, image: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        return original(self, np.ascontiguousarray(image), *args, **kwargs)

    visualizer._draw_sem_seg = draw
