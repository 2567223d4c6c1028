"""`predict`: run a trained detector or segmentor on images."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="FILE",
        help="in this order: the config (default: the one that the run left beside the "
        "checkpoint), the checkpoint, and image files, folders or globs",
    )
    add("--out", required=True, metavar="DIR", help="the folder to write")
    add("--score", type=float, default=0.3, help="lowest score of an object (default: 0.3)")
    add("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    add(
        "--on-error",
        choices=("skip", "raise"),
        default="skip",
        help="what to do with images that fail (default: skip, and list them)",
    )
    add("--no-pictures", action="store_true", help="write json or label maps only")
    add("--cfg-options", nargs="+", default=(), metavar="KEY=VALUE", help="override the config")


def run(args: argparse.Namespace) -> None:
    """Predict, and print what was written and which images failed."""
    from ..openmmlab.tools.errors import UsageError
    from ..openmmlab.tools.predict import predict_files

    try:
        count, failures = predict_files(
            args.inputs,
            args.out,
            score=args.score,
            on_error=args.on_error,
            device=args.device,
            pictures=not args.no_pictures,
            options=args.cfg_options,
        )
    except UsageError as error:
        raise ValueError(str(error)) from error
    print(f"{count} images predicted, {len(failures)} failed: {args.out}")
    for name, reason in failures.items():
        print(f"failed: {name!r}: {reason}", file=sys.stderr)
    if not count:
        raise ValueError(f"none of the {len(failures)} images could be predicted")
