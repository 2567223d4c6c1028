"""Classes by their whole names, where a function hides the module that they are in.

A config may give a class instead of its name, and mmengine dumps it as `module.Class`. To read that
back, mmengine 0.10.7 follows attributes from the package on, where for instance
`mmdet.models.losses.smooth_l1_loss` is a function: a run's own config cannot be built again. Goes
when the module is imported.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

from .replace import replace_function


def repair(misc: ModuleType) -> None:
    """Replace `get_object_from_string` of `mmengine.utils.misc`."""
    original = misc.get_object_from_string

    def get_object_from_string(obj_name: str) -> Any:
        found = original(obj_name)
        return _import_class(obj_name) if found is None else found

    replace_function(original, get_object_from_string)


def _import_class(name: str) -> Any:
    """Return a class of a module by its whole name, and None where there is none."""
    module, dot, class_name = name.rpartition(".")
    try:
        return getattr(import_module(module), class_name, None) if dot else None
    except ImportError:
        return None
