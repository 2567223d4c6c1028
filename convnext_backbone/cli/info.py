"""`info`: print the layout, architecture, size and licence of weights.

A name of the catalogue is answered from the catalogue: nothing is fetched.
"""

import argparse
from pathlib import Path

from ..utils.commandline import printable
from .arguments import add_weights_arguments as add_arguments

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    """Print what a source holds."""
    from ..weights.catalogue import WEIGHTS
    from ..weights.native import describe, open_weights

    if args.source in WEIGHTS and not Path(args.source).exists():
        print(WEIGHTS[args.source].describe())
    else:
        text = describe(open_weights(args.source, ema=args.ema, prefix=args.prefix))
        print("\n".join(map(printable, text.split("\n"))))
