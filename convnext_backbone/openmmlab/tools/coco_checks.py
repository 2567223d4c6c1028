"""Checks of a data set in COCO's format.

mmdet ignores most of these mistakes (a class without a category, boxes that it drops, sizes that
are not the images') or reports them in the middle of an epoch without the name of a file.
"""

import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config_walk import (
    class_count_key,
    is_local,
    is_remote,
    iter_heads,
    iter_named_dicts,
    split_datasets,
    split_metrics,
)
from .coco import category_names, images_in_use, kept_categories, read_coco
from .data_report import DataReport, count_table, list_quoted
from .datasets import annotation_path, class_names, image_folder
from .errors import UsageError
from .image_checks import MAX_IMAGES, ImageReader, check_exist, show_progress, spread

_OTHER_SIZE = 0.02  # relative difference between an image's size and its entry's, beyond rounding
_NORMALISED = 1.5  # no box in pixels is smaller; some normalised ones reach beyond 1
_READ = ("id", "file_name", "width", "height")  # by mmdet of an image
_MAX_MASKS = 1000  # each is decoded
_ODD_PART = 0.2  # of boxes outside their image
Annotation = Mapping[str, Any]


@dataclass(frozen=True)
class _CocoSet:
    """A data set of a config with what its annotation file holds.

    Attributes:
        coco: The contents of the file.
        path: The file.
        classes: The names of the classes, in order.
        dataset: The data set's part of the config.
        where: The name of that part.
    """

    coco: Mapping[str, Any]
    path: str
    classes: Sequence[str]
    dataset: Mapping[str, Any]
    where: str

    @property
    def trains(self) -> bool:
        """Whether mmdet filters its images, as it does to train."""
        return not self.dataset.get("test_mode")

    @functools.cached_property
    def sizes(self) -> Mapping[Any, tuple[float, float]]:
        """The width and height of each image, by its id."""
        return {image["id"]: (image["width"], image["height"]) for image in self.coco["images"]}

    @functools.cached_property
    def listed(self) -> Sequence[Annotation]:
        """The annotations of its images."""
        return [a for a in self.coco.get("annotations", ()) if a["image_id"] in self.sizes]

    @functools.cached_property
    def annotations(self) -> Sequence[Annotation]:
        """Those of them that mmdet unpacks: to train not those to ignore."""
        return [a for a in self.listed if not (self.trains and a.get("ignore"))]

    @functools.cached_property
    def of_classes(self) -> Sequence[Annotation]:
        """Those of them that it keeps: mmdet passes over other categories."""
        kept = kept_categories(self.coco, self.classes)
        return [a for a in self.annotations if a["category_id"] in kept]

    @property
    def loads_masks(self) -> bool:
        """Whether its pipeline does."""
        return any(step.get("with_mask") for step in self.dataset.get("pipeline") or ())

    @property
    def filter_cfg(self) -> Mapping[str, Any]:
        """What mmdet filters them by."""
        return self.dataset.get("filter_cfg") or {}


def check_coco(dataset: Mapping[str, Any], where: str, report: DataReport) -> None:
    """Check one data set: categories, annotations, masks, number of classes, images.

    Raises:
        UsageError: Something does not fit or cannot be read.
    """
    path = annotation_path(dataset)
    if not path:
        return
    unlabelled = _only_predicts(report)
    coco = read_coco(path, unlabelled=unlabelled)
    data = _CocoSet(coco, path, class_names(dataset), dataset, where)
    _check_categories(data, report)
    check_num_classes(report, len(data.classes))
    if coco.get("annotations") or not unlabelled:
        _check_references(coco, path, report)
        _check_ids(data, report)
        _check_annotations(data, report)
    _check_limits(data, report)
    _check_filter(data, report)
    _check_images(data, report)
    _summarize(data, report)


def check_evaluators(report: DataReport) -> None:
    """Check that COCO metrics compare with the images that the data set of the split yields.

    Raises:
        UsageError: The metric's file lacks some of them.
    """
    datasets = split_datasets(report.cfg, report.split)
    own = annotation_path(datasets[0][0]) if len(datasets) == 1 else ""
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


def _check_categories(data: _CocoSet, report: DataReport) -> None:
    classes, path = data.classes, data.path
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


