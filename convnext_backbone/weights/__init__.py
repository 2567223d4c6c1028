"""Weights in every published layout: read, recognised, converted, loaded, fetched and written.

These names are for users; the package itself imports from the modules.
"""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from .containers import file_limits
    from .download import DownloadError
    from .export import convert_weights, save_pretrained
    from .native import open_weights

__all__ = ["DownloadError", "convert_weights", "file_limits", "open_weights", "save_pretrained"]

_MODULE_OF = {
    "DownloadError": "download",
    "convert_weights": "export",
    "file_limits": "containers",
    "open_weights": "native",
    "save_pretrained": "export",
}
__getattr__ = lazy_attributes(__name__, _MODULE_OF)
