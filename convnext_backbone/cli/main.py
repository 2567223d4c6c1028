"""The command line, `convnext-backbone COMMAND`: a table of subcommands, each a few lines."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .._version import __version__
from ..utils.commandline import one_line
from . import commands

_ERRORS = (ValueError, TypeError, OSError, ImportError)


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        help: What it does, in one line.
        add_arguments: Adds its arguments to a parser.
        run: Does it; errors that are the user's are ValueError, TypeError, OSError or ImportError.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


# ------------------------------------------------------------------------------ convert, info


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a file, a directory, a URL, a Hugging Face id or a name of list_weights()",
    )
    parser.add_argument(
        "--ema", action="store_true", help="take the moving average where a file holds both"
    )
    parser.add_argument(
        "--prefix", help="the prefix of the keys, where a file holds several ConvNeXts"
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from ..weights.export import POINTWISE, TARGETS

    _add_source(parser)
    parser.add_argument(
        "destination",
        metavar="DST",
        help="a .safetensors or .pth file; for huggingface a directory",
    )
    parser.add_argument("--to", required=True, choices=TARGETS, help="the layout to write")
    parser.add_argument(
        "--pointwise",
        choices=tuple(POINTWISE),
        help="how timm or mmpretrain is to hold the pointwise layers (default: as timm's model)",
    )


def _convert(args: argparse.Namespace) -> None:
    from ..weights.export import convert_weights
    from ..weights.native import open_weights

    weights = open_weights(args.source, ema=args.ema, prefix=args.prefix)
    path = convert_weights(weights, args.destination, args.to, pointwise=args.pointwise)
    print(f"{weights.match} -> {args.to}: {len(weights.tensors)} tensors written to {path}")
    for note in weights.notes:
        print(f"note: {note}")
    if weights.converted.dropped:
        print(f"dropped: {', '.join(weights.converted.dropped)}")


def _info(args: argparse.Namespace) -> None:
    from ..weights.native import describe, open_weights

    print(describe(open_weights(args.source, ema=args.ema, prefix=args.prefix)))


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "convert": Command("write weights in another published layout", _add_convert, _convert),
        "info": Command(
            "show the layout, architecture, size and licence of weights", _add_source, _info
        ),
        "extract": Command(
            "write the features of many images", commands.add_extract, commands.extract
        ),
        "visualize": Command(
            "draw features, or look into them on a local page",
            commands.add_visualize,
            commands.visualize,
        ),
        "export": Command(
            "write a network as ONNX or as torch's exported program, and check it",
            commands.add_export,
            commands.export,
        ),
        "doctor": Command(
            "tell what is installed, whether it works, and what to type where it does not",
            commands.add_doctor,
            commands.doctor,
        ),
    }
)


# ------------------------------------------------------------------------------ the program


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="convnext-backbone", description="ConvNeXt backbones: weights, features, checks."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(
            subparsers.add_parser(name, help=command.help, description=command.help)
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 after one line on stderr about a bad input."""
    args = build_parser().parse_args(argv)
    try:
        with _warnings_as_lines(args.command):
            COMMANDS[args.command].run(args)
    except _ERRORS as error:
        print(f"convnext-backbone {args.command}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _warnings_as_lines(command: str) -> Iterator[None]:
    """Let a warning be one line, without the place in the code that it came from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"convnext-backbone {command}: warning: {one_line(message)}", file=sys.stderr)

    before = warnings.showwarning
    setattr(warnings, "showwarning", show)  # noqa: B010 - to mypy the module's functions are fixed
    try:
        yield
    finally:
        setattr(warnings, "showwarning", before)  # noqa: B010
