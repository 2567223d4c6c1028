"""mmdet's palettes for more classes than they have colours.

`CocoDataset` keeps COCO's 80 colours whatever classes a config gives it, and mmdet 3.3.0's
`get_palette` then refuses to draw. The colours that lack are mmdet's own random ones, which are
always the same. Goes when `get_palette` fills in.
"""

from types import ModuleType
from typing import Any

from .replace import replace_function


def repair(palettes: ModuleType) -> None:
    """Replace `get_palette` of `mmdet.visualization.palette`."""
    original = palettes.get_palette

    def get_palette(palette: Any, num_classes: int) -> list[tuple[int, ...]]:
        if isinstance(palette, list) and len(palette) < num_classes:
            return [*palette, *original("random", num_classes)[len(palette) :]]
        return original(palette, num_classes)

    replace_function(original, get_palette)
