"""`mmcv._ext` without a compiler.

mmdet and mmseg import mmcv's compiled module `mmcv._ext`, which no wheel provides for a current
torch. `install_mmcv_ext` appends a finder to `sys.meta_path` that serves a module of that name
whose functions are those of `table.OPS`. The import system finds a compiled extension first, so it
always wins.

Importing this module imports neither mmcv nor torchvision; that waits for `import mmcv._ext`.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Any, Literal, NoReturn

from .missing import MissingMmcvOpError

_NAME = "mmcv._ext"


class _MmcvExtLoader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        from .table import OPS

        vars(module).update(OPS)
        vars(module)["__getattr__"] = _missing_op


class MmcvExtFinder(MetaPathFinder):
    """Finds `mmcv._ext` and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of `mmcv._ext`, and None for any other name."""
        if fullname != _NAME:
            return None
        return spec_from_loader(fullname, _MmcvExtLoader(), origin="convnext_backbone")


def _missing_op(name: str) -> Callable[..., NoReturn]:
    """Return a function that raises: mmcv looks up every operation when it is imported."""
    if name.startswith("_"):
        raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")

    def call(*args: Any, **kwargs: Any) -> NoReturn:
        raise MissingMmcvOpError(name)

    call.__name__ = name
    return call


def install_mmcv_ext() -> None:
    """Serve `mmcv._ext` where no compiled one is found. Calling it again does nothing."""
    if not _is_installed():
        sys.meta_path.append(MmcvExtFinder())


def mmcv_ops_provider() -> Literal["compiled", "torchvision", "absent"]:
    """Return who provides `mmcv._ext`, without importing mmcv.

    It is "absent" where there is no mmcv or `install_mmcv_ext` was not called.
    """
    loaded = sys.modules.get(_NAME)
    if loaded is not None:
        own = isinstance(getattr(loaded.__spec__, "loader", None), _MmcvExtLoader)
        return "torchvision" if own else "compiled"
    parent = find_spec("mmcv")
    if parent is None:
        return "absent"
    if PathFinder.find_spec(_NAME, parent.submodule_search_locations) is not None:
        return "compiled"
    return "torchvision" if _is_installed() else "absent"


def _is_installed() -> bool:
    return any(isinstance(finder, MmcvExtFinder) for finder in sys.meta_path)
