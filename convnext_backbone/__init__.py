"""ConvNeXt backbones (V1, V2, DINOv3) for mmdet, mmsegmentation and plain PyTorch."""

from importlib.util import find_spec

from ._version import __version__
from .archs import list_archs
from .backbone import ConvNextBackbone
from .config import ConvNextConfig

__all__ = ["ConvNextBackbone", "ConvNextConfig", "__version__", "list_archs"]

if find_spec("mmengine") is not None:
    from .openmmlab import register

    register()
