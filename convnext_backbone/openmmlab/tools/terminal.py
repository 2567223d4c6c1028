"""What a run prints on the terminal. The log file gets everything that mmengine logs."""

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from mmengine._strategy import BaseStrategy
from mmengine.logging import MMLogger
from mmengine.runner import FlexibleRunner, Runner

# Beginnings of mmengine's messages that are for the log file: environment, config, hooks, the
# options of every parameter, and what the summary of a run says in a line.
_FILE_ONLY = (
    "\n" + "-" * 60 + "\nSystem environment:",
    "Config:\n",
    "Hooks will be executed in the following order:",
    "paramwise_options -- ",
    "Layer decay {",
    "Exp name: ",
    "Checkpoints will be saved to ",
    "Load checkpoint from ",
    "Loads checkpoint by ",
    "Distributed training is not used, all SyncBatchNorm (SyncBN) layers in the model will be ",
)
# Whole messages of mmengine, mmcv, mmdet, mmseg and torch about OpenMMLab's code and published
# configs: no user can act on them.
_NOT_ACTIONABLE: Sequence[str] = (
    '"FileClient" will be deprecated in future. Please use io functions in '
    "https://mmengine.readthedocs.io/en/latest/api/fileio.html#file-io",
    '"HardDiskBackend" is the alias of "LocalBackend" and the former will be deprecated in future.',
    "Default ``avg_non_ignore`` is False, if you would like to ignore the certain label and "
    "average loss over non-ignore labels, which is the same with PyTorch official cross_entropy, "
    "set ``avg_non_ignore=True``.",
    "In MMCV v1.4.4, we modified the default value of args to align with PyTorch official. "
    "Previous Implementation: Hsigmoid(x) = min(max((x + 1) / 2, 0), 1). "
    "Current Implementation: Hsigmoid(x) = min(max((x + 3) / 6, 0), 1).",
    "``build_loss`` would be deprecated soon, please use ``mmseg.registry.MODELS.build()``",
    "The draw is False, it means that the hook for visualization will not take effect. "
    "The results will NOT be visualized or stored.",
    "`reduce_zero_label` will be deprecated, if you would like to ignore the zero label, please "
    "set `reduce_zero_label=True` when dataset initialized",
    "`broadcast_buffers` is deprecated. Use `forward_sync_buffers` instead. IMPORTANT: unlike "
    "`broadcast_buffers=False`, `forward_sync_buffers=False` still syncs buffers at init. If you "
    "rely on buffers NOT being synced at init (e.g. rank-local buffers), keep using "
    "`broadcast_buffers=False` until `init_sync_buffers` is available.",
    "Warning: The bbox is out of bounds, the drawn bbox may not be in the image",
    "Warning: The polygon is out of bounds, the drawn polygon may not be in the image",
)
# The same with names in them.
_NOT_ACTIONABLE_PATTERNS = (
    r'Failed to search registry with scope "\w+" in the "[\w ]+" registry tree\. As a workaround, '
    r'the current "[\w ]+" registry in "\w+" is used to build instance\. This may cause unexpected '
    r'failure when running the built modules\. Please check whether "\w+" is a correct scope, or '
    r"whether the registry is initialized\.",
    r"The prefix is not set in metric class \w+\.",
)
_PATTERNS = [*map(re.escape, _NOT_ACTIONABLE), *_NOT_ACTIONABLE_PATTERNS]
_NOISE = re.compile("|".join(rf"(?:{pattern})\s*\Z" for pattern in _PATTERNS))
_PRINTING_MODULES = ("pycocotools.coco", "pycocotools.cocoeval")


class TerminalFilter(logging.Filter):
    """Passes what belongs on the terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is printed."""
        text = record.getMessage()
        return not (text.startswith(_FILE_ONLY) or _NOISE.match(text))


class QuietRunner(Runner):
    """mmengine's runner, whose logger prints less than it writes."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger, and filter what it prints."""
        return _filter_terminal(super().build_logger(*args, **kwargs))


class QuietFlexibleRunner(FlexibleRunner):
    """mmengine's runner with a strategy, which has the logger; otherwise as `QuietRunner`."""

    def build_strategy(self, *args: Any, **kwargs: Any) -> BaseStrategy:
        """Build the strategy, and filter what its logger prints."""
        strategy = super().build_strategy(*args, **kwargs)
        _filter_terminal(strategy.logger)
        return strategy


QUIET_RUNNERS: Mapping[str, type[QuietRunner | QuietFlexibleRunner]] = {
    "Runner": QuietRunner,
    "FlexibleRunner": QuietFlexibleRunner,
}


def _filter_terminal(logger: MMLogger) -> MMLogger:
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(TerminalFilter())
    return logger


def filter_log_noise() -> None:
    """Drop the warnings above and the prints of pycocotools, in this process."""
    for pattern in _PATTERNS:
        warnings.filterwarnings("ignore", message=rf"{pattern}\s*\Z")
    for name in _PRINTING_MODULES:
        # Its functions look `print` up in their module first.
        vars(import_module(name))["print"] = _print_nothing


def _print_nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for `print` in pycocotools."""
