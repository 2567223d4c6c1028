"""Checks of a data set in COCO's format: its ids, classes and images, and what it holds.

mmdet ignores most of these mistakes (a class without a category, sizes that are not the images') or
reports them in the middle of an epoch without the name of a file.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..config_walk import (
    class_count_key,
    is_local,
    is_remote,
    iter_heads,
    split_datasets,
    split_metrics,
)
from .annotation_checks import check_annotations, check_limits, is_run_length
from .coco import category_names, read_coco
from .data_report import DataReport, count_table, list_quoted
from .datasets import CocoSet, DataSource, load_coco, resolve_dataset
from .errors import UsageError
from .image_checks import MAX_IMAGES, ImageReader, check_exist, show_progress, spread

_OTHER_SIZE = 0.02  # relative difference between an image's size and its entry's, beyond rounding
_READ = ("id", "file_name", "width", "height")  # by mmdet of an image


def check_coco(source: DataSource, report: DataReport) -> None:
    """Check one data set: categories, annotations, masks, number of classes, images.

    Raises:
        UsageError: Something does not fit or cannot be read.
    """
    if not source.ann_file:
        return
    unlabelled = _only_predicts(report)
    data = load_coco(source, unlabelled=unlabelled)
    _check_categories(data, report)
    check_num_classes(report, len(data.classes))
    if data.coco.get("annotations") or not unlabelled:
        _check_references(data.coco, data.ann_file, report)
        _check_ids(data, report)
        check_annotations(data, report)
    check_limits(data, report)
    _check_filter(data, report)
    _check_images(data, report)
    _summarize(data, report)


def check_evaluators(report: DataReport) -> None:
    """Check that COCO metrics compare with the images that the data set of the split yields.

    Raises:
        UsageError: The metric's file lacks some of them.
    """
    datasets = split_datasets(report.cfg, report.split)
    source = resolve_dataset(datasets[0][0]) if len(datasets) == 1 else None
    own = source.ann_file if source else ""
    if not own.endswith(".json"):
        return
    for metric, where in split_metrics(report.cfg, report.split):
        other = metric.get("ann_file")
        is_file = isinstance(other, str) and is_local(metric) and not is_remote(other)
        if not is_file or os.path.samefile(other, own):
            continue
        own_ids, other_ids = (
            {image["id"] for image in read_coco(file, unlabelled=True)["images"]}
            for file in (own, other)
        )
        lacking = own_ids - other_ids
        if lacking:
            raise UsageError(
                f"{where}.ann_file {other!r} lacks {len(lacking)} images of {own!r}, the "
                f"annotation file of {report.split}_dataloader"
            )


def check_num_classes(report: DataReport, num_classes: int) -> None:
    """Check that every head predicts as many classes as the data set has.

    Raises:
        UsageError: One does not.
    """
    for head, where in iter_heads(report.cfg.model):
        key = class_count_key(head)
        if head[key] != num_classes:
            raise UsageError(
                f"{where}.{key} is {head[key]}, but the data set has {num_classes} classes"
            )


def _only_predicts(report: DataReport) -> bool:
    metrics = split_metrics(report.cfg, report.split)
    return bool(metrics) and all(metric.get("format_only") for metric, _ in metrics)


# --------------------------------------------------------------------------- categories and ids


def _check_categories(data: CocoSet, report: DataReport) -> None:
    classes, path = data.classes, data.ann_file
    names = category_names(data.coco, path, classes)
    option = report.option(data.where, "metainfo.classes", "classes")
    absent = [name for name in classes if name not in names]
    if absent:
        advice = "" if option.startswith("custom_") else "; to take the file's, set custom_dataset"
        raise UsageError(
            f"annotation file {path!r} has no category named {list_quoted(absent)}; its "
            f"categories are {list_quoted(names)} ({option}{advice})"
        )
    # mmdet numbers the classes in the order of the file, whatever order metainfo gives.
    order = [name for name in names if name in classes]
    if list(classes) != order:
        raise UsageError(
            f"classes must be in the order of {path!r}, which is {list_quoted(order)}, "
            f"got {list_quoted(classes)} ({option})"
        )


def _check_references(coco: Mapping[str, Any], path: str, report: DataReport) -> None:
    annotations = coco.get("annotations", [])
    for key, known in (("category_id", "categories"), ("image_id", "images")):
        ids = {entry["id"] for entry in coco[known]}
        used = Counter(a[key] for a in annotations)
        unknown = Counter({value: n for value, n in used.items() if value not in ids})
        if not unknown:
            continue
        value, _ = unknown.most_common(1)[0]
        text = (
            f"annotation file {path!r}: {unknown.total()} annotations whose {key} is none of its "
            f"{known}, such as {value!r}"
        )
        if _are_shifted(set(used), ids):
            raise UsageError(f"{text}; does one of the two count from 0, the other from 1?")
        if unknown.total() == len(annotations):
            raise UsageError(text)
        report.warn(f"{text}; mmdet passes over them")


def _check_ids(data: CocoSet, report: DataReport) -> None:
    """Check that ids name one image or annotation each, and can be sorted for the evaluation."""
    entries = [tuple(image[key] for key in _READ) for image in data.coco["images"]]
    one = {entry[0]: entry for entry in entries}
    twice = {
        "images": [entry[0] for entry in entries if entry != one[entry[0]]],  # equal ones are one
        "annotations": [i for i, n in Counter(a["id"] for a in data.listed).items() if n > 1],
    }
    for kind, ids in twice.items():
        if ids:
            raise UsageError(
                f"annotation file {data.ann_file!r}: {len(ids)} ids of its {kind} occur more than "
                f"once, such as {ids[0]!r}"
            )
    names: dict[Any, str] = {}
    for category in data.coco["categories"]:
        own, other = category["name"], names.setdefault(category["id"], category["name"])
        if own != other and not {own, other}.isdisjoint(data.classes):
            raise UsageError(
                f"annotation file {data.ann_file!r}: the categories {other!r} and {own!r} both "
                f"have the id {category['id']!r}, so mmdet cannot tell their objects apart"
            )
    if report.split == "train":
        return
    for kind in ("images", "categories"):
        words = {isinstance(entry["id"], str) for entry in data.coco[kind]}
        if len(words) > 1:
            raise UsageError(
                f"annotation file {data.ann_file!r}: of the ids of its {kind} some are numbers and "
                "some words, which pycocotools cannot sort"
            )


def _are_shifted(used: set[Any], ids: set[Any]) -> bool:
    """Return whether the numbers in use go one beyond the ids at one end, not up to the other."""
    if not ids or not all(isinstance(number, int) for number in used | ids):
        return False
    low, high = min(ids), max(ids)
    is_range = high - low + 1 == len(ids)
    return is_range and any(
        used - ids == {beyond} and unused not in used
        for beyond, unused in ((low - 1, high), (high + 1, low))
    )


# --------------------------------------------------------------------------- images


def _check_filter(data: CocoSet, report: DataReport) -> None:
    """Report images that are too small for the filter of a training set."""
    sizes, least = data.sizes.values(), data.filter_cfg.get("min_size", 0)
    small = sum(min(size) < least for size in sizes)
    if not data.trains or not small:
        return
    text = (
        f"annotation file {data.ann_file!r}: {small} of {len(sizes)} images are left out, because "
        f"{data.where}.filter_cfg.min_size is {least} pixels"
    )
    if not data.images:
        raise UsageError(text)
    report.warn(text)


def _check_images(data: CocoSet, report: DataReport) -> None:
    folder, path = data.folder("img"), data.ann_file
    reader = ImageReader(data.pipeline)
    if is_remote(folder) or not reader.opens_files:
        return
    check_exist(folder, [image["file_name"] for image in data.images], path)
    if not reader.known:
        return
    sample = spread(data.images, None if report.everything else MAX_IMAGES)
    # Boxes and polygons bear a pixel of rounding, a run-length mask has the size of its image.
    exact = data.loads_masks and any(map(is_run_length, data.of_classes))
    most = 0.0 if exact else _OTHER_SIZE
    for image in show_progress(sample, f"checking the images of {path}"):
        name = os.path.join(folder, image["file_name"])
        _compare_sizes(image, name, reader.check(name), path, report, most)


def _compare_sizes(
    image: Mapping[str, Any],
    name: str,
    size: tuple[int, int] | None,
    path: str,
    report: DataReport,
    most: float,
) -> None:
    """Compare an image's size with its entry's; `most` is the relative difference to bear."""
    listed = (image["width"], image["height"])
    if size is None or size == listed:
        return
    reason = ""
    if size == listed[::-1]:
        reason = "; they are swapped, or its EXIF orientation turns it"
    text = (
        f"image {name!r} is {size[0]} x {size[1]} pixels, but annotation file {path!r} has "
        f"width {listed[0]} and height {listed[1]} for it (id {image['id']!r}){reason}"
    )
    differences = [abs(a - b) / a for a, b in zip(size, listed, strict=True)]
    if max(differences) > most:
        raise UsageError(f"{text}: its boxes and masks would be misplaced")
    report.warn(text)


def _summarize(data: CocoSet, report: DataReport) -> None:
    coco, classes, path, where = data.coco, data.classes, data.ann_file, data.where
    names = {category["id"]: category["name"] for category in coco["categories"]}
    counts = Counter(names[a["category_id"]] for a in data.of_classes)
    sizes = list(data.sizes.values())
    lines = [f"{where}: {path}, {len(sizes):,} images, {sum(counts.values()):,} instances"]
    if data.trains:
        left_out = len(sizes) - len(data.images)
        if left_out:
            lines.append(f"  {left_out:,} images are left out of training (filter_cfg, indices)")
    lines.append(_describe_sizes(sizes))
    lines.append(count_table([(name, counts[name]) for name in classes], "instances"))
    areas = sorted(max(a["area"], 0) ** 0.5 for a in data.of_classes)
    if areas:
        few, half, most = (areas[int(part * (len(areas) - 1))] for part in (0.1, 0.5, 0.9))
        lines.append(
            f"  square root of the area, pixels: 10 % below {few:.0f}, median {half:.0f}, "
            f"10 % above {most:.0f}"
        )
    report.summaries.append("\n".join(lines))
    absent = [name for name in classes if not counts[name]]
    if absent and data.annotations:
        report.warn(f"{where}: annotation file {path!r} has no instance of {list_quoted(absent)}")


def _describe_sizes(sizes: Sequence[tuple[float, float]]) -> str:
    (common, number), *_ = Counter(sizes).most_common(1) or [((0, 0), 0)]
    smallest, largest = (f(sizes, key=lambda s: s[0] * s[1], default=common) for f in (min, max))
    return (
        f"  image sizes: {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}, most often "
        f"{common[0]} x {common[1]} ({number:,} images)"
    )
