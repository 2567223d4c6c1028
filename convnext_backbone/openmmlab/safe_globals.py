"""The types in mmengine's checkpoints that `torch.load(weights_only=True)` may build.

Beside tensors, a checkpoint of mmengine holds the histories of its logs: `HistoryBuffer` objects
(`mmengine/logging/history_buffer.py`) with numpy arrays and scalars in them. torch refuses these
unless they are on its allow-list.
"""

from functools import cache
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

_DTYPES = ("bool", "uint8", "int32", "int64", "uint32", "float32", "float64")
# Before and since NumPy 2: either NumPy reads the files of both.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_STATISTICS = ("min", "max", "current", "mean")


def allow_mmengine_types() -> None:
    """Let `torch.load(weights_only=True)` read what mmengine writes, and nothing else.

    To be called again before each load: whoever leaves `torch.serialization.safe_globals` takes
    its types off the list, even those that stood there before.
    """
    torch.serialization.add_safe_globals(_allowed())


@cache
def _allowed() -> list[Any]:
    from mmengine.logging.history_buffer import HistoryBuffer

    rebuild_array: Any = np.empty(0).__reduce__()[0]
    rebuild_scalar: Any = np.float64(0).__reduce__()[0]
    return [
        HistoryBuffer,
        (_get_statistic, "builtins.getattr"),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(name)) for name in _DTYPES),
        *((rebuild_array, f"{module}._reconstruct") for module in _MULTIARRAY),
        *((rebuild_scalar, f"{module}.scalar") for module in _MULTIARRAY),
    ]


def _get_statistic(owner: Any, name: str) -> Any:
    """Stand in for `getattr`: a buffer pickles its methods as `getattr(HistoryBuffer, 'mean')`.

    The real `getattr` would hand out all that can be reached from any allowed object.

    Raises:
        UnpicklingError: For any other attribute.
    """
    from mmengine.logging.history_buffer import HistoryBuffer

    # By its name, since another reader may have put a class of its own in the buffer's place.
    if getattr(owner, "__name__", "").endswith("HistoryBuffer") and name in _STATISTICS:
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(f"GLOBAL getattr({owner!r}, {name!r}) was not an allowed global")
