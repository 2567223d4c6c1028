"""The work behind tools/train.py and tools/test.py: one pair of commands for mmdet and mmseg.

The flags are those of OpenMMLab's own tools (mmdet 3.3.0 and mmseg 1.2.2, tools/train.py and
tools/test.py), which differ between the two packages in a few meanings; the default scope of the
config decides which applies. A user's mistake is told in one line on stderr with exit code 2,
before anything is built or written wherever it can be seen that early. Once the first iteration
has started nothing is caught: a bug in training shows its traceback.
"""

import argparse
import copy
import datetime
import importlib
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner, find_latest_checkpoint

from .compat import apply_compat
from .config_options import apply_options
from .data_checks import check_data_contents
from .preflight import (
    UsageError,
    check_checkpoint,
    check_data,
    check_types,
    iter_datasets,
    iter_metrics,
    one_line,
)

EXIT_USAGE = 2
SCOPES = ("mmdet", "mmseg")
NEEDED = MappingProxyType(
    {
        "train": ("model", "train_dataloader", "train_cfg", "optim_wrapper"),
        "test": ("model", "test_dataloader", "test_cfg", "test_evaluator"),
    }
)
# Which data loaders and evaluators a command uses.
PARTS = MappingProxyType({"train": ("train", "val"), "test": ("test",)})
# A config is a program: these are what its mistakes raise.
CONFIG_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
# What OpenMMLab's constructors raise for arguments that they do not like.
BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
)
# Devices on which OpenMMLab's AmpOptimWrapper refuses to work.
FULL_PRECISION_DEVICES = ("cpu", "mps")
AMP_ONLY_KEYS = ("loss_scale", "dtype", "use_fsdp")
PLAIN_WRAPPER, AMP_WRAPPER = "OptimWrapper", "AmpOptimWrapper"
AUTO_AMP_WRAPPER = "AutoAmpOptimWrapper"  # see optim.py
DUMP_SUFFIXES = (".pkl", ".pickle")


# The command line.


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with `message`, without argparse's usage block."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


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
    parser.add_argument("--show-dir", help="folder for pictures of the predictions")
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
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="what started the processes of a distributed run",
    )
    # torch.distributed.launch passes the second spelling since torch 2.0.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


# The two commands.


