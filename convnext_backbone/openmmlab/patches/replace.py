"""Put a repaired function in the place of a package's own."""

import sys
from typing import Any


def replace_function(original: Any, repaired: Any) -> None:
    """Replace `original` in every loaded module of its package that imported it by its name."""
    package, name = original.__module__.partition(".")[0], original.__name__
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == package and vars(module).get(name) is original:
            setattr(module, name, repaired)
