"""The command line, `convnext-backbone COMMAND`: the table of commands, and how one is run.

A new command is one module with `add_arguments` and `run`, named in `COMMANDS`. The modules import
the library inside these two functions.
"""

import argparse
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

from .._version import __version__
from ..utils.commandline import OneLineParser, one_line, print_error
from . import convert, deploy, doctor, export, extract, info, list, predict, visualize
from .arguments import allowed_limits

PROGRAM = "convnext-backbone"
# Errors of the user's making, reported in one line; any other is a fault of this package and keeps
# its traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError)


# A module's docstring, "`name`: what it does", is the help of its command.
COMMANDS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (convert, list, info, extract, visualize, predict, export, deploy, doctor)
}


def build_parser(argv: Collection[str]) -> argparse.ArgumentParser:
    """Return the parser of a command line.

    Commands that `argv` does not name get no arguments, which would import the library.
    """
    parser = OneLineParser(
        prog=PROGRAM, description="ConvNeXt backbones: weights, features, prediction, deployment."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        text = (command.__doc__ or "").splitlines()[0].partition(": ")[2].rstrip(".")
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name in argv:
            command.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 after one line on stderr about a bad input."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv).parse_args(argv)
    program = f"{PROGRAM} {args.command}"
    try:
        with _warnings_as_lines(program), allowed_limits(args):
            COMMANDS[args.command].run(args)
    except _USER_ERRORS as error:
        return print_error(program, error)
    return 0


@contextmanager
def _warnings_as_lines(program: str) -> Iterator[None]:
    """Print each warning in one line, without the place in the code that it came from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if type(message).__name__ == "DecompressionBombWarning":  # an error follows
            return
        print(f"{program}: warning: {one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():  # restores the function
        setattr(warnings, "showwarning", show)  # noqa: B010 - to mypy, a module's functions are fixed
        yield
