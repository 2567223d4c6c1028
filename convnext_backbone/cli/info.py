"""`info`: print the layout, architecture, size and licence of weights."""

import argparse

from .arguments import add_weights_arguments as add_arguments

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    """Print what a source holds."""
    from ..weights.native import describe, open_weights

    print(describe(open_weights(args.source, ema=args.ema, prefix=args.prefix)))
