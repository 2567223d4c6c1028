"""The checks before a run: a mistake is found before anything is built or written.

mmengine finds a missing image only when a worker opens it, and a wrong type only after the work
directory and the log exist.

Checks of the config alone are in config_checks.py, those of images and annotations in
data_checks.py, those of a checkpoint in checkpoint_checks.py.
"""

from collections.abc import Mapping, Sequence

from mmengine.config import Config

from .checkpoint_checks import check_classes
from .config_checks import check_files, check_model, check_types
from .data_checks import check_data_contents

# Which data loaders and evaluators a command uses.
SPLITS: Mapping[str, Sequence[str]] = {"train": ("train", "val"), "test": ("test",)}


def check_run(cfg: Config, command: str) -> list[str]:
    """Run every check of "train" or "test", in the main process of a run only.

    Returns:
        What is odd but no mistake, a sentence each.

    Raises:
        UsageError: A check found a mistake.
    """
    splits = SPLITS[command]
    check_files(cfg, splits)
    check_types(cfg, splits)
    if command == "test" or cfg.get("resume"):  # a training may begin with weights of other classes
        check_classes(cfg, splits[0])
    report = check_data_contents(cfg, splits)
    check_model(cfg)
    return report.warnings
