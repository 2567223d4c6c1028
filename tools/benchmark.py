"""Time and memory of our backbone beside the other ConvNeXts, with equal weights and inputs.

    python tools/benchmark.py --arch convnext_tiny --size 224 512 --mode inference training
    python tools/benchmark.py --preset gpu-targets --json gpu.json --plot gpu.png

Every contender gives the raw map of each stage, as a detector takes it. In one process the
contenders take turns, each on a fresh random image, and a table gives the median, the spread and
the ratio to the best peer. Before anything is timed, its maps (and in training its gradients) are
compared with timm's in fp32. onnxruntime and OpenVINO run our network, exported for the cell's
shape. The machine's ceilings, a large matrix product and a large copy, are measured in the same
run.

On a machine that others share, `--clock cpu --threads 1` counts the processor time of this process,
which waiting does not lengthen.
"""

import argparse
import gc
import json
import platform
import re
import sys
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import torch
from benchmarking.cells import DTYPES, Cell, Result, ceilings, run_cell
from benchmarking.contenders import CONTENDERS, MODES, BenchmarkError, importable
from benchmarking.reports import draw, print_table, print_targets, rows_of
from benchmarking.targets import judge

from convnext_backbone import list_archs

ENGINES, CLOCKS = ("eager", "compile"), ("wall", "cpu")

_T = ["convnext_tiny", "convnextv2_tiny"]
_BATCHES = {"224": 64, "512x512": 8, "800x1216": 2}
PRESETS: Mapping[str, list[dict[str, Any]]] = {
    "cpu-targets": [
        {"arch": _T, "size": [size], "dtype": ["float32", "bfloat16"], "mode": list(MODES)}
        for size in _BATCHES
    ],
    "gpu-targets": [
        {
            "arch": _T, "size": [size], "batch_size": batch, "device": "cuda",
            "dtype": ["bfloat16", "float16", "float32"], "mode": list(MODES),
            "engine": list(ENGINES), "rounds": 30, "warmup": 5,
        }
        for size, batch in _BATCHES.items()
    ],
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"a size is 224 or 800x1216 (height x width), got {text}")
    return int(found[1]), int(found[2] or found[1])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), help="several settings, with the targets they serve")
    add("--arch", nargs="+", default=["convnext_tiny"], metavar="ARCH")
    add("--size", nargs="+", default=["224"], metavar="SIZE", help="224, or 800x1216 (h x w)")
    add("--batch-size", type=int, default=1)
    add("--mode", nargs="+", choices=MODES, default=["inference"])
    add("--dtype", nargs="+", choices=list(DTYPES), default=["float32"])
    add("--engine", nargs="+", choices=ENGINES, default=["eager"])
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--contenders", nargs="+", choices=list(CONTENDERS), metavar="NAME",
        help=f"out of {', '.join(CONTENDERS)}; default: all that can be imported")  # fmt: skip
    add("--rounds", type=int, default=9)
    add("--warmup", type=int, default=2)
    add("--clock", choices=CLOCKS, default="wall")
    add("--threads", type=int, help="threads of the CPU; default: torch's")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="write all figures here")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios here; needs matplotlib")
    args = parser.parse_args(argv)
    for name in ("batch_size", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    unknown = [arch for arch in args.arch if arch not in list_archs()]
    if unknown:
        parser.error(f"unknown --arch {unknown[0]!r}; see convnext_backbone.list_archs()")
    return args


def cells_of(args: argparse.Namespace) -> list[tuple[Cell, argparse.Namespace]]:
    """Return the cells to run, each with the options that hold there."""
    found = []
    for changes in PRESETS[args.preset] if args.preset else [{}]:
        options = argparse.Namespace(**(vars(args) | changes))
        for arch, size, mode, dtype, engine in product(
            options.arch, options.size, options.mode, options.dtype, options.engine
        ):
            cell = Cell(arch, _size(size), options.batch_size, mode, dtype, engine, options.device)
            found.append((cell, options))
    return found


def processor() -> str:
    """Return the processor's model, as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def machine(device: str) -> dict[str, Any]:
    """Return what the figures depend on: processor, threads, device and versions."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "processor": processor(), "threads": torch.get_num_threads(), "gpu": gpu,
        "torch": torch.__version__, "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Run all cells and report."""
    cells = cells_of(args)
    device = cells[0][0].device
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda: torch sees no CUDA device")
    if device == "cuda" and args.clock == "cpu":
        raise BenchmarkError("--clock cpu does not see the work of a CUDA device; use wall")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    names = args.contenders or [n for n, c in CONTENDERS.items() if importable(c)]
    missing = [n for n in names if not importable(CONTENDERS[n])]
    if missing:
        raise BenchmarkError(f"{missing[0]} needs {', '.join(CONTENDERS[missing[0]].needs)}")
    here = machine(device)
    print(", ".join(f"{key}: {value}" for key, value in here.items() if value is not None))
    dtypes = list(dict.fromkeys(cell.dtype for cell, _ in cells))
    tops = {dtype: ceilings(dtype, device, args.clock) for dtype in dtypes}
    for dtype, top in tops.items():
        print(f"ceilings {dtype}: {top['flops'] / 1e9:.0f} GFLOP/s, {top['bytes'] / 1e9:.1f} GB/s")
    results: list[Result] = []
    for cell, options in cells:
        found = run_cell(cell, names, options)
        gc.collect()  # a cell's modules go before the next cell's come
        results += found
        print_table(rows_of(found, tops))
        sys.stdout.flush()
    verdicts = list(judge(results))
    print_targets(verdicts)
    rows = rows_of(results, tops)
    if args.json is not None:
        report = {"machine": here, "ceilings": tops, "rows": rows, "targets": verdicts}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot is not None:
        draw(rows, args.plot)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    args = parse_args(argv)
    try:
        run(args)
    except (BenchmarkError, argparse.ArgumentTypeError, OSError) as error:
        print(f"benchmark.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
