"""Both an input and its shape for mmengine's count of operations.

mmengine 0.10 refuses the two together, and mmseg 1.2.2's get_flops gives both. Goes when mmseg
leaves the shape out.
"""

from functools import wraps
from types import ModuleType
from typing import Any

from .replace import replace_function


def repair(module: ModuleType) -> None:
    """Let `get_model_complexity_info` take the shape of its input besides the input."""
    original = module.get_model_complexity_info

    @wraps(original)
    def count(model: Any, input_shape: Any = None, inputs: Any = None, **kwargs: Any) -> Any:
        if input_shape is not None and getattr(inputs, "shape", ())[1:] == tuple(input_shape):
            input_shape = None
        return original(model, input_shape, inputs, **kwargs)

    replace_function(original, count)
