"""Checks of the boxes and masks of a data set in COCO's format.

mmdet drops most malformed boxes in silence, and ends in the middle of an epoch on others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ...config_walk import as_list, split_metrics
from ..coco_file import Annotation, kept_categories
from ..datasets import CocoSet
from ..errors import UsageError
from .images import show_progress, spread
from .report import Report, list_quoted

_NORMALISED = 1.5  # no box in pixels is smaller; some normalised ones reach beyond 1
_MAX_MASKS = 1000  # each is decoded
_ODD_PART = 0.2  # of boxes outside their image, or of crowds
_ROUNDING = 2.0  # pixels that a mask may lie beside its box
_ADVICE = "; they look normalised: multiply them by the image's width and height"
_Extent = tuple[float, float, float, float]  # left, top, right, bottom


def check_annotations(data: CocoSet, report: Report) -> None:
    """Check boxes and areas, crowds, and masks where they are loaded.

    Raises:
        UsageError: One is malformed, or mmdet would drop all of them.
    """
    own, sizes = data.of_classes, data.sizes
    categories = kept_categories(data.coco, data.classes)
    for annotation in show_progress(data.annotations, f"checking {data.file}"):
        is_own = annotation["category_id"] in categories
        _check_box(annotation, data, _is_finite if is_own else _is_number)
    filters = data.trains and data.filter_cfg.get("filter_empty_gt")
    if not own and (filters or (report.split != "train" and not data.annotations)):
        raise UsageError(
            f"{data.file} has no annotation of the classes {list_quoted(data.classes)} "
            f"({data.where})"
        )
    kept: list[Annotation] = []
    dropped: list[Annotation] = []
    for annotation in (a for a in own if not a.get("ignore")):  # mmdet skips those as well
        is_kept = _is_kept(annotation, *sizes[annotation["image_id"]])
        (kept if is_kept else dropped).append(annotation)
    if dropped:
        _report_dropped(dropped, len(own), data, report)
    outside = sum(_leaves(a["bbox"], *sizes[a["image_id"]]) for a in kept)
    if outside > _ODD_PART * len(kept):
        report.warn(
            f"{data.file}: {outside} of {len(kept)} boxes reach beyond their image; COCO's boxes "
            "are [x, y, width, height]"
        )
    _check_crowds(data, kept, report)
    _check_masks(data, kept, report)


def _refuse(annotation: Annotation, data: CocoSet, text: str) -> NoReturn:
    raise UsageError(f"{data.file}: annotation {annotation['id']!r} has {text}")


def _check_box(annotation: Annotation, data: CocoSet, fits: Callable[[Any], bool]) -> None:
    for key, expected in (("bbox", 4), ("area", 1)):
        value = annotation[key]
        numbers = value if key == "bbox" and isinstance(value, list) else [value]
        if len(numbers) != expected or not all(fits(number) for number in numbers):
            kind = "four finite numbers [x, y, width, height]" if expected == 4 else "a number"
            _refuse(annotation, data, f"the {key} {value!r}, which is not {kind}")


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
    dropped: Sequence[Annotation], number: int, data: CocoSet, report: Report
) -> None:
    text = (
        f"{data.file}: mmdet drops {len(dropped)} of {number} annotations, whose boxes are "
        "narrower than a pixel, outside their image or without an area, such as id "
        f"{dropped[0]['id']!r} with the bbox {dropped[0]['bbox']}"
    )
    are_all = len(dropped) == number
    if are_all and all(max(map(abs, a["bbox"])) <= _NORMALISED for a in dropped):
        text += _ADVICE
    report.refuse_or_warn(text, refuse=are_all)


def _leaves(box: Sequence[float], width: float, height: float) -> bool:
    x, y, w, h = box
    return x < -2 or y < -2 or x + w > width + 2 or y + h > height + 2


def _check_crowds(data: CocoSet, kept: Sequence[Annotation], report: Report) -> None:
    """Check the flags by which mmdet leaves objects out: it goes by the truth of any value.

    To Python the string "0" is true. pycocotools needs numbers, a training whatever is not true.
    """
    learns = report.split == "train"
    for annotation in data.listed if learns else data.of_classes:
        for key in ("iscrowd", "ignore") if learns else ("iscrowd",):
            flag = annotation.get(key)
            if (flag if learns else flag is not None) and not _is_finite(flag):
                _refuse(annotation, data, f"the {key} {flag!r}, which is neither 0 nor 1")
    crowds = [annotation for annotation in kept if annotation.get("iscrowd")]
    if len(crowds) > _ODD_PART * len(kept):
        report.refuse_or_warn(
            f"{data.file}: {len(crowds)} of {len(kept)} annotations are crowds (iscrowd), which "
            f"mmdet neither learns nor evaluates, such as id {crowds[0]['id']!r}",
            refuse=len(crowds) == len(kept),
        )


def _check_masks(data: CocoSet, kept: Sequence[Annotation], report: Report) -> None:
    """Check that a pipeline which loads masks finds them in every annotation that mmdet keeps."""
    if not data.loads_masks:
        return
    without = [a for a in kept if not a.get("segmentation")]
    if without:
        raise UsageError(
            f"{data.file}: {len(without)} annotations without 'segmentation', such as id "
            f"{without[0]['id']!r}, but {data.where}.pipeline loads masks (with_mask); "
            "boxes alone are enough for a detector of boxes, such as those of configs/faster_rcnn"
        )
    for annotation in kept:
        if not _is_segmentation(annotation["segmentation"]):
            text = (
                "a 'segmentation' that is neither a list of polygons [[x1, y1, x2, y2, ...], ...] "
                "nor a run-length encoding with 'size' and 'counts'"
            )
            _refuse(annotation, data, text)
    run_lengths = list(filter(is_run_length, kept))
    for annotation in run_lengths:
        width, height = data.sizes[annotation["image_id"]]
        size, counts = (annotation["segmentation"][key] for key in ("size", "counts"))
        if isinstance(counts, list) and sum(counts) != height * width:
            text = f"{sum(counts)} pixels, but its image has {height} x {width}"
            _refuse(annotation, data, f"a run-length mask of {text}")
        if list(size) != [height, width]:
            text = f"the size (height, width) {size}, but its image has {[height, width]}"
            _refuse(annotation, data, f"a run-length mask of {text}")
    sample = spread(run_lengths, None if report.everything else _MAX_MASKS)
    places = [
        (annotation, _run_length_extent(annotation, data))
        for annotation in show_progress(sample, f"checking the masks of {data.ann_file}")
    ]
    places += [(a, _polygon_extent(a)) for a in kept if not is_run_length(a)]
    _compare_extents(places, data, report)
    # mmdet trains on them as on crowds; pycocotools cannot read them.
    empty = [a for a in kept if isinstance(a["segmentation"], list) and not _has_polygon(a)]
    if empty:
        metrics = split_metrics(report.cfg, report.split)
        report.refuse_or_warn(
            f"{data.file}: {len(empty)} annotations without a polygon of three or more points, "
            f"such as id {empty[0]['id']!r}",
            refuse=any("segm" in as_list(metric.get("metric")) for metric, _ in metrics),
        )


def is_run_length(annotation: Annotation) -> bool:
    """Return whether an annotation has a mask as run lengths."""
    return isinstance(annotation.get("segmentation"), Mapping)


def _run_length_extent(annotation: Annotation, data: CocoSet) -> _Extent | None:
    """Return the extent of a run-length mask; None of an empty one."""
    from pycocotools import mask as coco_mask

    mask = annotation["segmentation"]
    try:
        if not isinstance(mask["counts"], str):
            mask = coco_mask.frPyObjects(mask, *mask["size"])
        coco_mask.decode(mask)
        x, y, width, height = map(float, coco_mask.toBbox(mask))
    except ValueError as error:
        _refuse(annotation, data, f"a run-length mask that cannot be read: {error}")
    return (x, y, x + width, y + height) if coco_mask.area(mask) else None


def _polygon_extent(annotation: Annotation) -> _Extent | None:
    """Return the extent of the polygons that mmdet reads; None where it reads none."""
    polygons = [p for p in annotation["segmentation"] if len(p) % 2 == 0 and len(p) >= 6]
    if not polygons:
        return None
    xs, ys = ([value for p in polygons for value in p[axis::2]] for axis in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


def _compare_extents(
    places: Sequence[tuple[Annotation, _Extent | None]], data: CocoSet, report: Report
) -> None:
    """Compare masks with their boxes: mmdet learns each of the two as it is.

    Raises:
        UsageError: All polygons are normalised, but the boxes are in pixels.
    """
    empty = [a for a, extent in places if extent is None and is_run_length(a)]
    found = [(a, extent) for a, extent in places if extent is not None]
    apart = [a for a, extent in found if _is_apart(a["bbox"], extent, *data.sizes[a["image_id"]])]
    polygons = [(a, extent) for a, extent in found if not is_run_length(a)]
    near = [a for a, extent in polygons if max(map(abs, extent)) <= _NORMALISED]
    tiny = [a for a in near if max(a["bbox"][2:]) > _NORMALISED]
    if tiny and len(near) == len(polygons):
        raise UsageError(
            f"{data.file}: no polygon of its {len(polygons)} annotations has a number above "
            f"{_NORMALISED}, but id {tiny[0]['id']!r} has the bbox {tiny[0]['bbox']}{_ADVICE}"
        )
    for odd, what in ((empty, "have no pixel"), (apart, "lie outside their box or their image")):
        if odd:
            report.warn(
                f"{data.file}: {len(odd)} masks {what}, such as that of id {odd[0]['id']!r} with "
                f"the bbox {odd[0]['bbox']}"
            )


def _is_apart(box: Sequence[float], extent: _Extent, width: float, height: float) -> bool:
    """Return whether a mask has no pixel inside its box and its image, rounding left aside."""
    left, top, right, bottom = extent
    x, y, w, h = box
    across = min(right, x + w, width) - max(left, x, 0)
    down = min(bottom, y + h, height) - max(top, y, 0)
    return min(across, down) < -_ROUNDING


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, Mapping):
        counts, size = value.get("counts"), value.get("size")
        numbers = isinstance(counts, list) and all(map(_is_count, counts))
        return (numbers or isinstance(counts, str)) and isinstance(size, list) and len(size) == 2
    polygons = value if isinstance(value, list) else [None]
    return all(isinstance(p, list) and all(_is_finite(number) for number in p) for p in polygons)


def _is_count(value: Any) -> bool:
    return _is_finite(value) and value >= 0 and value == int(value)


def _has_polygon(annotation: Annotation) -> bool:
    """Return whether both mmdet and pycocotools, which goes by the first polygon, find one."""
    polygons = annotation["segmentation"]
    return len(polygons[0]) >= 6 and any(len(p) % 2 == 0 and len(p) >= 6 for p in polygons)
