"""Mistakes in what the user gave, and what OpenMMLab raises for them."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def naming_config(path: str, options: Iterable[str] | None = None) -> Iterator[None]:
    """Turn what a setting of another kind than the checks expect raises into one line.

    Args:
        path: The config.
        options: The names of what was typed in `--cfg-options`.

    Raises:
        UsageError: It names the config and what was typed.
    """
    try:
        yield
    except CONFIG_ERRORS as error:
        typed = f"; --cfg-options {', '.join(options)}" if options else ""
        raise UsageError(f"config {path!r}: {describe_error(error)}{typed}") from error
