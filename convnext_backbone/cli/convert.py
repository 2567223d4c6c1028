"""`convert`: write weights in another published layout."""

import argparse

from ..utils.commandline import printable
from .arguments import add_weights_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`."""
    from ..weights.export import POINTWISE, TARGETS

    add_weights_arguments(parser)
    parser.add_argument(
        "destination",
        metavar="DST",
        help="a .safetensors or .pth file; for huggingface a directory",
    )
    parser.add_argument("--to", required=True, choices=TARGETS, help="the layout to write")
    parser.add_argument(
        "--pointwise",
        choices=tuple(POINTWISE),
        help="pointwise layers as linear or 1x1 conv, of timm and mmpretrain "
        "(default: as timm's model)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the weights, and print what was written and what was left out."""
    from ..weights.export import convert_weights
    from ..weights.native import open_weights

    weights = open_weights(args.source, ema=args.ema, prefix=args.prefix)
    path = convert_weights(weights, args.destination, args.to, pointwise=args.pointwise)
    print(f"{weights.match} -> {args.to}: {len(weights.tensors)} tensors written to {path}")
    for note in weights.notes:
        print(printable(f"note: {note}"))
    if weights.converted.dropped:
        print(printable(f"dropped: {', '.join(weights.converted.dropped)}"))
