"""Options that are set in one place and that a config needs in many.

`custom_dataset` points a config at other data, resizes its images and fits its schedule;
`model.backbone.arch` gives it another backbone; `from_scratch` holds what a config changes where
nothing is loaded. mmengine copies none of this to the data sets, evaluators, necks and heads that
depend on it, so `apply_options` does, after `--cfg-options` are merged. It fills in around what the
user typed, and changes nothing in a config that is already consistent.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from ..config_walk import (
    class_count_key,
    iter_heads,
    iter_named_dicts,
    join_root,
    split_datasets,
    split_metrics,
    type_name,
)
from .channels import find_backbone, fit_channels
from .coco_file import category_names, read_coco
from .datasets import count_training_images, find_class, is_published
from .errors import UsageError, check_count
from .image_size import apply_image_size
from .schedule import LENGTHS, fit_schedule, length_key
from .typed import TypedOptions

_REQUIRED = ("train_ann", "train_img", "val_ann", "val_img")
_SHARED = ("root", *_REQUIRED, "test_ann", "test_img", "classes")
_TRAINING = ("image_size", "batch_size", *LENGTHS)
_OPTIONS: Mapping[str, Sequence[str]] = {
    "mmdet": (*_SHARED, *_TRAINING),
    "mmseg": (*_SHARED, "img_suffix", "seg_map_suffix", "reduce_zero_label", *_TRAINING),
}
_PATHS = ("root", *_REQUIRED, "test_ann", "test_img", "img_suffix", "seg_map_suffix")


def apply_options(cfg: Config, typed: Mapping[str, Any] | None = None) -> None:
    """Apply `from_scratch`, `custom_dataset` and the backbone's channels to the whole config.

    `typed` are the parsed `--cfg-options`, which are merged into it.

    Raises:
        UsageError: An option is incomplete, its annotation file is not readable, or it disagrees
            with another one.
    """
    options = TypedOptions(typed)
    apply_from_scratch(cfg, options)
    apply_custom_dataset(cfg, options)
    fit_channels(cfg, options)


def apply_from_scratch(cfg: Config, typed: TypedOptions) -> None:
    """Merge a config's `from_scratch` into it where the backbone starts from random weights."""
    changes = cfg.pop("from_scratch", None)
    backbone = find_backbone(cfg)
    if not changes or backbone is None or backbone.get("init_cfg") or cfg.get("load_from"):
        return
    for part, where in iter_named_dicts(changes, ""):
        for key, value in part.items():
            name = f"{where}.{key}".lstrip(".")
            if not isinstance(value, Mapping) and not typed.covers(name):
                cfg.merge_from_dict({name: value})


# --------------------------------------------------------------------------- custom_dataset


def apply_custom_dataset(cfg: Config, typed: TypedOptions) -> None:
    """Point every data set, evaluator and head of `cfg` at its `custom_dataset`, if it has one.

    `custom_dataset` holds `root`, and for train and val an annotation file (segmentation: a folder
    of label maps) and an image folder, relative to `root`; those of test are by default val's.
    `classes` is a list of names; for detection the default is the categories of the training file,
    in their order. `root` alone moves the data set and keeps everything else. docs/own_data.md
    has all options.

    Raises:
        UsageError: An option is missing, unknown, or disagrees with another setting; or the
            annotation file cannot be read.
    """
    given = cfg.get("custom_dataset") or {}
    if not isinstance(given, Mapping):
        raise UsageError(f"custom_dataset must hold settings, got {given!r}")
    options = {k: v for k, v in given.items() if v is not None}
    if not options:
        return
    _check_options(options, _OPTIONS.get(cfg.default_scope, _OPTIONS["mmdet"]))
    options.update({name: str(options[name]) for name in _PATHS if name in options})
    reduce = _typed_zero_label(cfg, typed)
    if reduce is not None and cfg.default_scope == "mmseg":
        options.setdefault("reduce_zero_label", reduce)
    for split in ("train", "val", "test"):
        for dataset, where in split_datasets(cfg, split):
            _set_dataset(cfg, dataset, where, split, options, typed)
        _set_metrics(cfg, split, options, typed)
    classes = _classes(cfg, options)
    if classes is not None:
        _set_classes(cfg, classes, typed)
    if "batch_size" in options:
        size, option = options["batch_size"], "custom_dataset.batch_size"
        check_count(option, size)
        loader = cfg.train_dataloader
        typed.fill_in(loader, "batch_size", size, where="train_dataloader", option=option)
    if "image_size" in options:
        apply_image_size(cfg, options["image_size"], typed)
    applied: Sequence[str] = ("image_size", "batch_size")
    if any(name in options for name in LENGTHS) and length_key(cfg) is not None:
        asked = any(typed.get(f"custom_dataset.{name}") is not None for name in LENGTHS)
        num_images = count_training_images(cfg, build=asked)
        if num_images is not None:
            fit_schedule(cfg, options, num_images, typed)
            applied = (*applied, *LENGTHS)
    # The config that a run dumps is fitted already, and is read where the data is not.
    for name in applied:
        cfg.custom_dataset.pop(name, None)
    if classes is not None:
        cfg.custom_dataset.classes = classes


