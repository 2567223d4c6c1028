"""Time and memory of our backbone beside the other ConvNeXts, with equal weights and inputs.

    python tools/benchmark.py --arch convnext_tiny --size 224 512 --mode inference training
    python tools/benchmark.py --preset gpu-targets --json gpu.json --plot gpu.png

Every contender gives the raw map of each stage, as a detector takes it. In one process the
contenders take turns, each on new random images, and a table gives the median, the spread of the
quartiles and the ratio to the best peer: another network in torch. onnxruntime and OpenVINO run our
network, exported for the cell's shape. Before anything is timed, maps (and in training, gradients)
are compared with those of timm in fp32; without timm, of torchvision or transformers. The machine's
ceilings, a large matrix product and a large copy, are measured in the same run.

A training step is a forward and a backward pass. Its memory is what is held between the two, and
the most that is held at once; gradients of parameters exist before and are not counted.
`--dtype bfloat16` casts everything; `autocast-bfloat16` is mixed precision with weights in fp32,
whose copies in bf16 count as memory: take batches that outweigh them.

On a machine that others share, `--clock cpu --threads 1` counts the processor time of this process,
which waiting does not lengthen. All contenders get the same number of threads.
"""

import argparse
import gc
import json
import platform
import re
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import torch
from benchmarking.cell import ENGINES, MODES, PRECISIONS, BenchmarkError, Cell, Result
from benchmarking.contenders import CONTENDERS, importable
from benchmarking.reports import draw, print_absent, print_table, print_targets, rows_of
from benchmarking.roofline import measure_ceilings
from benchmarking.targets import judge
from benchmarking.timing import run_cell

from convnext_backbone import list_archs

CLOCKS = ("wall", "cpu")

_T = ["convnext_tiny", "convnextv2_tiny"]
_BATCHES = {"224": 64, "512x512": 8, "800x1216": 2}
PRESETS: Mapping[str, list[dict[str, Any]]] = {
    "cpu-targets": [
        {"arch": _T, "size": [size], "dtype": ["float32", bf16], "mode": [mode]}
        for size in _BATCHES
        for mode, bf16 in (("inference", "bfloat16"), ("training", "autocast-bfloat16"))
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
# Packages whose versions the figures depend on.
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnxruntime", "openvino")


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
    add("--dtype", nargs="+", choices=list(PRECISIONS), default=["float32"])
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
    _check(parser, args)
    return args


_LEAST = {"batch_size": 1, "rounds": 1, "warmup": 0, "threads": 1}


def _check(parser: _Parser, args: argparse.Namespace) -> None:
    for name, least in _LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    for name in ("json", "plot"):  # found out before the run, not after it
        path = getattr(args, name)
        if path is not None and not path.parent.is_dir():
            parser.error(f"--{name}: there is no folder {path.parent}")
    if args.plot is not None and not find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install matplotlib")
    unknown = [arch for arch in args.arch if arch not in list_archs(variants=True)]
    if unknown:
        parser.error(f"unknown --arch {unknown[0]!r}; see convnext_backbone.list_archs()")


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


def installed(package: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine(device: str) -> dict[str, Any]:
    """Return what the figures depend on: processor, threads, device and versions."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "processor": processor(), "threads": torch.get_num_threads(), "gpu": gpu,
        "python": platform.python_version(), **{name: installed(name) for name in _PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def check_device(device: str, clock: str) -> None:
    """Raise a BenchmarkError if the device is absent, or invisible for the clock."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda: torch sees no CUDA device")
    if device == "cuda" and clock == "cpu":
        raise BenchmarkError("--clock cpu does not see the work of a CUDA device; use wall")


def choose_contenders(asked: list[str] | None) -> list[str]:
    """Return the contenders that were asked for, or all that can be imported.

    Raises:
        BenchmarkError: One that was asked for cannot be imported.
    """
    missing = [name for name in asked or CONTENDERS if not importable(CONTENDERS[name])]
    if asked and missing:
        raise BenchmarkError(f"{missing[0]} needs {', '.join(CONTENDERS[missing[0]].needs)}")
    if missing:
        print(f"not installed: {', '.join(missing)}")
    return asked or [name for name in CONTENDERS if name not in missing]


def measured_ceilings(cells: list[Cell], clock: str) -> dict[str, dict[str, float]]:
    """Measure and print the machine's ceilings in each dtype of the cells."""
    ceilings = {}
    for cell in {cell.dtype: cell for cell in cells}.values():
        top = measure_ceilings(cell.precision.compute, cell.device, clock)
        flops, moved = top["flops"] / 1e9, top["bytes"] / 1e9
        print(f"ceilings {cell.dtype}: {flops:.0f} GFLOP/s, {moved:.1f} GB/s")
        ceilings[cell.dtype] = top
    return ceilings


def run(args: argparse.Namespace) -> None:
    """Run all cells and report."""
    cells = cells_of(args)
    check_device(cells[0][0].device, args.clock)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    names = choose_contenders(args.contenders)
    here = machine(cells[0][0].device)
    print(", ".join(f"{key}: {value}" for key, value in here.items() if value is not None))
    ceilings = measured_ceilings([cell for cell, _ in cells], args.clock)
    results: list[Result] = []
    for cell, options in cells:
        found = run_cell(cell, names, options)
        gc.collect()  # a cell's modules go before the next cell's come
        results += found
        if found:
            print_table(rows_of(found, ceilings))
        print_absent(cell, names)
        sys.stdout.flush()
    verdicts = list(judge(results))
    print_targets(verdicts)
    rows = rows_of(results, ceilings)
    if args.json is not None:
        report = {"machine": here, "ceilings": ceilings, "rows": rows, "targets": verdicts}
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
