"""`visualize`: draw the features of images, to a file or on a local page."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.checks import check_choice
from .arguments import add_network_arguments, build_extractor

if TYPE_CHECKING:
    from ..features.extractor import FeatureExtractor


# suffix of --out -> the format that Pillow writes
_FORMATS = {"": "PNG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_MAX_SIDES = {"PNG": 2**31 - 1, "JPEG": 65_500}  # in pixels, of libpng and libjpeg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `visualize`."""
    from ..features.pictures import METHODS

    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image files, folders or globs")
    add_network_arguments(parser, features="every stage", size="native")
    parser.set_defaults(size="native")
    add(
        "--method",
        nargs="+",
        choices=tuple(METHODS),
        help="what to draw (default: pca and activation, and similarity where there is a point)",
    )
    add(
        "--point",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="reference point of similarity, in pixels of the image as the network sees it",
    )
    add("--out", default="features.png", metavar="FILE", help="the .png or .jpg to write")
    add("--serve", action="store_true", help="serve a page on this machine instead of a file")
    add("--port", type=int, default=8000, help="port of the page; 0 takes a free one")


def run(args: argparse.Namespace) -> None:
    """Draw the images, or serve the page until it is stopped."""
    from ..features.server import MAX_SCENES
    from ..images.files import name_images
    from ..utils.files import expand_path

    if not args.images and not args.serve:
        raise ValueError("give an image, or --serve")
    # Names relative to the common folder: equal file names in two folders stay two images.
    images = name_images(args.images) if args.images else {}
    if args.serve and len(images) > MAX_SCENES:
        raise ValueError(f"--serve shows at most {MAX_SCENES} images, got {len(images)}")
    args.out = expand_path(args.out, "--out")
    suffix = Path(args.out).suffix.lower()
    check_choice("the suffix of --out", suffix, _FORMATS)
    # A norm over channels would give every pixel the same activation.
    extractor = build_extractor(args, out_features=args.features or "stages", norm=False)
    if args.serve:
        _serve(extractor, images, args.port)
    else:
        _draw(extractor, images, args, _FORMATS[suffix])


def _draw(
    extractor: "FeatureExtractor",
    images: Mapping[str, Path],
    args: argparse.Namespace,
    format: str,
) -> None:
    from ..features.pictures import visualize
    from ..utils.files import atomic_write, check_outputs, errors_naming

    check_outputs([args.out], [*images.values(), *filter(None, (args.weights, args.config))])
    methods = args.method or ["pca", "activation", *(["similarity"] if args.point else [])]
    point = None if args.point is None else (args.point[0], args.point[1])
    figure = visualize(extractor, images, methods, point)
    if max(figure.size) > _MAX_SIDES[format]:
        width, height = figure.size
        raise ValueError(
            f"--out {args.out!r}: a {format} has at most {_MAX_SIDES[format]} pixels a side, "
            f"got {width}x{height}: write a .png, or draw fewer images"
        )
    out = Path(args.out)
    with errors_naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as partial:
        figure.save(partial, format)
    print(f"{len(images)} images drawn by {', '.join(methods)}: {out}")


def _serve(extractor: "FeatureExtractor", images: Mapping[str, Path], port: int) -> None:
    from ..features.server import HOST, FeatureServer
    from ..utils.files import check_regular

    with FeatureServer(extractor, port) as server:
        for name, path in images.items():
            check_regular(path)
            server.add_bytes(path.read_bytes(), name)
        print(f"http://{HOST}:{server.server_port} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
