"""The types in mmengine's checkpoints that `torch.load(weights_only=True)` may build.

Besides tensors, a checkpoint of mmengine holds the histories of its logs: `HistoryBuffer` objects
(`mmengine/logging/history_buffer.py`) with numpy arrays and scalars in them, and `ConfigDict`s
where a configuration's metainfo has dicts in it. torch >= 2.6 refuses these unless they are on its
allow-list. They are put there only while mmengine loads. Goes when mmengine does so itself;
onedl-mmengine does, but with the real `getattr` among them.
"""

from functools import cache
from pickle import UnpicklingError
from typing import Any

import numpy as np

from ...weights.numpy_types import numpy_types, refuse


@cache
def mmengine_types() -> list[Any]:
    """List the types in mmengine's checkpoints, for `torch.serialization.add_safe_globals`."""
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

    return [
        (config_dict, "mmengine.config.config.ConfigDict"),
        (RestoredBuffer, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_statistics_method, "builtins.getattr"),
        *numpy_types(),
    ]


def _statistics_method(owner: object, name: str) -> None:
    """Replace `getattr`, by which a pickled buffer names its methods; they are not needed.

    The real `getattr` would return whatever can be reached from any allowed object.
    """
    # By the name of its class: another reader may have put a class of its own in its place.
    if not getattr(owner, "__name__", "").endswith(("HistoryBuffer", "RestoredBuffer")):
        raise UnpicklingError(f"GLOBAL getattr({owner!r}, {name!r}) was not an allowed global")
