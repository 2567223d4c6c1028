"""What the flags of tools/train.py and tools/test.py change in a config."""

import argparse
import copy
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, METRICS, DefaultScope

from ..checkpoint_hook import AtomicCheckpointHook
from ..config_walk import iter_datasets, iter_metrics, own_evaluator, split_datasets, type_name
from .checks.options import check_folders
from .datasets import COCO, LABEL_MAPS, DataSource, find_class, load_coco, resolve_dataset
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
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for hook in (defaults.checkpoint, *(cfg.get("custom_hooks") or ())):
            if isinstance(hook, ConfigDict) and type_name(hook) == CheckpointHook.__name__:
                own = find_class(hook.type, HOOKS) is CheckpointHook
                hook.type = ATOMIC_HOOK if own else hook.type


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
    hook.setdefault("interval", 1)  # mmsegmentation's own default draws each 50th image
    names = _names_twice(cfg) if args.show_dir else ""
    if names:
        print_once(
            f"--show-dir: pictures are named by the last part of a path, so that those of {names} "
            "overwrite each other"
        )
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
    if "tta_model" not in cfg:
        nms = {"type": "nms", "iou_threshold": 0.5}
        cfg.tta_model = {"type": "DetTTAModel", "tta_cfg": {"nms": nms, "max_per_img": 100}}
    masks = (cfg.model.get("roi_head") or cfg.model).get("mask_head") is not None
    if masks and type_name(cfg.tta_model) == "DetTTAModel":
        raise UsageError("--tta: mmdet's test-time augmentation merges boxes, not masks")
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
    evaluator = cfg.test_evaluator
    own = own_evaluator(evaluator)
    if own:
        raise UsageError(f"--out: {own} takes its own metrics only, none that writes a file")
    metrics = [metric for metric, _ in iter_metrics(evaluator)]
    cfg.test_evaluator = [*metrics, {"type": "DumpDetResults", "out_file_path": out}]


def write_label_maps(cfg: Config, out: str) -> None:
    """Write a segmentor's predictions as label maps besides computing its metrics.

    Raises:
        UsageError: `out` is a file, no metric writes label maps, or two of them have one name.
    """
    check_folders(out=out)
    names = _names_twice(cfg)
    if names:
        raise UsageError(
            f"--out {out!r}: mmsegmentation names label maps by the last part of a path, so that "
            f"those of {names} overwrite each other; convnext-backbone predict keeps the folders"
        )
    writing = 0
    for metric, _ in iter_metrics(cfg.test_evaluator):
        takes = _parameters_of(metric, cfg.default_scope)
        if "output_dir" in takes:
            metric.output_dir = out
            writing += 1
        if "keep_results" in takes:
            metric.keep_results = True
    if not writing:
        raise UsageError("--out: no metric of test_evaluator writes label maps, as IoUMetric does")


def _parameters_of(metric: Mapping[str, Any], scope: str) -> Mapping[str, Any]:
    """Return what the constructor of a metric takes."""
    with DefaultScope.overwrite_default_scope(scope):
        type_ = find_class(metric.get("type"), METRICS)
    return {} if type_ is None else inspect.signature(type_).parameters


def _names_twice(cfg: Config) -> str:
    """Name two images of the test set whose files in one folder would have one name, if any."""
    first: dict[str, str] = {}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for dataset, where in split_datasets(cfg, "test"):
            source = resolve_dataset(dataset, where)
            for path in _image_paths(source) if source else ():
                other = first.setdefault(Path(path).stem, path)
                if other != path:
                    return f"{other!r} and {path!r}"
    return ""


def _image_paths(source: DataSource) -> Sequence[str]:
    """List the images of a data set, without the suffix that all have; none where it is unknown."""
    if source.reads == LABEL_MAPS:
        folder = source.folder("img_path")
        return [os.path.join(folder, stem) for stem in source.stems() or ()]
    if source.reads == COCO and os.path.isfile(source.ann_file):
        return [image["file_name"] for image in load_coco(source, unlabelled=True).images]
    return ()


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
