"""The subcommands that work on images: extract, visualize, doctor and export."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..utils.checks import check_min

if TYPE_CHECKING:
    from pathlib import Path

    from ..features.extractor import FeatureExtractor

_WEIGHTS = "a file, a directory, a URL, a Hugging Face id or a name of list_weights()"
# The choices are spelt here, so that `--help` does not wait for torch's models.
_POOLS = ("avg", "max", "gem", "cls")
_METHODS = ("pca", "activation", "similarity")
_DTYPES = ("float32", "bfloat16", "float16")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what chooses the network, its features and how images are prepared for it."""
    parser.add_argument("--weights", required=True, metavar="W", help=_WEIGHTS)
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
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the computation")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode images")


def image_size(text: str) -> int | tuple[int, int] | str:
    """Read a --size.

    Raises:
        argparse.ArgumentTypeError: It is neither native, nor a side, nor HEIGHTxWIDTH.
    """
    sides = text.split("x")
    if text == "native":
        return text
    if len(sides) in (1, 2) and all(side.isdecimal() and int(side) > 0 for side in sides):
        return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
    raise argparse.ArgumentTypeError(f"must be native, a side or HEIGHTxWIDTH, got {text!r}")


def build_extractor(args: argparse.Namespace, **options: Any) -> "FeatureExtractor":
    """Build the extractor that the network arguments describe."""
    from ..features.extractor import FeatureExtractor

    mm = args.config is not None
    return FeatureExtractor(
        args.config if mm else args.weights,
        checkpoint=args.weights if mm else None,
        size=args.size,
        dtype=args.dtype,
        batch_size=args.batch_size,
        num_workers=args.workers,
        **{"device": args.device, "out_features": args.features, **options},
    )


# ------------------------------------------------------------------------------ extract


