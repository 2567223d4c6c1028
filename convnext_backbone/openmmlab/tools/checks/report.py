"""What the checks before a run look at, and what they found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from ....utils.checks import shorten_list
from ..errors import UsageError
from ..typed import TypedOptions


@dataclass
class Report:
    """The checks of one run: what they look at and found; a mistake is raised instead.

    Attributes:
        cfg: The config.
        splits: Which of "train", "val" and "test" the run uses.
        typed: What the user typed.
        everything: Whether to read every file instead of a sample of large data sets.
        split: The split whose data is being checked.
        warnings: What is odd, a sentence each.
        summaries: What each data set holds, some lines each.
    """

    cfg: Config
    splits: Sequence[str]
    typed: TypedOptions = field(default_factory=TypedOptions)
    everything: bool = False
    split: str = ""
    warnings: list[str] = field(default_factory=list)
    summaries: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Add a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def refuse_or_warn(self, text: str, *, refuse: bool) -> None:
        """Add a warning, or raise it where what it reports would stop the run.

        Raises:
            UsageError: It would.
        """
        if refuse:
            raise UsageError(text)
        self.warn(text)

    def option(self, where: str, setting: str, name: str) -> str:
        """Name the option that sets something: of `custom_dataset`, where that is in use."""
        options: Mapping[str, Any] = self.cfg.get("custom_dataset") or {}
        in_use = options.get("train_ann") is not None
        return f"custom_dataset.{name}" if in_use else f"{where}.{setting}"


def count_table(counts: Sequence[tuple[str, int]], unit: str) -> str:
    """Format what there is of each class, in the order of the classes."""
    total = sum(number for _, number in counts) or 1
    width = max((len(name) for name, _ in counts), default=0)
    lines = [f"    {name:<{width}}  {n:>12,}  {100 * n / total:6.2f} %" for name, n in counts]
    return "\n".join([f"  {unit} per class:", *lines])


def list_quoted(names: Sequence[str]) -> str:
    """List the first names of classes in quotation marks, and count the others."""
    return shorten_list([repr(name) for name in names])
