"""The figures as plain data, as a table and as a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cell import Cell, Result
from .contenders import absence, is_kind, reference_for
from .roofline import work_of
from .targets import PEERS, fastest


def rows_of(
    results: Sequence[Result], ceilings: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return the results as plain data, with ratios and fractions of the ceilings.

    Args:
        results: Of all cells.
        ceilings: FLOP/s and bytes/s of the machine, for each dtype of the cells.
    """
    rows = []
    for r in results:
        peer = fastest([o for o in results if o.cell == r.cell], PEERS)
        work, top = work_of(r.cell), ceilings[r.cell.dtype]
        seconds = r.median / 1e3
        rows.append(
            {
                "cell": str(r.cell), **asdict(r.cell), "contender": r.contender,
                "median_ms": r.median, "spread": r.spread, "error": r.error,
                "reference": reference_for(r.cell.version),
                "ratio": peer.median / r.median if peer else None,
                "memory": r.memory, "peak": r.peak, **work,
                "of_matmul": work["flops"] / seconds / top["flops"],
                "of_copy": work["bytes"] / seconds / top["bytes"],
            }
        )  # fmt: skip
    return rows


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of one cell."""
    first = rows[0]
    print(f"\n{first['cell']}   {first['flops'] / 1e9:.1f} GFLOP, {first['bytes'] / 1e6:.0f} MB")
    print(f"  {'contender':<18}{'ms':>10}{'spread':>8}{'ratio':>7}{'matmul':>8}{'copy':>6}"
          f"{'held MB':>9}{'peak MB':>9}{'error':>9}")  # fmt: skip
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        held, peak = (
            f"{row[key] / 1e6:.0f}" if row[key] is not None else "-" for key in ("memory", "peak")
        )
        print(f"  {row['contender']:<18}{row['median_ms']:>10.2f}{row['spread']:>8.0%}{ratio:>7}"
              f"{row['of_matmul']:>8.0%}{row['of_copy']:>6.0%}{held:>9}{peak:>9}"
              f"{row['error']:>9.0e}")  # fmt: skip
    print(f"  errors are those to {first['reference']} in fp32")


def print_absent(cell: Cell, names: Sequence[str]) -> None:
    """Print which contenders by others take no part in a cell, and why."""
    for name in names:
        reason = absence(name, cell)
        if reason is not None and not is_kind(name, "ours"):
            print(f"  {name} takes no part: it {reason}")


def print_targets(verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Print every target with what was measured."""
    if verdicts:
        print("\ntargets")
    for v in verdicts:
        sign = "<=" if v["at_most"] else ">="
        slack = f" less {v['slack']:.3f}" if v["slack"] else ""
        print(f"  {'met   ' if v['met'] else 'MISSED'} {v['target']:<40} {sign} {v['bound']:<5}"
              f"{slack} measured {v['measured']:.3f} to {v['than']}   {v['cell']}")  # fmt: skip


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw every contender's speed, relative to the best peer, cell by cell."""
    import matplotlib

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
