"""The types in mmengine's checkpoints that `torch.load(weights_only=True)` may build.

Beside tensors, a checkpoint of mmengine holds the histories of its logs: `HistoryBuffer` objects
(`mmengine/logging/history_buffer.py`) with numpy arrays and scalars in them. torch >= 2.6 refuses
these unless they are on its allow-list. Goes when mmengine allows its types itself; onedl-mmengine
does so only while it loads, and with the real `getattr` among them.
"""

from functools import cache
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch

from ...weights.torch_files import numpy_globals

# What to do about a type that is refused.
ADVICE = "If you trust the file, allow the type by torch.serialization.add_safe_globals"


def repair(history_buffer: ModuleType) -> None:
    """Allow the types once `mmengine.logging.history_buffer` is imported."""
    allow_mmengine_types()


def allow_mmengine_types() -> None:
    """Let `torch.load(weights_only=True)` read what mmengine writes, and nothing else.

    To be called again before each load: leaving `torch.serialization.safe_globals` takes its types
    off the list, even those that were on it before.
    """
    torch.serialization.add_safe_globals(_allowed())


@cache
def _allowed() -> list[Any]:
    from mmengine.logging.history_buffer import HistoryBuffer

    class RestoredBuffer(HistoryBuffer):
        """Becomes a HistoryBuffer when its state is set, without the methods in that state.

        A buffer pickles its statistics methods, and would overwrite those that all buffers share
        with whatever a file holds.
        """

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__({k: v for k, v in state.items() if k != "statistics_methods"})
            self.__class__ = HistoryBuffer

    return [
        (RestoredBuffer, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_statistics_method, "builtins.getattr"),
        *numpy_globals(),
    ]


def _statistics_method(owner: object, name: str) -> None:
    """Replace `getattr`, by which a pickled buffer names its methods; they are not needed.

    The real `getattr` would return whatever can be reached from any allowed object.

    Raises:
        UnpicklingError: The owner is no buffer.
    """
    # By the name of its class: another reader may have put a class of its own in its place.
    if not getattr(owner, "__name__", "").endswith(("HistoryBuffer", "RestoredBuffer")):
        raise UnpicklingError(f"GLOBAL getattr({owner!r}, {name!r}) was not an allowed global")
