"""The command line, `convnext-backbone COMMAND`: the table of commands, and how one is run.

A new command is one module with `add_arguments` and `run`, and one row of `COMMANDS`. The modules
import the library inside these two functions.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .._version import __version__
from ..utils.commandline import OneLineParser, one_line, print_error
from . import convert, doctor, export, extract, info, visualize

PROGRAM = "convnext-backbone"
# Errors of the user's making; any other is a fault of this package and keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError)


@dataclass(frozen=True)
class Command:
    """One subcommand; `_USER_ERRORS` of its `run` are reported in one line."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


COMMANDS = {
    "convert": Command(
        "write weights in another published layout", convert.add_arguments, convert.run
    ),
    "info": Command(
        "show the layout, architecture, size and licence of weights", info.add_arguments, info.run
    ),
    "extract": Command("write the features of many images", extract.add_arguments, extract.run),
    "visualize": Command(
        "draw features, or look into them on a local page", visualize.add_arguments, visualize.run
    ),
    "export": Command(
        "write a network as ONNX or as torch's exported program, and check it",
        export.add_arguments,
        export.run,
    ),
    "doctor": Command(
        "report what is installed, whether it works, and what to type where it does not",
        doctor.add_arguments,
        doctor.run,
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = OneLineParser(
        prog=PROGRAM, description="ConvNeXt backbones: weights, features, checks."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        command.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 after one line on stderr about a bad input."""
    args = build_parser().parse_args(argv)
    program = f"{PROGRAM} {args.command}"
    try:
        with _warnings_as_lines(program):
            COMMANDS[args.command].run(args)
    except _USER_ERRORS as error:
        return print_error(program, error)
    return 0


@contextmanager
def _warnings_as_lines(program: str) -> Iterator[None]:
    """Print each warning in one line, without the place in the code that it came from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"{program}: warning: {one_line(message)}", file=sys.stderr)

    before = warnings.showwarning
    setattr(warnings, "showwarning", show)  # noqa: B010 - mypy takes a module's functions as fixed
    try:
        yield
    finally:
        setattr(warnings, "showwarning", before)  # noqa: B010
