"""What the flags of tools/train.py and tools/test.py change in a config."""

import argparse
import copy
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..checkpoint_hook import AtomicCheckpointHook
from ..config_walk import iter_datasets, iter_metrics, type_name
from .errors import UsageError
from .processes import print_once

# Devices on which OpenMMLab's AmpOptimWrapper refuses to work.
FULL_PRECISION_DEVICES = ("cpu", "mps")
AMP_ONLY_KEYS = ("loss_scale", "dtype", "use_fsdp")
PLAIN_WRAPPER, AMP_WRAPPER = "OptimWrapper", "AmpOptimWrapper"
AUTO_AMP_WRAPPER = "AutoAmpOptimWrapper"  # see optim.py
# By its path: a run's dumped config may go to tools that do not import this package.
ATOMIC_HOOK = f"{AtomicCheckpointHook.__module__}.{AtomicCheckpointHook.__qualname__}"
DUMP_SUFFIXES = (".pkl", ".pickle")


# --------------------------------------------------------------------------- both commands


def set_run(cfg: Config, args: argparse.Namespace) -> None:
    """Set where a run writes."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(args.config).stem)
    if cfg.default_scope == "mmdet":
        # DYNAMO_CACHE_SIZE_LIMIT bounds recompilation, as in mmdet's own tools.
        importlib.import_module("mmdet.utils").setup_cache_size_limit_of_dynamo()


# --------------------------------------------------------------------------- training


def enable_amp(cfg: Config) -> None:
    """Turn on the mixed precision that the machine has; `optim.py` chooses it and logs its choice.

    Raises:
        UsageError: The config's optimizer wrapper is neither plain nor for mixed precision.
    """
    wrapper = cfg.optim_wrapper
    name = type_name(wrapper) or PLAIN_WRAPPER
    if name in (AMP_WRAPPER, AUTO_AMP_WRAPPER):
        print_once("--amp: the config has mixed precision already")
    elif name == PLAIN_WRAPPER:
        wrapper.type = AUTO_AMP_WRAPPER
    else:
        raise UsageError(f"--amp needs optim_wrapper.type {PLAIN_WRAPPER!r}, got {name!r}")


def keep_full_precision(cfg: Config) -> None:
    """Replace a config's `AmpOptimWrapper`, which refuses to work without a GPU, and print so."""
    wrapper = cfg.optim_wrapper
    device = get_device()
    if type_name(wrapper) != AMP_WRAPPER or device not in FULL_PRECISION_DEVICES:
        return
    wrapper.type = PLAIN_WRAPPER
    for key in AMP_ONLY_KEYS:
        wrapper.pop(key, None)
    print_once(f"{AMP_WRAPPER} needs a GPU: training in float32, without mixed precision")


def protect_checkpoints(cfg: Config) -> None:
    """Use this package's checkpoint hook where a config has mmengine's; subclasses stay."""
    defaults = cfg.setdefault("default_hooks", ConfigDict())
    defaults.setdefault("checkpoint", {"type": "CheckpointHook", "interval": 1})  # as mmengine does
    with HOOKS.switch_scope_and_registry(cfg.default_scope) as registry:
        for hook in (defaults.checkpoint, *(cfg.get("custom_hooks") or ())):
            if isinstance(hook, ConfigDict) and type_name(hook) == CheckpointHook.__name__:
                found = registry.get(hook.type) if isinstance(hook.type, str) else hook.type
                hook.type = ATOMIC_HOOK if found is CheckpointHook else hook.type


def enable_auto_scale_lr(cfg: Config, path: str) -> None:
    """Turn on the scaling of the learning rate.

    Raises:
        UsageError: The config does not name the batch size that its learning rate is for.
    """
    settings = cfg.get("auto_scale_lr") or {}
    if "base_batch_size" not in settings:
        raise UsageError(f"--auto-scale-lr: config {path!r} has no auto_scale_lr.base_batch_size")
    cfg.auto_scale_lr.enable = True


# --------------------------------------------------------------------------- testing


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


def enable_tta(cfg: Config, path: str) -> None:
    """Wrap the model for test-time augmentation; a detector's averages over a mirrored copy.

    Raises:
        UsageError: The detector predicts masks, or a segmentor's config does not describe it.
    """
    datasets = [dataset for dataset, _ in iter_datasets(cfg.test_dataloader.dataset)]
    if cfg.default_scope == "mmdet":
        _describe_detector_tta(cfg, datasets[0].pipeline)
    for key in ("tta_model", "tta_pipeline"):
        if key not in cfg:
            raise UsageError(f"--tta: config {path!r} has no {key!r}")
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline


def _describe_detector_tta(cfg: Config, pipeline: Sequence[ConfigDict]) -> None:
    if (cfg.model.get("roi_head") or cfg.model).get("mask_head") is not None:
        raise UsageError("--tta: mmdet's test-time augmentation merges boxes, not masks")
    if "tta_model" not in cfg:
        nms = {"type": "nms", "iou_threshold": 0.5}
        cfg.tta_model = {"type": "DetTTAModel", "tta_cfg": {"nms": nms, "max_per_img": 100}}
    if "tta_pipeline" not in cfg:
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        mirror = [{"type": "RandomFlip", "prob": prob} for prob in (1.0, 0.0)]
        pack = {"type": "PackDetInputs", "meta_keys": (*keys, "flip", "flip_direction")}
        augment = {"type": "TestTimeAug", "transforms": [mirror, [pack]]}
        cfg.tta_pipeline = [*copy.deepcopy(pipeline[:-1]), augment]


def dump_detections(cfg: Config, out: str) -> None:
    """Dump a detector's predictions to a pickle file.

    Raises:
        UsageError: The name is not that of a pickle file.
    """
    if not out.endswith(DUMP_SUFFIXES):
        raise UsageError(f"--out must end in {' or '.join(DUMP_SUFFIXES)}, got {out!r}")
    metrics = [metric for metric, _ in iter_metrics(cfg.test_evaluator)]
    cfg.test_evaluator = [*metrics, {"type": "DumpDetResults", "out_file_path": out}]


def write_label_maps(cfg: Config, out: str) -> None:
    """Write a segmentor's predictions as label maps beside computing its metrics."""
    for metric, _ in iter_metrics(cfg.test_evaluator):
        metric.output_dir = out
        metric.keep_results = True


def check_scope(cfg: Config, flag: str) -> None:
    """Check that a flag has a meaning in the scope of the config.

    Raises:
        UsageError: It has none.
    """
    if cfg.default_scope not in KEEP_PREDICTIONS:
        known = " and ".join(KEEP_PREDICTIONS)
        raise UsageError(f"{flag} is for {known}, not for default_scope {cfg.default_scope!r}")


KEEP_PREDICTIONS: Mapping[str, Callable[[Config, str], None]] = {
    "mmdet": dump_detections,
    "mmseg": write_label_maps,
}
