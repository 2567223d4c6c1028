"""The checks before a run, in their order: which commands make which.

What tools/check_data.py accepts is not refused by tools/train.py, but for the folders and the
checkpoint that its command line names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .checkpoint import check_trained_classes
from .data import check_data
from .files import check_files
from .metrics import check_metrics
from .model import check_model
from .options import check_loop, check_optimizer
from .report import Report
from .schedule import check_length, check_schedule
from .types import check_types

_TRAINING = ("train", "check_data")


@dataclass(frozen=True)
class Check:
    """A check, and when it is made.

    Attributes:
        run: It raises `UsageError` for what would stop a run, and reports what is only odd.
        commands: The tools that make it.
        always: Whether `--no-check` does not leave it out: it opens no file, and without it a run
            would be another than was typed.
    """

    run: Callable[[Report], None]
    commands: Sequence[str] = ("train", "test", "check_data")
    always: bool = False


CHECKS: Sequence[Check] = (
    Check(lambda report: check_loop(report.cfg), _TRAINING, always=True),
    Check(lambda report: check_length(report.cfg, report.typed), _TRAINING, always=True),
    Check(lambda report: check_optimizer(report.cfg), _TRAINING, always=True),
    Check(lambda report: check_files(report.cfg, report.splits)),
    Check(lambda report: check_types(report.cfg, report.splits)),
    Check(lambda report: check_metrics(report.cfg, report.splits)),
    Check(check_trained_classes, ("train", "test")),
    Check(check_data),
    Check(check_schedule, _TRAINING),
    Check(lambda report: check_model(report.cfg, report.splits)),
)


def run_checks(command: str, report: Report, *, every: bool = True) -> None:
    """Make the checks of a command; without `every`, only those that are always made.

    Raises:
        UsageError: A check found a mistake.
    """
    for check in CHECKS:
        if command in check.commands and (every or check.always):
            check.run(report)
