"""The types in mmengine's checkpoints that `torch.load(weights_only=True)` may build.

Beside tensors, a checkpoint of mmengine holds the histories of its logs: `HistoryBuffer` objects
(`mmengine/logging/history_buffer.py`) with numpy arrays and scalars in them. torch refuses these
unless they are on its allow-list.
"""

from functools import cache
from pickle import UnpicklingError
from typing import Any

import torch

from ...weights.read import numpy_globals


def allow_mmengine_types() -> None:
    """Let `torch.load(weights_only=True)` read what mmengine writes, and nothing else.

    To be called again before each load: whoever leaves `torch.serialization.safe_globals` takes
    its types off the list, even those that stood there before.
    """
    torch.serialization.add_safe_globals(_allowed())


@cache
def _allowed() -> list[Any]:
    from mmengine.logging.history_buffer import HistoryBuffer

    class RestoredBuffer(HistoryBuffer):
        """Becomes a HistoryBuffer when its state comes, but for the methods in it.

        A buffer carries its statistics with it, and would put whatever a file says in the place
        of those that all buffers share.
        """

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__({k: v for k, v in state.items() if k != "statistics_methods"})
            self.__class__ = HistoryBuffer

    return [
        (RestoredBuffer, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_name_statistic, "builtins.getattr"),
        *numpy_globals(),
    ]


def _name_statistic(owner: Any, name: str) -> None:
    """Stand in for `getattr`, by which a buffer names its methods; they are not needed.

    The real `getattr` would hand out all that can be reached from any allowed object.

    Raises:
        UnpicklingError: If it is asked for anything else.
    """
    # By its class's name, as another reader may have put one of its own in the buffer's place.
    if not getattr(owner, "__name__", "").endswith(("HistoryBuffer", "RestoredBuffer")):
        raise UnpicklingError(f"GLOBAL getattr({owner!r}, {name!r}) was not an allowed global")
