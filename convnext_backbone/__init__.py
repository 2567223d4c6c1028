"""ConvNeXt backbones (V1, V2, DINOv3) for mmdet, mmsegmentation and plain PyTorch."""

from importlib.util import find_spec

from ._version import __version__
from .archs import list_archs
from .backbone import ConvNextBackbone
from .classifier import ConvNextForImageClassification, ConvNextModel
from .config import ConvNextConfig
from .feature_extractor import FeatureExtractor
from .feature_store import load_features
from .image_processor import ConvNextImageProcessor
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

if find_spec("mmengine") is not None:
    from .openmmlab import register

    register()