def train(argv: Sequence[str] | None = None) -> int:
    """Run tools/train.py.

    Args:
        argv: The command line without the program; the process's own by default.

    Returns:
        The exit code: 0, or 2 for a mistake in what the user gave.
    """
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
            check_types(cfg, PARTS[command])
            check_model(cfg, args.config)
            prepare_processes(cfg)
        with build_errors(cfg, args.config) as started:
            runner = build_runner(cfg)
            runner.register_hook(started)
            getattr(runner, command)()
    except UsageError as error:
        if is_main_process():
            print(f"{command}.py: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


@contextmanager
def late_warnings() -> Iterator[None]:
    """Hold warnings back until all went well: beside an error, they would only hide it."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def prepare_training(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the flags of tools/train.py to the config and check its files.

    Raises:
        UsageError: A flag does not fit the config, or a file is missing or unreadable.
    """
    if args.amp:
        enable_amp(cfg)
    keep_full_precision(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg, args.config)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    check_start(cfg, "--resume" if args.resume is not None else "load_from")
    check_data(cfg, PARTS["train"])
    check_data_contents(cfg, PARTS["train"])


def prepare_testing(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the flags of tools/test.py to the config and check its files.

    Raises:
        UsageError: A flag does not fit the config, or a file is missing or unreadable.
    """
    check_checkpoint(args.checkpoint, "checkpoint")
    cfg.load_from = args.checkpoint
    cfg.resume = False
    check_data(cfg, PARTS["test"])
    check_data_contents(cfg, PARTS["test"])
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    if args.tta:
        for_scope(ENABLE_TTA, cfg, "--tta")(cfg, args.config)
    if args.out is not None:
        for_scope(KEEP_PREDICTIONS, cfg, "--out")(cfg, args.out)


# The config.


def load_config(path: str, options: Mapping[str, Any] | None, needed: Sequence[str]) -> Config:
    """Read a config, merge `--cfg-options` into it and find its scope.

    Args:
        path: The config file.
        options: What `--cfg-options` gave.
        needed: Keys that it must have.

    Returns:
        The config with `default_scope` set.

    Raises:
        UsageError: The config is missing, broken, incomplete or of no known scope.
    """
    apply_compat()
    if not os.path.isfile(path):
        raise UsageError(f"config {path!r} not found")
    try:
        cfg = Config.fromfile(path)
    except CONFIG_ERRORS as error:
        raise UsageError(f"config {path!r} cannot be read: {described(error)}") from error
    merge_options(cfg, options)
    missing = [key for key in needed if cfg.get(key) is None]
    if missing:
        raise UsageError(f"config {path!r} has no {missing[0]!r}")
    cfg.default_scope = find_scope(cfg, path)
    try:
        apply_options(cfg)
    except BUILD_ERRORS as error:
        raise UsageError(f"config {path!r}, model.backbone: {described(error)}") from error
    return cfg


def set_run(cfg: Config, args: argparse.Namespace) -> None:
    """Set where a run writes and what launched it."""
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(args.config).stem)
    if cfg.default_scope == "mmdet":
        limit_recompilation()


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Merge `--cfg-options` into the config.

    Raises:
        UsageError: A key does not fit the config's structure.
    """
    for key, value in (options or {}).items():
        try:
            cfg.merge_from_dict({key: value})
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"--cfg-options {key}: {one_line(error)}") from error


def limit_recompilation() -> None:
    """Let DYNAMO_CACHE_SIZE_LIMIT bound recompilation, as mmdet's own tools do."""
    importlib.import_module("mmdet.utils").setup_cache_size_limit_of_dynamo()


def find_scope(cfg: Mapping[str, Any], path: str) -> str:
    """Tell whether a config is mmdet's or mmseg's.

    `default_scope` says it; without one, the model and then the data sets do: by the prefix of
    their type ("mmdet.MaskRCNN") or by being registered in only one of the two packages.

    Args:
        cfg: The config.
        path: Its file, for the message.

    Returns:
        "mmdet", "mmseg", or another default scope that the config names.

    Raises:
        UsageError: There is no default scope and the types do not tell.
    """
    if cfg.get("default_scope"):
        return cfg["default_scope"]
    types = [("MODELS", cfg["model"].get("type"))]
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader") or {}
        types += [("DATASETS", d.get("type")) for d, _ in iter_datasets(loader.get("dataset"), "")]
    for registry, type_ in types:
        scopes = scopes_of(registry, type_)
        if len(scopes) == 1:
            return scopes[0]
    raise UsageError(
        f"config {path!r} has no default_scope, and its types do not tell whether it is mmdet's "
        "or mmseg's: add default_scope = 'mmdet' or default_scope = 'mmseg'"
    )


def scopes_of(registry: str, type_: Any) -> list[str]:
    """List the scopes that a type of a config belongs to.

    Args:
        registry: Name of the registry, "MODELS" or "DATASETS".
        type_: The type: a class, or a name with or without the prefix of its scope.
    """
    if not isinstance(type_, str):
        name = getattr(type_, "__module__", "")
    elif "." in type_:
        name = type_
    else:
        return [scope for scope in SCOPES if is_own_type(scope, registry, type_)]
    return [scope for scope in SCOPES if name.partition(".")[0] == scope]


def is_own_type(scope: str, registry: str, name: str) -> bool:
    """Say whether `name` is registered in this scope itself, not in mmengine's root."""
    own = getattr(importlib.import_module(f"{scope}.registry"), registry)
    own.import_from_location()
    return name in own.module_dict


# Training flags.


def type_name(type_: Any) -> str:
    """Name a type that a config gives as a string or as a class."""
    return type_ if isinstance(type_, str) else getattr(type_, "__name__", str(type_))


def enable_amp(cfg: Config) -> None:
    """Turn on mixed precision as the machine has it; `optim.py` chooses, and says what it chose.

    Raises:
        UsageError: The config's optimizer wrapper is neither plain nor for mixed precision.
    """
    wrapper = cfg.optim_wrapper
    name = type_name(wrapper.get("type", PLAIN_WRAPPER))
    if name in (AMP_WRAPPER, AUTO_AMP_WRAPPER):
        say("--amp: the config has mixed precision already")
    elif name == PLAIN_WRAPPER:
        wrapper.type = AUTO_AMP_WRAPPER
    else:
        raise UsageError(f"--amp needs optim_wrapper.type {PLAIN_WRAPPER!r}, got {name!r}")


def keep_full_precision(cfg: Config) -> None:
    """Replace a config's `AmpOptimWrapper`, which refuses to work without a GPU, and say so."""
    wrapper = cfg.optim_wrapper
    device = get_device()
    if type_name(wrapper.get("type")) != AMP_WRAPPER or device not in FULL_PRECISION_DEVICES:
        return
    wrapper.type = PLAIN_WRAPPER
    for key in AMP_ONLY_KEYS:
        wrapper.pop(key, None)
    say(f"{AMP_WRAPPER} needs a GPU: training in float32, without mixed precision")


def enable_auto_scale_lr(cfg: Config, path: str) -> None:
    """Turn on the scaling of the learning rate.

    Raises:
        UsageError: The config does not say which batch size its learning rate is for.
    """
    settings = cfg.get("auto_scale_lr") or {}
    if "base_batch_size" not in settings:
        raise UsageError(f"--auto-scale-lr: config {path!r} has no auto_scale_lr.base_batch_size")
    cfg.auto_scale_lr.enable = True


def check_start(cfg: Config, argument: str) -> None:
    """Check the checkpoint that training starts from, if any.

    Raises:
        UsageError: It is missing or unreadable.
    """
    path = cfg.get("load_from")
    if cfg.get("resume") and path is None and os.path.isdir(cfg.work_dir):
        path = find_latest_checkpoint(cfg.work_dir)
    if path is not None:
        check_checkpoint(str(path), argument, resume=bool(cfg.get("resume")))


# Testing flags.


def enable_drawing(cfg: Config, args: argparse.Namespace) -> None:
    """Draw the predictions, in a window or into a folder.

    Raises:
        UsageError: The config has no hook that draws.
    """
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if hook is None:
        raise UsageError("--show and --show-dir need default_hooks.visualization in the config")
    hook.draw = True
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir and cfg.default_scope == "mmdet":
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def enable_detector_tta(cfg: Config, path: str) -> None:
    """Wrap a detector for test-time augmentation; the default averages over a mirrored copy.

    Raises:
        UsageError: The detector predicts masks.
    """
    if (cfg.model.get("roi_head") or cfg.model).get("mask_head") is not None:
        raise UsageError("--tta: mmdet's test-time augmentation merges boxes, not masks")
    if "tta_model" not in cfg:
        nms = {"type": "nms", "iou_threshold": 0.5}
        cfg.tta_model = {"type": "DetTTAModel", "tta_cfg": {"nms": nms, "max_per_img": 100}}
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    if "tta_pipeline" not in cfg:
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        mirror = [{"type": "RandomFlip", "prob": prob} for prob in (1.0, 0.0)]
        pack = {"type": "PackDetInputs", "meta_keys": (*keys, "flip", "flip_direction")}
        augment = {"type": "TestTimeAug", "transforms": [mirror, [pack]]}
        cfg.tta_pipeline = [*copy.deepcopy(dataset.pipeline[:-1]), augment]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def enable_segmentor_tta(cfg: Config, path: str) -> None:
    """Wrap a segmentor for test-time augmentation.

    Raises:
        UsageError: The config does not describe the augmentation.
    """
    for key in ("tta_model", "tta_pipeline"):
        if key not in cfg:
            raise UsageError(f"--tta: config {path!r} has no {key!r}")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def dump_detections(cfg: Config, out: str) -> None:
    """Dump a detector's predictions to a pickle file.

    Raises:
        UsageError: The name is not that of a pickle file.
    """
    if not out.endswith(DUMP_SUFFIXES):
        raise UsageError(f"--out must end in {' or '.join(DUMP_SUFFIXES)}, got {out!r}")
    metrics = [metric for metric, _ in iter_metrics(cfg.test_evaluator, "")]
    cfg.test_evaluator = [*metrics, {"type": "DumpDetResults", "out_file_path": out}]


def write_label_maps(cfg: Config, out: str) -> None:
    """Write a segmentor's predictions as label maps beside computing its metrics."""
    for metric, _ in iter_metrics(cfg.test_evaluator, ""):
        metric.output_dir = out
        metric.keep_results = True


def for_scope(
    table: Mapping[str, Callable[[Config, str], None]], cfg: Config, flag: str
) -> Callable[[Config, str], None]:
    """Look up what a flag does in the scope of the config.

    Raises:
        UsageError: The flag has no meaning there.
    """
    if cfg.default_scope not in table:
        known = " and ".join(table)
        raise UsageError(f"{flag} is for {known}, not for default_scope {cfg.default_scope!r}")
    return table[cfg.default_scope]


ENABLE_TTA: Mapping[str, Callable[[Config, str], None]] = MappingProxyType(
    {"mmdet": enable_detector_tta, "mmseg": enable_segmentor_tta}
)
KEEP_PREDICTIONS: Mapping[str, Callable[[Config, str], None]] = MappingProxyType(
    {"mmdet": dump_detections, "mmseg": write_label_maps}
)


# Building and running.


class StartedFlag(Hook):
    """Knows whether the first iteration has begun: until then, an error is the config's."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.value = False

    def before_train(self, runner: Runner) -> None:
        """Note that training begins."""
        self.value = True

    def before_test(self, runner: Runner) -> None:
        """Note that testing begins."""
        self.value = True


@contextmanager
def build_errors(cfg: Config, path: str) -> Iterator[StartedFlag]:
    """Turn errors of building into one line, and take back the work directory made for it.

    Args:
        cfg: The config.
        path: Its file, for the message.

    Yields:
        The hook to register, which ends this once the loop begins.

    Raises:
        UsageError: Building failed.
    """
    started = StartedFlag()
    missing = missing_folders(cfg.work_dir)
    try:
        yield started
    except BUILD_ERRORS as error:
        if started.value:
            raise
        if is_main_process():
            remove_folders(missing)
        raise UsageError(f"config {path!r} cannot be built: {described(error)}") from error


def missing_folders(path: str) -> list[Path]:
    """List `path` and its parents as far as they do not exist, the innermost first."""
    absolute = Path(path).absolute()
    return [folder for folder in (absolute, *absolute.parents) if not folder.exists()]


def remove_folders(folders: Sequence[Path]) -> None:
    """Remove the first folder with all in it, then its listed parents while they are empty."""
    if not folders:
        return
    shutil.rmtree(folders[0], ignore_errors=True)
    for folder in folders[1:]:
        try:
            folder.rmdir()
        except OSError:  # another run has begun in it
            return


def check_model(cfg: Config, path: str) -> None:
    """Build the model once and throw it away, so that its mistakes show before anything is written.

    The runner builds it again after seeding, which keeps runs comparable with OpenMMLab's tools.

    Raises:
        UsageError: The model cannot be built.
    """
    model = copy.deepcopy(cfg.model)
    if "data_preprocessor" in cfg:
        model.setdefault("data_preprocessor", copy.deepcopy(cfg.data_preprocessor))
    with DefaultScope.overwrite_default_scope(cfg.default_scope), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second building warns again
        try:
            MODELS.build(model)
        except BUILD_ERRORS as error:
            raise UsageError(f"config {path!r}, model: {described(error)}") from error


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's runner, or the one that the config's `runner_type` names."""
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)


