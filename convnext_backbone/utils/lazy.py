"""Names of a package that are imported when they are first asked for (PEP 562).

The command line prints its help, its version and the catalogue without importing torch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_attributes(
    package: str, module_of: Mapping[str, str], before: Callable[[], None] = lambda: None
) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        package: Its `__name__`.
        module_of: The module, relative to the package, that defines each public name.
        before: Called before a public name is given out.
    """

    def getattr_of_package(name: str) -> Any:
        if name in module_of:
            before()
            value = getattr(import_module(f"{package}.{module_of[name]}"), name)
            vars(import_module(package))[name] = value  # the next access does not come here
            return value
        # `import a` followed by `a.b` finds the module b, as if the package had imported it.
        if not name.startswith("__") and find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)

    return getattr_of_package
