"""The types in mmengine's checkpoints besides tensors.

A checkpoint of mmengine holds the histories of its logs, `HistoryBuffer` objects
(`mmengine/logging/history_buffer.py`) with numpy arrays and scalars in them, and `ConfigDict`s
where a configuration's metainfo has dicts in it.
"""

from functools import cache
from typing import Any

import numpy as np

from ...weights.containers import refuse


@cache
def mmengine_types() -> dict[str, Any]:
    """Return what mmengine's checkpoints call besides what weights need, by its name in pickles."""
    from mmengine.config import ConfigDict
    from mmengine.logging.history_buffer import HistoryBuffer

    class RestoredBuffer(HistoryBuffer):
        """Becomes a HistoryBuffer when its state is set."""

        def __setstate__(self, state: dict[str, Any]) -> None:
            # A state's statistics methods would replace those that all buffers share.
            plain = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}
            super().__setstate__({k: v for k, v in plain.items() if k != "statistics_methods"})
            self.__class__ = HistoryBuffer

    def config_dict(items: object) -> ConfigDict:
        """Build one as it is: its own constructor copies what is in it, at every level anew."""
        if not isinstance(items, dict):
            refuse("a ConfigDict of what is no dict")
        built = ConfigDict()
        dict.update(built, items)
        return built

    def statistics_method(owner: object, name: str) -> None:
        """Replace `getattr`, by which a pickled buffer names its methods; they are not needed."""
        if owner is not RestoredBuffer:
            refuse(f"getattr(..., {name})" if isinstance(name, str) else "getattr")

    return {
        "mmengine.config.config.ConfigDict": config_dict,
        "mmengine.logging.history_buffer.HistoryBuffer": RestoredBuffer,
        "builtins.getattr": statistics_method,
    }
