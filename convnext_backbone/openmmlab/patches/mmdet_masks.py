"""mmdet's pasting of masks on the CPU, for boxes that cover no part of their image.

mmdet 3.3.0 pastes into the part of the image that a box covers, and for a box outside of it, or one
that ends before it begins, asks torch for a range that does. Heads that do not clip their boxes, as
QueryInst's, yield such. Goes when that range is empty instead.
"""

from types import ModuleType
from typing import Any

from torch import Tensor

from .replace import replace_function


def repair(fcn_mask_head: ModuleType) -> None:
    """Replace `_do_paste_mask` of `mmdet.models.roi_heads.mask_heads.fcn_mask_head`."""
    original = fcn_mask_head._do_paste_mask

    def _do_paste_mask(
        masks: Tensor, boxes: Tensor, img_h: int, img_w: int, skip_empty: bool = True
    ) -> tuple[Tensor, Any]:
        if skip_empty and _cover_nothing(boxes, img_h, img_w):
            return masks.new_zeros(len(masks), 0, 0), (slice(0, 0), slice(0, 0))
        return original(masks, boxes, img_h, img_w, skip_empty)

    replace_function(original, _do_paste_mask)


def _cover_nothing(boxes: Tensor, height: int, width: int) -> bool:
    """Return whether the part that mmdet pastes into, a pixel more than the boxes, is empty."""
    left, top = (boxes[:, :2].min(dim=0).values.floor() - 1).clamp(min=0).tolist()
    right, bottom = (boxes[:, 2:].max(dim=0).values.ceil() + 1).tolist()
    return left >= min(right, width) or top >= min(bottom, height)
