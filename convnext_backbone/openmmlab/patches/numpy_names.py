"""Names that NumPy has dropped, for the modules of other packages that still use them.

`np.float` (gone since 1.24): mmdet 3.3.0's YouTube-VIS evaluation and lvis 0.5.3. `np.in1d` (gone
since 2.4): cityscapesScripts 2.3.0. Their evaluation would end with an AttributeError after an
epoch of training. NumPy itself stays as it is: each of these modules gets a `np` of its own. Goes
with these releases.
"""

from types import ModuleType
from typing import Any

import numpy as np


class _OlderNumpy(ModuleType):
    """NumPy, and two names that it had."""

    float = float

    @staticmethod
    def in1d(values: Any, tested: Any, **options: Any) -> np.ndarray:
        """Return for each value, flattened, whether it is among `tested`."""
        return np.isin(values, tested, **options).ravel()

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def repair(module: ModuleType) -> None:
    """Give a module a `np` that has the names."""
    vars(module)["np"] = _OlderNumpy("numpy")
