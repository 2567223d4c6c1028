"""What makes the backbone a citizen of mmengine, mmdet and mmsegmentation.

The only room of the package that imports an OpenMMLab package.
"""

from ..models.backbone import ConvNextBackbone
from .mmcv_ops.finder import install_mmcv_ext, mmcv_ops_provider
from .optim import register_optim
from .patches.apply import apply_compat

__all__ = ["apply_compat", "install_mmcv_ext", "mmcv_ops_provider", "register"]


def register() -> None:
    """Register the backbone in mmengine's root registry, which mmdet and mmseg both look into.

    Also makes the published packages work on a current stack: see `mmcv_ext` and `compat`.
    """
    from mmengine.registry import MODELS

    install_mmcv_ext()
    apply_compat()
    if MODELS.get("ConvNextBackbone") is None:
        MODELS.register_module(module=ConvNextBackbone)
    register_optim()
