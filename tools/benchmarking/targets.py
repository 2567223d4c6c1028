"""What is to be reached, and whether it was."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from .cells import Result
from .contenders import is_peer


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
    """Return the fastest contender that is not ours."""
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


def _v2_over_v1(cell: list[Result], everything: list[Result]) -> float | None:
    """The speed of V2 over that of the V1 of equal widths and depths."""
    c = cell[0].cell
    if not c.arch.startswith("convnextv2"):
        return None
    twin = asdict(c) | {"arch": c.arch.replace("convnextv2", "convnext")}
    others = [r for r in everything if asdict(r.cell) == twin]
    fastest = [
        min((r.median for r in rs if r.contender in _PLAIN), default=None) for rs in (cell, others)
    ]
    return None if None in fastest else fastest[1] / fastest[0]  # type: ignore[operator]


_PLAIN = ("ours", "ours triton")
_OURS_INFERENCE = (*_PLAIN, "ours optimized")
_CPU, _GPU = {"device": "cpu", "engine": "eager"}, {"device": "cuda", "dtype": "bfloat16"}
TARGETS = (
    Target("plain over the best peer", _CPU, _speed("ours"), 1.05),
    Target("optimized over the best peer", _CPU, _speed("ours optimized"), 1.5),
    Target("V2 over V1", _CPU, _v2_over_v1, 0.9),
    Target("training", _GPU | {"mode": "training", "engine": "eager"}, _speed(*_PLAIN), 1.5),
    Target("training", _GPU | {"mode": "training", "engine": "compile"}, _speed(*_PLAIN), 1.15),
    Target(
        "inference", _GPU | {"mode": "inference", "engine": "eager"}, _speed(*_OURS_INFERENCE), 2.0
    ),
    Target(
        "inference", _GPU | {"mode": "inference", "engine": "compile"},
        _speed(*_OURS_INFERENCE), 1.3,
    ),
    Target("V2 over V1", _GPU, _v2_over_v1, 0.95),
    Target("memory, selective", {}, _against_plain("ours selective", "memory"), 0.6, True),
    Target("time, selective", {}, _against_plain("ours selective", "median"), 1.08, True),
    Target("memory, full", {}, _against_plain("ours full", "memory"), 0.2, True),
    Target("time, full", {}, _against_plain("ours full", "median"), 1.4, True),
)  # fmt: skip


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
