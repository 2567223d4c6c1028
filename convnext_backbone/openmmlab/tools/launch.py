"""The work behind tools/train.py and tools/test.py: one pair of commands for mmdet and mmseg.

The flags are those of OpenMMLab's own tools (mmdet 3.3.0 and mmseg 1.2.2, tools/train.py and
tools/test.py), which differ between the two packages in a few meanings; the default scope of the
config decides which applies. A user's mistake is printed in one line on stderr with exit code 2,
where possible before anything is built or written. Once the first iteration has started nothing is
caught: a bug in training shows its traceback.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ...utils.commandline import EXIT_USAGE, OneLineParser, print_error
from .checkpoint_checks import check_checkpoint, check_start
from .coco import forget_coco
from .config import NEEDED, load_config
from .errors import BUILD_ERRORS, UsageError, describe_error
from .flags import (
    ENABLE_TTA,
    KEEP_PREDICTIONS,
    enable_amp,
    enable_auto_scale_lr,
    enable_drawing,
    for_scope,
    keep_full_precision,
    protect_checkpoints,
    set_run,
)
from .preflight import check_run
from .processes import is_main_process, leave_processes, prepare_processes, print_once

# --------------------------------------------------------------------------- the command line


class ConfigOptions(DictAction):
    """mmengine's `key=value` pairs; one without `=` is a usage error, not a traceback."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Collect the pairs into a dict."""
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:
            raise argparse.ArgumentError(self, f"must be key=value pairs, got {values}") from error


def train_parser() -> argparse.ArgumentParser:
    """Build the parser of tools/train.py."""
    parser = OneLineParser(
        prog="train.py", description="Train a detector (mmdet) or a segmentor (mmseg)."
    )
    parser.add_argument("config", help="config file of the training")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    parser.add_argument(
        "--amp",
        action="store_true",
        help="mixed precision: bfloat16 where the GPU has it, else float16 with loss scaling, "
        "and full precision where there is no GPU",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the total batch size",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="go on from this checkpoint, or without a value from the newest in the work dir",
    )
    add_shared_arguments(parser)
    return parser


def test_parser() -> argparse.ArgumentParser:
    """Build the parser of tools/test.py."""
    parser = OneLineParser(
        prog="test.py", description="Evaluate a detector (mmdet) or a segmentor (mmseg)."
    )
    parser.add_argument("config", help="config file of the test")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--work-dir", help="folder for the log and the metrics")
    parser.add_argument(
        "--out",
        help="detector: pickle file (.pkl, .pickle) to dump the predictions to; "
        "segmentor: folder to write the predicted label maps to",
    )
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument(
        "--show-dir",
        help="folder for pictures of the predictions; of a detector below WORK_DIR/TIMESTAMP "
        "unless absolute, of a segmentor in SHOW_DIR/vis_data/vis_image",
    )
    parser.add_argument(
        "--wait-time", type=float, default=2, help="how long to show each image, in seconds"
    )
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    add_shared_arguments(parser)
    return parser


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help='override settings of the config; lists as key="[a,b]" or key=a,b, nested ones as '
        'key="[(a,b),(c,d)]", without spaces',
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not check data, files and model before the run; tools/check_data.py does it alone",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="what started the processes of a distributed run",
    )
    # torch.distributed.launch passes the second spelling since torch 2.0.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


# --------------------------------------------------------------------------- the two commands


def train(argv: Sequence[str] | None = None) -> int:
    """Run tools/train.py; return 0, or 2 for a mistake in what the user gave."""
    return _run(train_parser().parse_args(argv), "train", prepare_training)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Run tools/test.py; see `train`."""
    return _run(test_parser().parse_args(argv), "test", prepare_testing)


def _run(
    args: argparse.Namespace,
    command: str,
    prepare: Callable[[Config, argparse.Namespace], None],
) -> int:
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        with late_warnings():
            cfg = load_config(args.config, args.cfg_options, NEEDED[command])
            set_run(cfg, args)
            prepare(cfg, args)
            check_before_run(cfg, args, command)
            prepare_processes(cfg)
        with build_errors(args.config) as started:
            runner = build_runner(cfg)
            runner.register_hook(started)
            getattr(runner, command)()
    except UsageError as error:
        if is_main_process():
            print_error(f"{command}.py", error)
        return EXIT_USAGE
    finally:
        leave_processes()
    return 0


def check_before_run(cfg: Config, args: argparse.Namespace, command: str) -> None:
    """Check files, data and model in the main process, and print what is odd.

    Raises:
        UsageError: A check found a mistake.
    """
    if is_main_process() and not args.no_check:
        for warning in check_run(cfg, command):
            print_once(f"warning: {warning}")
    forget_coco()


@contextmanager
def late_warnings() -> Iterator[None]:
    """Show warnings only once all checks have passed: beside an error, they would hide it."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def prepare_training(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the flags of tools/train.py to the config and check what it starts from.

    Raises:
        UsageError: A flag does not fit the config, or the checkpoint is missing or unreadable.
    """
    if args.amp:
        enable_amp(cfg)
    keep_full_precision(cfg)
    protect_checkpoints(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg, args.config)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    check_start(cfg, "--resume" if args.resume is not None else "load_from")


def prepare_testing(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the flags of tools/test.py to the config and check the checkpoint.

    Raises:
        UsageError: A flag does not fit the config, or the checkpoint is missing or unreadable.
    """
    check_checkpoint(args.checkpoint, "checkpoint")
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    if args.tta:
        for_scope(ENABLE_TTA, cfg, "--tta")(cfg, args.config)
    if args.out is not None:
        for_scope(KEEP_PREDICTIONS, cfg, "--out")(cfg, args.out)


# --------------------------------------------------------------------------- the run


class StartedFlag(Hook):
    """Records whether the first iteration has begun: until then, an error is the config's."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.value = False

    def before_train(self, runner: Runner) -> None:
        """Record that training begins."""
        self.value = True

    def before_test(self, runner: Runner) -> None:
        """Record that testing begins."""
        self.value = True


@contextmanager
def build_errors(path: str) -> Iterator[StartedFlag]:
    """Turn errors of building into one line that names the config `path`.

    Yields the hook to register: once the loop has begun, errors pass through.

    Raises:
        UsageError: Building failed.
    """
    started = StartedFlag()
    try:
        yield started
    except BUILD_ERRORS as error:
        if started.value:
            raise
        raise UsageError(f"config {path!r} cannot be built: {describe_error(error)}") from error


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's runner, or the one that the config's `runner_type` names."""
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
