"""`deploy`: write a trained detector or segmentor as a folder that runs without PyTorch."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deploy`."""
    from ..deploy.folder import INPUT_DTYPES, PRECISIONS, TARGETS
    from ..deploy.onnx_file import SHORT_NAMES

    add = parser.add_argument
    add("config", metavar="CONFIG", help="the config of the training, mmdet's or mmsegmentation's")
    add("checkpoint", metavar="CHECKPOINT", help="the trained model")
    add("--out", required=True, metavar="DIR", help="the folder to write")
    add("--size", nargs=2, type=int, metavar=("H", "W"), help="fix the input's size")
    add("--batch", type=int, metavar="N", help="fix the batch")
    add("--input-dtype", choices=tuple(INPUT_DTYPES), default="float32", help="of the images")
    add("--probabilities", action="store_true", help="a segmentor returns probabilities as well")
    precisions = (*PRECISIONS, *SHORT_NAMES)
    add("--precision", choices=precisions, default="float32", help="of backbone and neck")
    add("--to", choices=tuple(TARGETS), default="onnx", help="openvino: its IR as well")
    add("--calibration", nargs="+", metavar="IMAGE", help="to quantize with, for int8")
    add("--images", nargs="+", metavar="IMAGE", help="to compare on (default: of the test set)")
    add("--no-check", action="store_true", help="do not compare with the trained model")
    add("--cfg-options", nargs="+", metavar="KEY=VALUE", help="change settings of the config")


def run(args: argparse.Namespace) -> None:
    """Write the folder, and print what was written and how far it agrees."""
    from ..deploy import DisagreementError, deploy_model
    from ..openmmlab.tools.arguments import read_options

    try:
        result = deploy_model(
            args.config,
            args.checkpoint,
            args.out,
            size=args.size,
            batch=args.batch,
            input_dtype=args.input_dtype,
            probabilities=args.probabilities,
            precision=args.precision,
            to=args.to,
            calibration=args.calibration,
            images=args.images,
            check=not args.no_check,
            options=read_options(args.cfg_options or ()),
        )
    except DisagreementError as error:
        raise ValueError(f"nothing was written: {error}") from error
    check = result.description["check"]
    print(f"{result.folder}: {', '.join(result.description['outputs'])}; check: {check}")
