"""Arguments that several commands share."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..utils.checks import check_min

if TYPE_CHECKING:
    from ..features.extractor import FeatureExtractor

WEIGHTS_HELP = "a file, a directory, a URL, a Hugging Face id or a name of list_weights()"


def add_limit_arguments(parser: argparse.ArgumentParser, *, images: bool = False) -> None:
    """Add the limits on what a file may declare, for files that are trusted."""
    add = parser.add_argument
    text = "largest memory use of a weights file, as a multiple of its size (default: 100)"
    add("--max-inflation", type=int, metavar="RATIO", help=text)
    if images:
        text = "largest number of pixels of an image (default: 89478485, Pillow's)"
        add("--max-pixels", type=int, metavar="N", help=text)


@contextmanager
def allowed_limits(args: argparse.Namespace) -> Iterator[None]:
    """Apply `add_limit_arguments` for the time of a command."""
    if not hasattr(args, "max_inflation"):  # the doctor runs where nothing can be imported
        yield
        return
    from PIL import Image

    from ..weights.containers import file_limits

    ratio, pixels = (getattr(args, name, None) for name in ("max_inflation", "max_pixels"))
    before = Image.MAX_IMAGE_PIXELS
    if pixels is not None:
        Image.MAX_IMAGE_PIXELS = check_min("--max-pixels", pixels, 1)
    try:
        with file_limits(**({} if ratio is None else {"ratio": ratio})):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what chooses weights that are read without building a network."""
    add = parser.add_argument
    add("source", metavar="SRC", help=WEIGHTS_HELP)
    add("--ema", action="store_true", help="read the moving average where a file holds both")
    add("--prefix", help="the prefix of the keys, where a file holds several ConvNeXts")
    add_limit_arguments(parser)


def add_network_arguments(
    parser: argparse.ArgumentParser,
    *,
    features: str = "the last stage",
    size: str = "as the weights were trained",
) -> None:
    """Add what chooses the network, its features and how images are prepared for it.

    `features` and `size` are what the help names as their defaults.
    """
    from ..features.options import DTYPES

    add = parser.add_argument
    add("--weights", required=True, metavar="W", help=WEIGHTS_HELP)
    add("--config", metavar="CFG", help="the OpenMMLab config that belongs to the checkpoint W")
    add("--features", nargs="+", metavar="NAME", help=f"stem, stage1, ... (default: {features})")
    add(
        "--size",
        type=image_size,
        metavar="SIZE",
        help=f"native, a side, or HEIGHTxWIDTH (default: {size})",
    )
    add("--dtype", choices=tuple(DTYPES), default="float32", help="precision of the computation")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--batch-size", type=int, default=8, metavar="N", help="images per batch (default: 8)")
    add("--workers", type=int, metavar="N", help="threads that decode images")
    add_limit_arguments(parser, images=True)


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
    chosen = {"device": args.device, "out_features": args.features, "num_workers": args.workers}
    return FeatureExtractor(
        args.config if has_config else args.weights,
        checkpoint=args.weights if has_config else None,
        size=args.size,
        dtype=args.dtype,
        batch_size=args.batch_size,
        **(chosen | options),
    )
