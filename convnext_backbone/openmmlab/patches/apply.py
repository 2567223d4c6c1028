"""Repairs of the published OpenMMLab packages for current torch, NumPy and setuptools.

Each repair waits for the module that it concerns, so `apply_compat` imports nothing of OpenMMLab
itself. No installed file is touched; where a package has repaired itself, as the onedl family has
in part, nothing is done.
"""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from .post_import import after_import


def _allow_checkpoint_types(history_buffer: ModuleType) -> None:
    # torch >= 2.6 refuses mmengine's own checkpoints. Goes when mmengine allow-lists its types
    # (onedl-mmengine does so only while it loads, and with the real `getattr` among them).
    from .mmengine_safe_globals import allow_mmengine_types

    allow_mmengine_types()


def _load_checkpoints_safely(checkpoint: ModuleType) -> None:
    # Both families can end in unsafe pickle, see the module. Goes when all their loaders pass
    # `weights_only=True`.
    from . import mmengine_loaders  # noqa: F401  (importing it registers the loaders)


def _find_packages_by_import(package_utils: ModuleType) -> None:
    # setuptools >= 81 has no `pkg_resources`, so `_base_ = 'mmdet::...'` fails with mmengine
    # 0.10.7; with onedl-mmengine 0.10.12 `mmseg::...` does, see the module. Goes with both.
    from .mmengine_packages import get_installed_path, is_installed, package2module

    for repaired in (is_installed, get_installed_path, package2module):
        _replace(getattr(package_utils, repaired.__name__), repaired)


def _wrap_hue_around(photometric: ModuleType) -> None:
    # `np.uint8(-25)` is an OverflowError since NumPy 2. Goes with mmcv-lite 2.1.0; onedl-mmcv
    # takes the number modulo 256 already.
    import numpy as np

    original = photometric.adjust_hue
    try:
        original(np.zeros((1, 1, 3), np.uint8), -0.25, backend="cv2")
    except OverflowError:
        from .mmcv_photometric import adjust_hue

        _replace(original, adjust_hue)


REPAIRS: Mapping[str, Callable[[ModuleType], None]] = MappingProxyType(
    {
        "mmengine.logging.history_buffer": _allow_checkpoint_types,
        "mmengine.runner.checkpoint": _load_checkpoints_safely,
        "mmengine.utils.package_utils": _find_packages_by_import,
        "mmcv.image.photometric": _wrap_hue_around,
    }
)
_applied: set[str] = set()


def apply_compat() -> None:
    """Arrange for every repair, once: now where its module is imported, else right after."""
    for name, repair in REPAIRS.items():
        if name not in _applied:
            _applied.add(name)
            after_import(name, repair)


def _replace(original: Any, repaired: Any) -> None:
    """Put `repaired` wherever the loaded modules of its package know `original` by its name."""
    package, name = original.__module__.partition(".")[0], original.__name__
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == package and vars(module).get(name) is original:
            setattr(module, name, repaired)
