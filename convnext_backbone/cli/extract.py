"""`extract`: write the features of many images, by one process or by the workers of Ray."""

import argparse
import os
import sys
from typing import Any

from ..utils.checks import check_min
from .arguments import add_network_arguments, build_extractor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `extract`."""
    from ..features.engines import ENGINES
    from ..features.formats import FORMATS
    from ..features.options import POOLS

    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="SRC",
        help="folders, globs, image files, .tar files, or lists of paths: .txt, .csv, .parquet",
    )
    add("--out", required=True, metavar="DIR", help="the folder to write")
    add("--column", default="file", metavar="NAME", help="column of the paths (default: file)")
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
        help="what to do with unreadable images (default: skip, and name them in the table)",
    )
    defaults = ", ".join(f"{engine.format} with {name}" for name, engine in ENGINES.items())
    add("--format", choices=tuple(FORMATS), help=f"file format (default: {defaults})")
    add("--shard-images", type=int, metavar="N", help="images in a shard (default: 512)")
    add("--shard-mb", type=int, metavar="MB", help="size of a file (default: 256)")
    add("--quiet", action="store_true", help="show no progress")
    add = parser.add_argument_group("several processes or machines").add_argument
    add(
        "--engine",
        choices=tuple(ENGINES),
        default="local",
        help="ray: --workers is the number of its processes (default: local, one process)",
    )
    add("--address", metavar="A", help="address of a Ray cluster; auto finds a running one")
    add("--gpus-per-worker", type=float, metavar="G", help="GPUs per worker, fractions allowed")


def run(args: argparse.Namespace) -> None:
    """Write the features, and print what was written and which images could not be read."""
    from ..features.engines import ENGINES
    from ..features.extraction import extract_features
    from ..images.files import ImageList

    engine_options = _engine_options(args)
    shard_bytes = None if args.shard_mb is None else check_min("--shard-mb", args.shard_mb, 1) << 20
    images = ImageList(args.images, args.column)
    extractor = build_extractor(
        args,
        pool=args.pool,
        pad=not args.no_pad,
        channels_last=args.channels_last,
        on_error=args.on_error,
        **({"device": "cpu", "num_workers": None} if ENGINES[args.engine].has_workers else {}),
    )
    try:
        result = extract_features(
            extractor,
            images,
            args.out,
            engine=args.engine,
            format=args.format,
            shard_images=args.shard_images,
            shard_bytes=shard_bytes,
            progress=not args.quiet,
            **engine_options,
        )
    except KeyboardInterrupt:
        print(
            "stopped: finished shards are kept; rerun the same command to continue", file=sys.stderr
        )
        raise SystemExit(130) from None
    rate = f", {result.processed / result.seconds:.1f} images/s" if result.processed else ""
    print(
        f"{result.images} images, {result.failed} unreadable; {result.written} shards "
        f"written, {result.kept} kept{rate}: {args.out}"
    )
    for name, reason in sorted(result.failures.items()):
        shown = name if name.isprintable() else repr(name)
        print(f"unreadable: {shown}: {reason}", file=sys.stderr)
    more = result.failed - len(result.failures)
    if more:
        print(f"unreadable: {more} more: the rows with an error", file=sys.stderr)
    if not result.images:
        raise ValueError(f"none of the {result.failed} images could be read")


def _engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the engine's own options; ValueError for those of another."""
    from ..features.engines import ENGINES

    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ValueError(
            f"torchrun started {world_size} processes that would all do the same: instead of it, "
            f"run `convnext-backbone extract ... --engine ray --workers {world_size}`"
        )
    chosen, every = ENGINES[args.engine], {o for e in ENGINES.values() for o in e.options}
    given = {option: vars(args)[option] for option in every if vars(args)[option] is not None}
    own = {option: value for option, value in given.items() if option in chosen.options}
    # An engine without workers leaves --workers to the threads that decode.
    others = sorted(given.keys() - own.keys() - {"workers"})
    if others:
        flags = ", ".join("--" + option.replace("_", "-") for option in others)
        raise ValueError(f"{flags} cannot be used with --engine {args.engine}")
    if chosen.has_workers and args.device is not None:
        raise ValueError(
            f"--device {args.device} is for one process: with --engine {args.engine}, give "
            "--gpus-per-worker"
        )
    return own
