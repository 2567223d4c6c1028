"""The work behind tools/train.py and tools/test.py: one pair of commands for mmdet and mmseg.

A user's mistake is printed in one line on stderr with exit code 2, where possible before anything
is built or written. Once the first iteration has started nothing is caught but Ctrl-C: a bug in
training shows its traceback.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from ...utils.commandline import EXIT_USAGE, print_error
from ...utils.files import DISK_FULL
from .arguments import test_parser, train_parser
from .checks.checkpoint import check_checkpoint, check_start, find_resumable, resume_keys
from .checks.options import check_folders
from .checks.report import Report
from .checks.table import run_checks
from .coco_file import forget_coco
from .config import NEEDED, load_config
from .errors import CONFIG_ERRORS, UsageError, cannot_build, naming_config
from .flags import (
    KEEP_PREDICTIONS,
    check_scope,
    enable_amp,
    enable_auto_scale_lr,
    enable_drawing,
    enable_tta,
    keep_full_precision,
    protect_checkpoints,
    set_run,
)
from .processes import is_main_process, leave_processes, prepare_processes, print_once, set_launcher
from .run_hook import RunHook
from .terminal import QUIET_RUNNERS, filter_log_noise
from .typed import TypedOptions

# Which data loaders and evaluators a command uses.
SPLITS: Mapping[str, Sequence[str]] = {"train": ("train", "val"), "test": ("test",)}
EXIT_INTERRUPTED = 130  # a shell's exit code of a program that SIGINT ended


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
    if args.launcher != "none":  # others, such as accelerate, take it for a distributed run
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    set_launcher(args.launcher)
    filter_log_noise()
    cfg = Config()
    try:
        with late_warnings():
            cfg = load_config(args.config, args.cfg_options, NEEDED[command], args.launcher)
            with naming_config(args.config, args.cfg_options):
                set_run(cfg, args)
                prepare(cfg, args)
                check_before_run(cfg, args, command)
            prepare_processes(cfg)
        hook = RunHook(cfg, partial=command == "train")
        with build_errors(args.config, hook):
            runner = build_runner(cfg)
            runner.register_hook(hook)
            getattr(runner, command)()
    except UsageError as error:
        if is_main_process():
            print_error(f"{command}.py", error)
        return EXIT_USAGE
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        if is_main_process():
            print_error(f"{command}.py", f"{error}: stopped{advise_to_resume(cfg, command)}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        if is_main_process():
            print(f"{command}.py: stopped{advise_to_resume(cfg, command)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        leave_processes()
    return 0


def check_before_run(cfg: Config, args: argparse.Namespace, command: str) -> None:
    """Check settings, and in the main process files, data and model; print what is odd.

    mmengine finds a missing image only when a worker opens it, and a wrong type only after the work
    directory and the log exist.

    Raises:
        UsageError: A check found a mistake.
    """
    report = Report(cfg, SPLITS[command], TypedOptions(args.cfg_options))
    run_checks(command, report, every=is_main_process() and not args.no_check)
    for warning in report.warnings:
        print_once(f"warning: {warning}")
    forget_coco()


def advise_to_resume(cfg: Config, command: str) -> str:
    """Return how a stopped run goes on, to follow the word "stopped"."""
    if command != "train":
        return ""
    newest = os.path.join(cfg.get("work_dir") or "", "last_checkpoint")
    if not os.path.isfile(newest):
        return " before the first checkpoint"
    with open(newest, encoding="utf-8") as stream:
        return f"; the same command with --resume goes on from {stream.read().strip()}"


@contextmanager
def late_warnings() -> Iterator[None]:
    """Show warnings only once all checks have passed: they would hide an error."""
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
        start_from_resumed(cfg, args.resume)
    check_folders(work_dir=cfg.work_dir)
    check_start(cfg, "--resume" if args.resume is not None and cfg.resume else "load_from")


def start_from_resumed(cfg: Config, resume: str) -> None:
    """Let `--resume` choose the checkpoint: a file, or of "auto" the newest of the work directory.

    Where nothing is saved yet, the run starts as it does without the flag: a job that may be
    stopped and started again has one command for both.
    """
    needed = resume_keys(cfg)
    path = find_resumable(Path(cfg.work_dir), "--resume", needed) if resume == "auto" else resume
    cfg.resume = path is not None
    if path is not None:
        cfg.load_from = path
    elif cfg.get("load_from"):
        print_once(f"--resume: {cfg.work_dir!r} has no checkpoint yet; load_from is used")


def prepare_testing(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the flags of tools/test.py to the config and check the checkpoint.

    Raises:
        UsageError: A flag does not fit the config, or the checkpoint is missing or unreadable.
    """
    check_checkpoint(args.checkpoint, "checkpoint")
    check_folders(work_dir=cfg.work_dir, show_dir=args.show_dir)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    if args.tta:
        check_scope(cfg, "--tta")
        enable_tta(cfg, args.config)
    if args.out is not None:
        check_scope(cfg, "--out")
        KEEP_PREDICTIONS[cfg.default_scope](cfg, args.out)


# --------------------------------------------------------------------------- the run


@contextmanager
def build_errors(path: str, hook: RunHook) -> Iterator[None]:
    """Turn errors of building into one line that names the config `path`.

    Raises:
        UsageError: Building failed, before the loop that `hook` watches has begun.
    """
    try:
        yield
    except CONFIG_ERRORS as error:
        if hook.started:
            raise
        raise cannot_build(path, error) from error


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """Build the runner that the config's `runner_type` names, by default mmengine's `Runner`."""
    quiet = QUIET_RUNNERS.get(cfg.get("runner_type", "Runner"))
    return RUNNERS.build(cfg) if quiet is None else quiet.from_cfg(cfg)
