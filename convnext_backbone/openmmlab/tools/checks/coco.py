"""Checks of a data set in COCO's format: its ids, classes and images, and what it holds.

mmdet ignores most of these mistakes (a class without a category, sizes that are not the images') or
reports them in the middle of an epoch without the name of a file.
"""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...config_walk import is_local, is_remote, split_datasets, split_metrics, type_name
from ..coco_file import category_names, read_coco
from ..datasets import COCO, CocoSet, DataSource, load_coco, resolve_dataset
from ..errors import UsageError
from .annotations import check_annotations, is_run_length
from .classes import check_num_classes
from .images import MAX_IMAGES, ImageReader, check_exist, show_progress, spread
from .report import Report, count_table, list_quoted

_OTHER_SIZE = 0.02  # relative difference between an image's size and its entry's, beyond rounding
_READ = ("id", "file_name", "width", "height")  # by mmdet of an image


def check_coco(source: DataSource, report: Report) -> None:
    """Check one data set: categories, annotations, masks, number of classes, images.

    Raises:
        UsageError: Something does not fit or cannot be read.
    """
    if not source.ann_file:
        return
    unlabelled = _only_predicts(report)
    data = load_coco(source, unlabelled=unlabelled)
    _check_categories(data, report)
    check_num_classes(report.cfg, len(data.classes))
    if data.coco.get("annotations") or not unlabelled:
        _check_references(data, report)
        _check_ids(data, report)
        check_annotations(data, report)
    _check_filter(data, report)
    _check_images(data, report)
    _summarize(data, report)


def check_evaluators(report: Report) -> None:
    """Check that COCO metrics compare with the images that the data set of the split yields.

    Raises:
        UsageError: The metric's file lacks some of them.
    """
    datasets = split_datasets(report.cfg, report.split)
    source = resolve_dataset(datasets[0][0]) if len(datasets) == 1 else None
    if source is None or source.reads != COCO or not source.ann_file:
        return
    for metric, where in split_metrics(report.cfg, report.split):
        other = metric.get("ann_file")
        is_file = isinstance(other, str) and is_local(metric) and not is_remote(other)
        if type_name(metric) != "CocoMetric" or not is_file:
            continue
        own_ids, other_ids = (
            {image["id"] for image in images}
            for images in (
                load_coco(source, unlabelled=True).images,
                read_coco(other, unlabelled=True)["images"],
            )
        )
        lacking = own_ids - other_ids
        if lacking:
            raise UsageError(
                f"{where}.ann_file {other!r} lacks {len(lacking)} images of {source.ann_file!r}, "
                f"the annotation file of {report.split}_dataloader"
            )


def _only_predicts(report: Report) -> bool:
    metrics = split_metrics(report.cfg, report.split)
    return bool(metrics) and all(metric.get("format_only") for metric, _ in metrics)


# --------------------------------------------------------------------------- categories and ids


def _check_categories(data: CocoSet, report: Report) -> None:
    classes = data.classes
    names = category_names(data.coco, data.ann_file, classes)
    option = report.option(data.where, "metainfo.classes", "classes")
    absent = [name for name in classes if name not in names]
    if absent:
        advice = "" if option.startswith("custom_") else "; to take the file's, set custom_dataset"
        raise UsageError(
            f"{data.file} has no category named {list_quoted(absent)}; its categories are "
            f"{list_quoted(names)} ({option}{advice})"
        )
    # mmdet numbers the classes in the order of the file, whatever order metainfo gives.
    order = [name for name in names if name in classes]
    if list(classes) != order:
        raise UsageError(
            f"classes must be in the order of {data.ann_file!r}, which is {list_quoted(order)}, "
            f"got {list_quoted(classes)} ({option})"
        )


