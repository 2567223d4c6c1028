"""Checks of what the data sets of a run hold; each message names the file."""

from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..config_walk import split_datasets
from .coco_checks import check_coco, check_evaluators
from .data_report import DataReport
from .datasets import COCO, LABEL_MAPS, count_training_images, resolve_dataset
from .label_map_checks import check_label_maps
from .schedule import schedule_warnings


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
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        checked: set[str] = set()
        for report.split in splits:
            for dataset, where in split_datasets(cfg, report.split):
                # The default test set is the validation set; once is enough.
                if repr(dataset) not in checked:
                    checked.add(repr(dataset))
                    source = resolve_dataset(dataset, where)
                    if source is not None and source.reads is not None:
                        _CHECKS[source.reads](source, report)
            check_evaluators(report)
    if "train" in splits:
        num_images = count_training_images(cfg)
        for text in schedule_warnings(cfg, num_images) if num_images else ():
            report.warn(text)
    return report


_CHECKS = {COCO: check_coco, LABEL_MAPS: check_label_maps}
