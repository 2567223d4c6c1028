"""`list`: list the public weights, without fetching any."""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `list`."""
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="a shell pattern or a part of the names, arch.tag (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print all that is known of each")


def run(args: argparse.Namespace) -> None:
    """Print a line for each weight, or a JSON list."""
    from ..weights.catalogue import list_weights, suggest

    found = list_weights(args.pattern)
    if not found:
        raise ValueError(f"no weights match {args.pattern!r}{suggest(args.pattern)}")
    if args.json:
        print(json.dumps([entry.to_dict() for entry in found], indent=2))
        return
    width = max(map(len, found))
    print(f"{'tag':<{width}}  parameters  top-1  input  licence")
    for entry in found:
        millions = f"{entry.parameters / 1e6:.1f} M"
        top1 = "" if entry.top1 is None else f"{entry.top1:.1f}"
        licence = entry.licence + ", gated" * entry.gated
        print(f"{entry:<{width}}  {millions:>10}  {top1:>5}  {entry.input_size:>5}  {licence}")
