"""`extract`: write the features of many images."""

import argparse
import os
import sys

from ..utils.checks import check_min
from .arguments import add_network_arguments, build_extractor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `extract`."""
    from ..features.pooling import POOLS

    add = parser.add_argument
    add("images", nargs="+", metavar="SRC", help="folders, globs or image files")
    add("--out", required=True, metavar="DIR", help="the folder to write")
    add_network_arguments(parser)
    add("--pool", choices=(*POOLS, "cls"), help="one vector an image (default: maps)")
    add(
        "--no-pad",
        action="store_true",
        help="drop pixels beyond the last whole stride instead of padding the image",
    )
    add("--channels-last", action="store_true", help="keep weights in channels-last memory too")
    add(
        "--on-error",
        choices=("skip", "raise"),
        default="skip",
        help="about images that cannot be read (default: skip, and name them in the manifest)",
    )
    add("--shard-mb", type=int, default=256, metavar="MB", help="size of a shard")
    add("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> None:
    """Write the features, and print what was written and which images could not be read."""
    from ..features.store import extract_features
    from ..images.sources import name_images

    check_min("--shard-mb", args.shard_mb, 1)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("extract runs as one process, torchrun started several: run it without")
    _, images = name_images(args.images)
    extractor = build_extractor(
        args,
        pool=args.pool,
        pad=not args.no_pad,
        channels_last=args.channels_last,
        on_error=args.on_error,
    )
    try:
        result = extract_features(
            extractor,
            images,
            args.out,
            shard_bytes=args.shard_mb << 20,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        print("stopped: finished shards are kept, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    rate = f", {result.processed / result.seconds:.1f} images/s" if result.processed else ""
    print(
        f"{result.images} images, {len(result.failures)} unreadable; {result.written} shards "
        f"written, {result.kept} kept{rate}: {args.out}"
    )
    for name, reason in sorted(result.failures.items()):
        shown = name if name.isprintable() else repr(name)
        print(f"unreadable: {shown}: {reason}", file=sys.stderr)
