"""`deploy`: write a whole detector or segmentor as a folder that runs without PyTorch."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deploy`."""
    from ..deploy.folder import INPUT_DTYPES
    from ..deploy.targets import PRECISIONS, SHORT_NAMES, TARGETS

    add = parser.add_argument
    add("config", metavar="CONFIG", help="the config of the training, mmdet's or mmsegmentation's")
    add("checkpoint", metavar="CHECKPOINT", help="the trained model")
    add("--out", required=True, metavar="DIR", help="the folder to write")
    add("--size", nargs=2, type=int, metavar=("H", "W"), help="fixed input size (default: any)")
    add("--batch", type=int, metavar="N", help="fixed number of images (default: any)")
    add("--input-dtype", choices=tuple(INPUT_DTYPES), default="float32", help="dtype of the input")
    add("--probabilities", action="store_true", help="also return a segmentor's probabilities")
    precisions = (*PRECISIONS, *SHORT_NAMES)
    add("--precision", choices=precisions, default="float32", help="precision of backbone and neck")
    add("--to", choices=tuple(TARGETS), default="onnx", help="openvino: also write and run its IR")
    add("--calibration", nargs="+", metavar="IMAGE", help="images to quantize with, for int8")
    add("--images", nargs="+", metavar="IMAGE", help="images to compare (default: the test set's)")
    add("--no-check", action="store_true", help="skip the comparison with the trained model")
    add("--cfg-options", nargs="+", metavar="KEY=VALUE", help="changes to the config")


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
