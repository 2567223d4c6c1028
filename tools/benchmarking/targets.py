"""The ratios to reach, and whether they were."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from .cell import Result
from .contenders import CONTENDERS, is_kind

PEERS = tuple(name for name in CONTENDERS if is_kind(name, "peer"))
RUNTIMES = tuple(name for name in CONTENDERS if is_kind(name, "runtime"))


def _speed(mine: Result, other: Result) -> float:
    return other.median / mine.median


def _time(mine: Result, other: Result) -> float:
    return mine.median / other.median


def _memory(mine: Result, other: Result) -> float | None:
    return mine.memory / other.memory if mine.memory and other.memory else None


@dataclass(frozen=True)
class Target:
    """A ratio to reach in every matching cell.

    Attributes:
        what: In words.
        mine: The contender that is judged.
        others: Those that it is compared with; the fastest one counts.
        ratio: What is compared.
        bound: The ratio must be at least this,
        at_most: or, with True, at most this.
        within_spread: Whether it may miss the bound by the larger of both spreads.
        match: Attributes of the cells that it holds in, with their possible values.
    """

    what: str
    mine: str
    others: Sequence[str]
    ratio: Callable[[Result, Result], float | None]
    bound: float
    at_most: bool = False
    within_spread: bool = False
    match: Mapping[str, Sequence[str]] = field(default_factory=dict)


def fastest(results: Sequence[Result], names: Sequence[str]) -> Result | None:
    """Return the fastest of the contenders with these names."""
    return min((r for r in results if r.contender in names), key=lambda r: r.median, default=None)


def _cpu(arch: str, mode: str, *dtypes: str) -> dict[str, tuple[str, ...]]:
    match: dict[str, tuple[str, ...]] = {"device": ("cpu",), "engine": ("eager",)}
    match |= {"arch": (arch,), "mode": (mode,)}
    return match | {"dtype": dtypes} if dtypes else match


_T, _V2_T, _BF16 = "convnext_tiny", "convnextv2_tiny", ("bfloat16", "autocast-bfloat16")


def _training(bound: float, arch: str, *dtypes: str) -> Target:
    match = _cpu(arch, "training", *dtypes)
    return Target("training, speed over the best peer", "ours", PEERS, _speed, bound, match=match)


def _inference(bound: float, arch: str, within_spread: bool) -> Target:
    return Target(
        "inference, speed over the best peer", "ours", PEERS, _speed, bound,
        within_spread=within_spread, match=_cpu(arch, "inference"),
    )  # fmt: skip


def _against_plain(name: str, memory: float, time: float) -> tuple[Target, Target]:
    mine, plain = f"ours {name}", ("ours",)
    return (
        Target(f"{name}, memory over plain", mine, plain, _memory, memory, at_most=True),
        Target(f"{name}, time over plain", mine, plain, _time, time, at_most=True),
    )


TARGETS = (
    _training(1.10, _T, "float32"),
    _training(1.35, _T, *_BF16),
    _training(1.15, _V2_T, "float32"),
    _training(1.25, _V2_T, *_BF16),
    _inference(1.0, _T, within_spread=True),
    _inference(1.12, _V2_T, within_spread=False),
    Target(
        "optimized, speed over the best runtime", "ours optimized", RUNTIMES, _speed, 1.0,
        within_spread=True,
    ),
    *_against_plain("selective", memory=0.65, time=1.15),
    *_against_plain("full", memory=0.2, time=1.4),
)  # fmt: skip


def judge(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Yield every target in every cell where it holds, with what was measured."""
    cells = list(dict.fromkeys(r.cell for r in results))
    for target, cell in product(TARGETS, cells):
        if any(getattr(cell, key) not in values for key, values in target.match.items()):
            continue
        here = [r for r in results if r.cell == cell]
        mine, other = fastest(here, (target.mine,)), fastest(here, target.others)
        measured = target.ratio(mine, other) if mine and other else None
        if mine is None or other is None or measured is None:
            continue
        slack = max(mine.spread, other.spread) if target.within_spread else 0.0
        met = measured <= target.bound if target.at_most else measured >= target.bound - slack
        yield {
            "target": target.what, "cell": str(cell), "bound": target.bound, "slack": slack,
            "at_most": target.at_most, "than": other.contender, "measured": measured, "met": met,
        }  # fmt: skip
