"""Checks of what the data sets of a run hold; each message names the file."""

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.registry import DefaultScope

from ...config_walk import split_datasets
from ..datasets import COCO, LABEL_MAPS, DataSource, resolve_dataset
from .classes import check_same_classes
from .coco import check_coco, check_evaluators
from .label_maps import check_label_maps, check_zero_labels
from .report import Report
from .samples import check_first_sample

_CHECKS: Mapping[str, Callable[[DataSource, Report], Any]] = {
    COCO: check_coco,
    LABEL_MAPS: check_label_maps,
}


def check_data(report: Report) -> None:
    """Check the annotations and images of every data set that a run will use.

    Data sets in COCO's format and folders of label maps are checked, those of subclasses that read
    as their base does among them; others are skipped.

    Raises:
        UsageError: Classes, categories, annotations or images do not fit or cannot be read.
    """
    sources: list[DataSource] = []
    read: list[tuple[DataSource, Any]] = []  # with what its check has counted
    with DefaultScope.overwrite_default_scope(report.cfg.default_scope):
        checked: set[str] = set()
        for split in report.splits:
            report.split, kinds = split, set()
            for dataset, where in split_datasets(report.cfg, split):
                source = resolve_dataset(dataset, where)
                kinds.add(source and source.reads)
                # The default test set is the validation set; once is enough.
                if source is not None and repr(dataset) not in checked:
                    checked.add(repr(dataset))
                    sources.append(source)
                    if source.reads is not None:
                        read.append((source, _CHECKS[source.reads](source, report)))
            check_evaluators(report)
            if kinds == {LABEL_MAPS}:
                check_first_sample(report)
        check_zero_labels(read, report)
        check_same_classes(sources, report)
