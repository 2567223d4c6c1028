"""Registration in mmengine, mmcv operations on torchvision, patches for current torch and NumPy.

Also what tools/train.py and tools/test.py run. The only part of the package that imports mmengine,
mmcv, mmdet and mmsegmentation.
"""

from typing import Any

from ..models.backbone import ConvNextBackbone
from .mmcv_ops.finder import install_mmcv_ext, mmcv_ops_provider
from .optim import register_optim
from .patches.apply import apply_compat

__all__ = ["apply_compat", "install_mmcv_ext", "mmcv_ops_provider", "register"]


def register() -> None:
    """Register what configs name in mmengine's root registries, which mmdet and mmseg both search.

    Also serves `mmcv._ext` and repairs the published packages.
    """
    from mmengine.registry import HOOKS, MODELS

    install_mmcv_ext()
    apply_compat()
    MODELS.register_module(module=ConvNextBackbone, force=True)  # calling twice is fine
    HOOKS.register_module("AtomicCheckpointHook", module=atomic_checkpoint_hook, force=True)
    register_optim()


def atomic_checkpoint_hook(**options: Any) -> Any:
    """Build the hook that `checkpoint_hook.py` describes; importing it takes a second."""
    from .checkpoint_hook import AtomicCheckpointHook

    return AtomicCheckpointHook(**options)
