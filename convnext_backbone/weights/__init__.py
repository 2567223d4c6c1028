"""Weights in every published layout: read, recognised, converted, loaded, fetched and written."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from .catalogue import WEIGHTS, WeightEntry, list_weights
    from .containers import FileLimits, file_limits
    from .download import DownloadError
    from .export import convert_weights, save_pretrained
    from .layouts import LAYOUTS, Layout, UnknownLayoutError
    from .load import (
        LOAD_OPTIONS,
        OPEN_OPTIONS,
        build_blank,
        load_native,
        load_pretrained_,
        load_weights,
    )
    from .load_hook import convert_state_dict_
    from .native import NativeWeights, open_weights
    from .report import LoadReport

__all__ = [
    "LAYOUTS", "LOAD_OPTIONS", "OPEN_OPTIONS", "WEIGHTS", "DownloadError", "FileLimits", "Layout",
    "LoadReport", "NativeWeights", "UnknownLayoutError", "WeightEntry", "build_blank",
    "convert_state_dict_", "convert_weights", "file_limits", "list_weights", "load_native",
    "load_pretrained_", "load_weights", "open_weights", "save_pretrained",
]  # fmt: skip

_NAMES_IN = {
    "catalogue": ("WEIGHTS", "WeightEntry", "list_weights"),
    "containers": ("FileLimits", "file_limits"),
    "download": ("DownloadError",),
    "export": ("convert_weights", "save_pretrained"),
    "layouts": ("LAYOUTS", "Layout", "UnknownLayoutError"),
    "load": (
        *("LOAD_OPTIONS", "OPEN_OPTIONS", "build_blank"),
        *("load_native", "load_pretrained_", "load_weights"),
    ),
    "load_hook": ("convert_state_dict_",),
    "native": ("NativeWeights", "open_weights"),
    "report": ("LoadReport",),
}
__getattr__ = lazy_attributes(
    __name__, {name: module for module, names in _NAMES_IN.items() for name in names}
)
