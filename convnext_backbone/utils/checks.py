"""Checks of arguments that many constructors share, and texts of errors and long lists."""

import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

# What importing packages that do not fit together has been seen to raise.
IMPORT_ERRORS = (
    *(ImportError, AssertionError, AttributeError, NameError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def shorten_list(names: Sequence[str], most: int = 5) -> str:
    """List the first names, and count the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def did_you_mean(value: Any, choices: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the choice that is spelt most like `value`, or ""."""
    close = get_close_matches(value, list(choices), n=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""


@contextmanager
def errors_about(source: object, kept: type[ValueError] = ValueError) -> Iterator[None]:
    """Make a ValueError, or a TypeError, of what a source holds a ValueError that names it.

    An error of the class `kept` stays one.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = kept if isinstance(error, kept) else ValueError
        raise kind(f"{source}: {error}") from error


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is not among the choices, with a ValueError."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")


def as_int(value: Any) -> int | None:
    """Return an integer of Python, NumPy or torch as Python's; None where it is none, or a bool."""
    try:
        # To NumPy 2.2, its bool is an integer, with a warning.
        is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"
        return None if is_bool else operator.index(value)
    except TypeError:
        return None


def check_min(name: str, value: Any, least: int) -> int:
    """Return an integer that is not below `least`; ValueError where it is, or is no integer."""
    integer = as_int(value)
    if integer is None or integer < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return integer
