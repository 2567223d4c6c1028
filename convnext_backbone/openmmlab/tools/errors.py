"""Mistakes in what the user gave, and what OpenMMLab raises for them."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yaml import YAMLError

from ...utils.commandline import one_line

# What OpenMMLab's constructors raise for wrong arguments.
BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
)
# A config is a program: these are what its mistakes raise.
CONFIG_ERRORS = (*BUILD_ERRORS, ArithmeticError, NameError, RuntimeError, SyntaxError, YAMLError)


class UsageError(Exception):
    """A mistake in what the user gave: printed in one line, with exit code 2."""


def describe_error(error: BaseException) -> str:
    """Return an error's type, its message and the line that raised it, in one line."""
    text = f"{type(error).__name__}: {one_line(error)}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:  # a SyntaxError's text names its line
        return text
    return f"{text} [{Path(frames[-1].filename).name}:{frames[-1].lineno}]"


def check_count(name: str, value: Any) -> None:
    """Check that a setting is an integer of at least 1.

    Raises:
        UsageError: It is not; the message has its name.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be an integer of at least 1, got {value!r}")


def cannot_build(path: str, error: BaseException) -> UsageError:
    """Return the error for a config whose model, data or runner cannot be built."""
    return UsageError(f"config {path!r} cannot be built: {describe_error(error)}")


@contextmanager
def naming_config(path: str, options: Iterable[str] | None = None) -> Iterator[None]:
    """Turn what a setting of another kind than the checks expect raises into one line.

    Raises:
        UsageError: It names the config and the `options` that were typed.
    """
    try:
        yield
    except CONFIG_ERRORS as error:
        typed = f"; --cfg-options {', '.join(options)}" if options else ""
        raise UsageError(f"config {path!r}: {describe_error(error)}{typed}") from error
