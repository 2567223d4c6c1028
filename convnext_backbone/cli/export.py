"""`export`: write a backbone or classifier alone as ONNX or an exported program of torch."""

import argparse
from pathlib import Path

from .arguments import WEIGHTS_HELP, add_limit_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    from ..deploy.graph_export import EXPORTERS
    from ..deploy.targets import SHORT_NAMES, TARGETS

    add = parser.add_argument
    add("weights", metavar="W", help=WEIGHTS_HELP)
    add("out", metavar="OUT", help="the file to write: .onnx or .pt2")
    add("--to", choices=tuple(EXPORTERS), required=True, help="format of the file")
    add(
        "--features",
        nargs="+",
        metavar="NAME",
        help="outputs of the backbone: stem, stage1, ... "
        "(default: as in the weights' config.json, else the last stage)",
    )
    add("--logits", action="store_true", help="write the classifier, with the output `logits`")
    add("--opset", type=int, help="version of ONNX's operators, 18 to 23 (default: 18)")
    precisions = (*TARGETS["onnx"].precisions, *SHORT_NAMES)
    add("--precision", choices=precisions, help="precision of the ONNX file (default: float32)")
    add_limit_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write and check the file, and print its outputs and its largest error."""
    from ..deploy.graph_export import EXPORTERS
    from ..models.backbone import ConvNextBackbone
    from ..models.classifier import ConvNextForImageClassification
    from ..utils.files import check_outputs, expand_path
    from ..weights.containers import WEIGHT_SUFFIXES

    args.out = expand_path(args.out, "OUT")
    read = (*WEIGHT_SUFFIXES, ".json")  # of a directory
    files = (path for path in Path(args.weights).glob("*") if path.suffix in read)
    check_outputs([args.out], [args.weights, *files])
    options = {"opset": args.opset, "precision": args.precision}
    options = {name: value for name, value in options.items() if value is not None}
    if args.weights.endswith(".py"):
        raise ValueError(
            f"{args.weights!r} is a config: a whole detector or segmentor is written by "
            "`convnext-backbone deploy CONFIG CHECKPOINT --out DIR`"
        )
    if args.logits and args.features:
        raise ValueError("a classifier has no choice of features: give --logits or --features")
    if args.to != "onnx" and options:
        raise ValueError(f"{', '.join('--' + name for name in options)} is for --to onnx")
    model: ConvNextBackbone | ConvNextForImageClassification
    if args.logits:
        model = ConvNextForImageClassification.from_pretrained(args.weights)
    else:
        outputs = {} if args.features is None else {"out_features": args.features}
        model = ConvNextBackbone.from_pretrained(args.weights, **outputs)
    result = EXPORTERS[args.to](model, args.out, **options)
    sizes = ", ".join(f"{n}x{height}x{width}" for n, height, width in result.sizes)
    print(
        f"{result.path}: outputs {', '.join(result.outputs)}; batch, height and width are free; "
        f"off by at most {result.error:.1e} at {sizes}"
    )
