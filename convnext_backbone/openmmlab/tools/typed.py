"""What the user typed in `--cfg-options`: a convenience may fill in around it, never change it."""

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import UsageError


class TypedOptions:
    """The settings of `--cfg-options`, by their dotted names.

    Args:
        options: The parsed options; a value that is a dict stands for the settings inside it.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._values = dict(_flatten(options or {}))

    def get(self, name: str) -> Any:
        """Return the typed value of exactly this setting, or None."""
        return self._values.get(name)

    def covers(self, name: str) -> bool:
        """Return whether this setting, one around it or one inside it was typed."""
        return any(
            name == typed or name.startswith(f"{typed}.") or typed.startswith(f"{name}.")
            for typed in self._values
        )

    def fill_in(
        self, part: Any, key: str, value: Any, *, where: str, option: str | None = None
    ) -> None:
        """Set `part[key]`, unless the user typed it; `where` is the name of `part` in the config.

        Raises:
            UsageError: The `option` that asks for this value was typed as well, and they disagree.
        """
        name = f"{where}.{key}"
        if not self.covers(name):
            part[key] = value
        elif option is not None and self.get(option) is not None and part.get(key) != value:
            raise UsageError(
                f"{name}={part.get(key)!r} contradicts {option}={self.get(option)!r}; give only one"
            )


def _flatten(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
