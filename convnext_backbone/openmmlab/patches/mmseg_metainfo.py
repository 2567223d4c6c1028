"""The classes of an mmseg data set whose config names them.

mmseg 1.2.2's tools (browse_dataset, confusion_matrix) read `dataset.METAINFO["classes"]`, which
`BaseSegDataset(metainfo=dict(classes=...))` has in `metainfo` only. Goes when they read that.
"""

from functools import wraps
from types import ModuleType
from typing import Any


def repair(module: ModuleType) -> None:
    """Let a `BaseSegDataset` without classes of its own have those of its config."""
    base = module.BaseSegDataset
    original = base.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if "classes" not in type(self).METAINFO:
            self.METAINFO = self.metainfo

    base.__init__ = init
