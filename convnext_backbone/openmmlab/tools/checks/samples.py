"""The first samples of a segmentor's data sets, as they come out of their pipelines.

mmsegmentation finds these mistakes in the first iteration, or at the first validation, after hours.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, TRANSFORMS

from ...config_walk import (
    SEGMENTORS,
    find_preprocessor,
    inner_model,
    is_local,
    iter_datasets,
    iter_dicts,
    iter_heads,
    list_named,
    type_name,
)
from ..channels import find_backbone
from ..datasets import find_class, is_published
from ..errors import CONFIG_ERRORS, UsageError, describe_error
from .metrics import iter_iou_metrics
from .report import Report


def check_first_sample(report: Report) -> None:
    """Build the first sample of a split and look at it as the run will.

    Steps, wrappers and models of the user's are passed over: they may need what a run sets up. The
    innermost data sets are known to be folders of label maps.

    Raises:
        UsageError: It cannot be read, lacks its label map, or does not fit the model.
    """
    name = f"{report.split}_dataloader"
    for loader, where in list_named(report.cfg[name], name):
        _check_first(loader.dataset, f"{where}.dataset", report)


def _check_first(dataset: Mapping[str, Any], where: str, report: Report) -> None:
    cfg, model = report.cfg, inner_model(report.cfg)
    parts = [part for part in iter_dicts(dataset) if "type" in part]
    read = [id(part) for part, _ in iter_datasets(dataset)]  # of known classes, or built on them
    kinds = [find_class(part["type"], DATASETS) or find_class(part["type"], TRANSFORMS)
             for part in parts if id(part) not in read]  # fmt: skip
    heads = [find_class(head.get("type"), MODELS) for head, _ in iter_heads(cfg)]
    known = all(kind is None or is_published(kind) for kind in kinds)
    if (
        type_name(model) not in SEGMENTORS
        or not (known and all(map(is_local, parts)) and _has_dicts_only(dataset))
        or not all(map(is_published, heads))
    ):
        return
    samples = list(_read_first(dataset, where))
    for sample in samples:
        _check_labels(sample, where, report)
    if report.split == "train":
        _check_channels(cfg, samples[0], where)


def _has_dicts_only(dataset: Mapping[str, Any]) -> bool:
    """Return whether all steps of its pipelines are dicts, not functions of the user's."""
    pipelines = [part.get("pipeline") or () for part in iter_dicts(dataset)]
    return all(isinstance(step, Mapping) for pipeline in pipelines for step in pipeline)


def _read_first(dataset: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run warns again
        try:
            built = DATASETS.build(copy.deepcopy(dataset))
            # Of a `ConcatDataset`, the first of each part.
            starts = (0, *getattr(built, "cumulative_sizes", ())[:-1])
            samples = [built[index] for index in starts]
        except Exception as error:  # each step raises what it likes, OpenCV errors of its own
            raise UsageError(
                f"{where}: its first sample cannot be read: {describe_error(error)}"
            ) from error
    for sample in samples:
        if not isinstance(sample, Mapping) or not {"inputs", "data_samples"} <= set(sample):
            raise UsageError(f"{where}.pipeline does not end with PackSegInputs")
        # Test-time augmentation gives a list of variants.
        yield {key: v[0] if isinstance(v, list) else v for key, v in sample.items()}


def _check_labels(sample: Mapping[str, Any], where: str, report: Report) -> None:
    metrics = [(m, name) for m, name in iter_iou_metrics(report.cfg, report.split)
               if not m.get("format_only")]  # fmt: skip
    trains, data = report.split == "train", sample["data_samples"]
    if not trains and not metrics:
        return
    reader = "the training needs" if trains else f"IoUMetric ({metrics[0][1]}) needs"
    if "gt_sem_seg" not in data:
        raise UsageError(
            f"{where}.pipeline gives no label map, which {reader}: it lacks LoadAnnotations, or "
            "PackSegInputs at its end"
        )
    (height, width), shape = data.gt_sem_seg.data.shape[-2:], data.metainfo.get("ori_shape")
    if not trains and shape is not None and (height, width) != tuple(shape[:2]):
        raise UsageError(
            f"{where}.pipeline gives a label map of {width} x {height} pixels for an image of "
            f"{shape[1]} x {shape[0]}, the size of the prediction that IoUMetric compares it with: "
            "LoadAnnotations comes after the steps that resize"
        )


def _check_channels(cfg: Config, sample: Mapping[str, Any], where: str) -> None:
    """Follow a sample through the preprocessor, and compare its channels with the backbone's."""
    settings = find_preprocessor(cfg)
    if type_name(settings) != "SegDataPreProcessor":
        return
    bands = sample["inputs"].shape[0]
    batch = {key: [value] for key, value in sample.items()}
    try:
        inputs = MODELS.build(dict(settings))(batch, training=True)["inputs"]
    except CONFIG_ERRORS as error:
        raise UsageError(
            f"model.data_preprocessor fails on the first sample of {where}, of {bands} channels: "
            f"{describe_error(error)}"
        ) from error
    backbone = find_backbone(cfg)
    expected = inputs.shape[1] if backbone is None else backbone.get("num_channels", 3)
    if expected != inputs.shape[1]:
        raise UsageError(
            f"{where} gives images of {inputs.shape[1]} channels, but model.backbone.num_channels "
            f"is {expected}"
        )
