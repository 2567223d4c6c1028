"""`extract`: write the features of many images, by one process or by the workers of Ray."""

import argparse
import os
import sys
from typing import Any

from ..utils.checks import check_min
from .arguments import add_network_arguments, build_extractor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `extract`."""
    from ..features.extraction import ENGINES
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
    add("--column", default="file", metavar="NAME", help="of the paths in a .csv or .parquet list")
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
        help="about images that cannot be read (default: skip, and name them in the table)",
    )
    add(
        "--format",
        choices=tuple(FORMATS),
        help="of the files (default: safetensors, with Ray parquet)",
    )
    add("--shard-images", type=int, metavar="N", help="images in a shard (default: 512)")
    add("--shard-mb", type=int, metavar="MB", help="size of a file (default: 256)")
    add("--quiet", action="store_true", help="show no progress")
    group = parser.add_argument_group("several processes or machines")
    group.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        default="local",
        help="ray: --workers is the number of its processes (default: local, one process)",
    )
    group.add_argument("--address", metavar="A", help="of a Ray cluster; auto finds a running one")
    group.add_argument("--gpus-per-worker", type=float, metavar="G", help="may be a share of one")


def run(args: argparse.Namespace) -> None:
    """Write the features, and print what was written and which images could not be read."""
    from ..features.extraction import extract_features
    from ..images.lists import ImageList

    engine_options = _engine_options(args)
    shard_bytes = None if args.shard_mb is None else check_min("--shard-mb", args.shard_mb, 1) << 20
    images = ImageList(args.images, args.column)
    extractor = build_extractor(
        args,
        pool=args.pool,
        pad=not args.no_pad,
        channels_last=args.channels_last,
        on_error=args.on_error,
        **({"device": "cpu", "num_workers": None} if args.engine == "ray" else {}),
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
        print("stopped: finished shards are kept, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    rate = f", {result.processed / result.seconds:.1f} images/s" if result.processed else ""
    print(
        f"{result.images} images, {result.failed} unreadable; {result.written} shards "
        f"written, {result.kept} kept{rate}: {args.out}"
    )
    for name, reason in sorted(result.failures.items()):
        shown = name if name.isprintable() else repr(name)
        print(f"unreadable: {shown}: {reason}", file=sys.stderr)
    if result.failed > len(result.failures):
        more = result.failed - len(result.failures)
        print(f"unreadable: {more} more: the rows with an error", file=sys.stderr)
    if not result.images:
        raise ValueError(f"none of the {result.failed} images could be read")


def _engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the engine's own options; ValueError for those of another."""
    own = {"address": args.address, "gpus_per_worker": args.gpus_per_worker}
    own = {name: value for name, value in own.items() if value is not None}
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ValueError(
            f"torchrun started {world_size} processes that would all do the same: instead of it, "
            f"run `convnext-backbone extract ... --engine ray --workers {world_size}`"
        )
    if args.engine == "local":
        if own:
            given = ", ".join("--" + name.replace("_", "-") for name in own)
            raise ValueError(f"{given}: options of --engine ray, got --engine local")
        return {}
    if args.device is not None:
        raise ValueError(
            f"--device {args.device} is for one process: with --engine ray, give --gpus-per-worker"
        )
    return own if args.workers is None else {**own, "workers": args.workers}
