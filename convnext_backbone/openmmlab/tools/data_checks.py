"""Checks of what a data set holds; each message names the file.

mmdet and mmsegmentation ignore most of these mistakes (a class without a category, an order of
classes that is not the file's, a file without annotations) or report them from a worker in the
middle of an epoch (a missing or damaged image, a label beyond the classes).
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image, UnidentifiedImageError

from ...utils.checks import shorten_list
from ..config_walk import is_remote, join_root, split_datasets, split_metrics
from .coco import category_names, read_coco
from .errors import UsageError

# Opening every file of a large data set would delay each start: so many, evenly spread.
_MAX_IMAGES = 5000
_MAX_LABEL_MAPS = 200
_IGNORED_LABEL = 255
# The defaults of mmsegmentation's data sets that read folders of label maps.
_LABEL_MAP_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "BaseSegDataset": {
        "img_suffix": ".jpg",
        "seg_map_suffix": ".png",
        "reduce_zero_label": False,
    },
    "ADE20KDataset": {"img_suffix": ".jpg", "seg_map_suffix": ".png", "reduce_zero_label": True},
}
_TRAILERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_TRAILER_WINDOW = 4096  # some cameras append a few bytes of their own


def check_data_contents(cfg: Config, splits: Sequence[str]) -> None:
    """Check the annotations and images of every data set that a run will use.

    Data sets in COCO's format and folders of label maps are checked; others are skipped.

    Args:
        cfg: The config.
        splits: Which of "train", "val" and "test" the run uses.

    Raises:
        UsageError: Classes, categories, annotations or images do not fit or cannot be read.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        checked: set[str] = set()
        for split in splits:
            for dataset, where in split_datasets(cfg, split):
                # The default test set is the validation set; once is enough.
                if repr(dataset) not in checked:
                    checked.add(repr(dataset))
                    _check_dataset(cfg, dataset, where)
            _check_evaluator(cfg, split)


def _check_dataset(cfg: Config, dataset: Mapping[str, Any], where: str) -> None:
    name = _dataset_class(dataset).__name__
    if name == "CocoDataset":
        _check_coco(cfg, dataset, where)
    elif name in _LABEL_MAP_DEFAULTS:
        settings = {k: dataset.get(k, v) for k, v in _LABEL_MAP_DEFAULTS[name].items()}
        _check_label_maps(cfg, dataset, where, **settings)


def _dataset_class(dataset: Mapping[str, Any]) -> Any:
    type_ = dataset["type"]
    if not isinstance(type_, str):
        return type_
    with DATASETS.switch_scope_and_registry(None) as registry:
        found = registry.get(type_)
    if found is None:
        raise UsageError(f"data set type {type_!r} is not registered")
    return found


