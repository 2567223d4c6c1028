"""Refusing parts of a model that are not reproduced."""

from collections.abc import Collection
from typing import Any


def check_part(where: str, part: Any, names: Collection[str]) -> None:
    """Check that the class of a part is among `names`.

    Args:
        where: Its name in the config.
        part: The part.
        names: Of the classes that are reproduced.

    Raises:
        ValueError: It is not; the message names both.
    """
    name = type(part).__name__
    if name not in names:
        raise ValueError(f"{where} {name!r} cannot be deployed, only {sorted(names)}")
