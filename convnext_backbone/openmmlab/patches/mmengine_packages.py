"""Where an OpenMMLab package is installed, by the import system.

`_base_ = 'mmdet::...'`, `get_config` and `get_model` call `mmengine.utils.package_utils`, which in
mmengine 0.10.7 needs `pkg_resources` (setuptools >= 81 has none), and in onedl-mmengine 0.10.12
does not find the package `mmsegmentation` when it comes as `onedl-mmsegmentation`. Names and
meaning are mmengine's: a package is named by its distribution (`mmsegmentation`) or by its module
(`mmseg`). Goes with these two releases.
"""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from .replace import replace_function


def repair(package_utils: ModuleType) -> None:
    """Replace the functions of `mmengine.utils.package_utils`."""
    for repaired in (is_installed, get_installed_path, package2module):
        replace_function(getattr(package_utils, repaired.__name__), repaired)


def is_installed(package: str) -> bool:
    """Return whether there is a distribution or a module of this name."""
    try:
        distribution(package)
    except PackageNotFoundError:
        spec = find_spec(_module_by_name(package))
        return spec is not None and spec.origin is not None
    return True


def get_installed_path(package: str) -> str:
    """Return the directory of the module of this name, or of the distribution's first module."""
    spec = find_spec(_module_by_name(package)) or find_spec(package2module(package))
    if spec is None:
        raise PackageNotFoundError(package)
    if spec.origin is None:
        raise RuntimeError(f"{package} is a namespace package, which has no single directory")
    return str(Path(spec.origin).parent)


def package2module(package: str) -> str:
    """Return the first module of a distribution."""
    modules = (distribution(package).read_text("top_level.txt") or "").split()
    if not modules:
        raise ValueError(f"cannot infer the module name of {package}")
    return modules[0]


def _module_by_name(package: str) -> str:
    """Return the module that mmengine's table gives for a package, else the same name."""
    from mmengine.config.utils import MODULE2PACKAGE

    modules = {name: module for module, name in MODULE2PACKAGE.items()}
    return modules.get(package, package)
