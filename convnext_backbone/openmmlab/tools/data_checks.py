"""Checks of what the data sets of a run hold; each message names the file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..config_walk import class_count_key, iter_heads, split_datasets
from .coco_checks import check_coco, check_evaluators
from .data_report import DataReport, list_quoted
from .datasets import (
    COCO,
    LABEL_MAPS,
    DataSource,
    count_training_images,
    is_published,
    resolve_dataset,
)
from .errors import UsageError
from .label_map_checks import check_label_maps, check_zero_labels
from .loading import first_other_class
from .metric_checks import check_iou_metrics
from .schedule import schedule_warnings
from .segmentor_checks import check_first_sample


def check_data_contents(
    cfg: Config, splits: Sequence[str], *, everything: bool = False
) -> DataReport:
    """Check the annotations and images of every data set that a run will use.

    Data sets in COCO's format and folders of label maps are checked, those of subclasses that read
    as their base does among them; others are skipped.

    Args:
        cfg: The config.
        splits: Which of "train", "val" and "test" the run uses.
        everything: Whether to open every file; else, of large data sets, some.

    Returns:
        What the data sets hold, and what is odd about them.

    Raises:
        UsageError: Classes, categories, annotations or images do not fit or cannot be read.
    """
    report = DataReport(cfg, everything=everything)
    sources: list[DataSource] = []
    read: list[tuple[DataSource, Any]] = []  # with what its check has counted
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        checked: set[str] = set()
        for report.split in splits:
            datasets = split_datasets(cfg, report.split)
            kinds = set()
            for dataset, where in datasets:
                source = resolve_dataset(dataset, where)
                kinds.add(source and source.reads)
                # The default test set is the validation set; once is enough.
                if source is not None and repr(dataset) not in checked:
                    checked.add(repr(dataset))
                    sources.append(source)
                    if source.reads is not None:
                        read.append((source, _CHECKS[source.reads](source, report)))
            check_evaluators(report)
            check_iou_metrics(cfg, report.split)
            if kinds == {LABEL_MAPS}:
                check_first_sample(report)
        check_zero_labels(read, report)
        _check_same_classes(sources, report)
    if "train" in splits:
        num_images = count_training_images(cfg)
        for text in schedule_warnings(cfg, num_images) if num_images else ():
            report.warn(text)
    return report


def _check_same_classes(sources: Sequence[DataSource], report: DataReport) -> None:
    """Check that the data sets of all splits number their classes alike.

    Raises:
        UsageError: One has those of the training set in another order.
    """
    known = [s for s in sources if s.classes and (s.reads or is_published(s.built))]
    numbers = {head[class_count_key(head)] for head, _ in iter_heads(report.cfg.model)}
    for source in known[1:]:
        first, there, here = known[0], known[0].classes, source.classes
        index = first_other_class(there, here)
        # Heads that are asked in words do not number the classes.
        if index is None or not first.where.startswith("train") or len(here) not in numbers:
            continue
        text = (
            f"{source.where} has the classes {list_quoted(here)}, but {first.where} has "
            f"{list_quoted(there)}: class {index} is {here[index]!r} in one, {there[index]!r} in "
            "the other"
        )
        if set(there) == set(here):
            raise UsageError(f"{text}; give both one order")
        report.warn(text)


_CHECKS: Mapping[str, Callable[[DataSource, DataReport], Any]] = {
    COCO: check_coco,
    LABEL_MAPS: check_label_maps,
}
