"""Options that are set in one place and that a config needs in many.

`custom_dataset` points a config at other data; `model.backbone.arch` gives it another backbone.
mmengine copies neither to the data sets, evaluators, necks and heads that depend on them, so
`apply_options` does, after `--cfg-options` are merged. It changes nothing in a config that is
already consistent.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from ...models.backbone import ConvNextBackbone
from ..config_walk import iter_dicts, join_root, split_datasets, split_metrics
from .coco import category_names, read_coco
from .errors import UsageError

_PREFIXES = {"train": "train", "val": "val", "test": "val"}  # split -> prefix of its options
_REQUIRED = ("train_ann", "train_img", "val_ann", "val_img")
_OPTIONS: Mapping[str, Sequence[str]] = {
    "mmdet": ("root", *_REQUIRED, "classes"),
    "mmseg": ("root", *_REQUIRED, "classes", "img_suffix", "reduce_zero_label"),
}


def apply_options(cfg: Config) -> None:
    """Apply `custom_dataset` and the backbone's channels to the whole config.

    Raises:
        UsageError: `custom_dataset` is incomplete, or its annotation file is not readable.
    """
    apply_custom_dataset(cfg)
    fit_channels(cfg)


# --------------------------------------------------------------------------- custom_dataset


def apply_custom_dataset(cfg: Config) -> None:
    """Point every data set, evaluator and head of `cfg` at its `custom_dataset`, if it has one.

    `custom_dataset` holds `root`, and for train and val an annotation file (segmentation: a folder
    of label maps) and an image folder, relative to `root`. `classes` is a list of names; for
    detection the default is the categories of the training file, in their order. `root` alone moves
    the data set and keeps everything else.

    Raises:
        UsageError: An option is missing or unknown, or the annotation file cannot be read.
    """
    options = {k: v for k, v in (cfg.get("custom_dataset") or {}).items() if v is not None}
    if not options:
        return
    _check_options(options, _OPTIONS.get(cfg.default_scope, _OPTIONS["mmdet"]))
    set_dataset = _set_label_maps if cfg.default_scope == "mmseg" else _set_coco
    for split, prefix in _PREFIXES.items():
        datasets = [dataset for dataset, _ in split_datasets(cfg, split)]
        for dataset in datasets:
            if "root" in options:
                dataset.data_root = options["root"]
            if f"{prefix}_ann" in options:
                set_dataset(dataset, options, prefix)
            if "img_suffix" in options:
                dataset.img_suffix = options["img_suffix"]
        for metric, _ in split_metrics(cfg, split):
            if "ann_file" in metric:
                # With `root` alone, the file is the data set's own, at its new place.
                metric.ann_file = _ann_file(options, prefix) or join_root(
                    datasets[0].get("data_root"), datasets[0].ann_file
                )
    classes = _classes(cfg, options)
    if classes is not None:
        _set_classes(cfg, classes)


def _check_options(options: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"custom_dataset takes {', '.join(known)}, got {', '.join(unknown)}")
    missing = [key for key in _REQUIRED if key not in options]
    if len(missing) < len(_REQUIRED) and missing:
        raise UsageError(f"custom_dataset also needs {', '.join(missing)}")


def _set_coco(dataset: ConfigDict, options: Mapping[str, Any], prefix: str) -> None:
    dataset.ann_file = options[f"{prefix}_ann"]
    dataset.data_prefix = ConfigDict(img=options[f"{prefix}_img"])


def _set_label_maps(dataset: ConfigDict, options: Mapping[str, Any], prefix: str) -> None:
    dataset.type = "BaseSegDataset"  # ADE20KDataset takes none but its own classes
    dataset.data_prefix = ConfigDict(
        img_path=options[f"{prefix}_img"], seg_map_path=options[f"{prefix}_ann"]
    )
    dataset.reduce_zero_label = options.get("reduce_zero_label", True)
    for step in iter_dicts(dataset.get("pipeline")):
        if step.get("type") == "LoadAnnotations":
            step.reduce_zero_label = dataset.reduce_zero_label


def _ann_file(options: Mapping[str, Any], prefix: str) -> str | None:
    path = options.get(f"{prefix}_ann")
    return None if path is None else join_root(options.get("root"), path)


def _classes(cfg: Config, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "classes" in options:
        classes = options["classes"]
        return (classes,) if isinstance(classes, str) else tuple(str(name) for name in classes)
    path = _ann_file(options, "train")
    if path is None:
        return None
    if cfg.default_scope == "mmseg":
        raise UsageError(
            "custom_dataset.classes is needed: label maps do not hold the names of their classes"
        )
    return category_names(read_coco(path), path)


def _set_classes(cfg: Config, classes: tuple[str, ...]) -> None:
    for split in _PREFIXES:
        for dataset, _ in split_datasets(cfg, split):
            dataset.metainfo = ConfigDict(classes=classes)
    for head in iter_dicts(cfg.model):
        if "num_classes" in head:
            weights = (head.get("loss_cls") or {}).get("class_weight")
            # Mask2Former has a weight for each class, and a last one for "no object".
            if isinstance(weights, Sequence) and len(weights) == head.num_classes + 1:
                head.loss_cls.class_weight = [1.0] * len(classes) + [weights[-1]]
            head.num_classes = len(classes)


# --------------------------------------------------------------------------- channels


def fit_channels(cfg: Config) -> None:
    """Give the neck, or the heads where there is none, the channels of the backbone.

    Nothing but a `ConvNextBackbone` is touched, and nothing that fits already.
    """
    model = cfg.model
    backbone = model.get("backbone") or {}
    if backbone.get("type") not in ("ConvNextBackbone", ConvNextBackbone):
        return
    settings = {k: v for k, v in copy.deepcopy(backbone).items() if k != "init_cfg"}
    with torch.device("meta"):
        channels = MODELS.build(settings).channels
    if model.get("neck"):
        model.neck.in_channels = list(channels)
        return
    for key in ("decode_head", "auxiliary_head", "panoptic_head"):
        heads = model.get(key) or []
        for head in [heads] if isinstance(heads, Mapping) else heads:
            _fit_head(head, channels)


def _fit_head(head: ConfigDict, channels: tuple[int, ...]) -> None:
    if isinstance(head.in_channels, Sequence):
        head.in_channels = [channels[i] for i in head.get("in_index", range(len(channels)))]
    else:
        head.in_channels = channels[head.get("in_index", -1)]
    if "c1_in_channels" in head:
        head.c1_in_channels = channels[0]
