"""The work behind tools/plot_run.py: loss, learning rate and metrics of runs, in one picture.

mmengine writes a line of json per logged step to `WORK_DIR/TIMESTAMP/vis_data/scalars.json`: a
training line has "iter", a validation line has not.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ...utils.commandline import OneLineParser, print_error
from ...utils.files import atomic_write

PROGRAM = "plot_run.py"
# Endings of the metrics that are drawn unless others are asked for.
MAIN_METRICS = ("mAP", "mAP_50", "mIoU", "mDice", "aAcc", "PQ")
SIZE = (9.0, 10.0)  # of the picture, in inches
Curve = dict[int, float]  # value by iteration


def main(argv: Sequence[str] | None = None) -> int:
    """Run tools/plot_run.py; return 0, or 2 for a mistake in what the user gave."""
    parser = OneLineParser(
        prog=PROGRAM, description="Draw loss, learning rate and metrics of one or several runs."
    )
    parser.add_argument("work_dirs", nargs="+", metavar="WORK_DIR", help="folders of runs")
    parser.add_argument("--out", default="curves.png", metavar="PNG", help="the file to write")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=MAIN_METRICS,
        metavar="NAME",
        help=f"ends of the metrics' names (default: {' '.join(MAIN_METRICS)})",
    )
    args = parser.parse_args(argv)
    try:
        runs = {work_dir: read_curves(work_dir) for work_dir in args.work_dirs}
        plot_runs(runs, args.out, args.metrics)
    except (OSError, ValueError) as error:
        return print_error(PROGRAM, error)
    print(f"{len(runs)} run{'s' * (len(runs) > 1)} drawn: {args.out}")
    return 0


def read_curves(work_dir: str) -> dict[str, Curve]:
    """Read the logged values of a run by name; where it was resumed, the later log wins.

    Raises:
        ValueError: The folder holds no log of a run, or a log is damaged.
    """
    logs = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    curves: dict[str, Curve] = {}
    for log in logs:
        step = 0
        for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(keepends=True), 1):
            try:
                values = json.loads(line)
            except ValueError as error:
                if not line.endswith("\n"):
                    break  # a run that was killed while it wrote
                raise ValueError(f"{log}:{number} is no line of json") from error
            # The step of a validation is an epoch in some loops; it follows its training step.
            step = values.get("iter", step)
            for name, value in values.items():
                if isinstance(value, int | float):
                    curves.setdefault(name, {})[step] = value
    if not curves:
        raise ValueError(f"no log of a run in {work_dir!r} (looked for */vis_data/scalars.json)")
    return curves


def plot_runs(
    runs: dict[str, dict[str, Curve]], out: str, metrics: Sequence[str] = MAIN_METRICS
) -> None:
    """Draw the curves of runs, by their names, into a PNG; the name of a single run is the title.

    Raises:
        OSError: It cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    if len(runs) == 1:
        figure.suptitle(Path(*runs).absolute().name, fontsize="medium")
    for run, curves in runs.items():
        prefix = f"{Path(run).absolute().name} " if len(runs) > 1 else ""
        chosen = [name for name in curves if name.endswith(tuple(metrics))]
        for axis, names in zip(axes, (["loss"], ["lr"], chosen), strict=True):
            for name in names:
                points = sorted(curves.get(name, {}).items())
                if axis is axes[2]:  # COCO's -1 means that there is nothing of this size
                    points = [(step, value) for step, value in points if value != -1]
                marker = "." * (axis is axes[2])
                axis.plot(*zip(*points, strict=True), marker=marker, label=prefix + name)
    for axis, title in zip(axes, ("loss", "learning rate", "metrics"), strict=True):
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if axis.get_lines():
            axis.legend(fontsize="small")
    axes[-1].set_xlabel("iteration")
    Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as partial:
        figure.savefig(partial, format="png", dpi=120)
