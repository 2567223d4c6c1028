"""Checks of a segmentor beside its files: its first samples, its sliding windows, its heads.

mmsegmentation finds these mistakes in the first iteration, or at the first validation, after hours.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope

from ..config_walk import (
    is_local,
    iter_datasets,
    iter_heads,
    iter_named_dicts,
    type_name,
)
from .channels import find_backbone
from .data_report import DataReport
from .datasets import count_training_images, find_class, is_published
from .errors import CONFIG_ERRORS, UsageError, describe_error
from .metric_checks import iter_iou_metrics
from .processes import count_processes

_SEGMENTORS = ("EncoderDecoder", "CascadeEncoderDecoder")
_MODES = ("whole", "slide")
# What torch says of batch norm over one value; other errors may be those of the meta device.
_ONE_VALUE = "more than 1 value per channel"


def check_windows(cfg: Config) -> None:
    """Check how a segmentor goes over an image when it predicts.

    Raises:
        UsageError: The mode is unknown, or that of sliding windows lacks their size or stride.
    """
    model = cfg.model.get("module", cfg.model)
    test_cfg = model.get("test_cfg")
    if type_name(model) not in _SEGMENTORS or not isinstance(test_cfg, Mapping):
        return
    mode = test_cfg.get("mode", _MODES[0])
    if mode not in _MODES:
        raise UsageError(f"model.test_cfg.mode: {mode!r} is none of {', '.join(_MODES)}")
    for key in ("crop_size", "stride") if mode == "slide" else ():
        value: Any = test_cfg.get(key)
        sides = value if isinstance(value, Sequence) and len(value) == 2 else (0,)
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise UsageError(
                f"model.test_cfg.{key} must be (height, width) in pixels for mode='slide', "
                f"got {value!r}"
            )


# --------------------------------------------------------------------------- the first sample


def check_first_sample(report: DataReport) -> None:
    """Build the first sample of a split and look at it as the run will.

    Steps, wrappers and models of the user's are passed over: they may need what a run sets up. The
    innermost data sets are known to be folders of label maps.

    Raises:
        UsageError: It cannot be read, lacks its label map, or does not fit the model.
    """
    cfg, where = report.cfg, f"{report.split}_dataloader.dataset"
    model = cfg.model.get("module", cfg.model)
    dataset = cfg[f"{report.split}_dataloader"].dataset
    parts = [part for part, _ in iter_named_dicts(dataset, where) if "type" in part]
    read = [id(part) for part, _ in iter_datasets(dataset)]  # of known classes, or built on them
    kinds = [find_class(part["type"], DATASETS) or find_class(part["type"], TRANSFORMS)
             for part in parts if id(part) not in read]  # fmt: skip
    heads = [find_class(head.get("type"), MODELS) for head, _ in iter_heads(model)]
    known = all(kind is None or is_published(kind) for kind in kinds)
    if (
        type_name(model) not in _SEGMENTORS
        or not (known and all(map(is_local, parts)) and _has_dicts_only(dataset))
        or not all(map(is_published, heads))
    ):
        return
    samples = list(_read_first(dataset, where))
    for sample in samples:
        _check_labels(sample, where, report)
    if report.split == "train":
        _check_maps(cfg, model, samples[0], where)


def _has_dicts_only(dataset: Mapping[str, Any]) -> bool:
    """Return whether all steps of its pipelines are dicts, not functions of the user's."""
    pipelines = [part.get("pipeline") or () for part, _ in iter_named_dicts(dataset, "")]
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


def _check_labels(sample: Mapping[str, Any], where: str, report: DataReport) -> None:
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


def _check_maps(
    cfg: Config, model: Mapping[str, Any], sample: Mapping[str, Any], where: str
) -> None:
    """Follow a sample through the preprocessor, and compare its channels with the backbone's."""
    settings = model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
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


def check_heads(cfg: Config) -> None:
    """Follow a training batch through backbone, neck and heads, in shape only.

    Raises:
        UsageError: A head pools a batch of one image to one pixel, which its batch norm refuses.
    """
    model, loader, backbone = cfg.model, cfg.train_dataloader, find_backbone(cfg)
    if type_name(model) != _SEGMENTORS[0] or backbone is None:
        return
    images, processes = loader.get("batch_size", 1), count_processes(cfg)
    number = count_training_images(cfg)
    if number and type_name(loader.get("sampler") or {}) == "DefaultSampler":
        rest = math.ceil(number / processes) % images
        images = rest if rest and not loader.get("drop_last") else images  # of the last batch
    if any("SyncBN" in str(part.get("norm_cfg")) for part, _ in iter_named_dicts(model, "")):
        images *= processes
    if images > 1:
        return
    settings = model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    height, width = settings.get("size") or (64, 64)
    name = "backbone"
    scope = DefaultScope.overwrite_default_scope(cfg.default_scope)
    with scope, warnings.catch_warnings(), torch.device("meta"), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            built = MODELS.build(copy.deepcopy(dict(model))).train()
            maps = built.extract_feat(
                torch.empty(images, backbone.get("num_channels", 3), height, width)
            )
            for name in ("decode_head", "auxiliary_head"):
                head = getattr(built, name, None)
                for part in head if isinstance(head, torch.nn.ModuleList) else [head]:
                    if part is not None:
                        part(maps)
        except Exception as error:  # a head of the user's may raise anything
            if _ONE_VALUE not in str(error):
                return
            raise UsageError(
                f"model.{name} pools a batch of one image of {width} x {height} to one pixel: "
                f"{describe_error(error)}; set train_dataloader.batch_size=2, and drop_last=True "
                "where the last batch of an epoch has one image"
            ) from error
