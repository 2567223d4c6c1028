"""Checks of the evaluators: what mmdet and mmseg find out only at the end of an epoch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import METRICS, DefaultScope

from ....utils.checks import did_you_mean
from ...config_walk import as_list, own_evaluator, split_datasets, split_metrics, type_name
from ..datasets import find_class, is_published
from ..errors import UsageError
from ..schedule import iter_schedulers

# What mmdet's CocoMetric may give of boxes and of masks, by default the first six; of proposals,
# the others.
_COCO_ITEMS = (
    *("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"),
    *("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"),
)
# What mmseg's IoUMetric gives for each of its `iou_metrics`.
_IOU_ITEMS: Mapping[str, Sequence[str]] = {
    "mIoU": ("mIoU", "mAcc"),
    "mDice": ("mDice", "mAcc"),
    "mFscore": ("mFscore", "mPrecision", "mRecall"),
}


def check_metrics(cfg: Config, splits: Sequence[str]) -> None:
    """Check that COCO's and IoU metrics can be computed, and the one which chooses a checkpoint is.

    Metrics of other types may take and give anything.

    Raises:
        UsageError: A setting would end the run at its first validation.
    """
    for split in splits:
        for metric, where in split_metrics(cfg, split):
            if type_name(metric) == "CocoMetric":
                _check_coco_metric(cfg, metric, where)
                _check_truth(cfg, split, metric, where)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            for metric, where in iter_iou_metrics(cfg, split):
                _check_iou_metric(metric, where)
    metrics = [metric for metric, _ in split_metrics(cfg, "val")]
    kinds = {type_name(metric) for metric in metrics}
    if "val" not in splits or not metrics or not kinds <= _NAMES.keys():
        return
    if own_evaluator(cfg.get("val_evaluator")):
        return  # it may prefix the names of what its metrics give
    given = [name for metric in metrics for name in _NAMES[type_name(metric)](metric)]
    for wanted, where in _iter_wanted(cfg):
        if wanted not in given and not _is_of_a_class(wanted, metrics):
            raise UsageError(
                f"{where} is {wanted!r}, but val_evaluator gives {', '.join(given)}"
                f"{did_you_mean(wanted, given)}"
            )


def iter_iou_metrics(cfg: Mapping[str, Any], split: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the metrics of a split that are mmsegmentation's `IoUMetric`, with their names."""
    for metric, where in split_metrics(cfg, split):
        if type_name(metric) == "IoUMetric" and is_published(find_class(metric["type"], METRICS)):
            yield metric, where


def _check_iou_metric(metric: Mapping[str, Any], where: str) -> None:
    if metric.get("format_only"):
        return
    unknown = [name for name in as_list(metric.get("iou_metrics")) if name not in _IOU_ITEMS]
    if unknown:
        known = ", ".join(_IOU_ITEMS)
        raise UsageError(f"{where}.iou_metrics: {unknown[0]!r} is none of {known}")


def _check_coco_metric(cfg: Config, metric: Mapping[str, Any], where: str) -> None:
    unknown = [item for item in as_list(metric.get("metric_items")) if item not in _COCO_ITEMS]
    if unknown:
        raise UsageError(
            f"{where}.metric_items has {unknown[0]!r}, which is none of {', '.join(_COCO_ITEMS)}"
        )
    roi_head = cfg.model.get("roi_head") or {"mask_head": "another part's"}
    masks = any(value for key, value in roi_head.items() if "mask" in key and "head" in key)
    if "segm" in as_list(metric.get("metric")) and not masks:
        raise UsageError(
            f"{where}.metric has 'segm', but the model has no model.roi_head.mask_head, so it "
            "predicts no masks"
        )


def _check_truth(cfg: Config, split: str, metric: Mapping[str, Any], where: str) -> None:
    """Without a file of its own, a metric reads what the pipeline packs with each image."""
    if metric.get("ann_file") is not None:
        return
    for dataset, name in split_datasets(cfg, split):
        *_, last = dataset.get("pipeline") or [{}]
        if type_name(last) == "PackDetInputs" and "instances" not in last.get("meta_keys", ()):
            raise UsageError(
                f"{where}.ann_file is None: it must name the annotation file, or the last step of "
                f"{name}.pipeline must have 'instances' among its meta_keys"
            )


def _iter_wanted(cfg: Config) -> Iterator[tuple[str, str]]:
    """Yield the metrics that hooks and schedulers look up after a validation, with their names."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    for name in as_list(hook.get("save_best")):
        if name != "auto":  # the first one that there is
            yield name, "default_hooks.checkpoint.save_best"
    for scheduler, where in iter_schedulers(cfg):
        if type_name(scheduler).startswith("ReduceOnPlateau") and "monitor" in scheduler:
            yield scheduler["monitor"], f"{where}.monitor"


def _is_of_a_class(name: str, metrics: Sequence[Mapping[str, Any]]) -> bool:
    return name.endswith("_precision") and any(metric.get("classwise") for metric in metrics)


def _coco_names(metric: Mapping[str, Any]) -> Iterator[str]:
    prefix, chosen = metric.get("prefix") or "coco", metric.get("metric_items")
    for kind in as_list(metric.get("metric", "bbox")):
        if kind == "proposal_fast":
            yield from (f"{prefix}/AR@{n}" for n in metric.get("proposal_nums", (100, 300, 1000)))
        elif kind == "proposal":
            yield from (f"{prefix}/{item}" for item in chosen or _COCO_ITEMS[6:])
        else:
            yield from (f"{prefix}/{kind}_{item}" for item in chosen or _COCO_ITEMS[:6])


def _iou_names(metric: Mapping[str, Any]) -> Iterator[str]:
    prefix = f"{metric['prefix']}/" if metric.get("prefix") else ""
    yield f"{prefix}aAcc"
    for kind in as_list(metric.get("iou_metrics", "mIoU")):
        yield from (f"{prefix}{item}" for item in _IOU_ITEMS.get(kind, ()))


# The names of what a metric gives, by its type.
_NAMES: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "CocoMetric": _coco_names,
    "IoUMetric": _iou_names,
}