def _typed_zero_label(cfg: Config, typed: TypedOptions) -> Any:
    """Return the `reduce_zero_label` that was typed for a part of one split: it holds for all."""
    parts = (
        typed.get(f"{place}.reduce_zero_label")
        for dataset, where in split_datasets(cfg)
        for _, place in iter_named_dicts(dataset, where)
    )
    return next((value for value in parts if value is not None), None)


def _check_options(options: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"custom_dataset takes {', '.join(known)}, got {', '.join(unknown)}")
    for key in _PATHS:
        value = options.get(key, "")
        if isinstance(value, str | int | float | os.PathLike):  # numbers name folders as well
            continue
        words = ",".join(map(str, value)) if isinstance(value, Sequence) else "a,b"
        raise UsageError(
            f"custom_dataset.{key} must be one path or word, got {value!r}; a comma in it needs "
            f"quotation marks of its own: \"custom_dataset.{key}='{words}'\""
        )
    if options.get("reduce_zero_label", True) not in (True, False):
        raise UsageError(
            "custom_dataset.reduce_zero_label must be True or False, got "
            f"{options['reduce_zero_label']!r}"
        )
    missing = [key for key in _REQUIRED if key not in options]
    if len(missing) < len(_REQUIRED) and missing:
        raise UsageError(f"custom_dataset also needs {', '.join(missing)}")
    if ("test_ann" in options) != ("test_img" in options):
        raise UsageError("custom_dataset needs test_ann and test_img, or neither")
    classes = options.get("classes", "one")
    if not isinstance(classes, str | bool | Sequence) or classes in ((), [], ""):
        raise UsageError(
            f"custom_dataset.classes must be names, as \"('traffic light','car')\", got {classes!r}"
        )


def _option(options: Mapping[str, Any], split: str, kind: str) -> tuple[str, Any]:
    """Return the name and the value of a split's option; val's are test's by default."""
    name = f"{split}_{kind}"
    if split == "test" and name not in options:
        # Without the name of an option of its own, what was typed for the data set itself wins.
        return "", options.get(f"val_{kind}")
    return f"custom_dataset.{name}", options.get(name)


