"""The checks before a run: a mistake is found before anything is built or written.

mmengine finds a missing image only when a worker opens it, and a wrong type only after the work
directory and the log exist.

To add a check, write a function of the config and its splits that raises `UsageError`: in
config_checks.py where the config alone is read, in data_checks.py where images and annotations are,
and name it in `CHECKS`. Checks of a checkpoint are in checkpoint_checks.py.
"""

from collections.abc import Callable, Mapping, Sequence

from mmengine.config import Config

from .config_checks import check_files, check_model, check_types
from .data_checks import check_data_contents

# Which data loaders and evaluators a command uses.
SPLITS: Mapping[str, Sequence[str]] = {"train": ("train", "val"), "test": ("test",)}
# In order: a later check relies on the earlier ones.
CHECKS: Sequence[Callable[[Config, Sequence[str]], None]] = (
    check_files,
    check_data_contents,
    check_types,
    check_model,
)


def check_run(cfg: Config, command: str) -> None:
    """Run every check of "train" or "test".

    Raises:
        UsageError: A check found a mistake.
    """
    for check in CHECKS:
        check(cfg, SPLITS[command])
