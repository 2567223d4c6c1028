"""The figures as plain data, as a table and as a plot."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convnext_backbone import ConvNextConfig

from .cells import Result, work_of
from .contenders import BenchmarkError
from .targets import best_peer


def rows_of(results: list[Result], tops: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return the results as plain data, with ratios and fractions of the ceilings."""
    rows = []
    for r in results:
        peer = best_peer([o for o in results if o.cell == r.cell])
        work, top = work_of(ConvNextConfig.from_arch(r.cell.arch), r.cell), tops[r.cell.dtype]
        seconds = r.median / 1e3
        rows.append(
            {
                "cell": str(r.cell), **asdict(r.cell), "contender": r.contender,
                "median_ms": r.median, "spread": r.spread, "error": r.error,
                "ratio": peer.median / r.median if peer else None, "memory": r.memory, **work,
                "of_matmul": work["flops"] / seconds / top["flops"],
                "of_copy": work["bytes"] / seconds / top["bytes"],
            }
        )  # fmt: skip
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one block of lines per cell."""
    cell = None
    for row in rows:
        if row["cell"] != cell:
            cell = row["cell"]
            print(f"\n{cell}   {row['flops'] / 1e9:.1f} GFLOP, {row['bytes'] / 1e6:.0f} MB")
            print(f"  {'contender':<18}{'ms':>10}{'spread':>8}{'ratio':>7}{'matmul':>8}{'copy':>6}"
                  f"{'held MB':>9}{'error':>9}")  # fmt: skip
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        held = f"{row['memory'] / 1e6:.0f}" if row["memory"] is not None else "-"
        print(f"  {row['contender']:<18}{row['median_ms']:>10.2f}{row['spread']:>8.0%}{ratio:>7}"
              f"{row['of_matmul']:>8.0%}{row['of_copy']:>6.0%}{held:>9}"
              f"{row['error']:>9.0e}")  # fmt: skip


def print_targets(verdicts: list[dict[str, Any]]) -> None:
    """Print every target with what was measured."""
    if verdicts:
        print("\ntargets")
    for v in verdicts:
        sign = "<=" if v["at_most"] else ">="
        print(f"  {'met   ' if v['met'] else 'MISSED'} {v['target']:<30} {sign} {v['bound']:<5}"
              f" measured {v['measured']:.3f}   {v['cell']}")  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw every contender's speed, relative to the best peer, cell by cell."""
    try:
        import matplotlib
    except ImportError:
        raise BenchmarkError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = list(dict.fromkeys(row["cell"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(rows)))
    height = 0.8 / len(names)
    for offset, name in enumerate(names):
        mine = {row["cell"]: row["ratio"] for row in rows if row["contender"] == name}
        places = [i + offset * height for i, cell in enumerate(cells) if mine.get(cell)]
        axes.barh(places, [mine[c] for c in cells if mine.get(c)], height, label=name)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks([i + 0.4 for i in range(len(cells))], cells, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("speed over the best peer's")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
