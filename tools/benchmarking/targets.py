"""What is to be reached, and whether it was."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from .cells import Result
from .contenders import ENGINES, is_peer


@dataclass(frozen=True)
class Target:
    """A figure to reach: in every matching cell, the ratio must be at least (or most) `bound`.

    Attributes:
        what: In words.
        match: Attributes of the cells that it holds in.
        figure: Gives the measured ratio from the cell's results and those of all cells.
        bound: The bound.
        at_most: Whether the bound is an upper one.
    """

    what: str
    match: Mapping[str, str]
    figure: Callable[[list[Result], list[Result]], float | None]
    bound: float
    at_most: bool = False


def _one(results: Sequence[Result], name: str) -> Result | None:
    return next((r for r in results if r.contender == name), None)


def best_peer(results: Sequence[Result]) -> Result | None:
    """Return the fastest network of others in torch."""
    return min((r for r in results if is_peer(r.contender)), key=lambda r: r.median, default=None)


def _speed(*names: str) -> Callable[[list[Result], list[Result]], float | None]:
    def figure(cell: list[Result], everything: list[Result]) -> float | None:
        mine = [r for r in cell if r.contender in names]
        peer = best_peer(cell)
        return peer.median / min(r.median for r in mine) if mine and peer else None

    return figure


def _against_plain(name: str, value: str) -> Callable[[list[Result], list[Result]], float | None]:
    def figure(cell: list[Result], everything: list[Result]) -> float | None:
        mine, plain = _one(cell, name), _one(cell, "ours")
        if mine is None or plain is None or getattr(plain, value) is None:
            return None
        return getattr(mine, value) / getattr(plain, value)

    return figure


def _over_engines(cell: list[Result], everything: list[Result]) -> float | None:
    """The speed of the optimized form over that of the fastest engine."""
    mine = _one(cell, "ours optimized")
    engines = [r.median for r in cell if r.contender in ENGINES]
    return min(engines) / mine.median if mine and engines else None


def _cpu(arch: str, mode: str, dtype: str | None = None) -> dict[str, str]:
    match = {"device": "cpu", "engine": "eager", "arch": arch, "mode": mode}
    return match if dtype is None else match | {"dtype": dtype}


_T, _V2_T, _F32, _BF16 = "convnext_tiny", "convnextv2_tiny", "float32", "bfloat16"
TARGETS = (
    Target("training over the best peer", _cpu(_T, "training", _F32), _speed("ours"), 1.10),
    Target("training over the best peer", _cpu(_T, "training", _BF16), _speed("ours"), 1.35),
    Target("training over the best peer", _cpu(_V2_T, "training", _F32), _speed("ours"), 1.15),
    Target("training over the best peer", _cpu(_V2_T, "training", _BF16), _speed("ours"), 1.25),
    # No slower, within a spread that is 2 % on an idle machine.
    Target("plain over the best peer", _cpu(_T, "inference"), _speed("ours"), 0.98),
    Target("plain over the best peer", _cpu(_V2_T, "inference"), _speed("ours"), 1.12),
    Target("optimized over engines", {"device": "cpu"}, _over_engines, 0.98),
    Target("memory, selective", {}, _against_plain("ours selective", "memory"), 0.65, True),
    Target("time, selective", {}, _against_plain("ours selective", "median"), 1.15, True),
    Target("memory, full", {}, _against_plain("ours full", "memory"), 0.2, True),
    Target("time, full", {}, _against_plain("ours full", "median"), 1.4, True),
)


def judge(results: list[Result]) -> Iterator[dict[str, Any]]:
    """Yield every target in every cell where it holds, with what was measured."""
    cells = list(dict.fromkeys(r.cell for r in results))
    for target, cell in product(TARGETS, cells):
        if any(getattr(cell, key) != value for key, value in target.match.items()):
            continue
        value = target.figure([r for r in results if r.cell == cell], results)
        if value is not None:
            met = value <= target.bound if target.at_most else value >= target.bound
            yield {
                "target": target.what, "cell": str(cell), "bound": target.bound,
                "at_most": target.at_most, "measured": value, "met": met,
            }  # fmt: skip
