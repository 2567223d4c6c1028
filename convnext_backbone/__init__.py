"""ConvNeXt backbones (V1, V2, DINOv3) for mmdet, mmsegmentation and plain PyTorch."""

import warnings
from importlib import import_module
from importlib.util import find_spec

from ._version import __version__
from .archs import list_archs
from .features.extractor import FeatureExtractor
from .features.store import load_features
from .images.processor import ConvNextImageProcessor
from .models.backbone import ConvNextBackbone
from .models.classifier import ConvNextForImageClassification, ConvNextModel
from .models.config import ConvNextConfig
from .utils.checks import IMPORT_ERRORS, first_line
from .weights import LoadReport, list_weights, load_weights

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


def _register() -> None:
    try:
        import_module("mmengine.registry")
    except IMPORT_ERRORS as error:
        # A broken installation of OpenMMLab must not stop those who work without it, nor `doctor`.
        warnings.warn(
            "mmengine is installed but cannot be imported, so no config will find ConvNextBackbone "
            f"({first_line(error)}); `convnext-backbone doctor` prints how to repair it",
            stacklevel=3,
        )
        return
    from .openmmlab import register

    register()


if find_spec("mmengine") is not None:
    _register()
