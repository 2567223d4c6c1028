"""mmdet's SSD, which trains but cannot predict (mmdetection issue 11063).

mmdet 3.3.0 asks every head's `loss_cls` whether it has scores of its own, and `SSDHead` has no
`loss_cls`: the first validation ends in an AttributeError. Goes when it asks whether there is one.
"""

from types import ModuleType


def repair(ssd_head: ModuleType) -> None:
    """Give the heads of `mmdet.models.dense_heads.ssd_head` a `loss_cls`, which is None."""
    if not hasattr(ssd_head.SSDHead, "loss_cls"):
        ssd_head.SSDHead.loss_cls = None
