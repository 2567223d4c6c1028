"""Run a function right after a module is imported, without importing it oneself.

Python has no hook for this (PEP 369 was rejected), so a finder in front of the others recognises
the awaited names, lets the others find the module, and wraps its loader for one execution.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Callback = Callable[[ModuleType], None]


def after_import(name: str, callback: Callback) -> None:
    """Call `callback(module)` once: now if module `name` is imported, else as soon as it is."""
    module = sys.modules.get(name)
    if module is not None:
        callback(module)
        return
    finder = next((f for f in sys.meta_path if isinstance(f, _AwaitingFinder)), None)
    if finder is None:
        finder = _AwaitingFinder()
        sys.meta_path.insert(0, finder)
    finder.awaited.setdefault(name, []).append(callback)


class _AwaitingFinder(MetaPathFinder):
    """Finds the awaited modules through the other finders."""

    def __init__(self) -> None:
        self.awaited: dict[str, list[Callback]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.awaited:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingLoader(spec.loader, self.awaited)
        return spec


class _CallingLoader(Loader):
    """Executes a module by its own loader, then calls what awaits it."""

    def __init__(self, loader: Loader, awaited: dict[str, list[Callback]]) -> None:
        self._loader = loader
        self._awaited = awaited

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module shows its own loader, as if nothing had stood in between.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        for callback in self._awaited.pop(module.__name__, []):
            callback(module)