def _classes(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a data set will have: those of its config, or of its type."""
    given = (dataset.get("metainfo") or {}).get("classes")
    classes = given if given is not None else _dataset_class(dataset).METAINFO.get("classes", ())
    return (classes,) if isinstance(classes, str) else tuple(classes)


# --------------------------------------------------------------------------- COCO's format


def _check_coco(cfg: Config, dataset: Mapping[str, Any], where: str) -> None:
    root = dataset.get("data_root")
    path = join_root(root, dataset.get("ann_file") or "")
    if not path or is_remote(path):
        return
    coco = read_coco(path)
    classes = _classes(dataset)
    _check_categories(coco, classes, path, where)
    _check_annotations(coco, path)
    _check_num_classes(cfg, len(classes))
    kept = {c["id"] for c in coco["categories"] if c["name"] in classes}
    filters = not dataset.get("test_mode") and (dataset.get("filter_cfg") or {}).get(
        "filter_empty_gt"
    )
    if not any(a["category_id"] in kept for a in coco["annotations"]) and (
        filters or not coco["annotations"]
    ):
        raise UsageError(
            f"annotation file {path!r} has no annotation of the classes {_some(classes)} ({where})"
        )
    _check_masks(coco, dataset, kept, path, where)
    folder = join_root(root, (dataset.get("data_prefix") or {}).get("img", ""))
    _check_images(folder, [image["file_name"] for image in coco["images"]], path)


def _check_categories(
    coco: Mapping[str, Any], classes: tuple[str, ...], path: str, where: str
) -> None:
    names = category_names(coco, path)
    absent = [name for name in classes if name not in names]
    if absent:
        raise UsageError(
            f"annotation file {path!r} has no category named {_some(absent)}; its categories are "
            f"{_some(names)} ({where}.metainfo.classes; to take the file's, set custom_dataset)"
        )
    # mmdet numbers the classes in the order of the file, whatever order metainfo gives.
    order = [name for name in names if name in classes]
    if list(classes) != order:
        raise UsageError(
            f"classes must be in the order of {path!r}, which is {_some(order)}, "
            f"got {_some(classes)} ({where}.metainfo.classes)"
        )


def _check_annotations(coco: Mapping[str, Any], path: str) -> None:
    for key, known in (("category_id", "categories"), ("image_id", "images")):
        ids = {entry["id"] for entry in coco[known]}
        wrong = Counter(a.get(key) for a in coco["annotations"] if a.get(key) not in ids)
        if wrong:
            value, _ = wrong.most_common(1)[0]
            raise UsageError(
                f"annotation file {path!r}: {sum(wrong.values())} annotations whose {key} is none "
                f"of its {known}, such as {value!r}"
            )


def _check_masks(
    coco: Mapping[str, Any],
    dataset: Mapping[str, Any],
    kept: Set[int],
    path: str,
    where: str,
) -> None:
    """Check that a pipeline which loads masks finds them in every annotation that mmdet keeps."""
    if not any(step.get("with_mask") for step in dataset.get("pipeline") or ()):
        return
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    without_mask = [
        a
        for a in coco["annotations"]
        if not a.get("segmentation")
        and a["category_id"] in kept
        and _is_kept(a, *sizes[a["image_id"]])
    ]
    if without_mask:
        raise UsageError(
            f"annotation file {path!r}: {len(without_mask)} annotations without 'segmentation', "
            f"such as id {without_mask[0]['id']!r}, but {where}.pipeline loads masks (with_mask); "
            "boxes alone are enough for a detector of boxes, such as those of configs/faster_rcnn"
        )


def _is_kept(annotation: Mapping[str, Any], width: float, height: float) -> bool:
    """Return whether mmdet's `CocoDataset` keeps an annotation; it skips the others."""
    x, y, w, h = annotation["bbox"]
    inside = min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
    return inside and min(w, h) >= 1 and annotation["area"] > 0 and not annotation.get("ignore")


def _check_evaluator(cfg: Config, split: str) -> None:
    """Check that a COCO metric compares with the images that the data set yields."""
    datasets = split_datasets(cfg, split)
    if len(datasets) != 1 or not datasets[0][0].get("ann_file"):
        return
    own = join_root(datasets[0][0].get("data_root"), datasets[0][0]["ann_file"])
    for metric, where in split_metrics(cfg, split):
        other = metric.get("ann_file")
        if not isinstance(other, str) or is_remote(other) or is_remote(own):
            continue
        if os.path.abspath(other) == os.path.abspath(own):
            continue
        lacking = {image["id"] for image in read_coco(own)["images"]}
        lacking -= {image["id"] for image in read_coco(other)["images"]}
        if lacking:
            raise UsageError(
                f"{where}.ann_file {other!r} lacks {len(lacking)} images of {own!r}, the "
                f"annotation file of {split}_dataloader"
            )


# --------------------------------------------------------------------------- label maps


def _check_label_maps(
    cfg: Config,
    dataset: Mapping[str, Any],
    where: str,
    *,
    img_suffix: str,
    seg_map_suffix: str,
    reduce_zero_label: bool,
) -> None:
    root = dataset.get("data_root")
    prefix = dataset.get("data_prefix") or {}
    images = join_root(root, prefix.get("img_path") or "")
    maps = join_root(root, prefix.get("seg_map_path") or "")
    if dataset.get("ann_file") or is_remote(images) or not maps or not os.path.isdir(images):
        return
    names = _files_below(images)
    stems = sorted(n[: -len(img_suffix)] for n in names if n.endswith(img_suffix))
    if not stems:
        found = ", ".join(sorted({os.path.splitext(n)[1] for n in names})) or "no file at all"
        raise UsageError(
            f"folder {images!r} has no image named *{img_suffix} (it has {found}); "
            f"set {where}.img_suffix"
        )
    _check_images(images, [stem + img_suffix for stem in stems], images)
    _check_images(maps, [stem + seg_map_suffix for stem in stems], images)
    classes = _classes(dataset)
    _check_num_classes(cfg, len(classes))
    for stem in _spread(stems, _MAX_LABEL_MAPS):
        _check_labels(os.path.join(maps, stem + seg_map_suffix), len(classes), reduce_zero_label)


def _check_labels(path: str, num_classes: int, reduced: bool) -> None:
    with Image.open(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2:
        raise UsageError(
            f"label map {path!r} has {labels.shape[2]} channels; a label map has one, whose values "
            "are the classes"
        )
    highest = num_classes if reduced else num_classes - 1
    wrong = np.unique(labels[(labels > highest) & (labels != _IGNORED_LABEL)])
    if wrong.size:
        offset = "1 to the number of classes, 0 being void" if reduced else "0 to one below it"
        raise UsageError(
            f"label map {path!r} holds the value {int(wrong[0])}, but there are {num_classes} "
            f"classes: with reduce_zero_label={reduced} its values go from {offset}"
        )


# --------------------------------------------------------------------------- images


def _check_images(folder: str, names: Sequence[str], listed_in: str) -> None:
    if is_remote(folder):
        return
    existing = _files_below(folder)
    absent = [name for name in names if os.path.normpath(name) not in existing]
    if absent:
        raise UsageError(
            f"{len(absent)} of {len(names)} files that {listed_in!r} lists are not in "
            f"{folder!r}, such as {absent[0]!r}"
        )
    for name in _spread(names, _MAX_IMAGES):
        _check_image(os.path.join(folder, name))


def _files_below(folder: str) -> set[str]:
    """Return the files below `folder`, as paths relative to it."""
    return {
        os.path.normpath(os.path.join(os.path.relpath(directory, folder), name))
        for directory, _, names in os.walk(folder)
        for name in names
    }


def _check_image(path: str) -> None:
    try:
        with Image.open(path) as image:
            trailer = _TRAILERS.get(image.format or "", b"")
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TRAILER_WINDOW))
            complete = trailer in file.read()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UsageError(f"image {path!r} cannot be read: {_reason(error)}") from error
    if not complete:
        raise UsageError(f"image {path!r} is cut short: it lacks the end of its file")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or it is damaged"
    return str(error)


def _spread(items: Sequence[str], most: int) -> Iterable[str]:
    """Return at most `most` of `items`, evenly spread."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


# --------------------------------------------------------------------------- heads


def _check_num_classes(cfg: Config, num_classes: int) -> None:
    # --tta wraps the model of the config.
    for where, head in _heads(cfg.model.get("module", cfg.model), "model"):
        if head["num_classes"] != num_classes:
            raise UsageError(
                f"{where}.num_classes is {head['num_classes']}, but the data set has "
                f"{num_classes} classes"
            )


def _heads(value: Any, where: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield every head that predicts classes, with its name in the config."""
    if isinstance(value, Mapping):
        # An RPN separates objects from background, whatever the classes.
        if "num_classes" in value and value.get("type") != "RPNHead":
            yield where, value
        for key, item in value.items():
            yield from _heads(item, f"{where}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _heads(item, f"{where}[{index}]")


def _some(names: Sequence[str]) -> str:
    return shorten_list([repr(name) for name in names])
