"""Arguments that several commands share."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..features.extractor import FeatureExtractor

WEIGHTS_HELP = "a file, a directory, a URL, a Hugging Face id or a name of list_weights()"


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what chooses weights that are read without building a network."""
    parser.add_argument("source", metavar="SRC", help=WEIGHTS_HELP)
    parser.add_argument(
        "--ema", action="store_true", help="take the moving average where a file holds both"
    )
    parser.add_argument(
        "--prefix", help="the prefix of the keys, where a file holds several ConvNeXts"
    )


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what chooses the network, its features and how images are prepared for it."""
    from ..features.options import DTYPES

    parser.add_argument("--weights", required=True, metavar="W", help=WEIGHTS_HELP)
    parser.add_argument(
        "--config", metavar="CFG", help="the OpenMMLab config that belongs to the checkpoint W"
    )
    parser.add_argument(
        "--features",
        nargs="+",
        metavar="NAME",
        help="stem, stage1, stage2, ... (default: the last stage)",
    )
    parser.add_argument(
        "--size",
        type=image_size,
        metavar="SIZE",
        help="native, a side, or HEIGHTxWIDTH (default: as the weights were trained)",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="of the computation"
    )
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode images")


def image_size(text: str) -> int | tuple[int, int] | str:
    """Read a --size: "native", a side or HEIGHTxWIDTH."""
    sides = text.split("x")
    if text == "native":
        return text
    if len(sides) in (1, 2) and all(side.isdecimal() and int(side) > 0 for side in sides):
        return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
    raise argparse.ArgumentTypeError(f"must be native, a side or HEIGHTxWIDTH, got {text!r}")


def build_extractor(args: argparse.Namespace, **options: Any) -> "FeatureExtractor":
    """Build the extractor that the network arguments describe; `options` take precedence."""
    from ..features.extractor import FeatureExtractor

    has_config = args.config is not None
    return FeatureExtractor(
        args.config if has_config else args.weights,
        checkpoint=args.weights if has_config else None,
        size=args.size,
        dtype=args.dtype,
        batch_size=args.batch_size,
        num_workers=args.workers,
        **{"device": args.device, "out_features": args.features, **options},
    )