def described(error: BaseException) -> str:
    """Name an error, its message and the line that raised it, in one line."""
    text = one_line(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" [{Path(frames[-1].filename).name}:{frames[-1].lineno}]" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


# Processes.


def is_main_process() -> bool:
    """Say whether this is the process that speaks for a distributed run."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print a line, once per distributed run."""
    if is_main_process():
        print(message, flush=True)


def prepare_processes(cfg: Config) -> None:
    """Make a distributed run work without a GPU, where mmengine would ask for one.

    The process group is made here, over gloo; mmengine uses a group that exists. Its wrapper of
    the model must not name a device.

    Raises:
        UsageError: The launcher cannot be used without a GPU, or did not start this process.
    """
    if cfg.launcher == "none" or get_device() != "cpu":
        return
    if cfg.launcher != "pytorch":
        raise UsageError(f"--launcher {cfg.launcher} needs a GPU; without one use pytorch")
    missing = [
        name
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if missing:
        raise UsageError(
            f"--launcher pytorch: {missing[0]} is not set; start with tools/dist_train.sh, "
            "tools/dist_test.sh or torchrun"
        )
    settings = (cfg.get("env_cfg") or {}).get("dist_cfg") or {}
    seconds = settings.get("timeout")
    timeout = datetime.timedelta(seconds=seconds) if seconds is not None else None
    torch.distributed.init_process_group("gloo", timeout=timeout)
    wrapper = cfg.get("model_wrapper_cfg") or {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": cfg.get("find_unused_parameters", False),
    }
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    say(f"no GPU: {torch.distributed.get_world_size()} processes on the CPU, over gloo")