def add_extract(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `extract`."""
    parser.add_argument("images", nargs="+", metavar="SRC", help="folders, globs or image files")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    add_network_arguments(parser)
    parser.add_argument("--pool", choices=_POOLS, help="one vector an image (default: maps)")
    parser.add_argument(
        "--no-pad",
        action="store_true",
        help="drop pixels beyond the last whole stride instead of padding the image",
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="keep weights in channels-last memory too"
    )
    parser.add_argument(
        "--on-error",
        choices=("skip", "raise"),
        default="skip",
        help="about images that cannot be read (default: skip, and name them in the manifest)",
    )
    parser.add_argument("--shard-mb", type=int, default=256, metavar="MB", help="size of a shard")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def extract(args: argparse.Namespace) -> None:
    """Write the features of images; under torchrun, share the work."""
    from ..features.store import extract_features, name_images

    check_min("--shard-mb", args.shard_mb, 1)
    rank, world_size = _share()
    _, images = name_images(args.images)
    extractor = build_extractor(
        args,
        device=args.device or _device(world_size),
        pool=args.pool,
        pad=not args.no_pad,
        channels_last=args.channels_last,
        on_error=args.on_error,
    )
    try:
        done = extract_features(
            extractor,
            images,
            args.out,
            shard_bytes=args.shard_mb << 20,
            rank=rank,
            world_size=world_size,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        print("stopped: finished shards are kept, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    if rank != 0:
        return
    rate = f", {done.run / done.seconds:.1f} images/s" if done.run else ""
    print(
        f"{done.images} images, {len(done.failures)} unreadable; {done.written} shards written, "
        f"{done.kept} kept{rate}: {args.out}"
    )
    for name, reason in sorted(done.failures.items()):
        print(f"unreadable: {_printable(name)}: {reason}", file=sys.stderr)


def _share() -> tuple[int, int]:
    """Read from torchrun's variables which process this is, and of how many.

    Raises:
        ValueError: They name none.
    """
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    values = (rank or "0", world_size or "1")
    if all(value.isdecimal() for value in values):
        own, all_ = map(int, values)
        if own < all_ and (rank or all_ == 1):
            return own, all_
    raise ValueError(
        f"the variables RANK and WORLD_SIZE must be those of torchrun, or not be set, got {rank!r} "
        f"and {world_size!r}"
    )


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _device(world_size: int) -> str | None:
    import torch

    if world_size == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


# ------------------------------------------------------------------------------ visualize


def add_visualize(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `visualize`."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, folders or globs")
    add_network_arguments(parser)
    parser.set_defaults(size="native")
    parser.add_argument(
        "--method",
        nargs="+",
        choices=_METHODS,
        help="what to draw (default: pca and activation, and similarity where there is a point)",
    )
    parser.add_argument(
        "--point",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="where similarity looks from, in pixels of the image as the network sees it",
    )
    parser.add_argument("--out", default="features.png", metavar="PNG", help="the file to write")
    parser.add_argument(
        "--serve", action="store_true", help="open a page on this machine instead of writing a file"
    )
    parser.add_argument("--port", type=int, default=8000, help="of the page; 0 takes a free one")


def visualize(args: argparse.Namespace) -> None:
    """Draw the features of images into a PNG, or serve a page to look into them."""
    from pathlib import Path

    from ..images.sources import find_images
    from ..utils.files import atomic_write, errors_naming

    if not args.images and not args.serve:
        raise ValueError("give an image, or --serve")
    paths = [path for source in args.images for path in find_images(source)]
    # A norm over channels would give every pixel the same activation.
    extractor = build_extractor(args, out_features=args.features or "stages", norm=False)
    if args.serve:
        _serve(extractor, paths, args.port)
        return
    from ..features.pictures import visualize as draw

    methods = args.method or ["pca", "activation", *(["similarity"] if args.point else [])]
    point = None if args.point is None else (args.point[0], args.point[1])
    figure = draw(extractor, {path.name: path for path in paths}, methods, point)
    out = Path(args.out)
    with errors_naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as partial:
        figure.save(partial, "PNG")
    print(f"{len(paths)} images drawn by {', '.join(methods)}: {out}")


def _serve(extractor: "FeatureExtractor", paths: "Sequence[Path]", port: int) -> None:
    from ..features.server import HOST, Studio, make_server

    studio = Studio(extractor)
    for path in paths:
        studio.add_bytes(path.read_bytes(), path.name)
    with make_server(studio, port) as server:
        print(f"http://{HOST}:{server.server_port} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


# ------------------------------------------------------------------------------ doctor


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`: it has none."""


def doctor(args: argparse.Namespace) -> None:
    """Tell what is installed and whether it works; leave with status 1 where it does not."""
    from .doctor import PROBLEM, examine, report

    findings = examine()
    print(report(findings))
    if any(finding.state == PROBLEM for finding in findings):
        raise SystemExit(1)


# ------------------------------------------------------------------------------ export


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("weights", metavar="W", help=_WEIGHTS)
    parser.add_argument("out", metavar="OUT", help="the file to write: .onnx or .pt2")
    parser.add_argument("--to", choices=("onnx", "torch-export"), required=True)
    parser.add_argument(
        "--features",
        nargs="+",
        metavar="NAME",
        help="outputs of the backbone: stem, stage1, ... (default: the last stage)",
    )
    parser.add_argument(
        "--logits", action="store_true", help="export the classifier; its output is `logits`"
    )
    parser.add_argument("--opset", type=int, help="of ONNX, 18 to 23 (default: 18)")
    parser.add_argument(
        "--precision", choices=("float32", "float16"), help="of ONNX (default: float32)"
    )


def export(args: argparse.Namespace) -> None:
    """Write a network as a file that runs without this package, and check it."""
    from ..deploy.graph_export import export_onnx, export_program
    from ..models.backbone import ConvNextBackbone
    from ..models.classifier import ConvNextForImageClassification

    options = {"opset": args.opset, "precision": args.precision}
    options = {name: value for name, value in options.items() if value is not None}
    if args.logits and args.features:
        raise ValueError("a classifier has no choice of features: give --logits or --features")
    if args.to != "onnx" and options:
        raise ValueError(f"{', '.join('--' + name for name in options)} is for --to onnx")
    model: Any
    if args.logits:
        model = ConvNextForImageClassification.from_pretrained(args.weights)
    else:
        chosen = {} if args.features is None else {"out_features": args.features}
        model = ConvNextBackbone.from_pretrained(args.weights, **chosen)
    if args.to == "onnx":
        done = export_onnx(model, args.out, **options)
    else:
        done = export_program(model, args.out)
    sizes = ", ".join(f"{n}x{height}x{width}" for n, height, width in done.sizes)
    print(
        f"{done.path}: outputs {', '.join(done.outputs)}; batch, height and width are free; "
        f"off by at most {done.error:.1e} at {sizes}"
    )
