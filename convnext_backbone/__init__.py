"""ConvNeXt backbones (V1, V2, DINOv3) for mmdet, mmsegmentation and plain PyTorch."""

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ._version import __version__
from .utils.checks import IMPORT_ERRORS, first_line
from .utils.lazy import lazy_attributes
from .utils.post_import import after_import

if TYPE_CHECKING:
    from .archs import list_archs
    from .features.extractor import FeatureExtractor
    from .features.store import load_features
    from .images.processor import ConvNextImageProcessor
    from .models.backbone import ConvNextBackbone
    from .models.classifier import ConvNextForImageClassification, ConvNextModel
    from .models.config import ConvNextConfig
    from .weights.catalogue import list_weights
    from .weights.load import load_weights
    from .weights.report import LoadReport

__all__ = [
    "ConvNextBackbone",
    "ConvNextConfig",
    "ConvNextForImageClassification",
    "ConvNextImageProcessor",
    "ConvNextModel",
    "FeatureExtractor",
    "LoadReport",
    "__version__",
    "list_archs",
    "list_weights",
    "load_features",
    "load_weights",
]

_MODULE_OF = {
    "ConvNextBackbone": "models.backbone",
    "ConvNextConfig": "models.config",
    "ConvNextForImageClassification": "models.classifier",
    "ConvNextImageProcessor": "images.processor",
    "ConvNextModel": "models.classifier",
    "FeatureExtractor": "features.extractor",
    "LoadReport": "weights.report",
    "list_archs": "archs",
    "list_weights": "weights.catalogue",
    "load_features": "features.store",
    "load_weights": "weights.load",
}


def _register(_: object = None) -> None:
    try:
        import_module("mmengine.registry")
    except IMPORT_ERRORS as error:
        # A broken installation of OpenMMLab must not stop those who work without it, nor `doctor`.
        warnings.warn(
            "mmengine is installed but cannot be imported, so no config will find ConvNextBackbone "
            f"({first_line(error)}); `convnext-backbone doctor` prints how to repair it",
            stacklevel=4,
        )
        return
    from .openmmlab import register

    register()


def _register_if_installed() -> None:
    if find_spec("mmengine") is not None:
        _register()


# The backbone is in mmengine's registry as soon as both packages are imported, in either order, or
# a public name of this one is.
after_import("mmengine", _register)
__getattr__ = lazy_attributes(__name__, _MODULE_OF, before=_register_if_installed)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
