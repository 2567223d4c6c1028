"""What `--cfg-options` changes in one place and a config needs in many.

`custom_dataset` points a config at other data; `model.backbone.arch` gives it another backbone.
mmengine copies neither to the data sets, evaluators, necks and heads that depend on them, so
`apply_options` does, after `--cfg-options` are merged. It changes nothing in a config that is
already consistent.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from ...models.backbone import ConvNextBackbone
from .preflight import UsageError, is_remote, iter_datasets, iter_metrics, joined

_SPLITS = {"train": "train", "val": "val", "test": "val"}  # dataloader -> prefix of the options
# What mmdet and pycocotools read of each entry of a COCO file.
_COCO_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area"),
        "categories": ("id", "name"),
    }
)
_REQUIRED = ("train_ann", "train_img", "val_ann", "val_img")


def apply_options(cfg: Config) -> None:
    """Carry `custom_dataset` and the backbone's channels through the whole config.

    Raises:
        UsageError: `custom_dataset` is incomplete, or its annotation file is not readable.
    """
    apply_custom_dataset(cfg)
    fit_channels(cfg)


def apply_custom_dataset(cfg: Config) -> None:
    """Point every data set, evaluator and head of `cfg` at its `custom_dataset`, if it has one.

    `custom_dataset` holds `root`, and for train and val an annotation file (segmentation: a folder
    of label maps) and an image folder, relative to `root`. `classes` is a list of names; for
    detection the default is the categories of the training file, in their order. `root` alone moves
    the data set and keeps everything else.

    Raises:
        UsageError: An option is missing or unknown, or the annotation file cannot be read.
    """
    given = {k: v for k, v in (cfg.get("custom_dataset") or {}).items() if v is not None}
    if not given:
        return
    is_segmentation = cfg.default_scope == "mmseg"
    extra = ("img_suffix", "reduce_zero_label") if is_segmentation else ()
    _check_options(given, ("root", *_REQUIRED, "classes", *extra))
    for part, split in _SPLITS.items():
        loader = cfg.get(f"{part}_dataloader") or {}
        for dataset in _datasets(loader):
            if is_segmentation:
                _set_label_maps(dataset, given, split)
            else:
                _set_coco(dataset, given, split)
        ann_file = _ann_file(given, split)
        for metric, _ in iter_metrics(cfg.get(f"{part}_evaluator"), ""):
            if "ann_file" in metric:
                metric.ann_file = ann_file or _moved(cfg, part)
    classes = _classes(cfg, given, is_segmentation)
    if classes is not None:
        _set_classes(cfg, classes, is_segmentation)


def _datasets(loader: Mapping[str, Any]) -> list[Any]:
    return [dataset for dataset, _ in iter_datasets(loader.get("dataset"), "")]


def _check_options(given: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(f"custom_dataset takes {', '.join(known)}, got {', '.join(unknown)}")
    missing = [key for key in _REQUIRED if key not in given]
    if len(missing) < len(_REQUIRED) and missing:
        raise UsageError(f"custom_dataset also needs {', '.join(missing)}")


def _set_coco(dataset: Any, given: Mapping[str, Any], split: str) -> None:
    if "root" in given:
        dataset.data_root = given["root"]
    if f"{split}_ann" in given:
        dataset.ann_file = given[f"{split}_ann"]
        dataset.data_prefix = ConfigDict(img=given[f"{split}_img"])


def _set_label_maps(dataset: Any, given: Mapping[str, Any], split: str) -> None:
    if "root" in given:
        dataset.data_root = given["root"]
    if f"{split}_ann" in given:
        dataset.type = "BaseSegDataset"  # ADE20KDataset takes none but its own classes
        dataset.data_prefix = ConfigDict(
            img_path=given[f"{split}_img"], seg_map_path=given[f"{split}_ann"]
        )
        dataset.reduce_zero_label = given.get("reduce_zero_label", True)
        for step in iter_dicts(dataset.get("pipeline")):
            if step.get("type") == "LoadAnnotations":
                step.reduce_zero_label = dataset.reduce_zero_label
    if "img_suffix" in given:
        dataset.img_suffix = given["img_suffix"]


def _ann_file(given: Mapping[str, Any], split: str) -> str | None:
    if f"{split}_ann" not in given:
        return None
    return joined(given.get("root") or "", given[f"{split}_ann"])


def _moved(cfg: Config, part: str) -> str:
    """Return the annotation file of the data set behind `part`, whose root has moved."""
    dataset = _datasets(cfg[f"{part}_dataloader"])[0]
    return joined(dataset.get("data_root") or "", dataset.ann_file)


def _classes(
    cfg: Config, given: Mapping[str, Any], is_segmentation: bool
) -> tuple[str, ...] | None:
    if "classes" in given:
        classes = given["classes"]
        return (classes,) if isinstance(classes, str) else tuple(str(name) for name in classes)
    if "train_ann" not in given:
        return None
    if is_segmentation:
        raise UsageError(
            "custom_dataset.classes is needed: label maps do not hold the names of their classes"
        )
    path = _ann_file(given, "train")
    assert path is not None
    return category_names(read_coco(path), path)


def read_coco(path: str) -> dict[str, Any]:
    """Read a COCO annotation file.

    Raises:
        UsageError: It is missing, is not JSON, or lacks one of COCO's three lists or in one of
            their entries what mmdet reads.
    """
    if is_remote(path):
        raise UsageError(f"annotation file {path!r} is not a local file")
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except FileNotFoundError as error:
        raise UsageError(f"annotation file {path!r} not found") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"annotation file {path!r} is not readable JSON: {error}") from error
    missing = [kind for kind in _COCO_KEYS if not isinstance(values, dict) or kind not in values]
    if missing:
        raise UsageError(f"annotation file {path!r} is not in COCO's format: no {missing[0]!r}")
    for kind, keys in _COCO_KEYS.items():
        for key in keys:
            lacking = sum(key not in entry for entry in values[kind])
            if lacking:
                raise UsageError(
                    f"annotation file {path!r}: {lacking} of its {kind} have no {key!r}"
                )
    return values


def category_names(coco: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """Return the names of the categories of a COCO file, in its order.

    Raises:
        UsageError: There are none, or a name occurs twice.
    """
    names = tuple(category["name"] for category in coco["categories"])
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        problem = f"names {twice[0]!r} twice" if twice else "has no categories"
        raise UsageError(f"annotation file {path!r} {problem}")
    return names


def _set_classes(cfg: Config, classes: tuple[str, ...], is_segmentation: bool) -> None:
    for part in _SPLITS:
        loader = cfg.get(f"{part}_dataloader") or {}
        for dataset in _datasets(loader):
            dataset.metainfo = ConfigDict(classes=classes)
    for head in iter_dicts(cfg.model):
        if "num_classes" in head:
            weights = (head.get("loss_cls") or {}).get("class_weight")
            # Mask2Former weighs its classes one by one, and last the absence of any.
            if isinstance(weights, Sequence) and len(weights) == head.num_classes + 1:
                head.loss_cls.class_weight = [1.0] * len(classes) + [weights[-1]]
            head.num_classes = len(classes)


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
    old = head.in_channels
    index = head.get("in_index", list(range(len(channels))) if isinstance(old, Sequence) else -1)
    if isinstance(old, Sequence):
        head.in_channels = [channels[i] for i in index]
    else:
        head.in_channels = channels[index]
    if "c1_in_channels" in head:
        head.c1_in_channels = channels[0]


def iter_dicts(value: Any) -> Iterator[ConfigDict]:
    """Yield every dict inside `value`, itself included."""
    if isinstance(value, Mapping):
        yield value
        value = value.values()
    elif isinstance(value, str) or not isinstance(value, Sequence):
        return
    for item in list(value):
        yield from iter_dicts(item)