def _check_ids(data: _CocoSet, report: DataReport) -> None:
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
                f"annotation file {data.path!r}: {len(ids)} ids of its {kind} occur more than "
                f"once, such as {ids[0]!r}"
            )
    if report.split == "train":
        return
    for annotation in data.of_classes:
        crowd = annotation.get("iscrowd")
        if crowd is not None and not _is_number(crowd):
            raise UsageError(
                f"annotation file {data.path!r}: annotation {annotation['id']!r} has the iscrowd "
                f"{crowd!r}, which is neither 0 nor 1"
            )
    for kind in ("images", "categories"):
        words = {isinstance(entry["id"], str) for entry in data.coco[kind]}
        if len(words) > 1:
            raise UsageError(
                f"annotation file {data.path!r}: of the ids of its {kind} some are numbers and "
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


# --------------------------------------------------------------------------- boxes and masks


def _check_annotations(data: _CocoSet, report: DataReport) -> None:
    path, own, sizes = data.path, data.of_classes, data.sizes
    categories = kept_categories(data.coco, data.classes)
    for annotation in show_progress(data.annotations, f"checking the annotations of {path}"):
        is_own = annotation["category_id"] in categories
        _check_box(annotation, path, _is_finite if is_own else _is_number)
    filters = data.filter_cfg.get("filter_empty_gt")
    if not own and ((data.trains and filters) or not data.annotations):
        raise UsageError(
            f"annotation file {path!r} has no annotation of the classes "
            f"{list_quoted(data.classes)} ({data.where})"
        )
    kept: list[Annotation] = []
    dropped: list[Annotation] = []
    for annotation in (a for a in own if not a.get("ignore")):  # mmdet skips those as well
        is_kept = _is_kept(annotation, *sizes[annotation["image_id"]])
        (kept if is_kept else dropped).append(annotation)
    if dropped:
        _report_dropped(dropped, len(own), path, report)
    outside = sum(_leaves(a["bbox"], *sizes[a["image_id"]]) for a in kept)
    if outside > _ODD_PART * len(kept):
        report.warn(
            f"annotation file {path!r}: {outside} of {len(kept)} boxes reach beyond their image; "
            "COCO's boxes are [x, y, width, height]"
        )
    _check_masks(data, kept, report)


def _check_box(annotation: Annotation, path: str, fits: Callable[[Any], bool]) -> None:
    for key, expected in (("bbox", 4), ("area", 1)):
        value = annotation[key]
        numbers = value if key == "bbox" and isinstance(value, list) else [value]
        if len(numbers) != expected or not all(fits(number) for number in numbers):
            kind = "four finite numbers [x, y, width, height]" if expected == 4 else "a number"
            raise UsageError(
                f"annotation file {path!r}: annotation {annotation['id']!r} has the {key} "
                f"{value!r}, which is not {kind}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_kept(annotation: Annotation, width: float, height: float) -> bool:
    """Return whether mmdet's `CocoDataset` keeps a box of this size; it skips the others."""
    x, y, w, h = annotation["bbox"]
    inside = min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
    return inside and min(w, h) >= 1 and annotation["area"] > 0


def _report_dropped(
    dropped: Sequence[Annotation], number: int, path: str, report: DataReport
) -> None:
    text = (
        f"annotation file {path!r}: mmdet drops {len(dropped)} of {number} annotations, whose "
        "boxes are narrower than a pixel, outside their image or without an area, such as id "
        f"{dropped[0]['id']!r} with the bbox {dropped[0]['bbox']}"
    )
    if len(dropped) < number:
        report.warn(text)
        return
    if all(max(map(abs, a["bbox"])) <= _NORMALISED for a in dropped):
        text += "; they look normalised: multiply them by the image's width and height"
    raise UsageError(text)


def _leaves(box: Sequence[float], width: float, height: float) -> bool:
    x, y, w, h = box
    return x < -2 or y < -2 or x + w > width + 2 or y + h > height + 2


def _check_masks(data: _CocoSet, kept: Sequence[Annotation], report: DataReport) -> None:
    """Check that a pipeline which loads masks finds them in every annotation that mmdet keeps."""
    if not data.loads_masks:
        return
    path = data.path
    without = [a for a in kept if not a.get("segmentation")]
    if without:
        raise UsageError(
            f"annotation file {path!r}: {len(without)} annotations without 'segmentation', "
            f"such as id {without[0]['id']!r}, but {data.where}.pipeline loads masks (with_mask); "
            "boxes alone are enough for a detector of boxes, such as those of configs/faster_rcnn"
        )
    for annotation in kept:
        if not _is_segmentation(annotation["segmentation"]):
            raise UsageError(
                f"annotation file {path!r}: annotation {annotation['id']!r} has a 'segmentation' "
                "that is neither a list of polygons [[x1, y1, x2, y2, ...], ...] nor a run-length "
                "encoding with 'size' and 'counts'"
            )
    run_lengths = list(filter(_is_run_length, kept))
    for annotation in run_lengths:
        width, height = data.sizes[annotation["image_id"]]
        size, counts = (annotation["segmentation"][key] for key in ("size", "counts"))
        if isinstance(counts, list) and sum(counts) != height * width:
            raise UsageError(
                f"annotation file {path!r}: annotation {annotation['id']!r} has a run-length mask "
                f"of {sum(counts)} pixels, but its image has {height} x {width}"
            )
        if list(size) != [height, width]:
            raise UsageError(
                f"annotation file {path!r}: annotation {annotation['id']!r} has a run-length mask "
                f"of the size (height, width) {size}, but its image has {[height, width]}"
            )
    sample = spread(run_lengths, None if report.everything else _MAX_MASKS)
    for annotation in show_progress(sample, f"checking the masks of {path}"):
        _check_compressed(annotation, path)
    # mmdet trains on them as on crowds; pycocotools cannot read them.
    empty = [a for a in kept if isinstance(a["segmentation"], list) and not _has_polygon(a)]
    if empty:
        text = (
            f"annotation file {path!r}: {len(empty)} annotations without a polygon of three or "
            f"more points, such as id {empty[0]['id']!r}"
        )
        if any(
            "segm" in _list(m.get("metric")) for m, _ in split_metrics(report.cfg, report.split)
        ):
            raise UsageError(text)
        report.warn(text)


def _is_run_length(annotation: Annotation) -> bool:
    return isinstance(annotation.get("segmentation"), Mapping)


def _check_compressed(annotation: Annotation, path: str) -> None:
    from pycocotools import mask as coco_mask

    mask = annotation["segmentation"]
    if isinstance(mask["counts"], str):
        try:
            coco_mask.decode(mask)
        except ValueError as error:
            raise UsageError(
                f"annotation file {path!r}: annotation {annotation['id']!r} has a run-length mask "
                f"that cannot be read: {error}"
            ) from error


def _check_limits(data: _CocoSet, report: DataReport) -> None:
    """Report images of an evaluation with more objects than the model may find."""
    if report.split == "train":
        return
    test_cfg = report.cfg.model.get("test_cfg") or {}
    objects = Counter(annotation["image_id"] for annotation in data.of_classes)
    for part, where in iter_named_dicts(test_cfg, "model.test_cfg"):
        limit = part.get("max_per_img")
        crowded = [i for i, n in objects.items() if isinstance(limit, int) and 0 <= limit < n]
        if crowded:
            report.warn(
                f"annotation file {data.path!r}: {len(crowded)} images have more objects than "
                f"{where}.max_per_img={limit}, such as id {crowded[0]!r} with {objects[crowded[0]]}"
            )


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, Mapping):
        counts, size = value.get("counts"), value.get("size")
        numbers = isinstance(counts, list) and all(isinstance(n, int) for n in counts)
        return (numbers or isinstance(counts, str)) and isinstance(size, list) and len(size) == 2
    polygons = value if isinstance(value, list) else [None]
    return all(isinstance(p, list) and all(_is_finite(number) for number in p) for p in polygons)


def _has_polygon(annotation: Annotation) -> bool:
    """Return whether both mmdet and pycocotools, which goes by the first polygon, find one."""
    polygons = annotation["segmentation"]
    return len(polygons[0]) >= 6 and any(len(p) % 2 == 0 and len(p) >= 6 for p in polygons)


def _list(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) else value or ()


# --------------------------------------------------------------------------- images


def _check_filter(data: _CocoSet, report: DataReport) -> None:
    """Report images that are too small for the filter of a training set."""
    images, least = data.coco["images"], data.filter_cfg.get("min_size", 0)
    small = sum(min(image["width"], image["height"]) < least for image in images)
    if not data.trains or not small:
        return
    text = (
        f"annotation file {data.path!r}: {small} of {len(images)} images are left out, because "
        f"{data.where}.filter_cfg.min_size is {least} pixels"
    )
    if not images_in_use(data.coco, data.classes, data.dataset):
        raise UsageError(text)
    report.warn(text)


def _check_images(data: _CocoSet, report: DataReport) -> None:
    folder, path = image_folder(data.dataset), data.path
    reader = ImageReader(data.dataset.get("pipeline"))
    if is_remote(folder) or not reader.opens_files:
        return
    images = images_in_use(data.coco, data.classes, data.dataset)
    check_exist(folder, [image["file_name"] for image in images], path)
    if not reader.known:
        return
    sample = spread(images, None if report.everything else MAX_IMAGES)
    # Boxes and polygons bear a pixel of rounding, a run-length mask has the size of its image.
    exact = data.loads_masks and any(map(_is_run_length, data.of_classes))
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


def _summarize(data: _CocoSet, report: DataReport) -> None:
    coco, classes, path, where = data.coco, data.classes, data.path, data.where
    names = {category["id"]: category["name"] for category in coco["categories"]}
    counts = Counter(names[a["category_id"]] for a in data.of_classes)
    images = coco["images"]
    lines = [f"{where}: {path}, {len(images):,} images, {sum(counts.values()):,} instances"]
    if data.trains:
        left_out = len(images) - len(images_in_use(coco, classes, data.dataset))
        if left_out:
            lines.append(f"  {left_out:,} images are left out of training (filter_cfg, indices)")
    lines.append(_describe_sizes([(image["width"], image["height"]) for image in images]))
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


def _describe_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    (common, number), *_ = Counter(sizes).most_common(1) or [((0, 0), 0)]
    smallest, largest = (f(sizes, key=lambda s: s[0] * s[1], default=common) for f in (min, max))
    return (
        f"  image sizes: {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}, most often "
        f"{common[0]} x {common[1]} ({number:,} images)"
    )