def _check_references(data: CocoSet, report: Report) -> None:
    annotations = data.coco.get("annotations", [])
    for key, known in (("category_id", "categories"), ("image_id", "images")):
        ids = {entry["id"] for entry in data.coco[known]}
        used = Counter(a[key] for a in annotations)
        unknown = Counter({value: n for value, n in used.items() if value not in ids})
        if not unknown:
            continue
        value, _ = unknown.most_common(1)[0]
        text = (
            f"{data.file}: {unknown.total()} annotations whose {key} is none of its {known}, such "
            f"as {value!r}"
        )
        if _are_shifted(set(used), ids):
            raise UsageError(f"{text}; does one of the two count from 0, the other from 1?")
        text += "; mmdet passes over them"
        report.refuse_or_warn(text, refuse=unknown.total() == len(annotations))


def _check_ids(data: CocoSet, report: Report) -> None:
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
                f"{data.file}: {len(ids)} ids of its {kind} occur more than once, such as "
                f"{ids[0]!r}"
            )
    names: dict[Any, str] = {}
    for category in data.coco["categories"]:
        own, other = category["name"], names.setdefault(category["id"], category["name"])
        if own != other and not {own, other}.isdisjoint(data.classes):
            raise UsageError(
                f"{data.file}: the categories {other!r} and {own!r} both have the id "
                f"{category['id']!r}, so mmdet cannot tell their objects apart"
            )
    if report.split == "train":
        return
    for kind in ("images", "categories"):
        if len({isinstance(entry["id"], str) for entry in data.coco[kind]}) > 1:
            raise UsageError(
                f"{data.file}: of the ids of its {kind} some are numbers and some strings, which "
                "pycocotools cannot sort"
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


def _check_filter(data: CocoSet, report: Report) -> None:
    """Report images that are too small for the filter of a training set."""
    sizes, least = data.sizes.values(), data.filter_cfg.get("min_size", 0)
    small = sum(min(size) < least for size in sizes)
    if not data.trains or not small:
        return
    report.refuse_or_warn(
        f"{data.file}: {small} of {len(sizes)} images are left out, because "
        f"{data.where}.filter_cfg.min_size is {least} pixels",
        refuse=not data.images,
    )


def _check_images(data: CocoSet, report: Report) -> None:
    folder, path = data.folder("img"), data.ann_file
    reader = ImageReader(data.pipeline)
    if is_remote(folder) or not reader.opens_files:
        return
    check_exist(folder, [image["file_name"] for image in data.images], path)
    if not reader.known:
        return
    sample = spread(data.images, None if report.everything else MAX_IMAGES)
    # Boxes and polygons tolerate a pixel of rounding, a run-length mask has the size of its image.
    exact = data.loads_masks and any(map(is_run_length, data.of_classes))
    most = 0.0 if exact else _OTHER_SIZE
    for image in show_progress(sample, f"checking the images of {path}"):
        name = os.path.join(folder, image["file_name"])
        size, listed = reader.check(name), (image["width"], image["height"])
        if size is None or size == listed:
            continue
        turned = "; they are swapped, or its EXIF orientation turns it"
        text = (
            f"image {name!r} is {size[0]} x {size[1]} pixels, but {data.file} has width "
            f"{listed[0]} and height {listed[1]} for it (id {image['id']!r})"
            f"{turned if size == listed[::-1] else ''}"
        )
        if max(abs(a - b) / a for a, b in zip(size, listed, strict=True)) > most:
            raise UsageError(f"{text}: its boxes and masks would be misplaced")
        report.warn(text)


def _summarize(data: CocoSet, report: Report) -> None:
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
    if absent and (data.annotations or data.trains):
        report.warn(f"{where}: {data.file} has no instance of {list_quoted(absent)}")


def _describe_sizes(sizes: Sequence[tuple[float, float]]) -> str:
    (common, number), *_ = Counter(sizes).most_common(1) or [((0, 0), 0)]
    smallest, largest = (f(sizes, key=lambda s: s[0] * s[1], default=common) for f in (min, max))
    return (
        f"  image sizes: {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}, most often "
        f"{common[0]} x {common[1]} ({number:,} images)"
    )