def _set_dataset(
    cfg: Config,
    dataset: ConfigDict,
    where: str,
    split: str,
    options: Mapping[str, Any],
    typed: TypedOptions,
) -> None:
    def fill_in(part: ConfigDict, key: str, value: Any, option: str, inside: str = "") -> None:
        typed.fill_in(part, key, value, where=where + inside, option=option or None)

    for name in ("root", "img_suffix", "seg_map_suffix"):
        if name in options:
            key = "data_root" if name == "root" else name
            fill_in(dataset, key, options[name], f"custom_dataset.{name}")
    (ann_option, annotations), (img_option, images) = (
        _option(options, split, kind) for kind in ("ann", "img")
    )
    if annotations is None:
        return
    prefixes = f"{where}.data_prefix"
    given = dataset.get("data_prefix") or {}
    dataset.data_prefix = ConfigDict(
        {key: value for key, value in given.items() if typed.covers(f"{prefixes}.{key}")}
    )
    if cfg.default_scope != "mmseg":
        fill_in(dataset, "ann_file", annotations, ann_option)
        fill_in(dataset.data_prefix, "img", images, img_option, ".data_prefix")
        return
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        published = is_published(find_class(dataset.get("type")), ("mmseg.",))
    if published:
        fill_in(dataset, "type", "BaseSegDataset", "")  # ADE20KDataset takes its own classes only
    fill_in(dataset, "ann_file", "", "")  # a list of files of the other data set
    fill_in(dataset.data_prefix, "img_path", images, img_option, ".data_prefix")
    fill_in(dataset.data_prefix, "seg_map_path", annotations, ann_option, ".data_prefix")
    if published or "reduce_zero_label" in options:  # a type of the user's may set it itself
        reduce = options.get("reduce_zero_label", True)
        fill_in(dataset, "reduce_zero_label", reduce, "custom_dataset.reduce_zero_label")
    for step, place in iter_named_dicts(dataset.get("pipeline"), f"{where}.pipeline"):
        if type_name(step) == "LoadAnnotations" and "reduce_zero_label" in dataset:
            typed.fill_in(step, "reduce_zero_label", dataset.reduce_zero_label, where=place)


def _set_metrics(cfg: Config, split: str, options: Mapping[str, Any], typed: TypedOptions) -> None:
    datasets = [dataset for dataset, _ in split_datasets(cfg, split)]
    for metric, where in split_metrics(cfg, split):
        if "ann_file" in metric and datasets and datasets[0].get("ann_file"):
            path = join_root(datasets[0].get("data_root"), datasets[0].ann_file)
            typed.fill_in(metric, "ann_file", path, where=where)


def _classes(cfg: Config, options: Mapping[str, Any]) -> tuple[str, ...] | None:
    path = join_root(options.get("root"), options.get("train_ann", ""))
    if "classes" in options:
        classes = options["classes"]
        typed = [classes] if isinstance(classes, str | bool) else classes
        asks = "train_ann" in options and any(isinstance(name, bool) for name in typed)
        known = (
            category_names(read_coco(path), path) if asks and cfg.default_scope != "mmseg" else ()
        )
        return tuple(_class_name(name, known) for name in typed)
    if "train_ann" not in options:
        return None
    if cfg.default_scope == "mmseg":
        raise UsageError(
            "custom_dataset.classes is needed: label maps do not hold the names of their classes"
        )
    return category_names(read_coco(path), path)


def _class_name(name: Any, known: Sequence[str]) -> str:
    """Return the name of a class as it was typed: --cfg-options reads `true` as a truth value."""
    spellings = [str(name), str(name).lower(), str(name).upper()] if isinstance(name, bool) else []
    return next((spelling for spelling in spellings if spelling in known), str(name))


def _set_classes(cfg: Config, classes: tuple[str, ...], typed: TypedOptions) -> None:
    for dataset, where in split_datasets(cfg):
        palette = (dataset.get("metainfo") or {}).get("palette") or ()
        metainfo = ConfigDict(classes=classes)
        if len(palette) == len(classes):
            metainfo.palette = palette
        typed.fill_in(dataset, "metainfo", metainfo, where=where)
    for head, where in list(iter_heads(cfg)):
        key = class_count_key(head)
        before = head[key]
        typed.fill_in(head, key, len(classes), where=where)
        for loss, place in iter_named_dicts(head, where):
            weights = loss.get("class_weight")
            if isinstance(weights, Sequence):
                # Weights of other classes mean nothing here. Mask2Former's last one is for "no
                # object", whatever the classes.
                last = [weights[-1]] if len(weights) == before + 1 else None
                value = [1.0] * len(classes) + last if last else None
                typed.fill_in(loss, "class_weight", value, where=place)
