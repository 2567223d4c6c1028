"""Where an OpenMMLab package lies, asked of the import system.

`_base_ = 'mmdet::...'`, `get_config` and `get_model` ask `mmengine.utils.package_utils`, which in
mmengine 0.10.7 asks `pkg_resources`, and in onedl-mmengine 0.10.12 does not know that the package
`mmsegmentation` may come as `onedl-mmsegmentation`. Names and meaning are mmengine's: a package is
named by its distribution (`mmsegmentation`) or by its module (`mmseg`).
"""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path


def is_installed(package: str) -> bool:
    """Whether there is a distribution or a module of this name."""
    try:
        distribution(package)
    except PackageNotFoundError:
        spec = find_spec(_module_by_name(package))
        return spec is not None and spec.origin is not None
    return True


def get_installed_path(package: str) -> str:
    """The directory of the module of this name, or of the first one of the distribution.

    Raises:
        PackageNotFoundError: If there is neither.
        RuntimeError: If the module is a namespace package, which has no one directory.
    """
    spec = find_spec(_module_by_name(package)) or find_spec(package2module(package))
    if spec is None:
        raise PackageNotFoundError(package)
    if spec.origin is None:
        raise RuntimeError(f"{package} is a namespace package, which has no single directory")
    return str(Path(spec.origin).parent)


def package2module(package: str) -> str:
    """The first module of a distribution.

    Raises:
        PackageNotFoundError: If there is no such distribution.
        ValueError: If it does not say what its modules are.
    """
    modules = (distribution(package).read_text("top_level.txt") or "").split()
    if not modules:
        raise ValueError(f"cannot infer the module name of {package}")
    return modules[0]


def _module_by_name(package: str) -> str:
    """The module that mmengine knows a package by, else the same name."""
    from mmengine.config.utils import MODULE2PACKAGE

    modules = {name: module for module, name in MODULE2PACKAGE.items()}
    return modules.get(package, package)
