"""One cell of the table: equal weights, equal images, checked, then timed in turns."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .cell import BenchmarkError, Cell, Result
from .contenders import CONTENDERS, absence, copy_weights, randomise, reference_for
from .memory import held_bytes, peak_bytes

# Parameters, by our names, whose gradients are compared.
CHECKED_GRADIENTS = ("downsample_layers.0.0.weight", "stages.0.0.pwconv1.weight")


class Runner:
    """A contender with the weights of `master`, ready for a cell.

    Raises:
        BenchmarkError: It cannot be prepared for the cell.
    """

    def __init__(self, name: str, master: nn.Module, cell: Cell) -> None:
        self.name, self.cell, self.contender = name, cell, CONTENDERS[name]
        module = self.contender.build(cell.config)
        copy_weights(master, module, self.contender)
        module = module.to(device=cell.device, dtype=cell.precision.weights)
        module.train(cell.mode == "training")
        if self.contender.prepare is not None:
            module = self.contender.prepare(module, cell)
        elif cell.engine == "compile":
            module.compile()
        self.module = module

    def image(self) -> Any:
        """Return random images, as the contender takes them."""
        x = torch.randn(self.cell.shape, device=self.cell.device)
        return self.to_input(x)

    def to_input(self, x: Tensor) -> Any:
        """Return the images in the cell's dtype, as the contender takes them."""
        return self.contender.to_input(x.to(self.cell.precision.weights))

    def forward(self, x: Any) -> Sequence[Any]:
        """Return the map of each stage."""
        precision = self.cell.precision
        with torch.autocast(self.cell.device, precision.compute, enabled=precision.autocast):
            return tuple(self.contender.run(self.module, x))

    def train(self, x: Tensor) -> Sequence[Tensor]:
        """Run a forward and a backward pass; gradients add up."""
        maps = self.forward(x)
        torch.autograd.backward(maps, [head_gradient(m) for m in maps])
        return maps

    def step(self, x: Any) -> Sequence[Any]:
        """Run what is timed: one inference, or one training step without an optimizer."""
        if self.cell.mode == "inference":
            with torch.inference_mode():
                return self.forward(x)
        self.module.zero_grad(set_to_none=True)
        return self.train(x)

    def gradient(self, name: str) -> Tensor:
        """Return the gradient of the parameter that has the name `name` in ours."""
        gradient = self.module.get_parameter(self.contender.name_of(name)).grad
        assert gradient is not None
        return gradient


def head_gradient(x: Tensor) -> Tensor:
    """Return a gradient for the map `x` (N, C, H, W) that depends on nothing but its shape.

    It is like that of a linear head: of mixed signs, and the same whatever the map's rounding.
    """
    n, c, h, w = x.shape
    parts = (torch.arange(1, size + 1, device=x.device) for size in (n * c, h * w))
    rows, columns = (torch.sin(part * part).to(x.dtype) for part in parts)
    return torch.outer(rows, columns).view(n, c, h, w)


def clock_of(kind: str, device: str) -> Callable[[], float]:
    """Return a clock in milliseconds that waits for the device first.

    "cpu" counts the processor time of all threads of the process, those of runtimes too.
    """
    read = time.process_time if kind == "cpu" else time.perf_counter

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return read() * 1e3

    return now


def relative_error(got: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """Return the largest ||got - expected|| / ||expected||.

    Raises:
        BenchmarkError: A shape differs.
    """
    values = [torch.as_tensor(g).detach().double() for g in got]
    if [g.shape for g in values] != [e.shape for e in expected]:
        shapes = [[tuple(x.shape) for x in xs] for xs in (values, expected)]
        raise BenchmarkError(f"maps have shapes {shapes[0]}, those of the reference {shapes[1]}")
    wanted = (e.detach().double() for e in expected)
    gaps = [((g - e).norm() / e.norm()).item() for g, e in zip(values, wanted, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in gaps)


def run_reference(
    master: nn.Module, x: Tensor, cell: Cell
) -> tuple[Sequence[Tensor], Mapping[str, Tensor]]:
    """Return the maps and some gradients, by our names, of an implementation by others in fp32."""
    name = reference_for(cell.version)
    runner = Runner(name, master, replace(cell, dtype="float32", engine="eager"))
    maps = runner.step(x.to(cell.precision.weights).float())
    names = CHECKED_GRADIENTS if cell.mode == "training" else ()
    return maps, {name: runner.gradient(name) for name in names}


def check(
    runner: Runner, x: Tensor, maps: Sequence[Tensor], gradients: Mapping[str, Tensor]
) -> float:
    """Compare a contender with the reference; return its relative error.

    Raises:
        BenchmarkError: It computes something else.
    """
    error = relative_error(runner.step(runner.to_input(x)), maps)
    for name, expected in gradients.items():
        got = runner.gradient(name)
        error = max(error, relative_error([got], [expected.view_as(got)]))
    if not error <= runner.cell.precision.tolerance:
        reference = reference_for(runner.cell.version)
        raise BenchmarkError(
            f"{runner.name} differs from {reference} by {error:.1e} in {runner.cell}"
        )
    return error


def measure_memory(runner: Runner, result: Result) -> None:
    """Note the bytes of a training step; its gradients exist before it and are not counted."""
    x, device = runner.image(), runner.cell.device
    result.memory = held_bytes(lambda: runner.forward(x), device)
    result.peak = peak_bytes(lambda: runner.train(x), device)


def run_cell(cell: Cell, names: Sequence[str], args: argparse.Namespace) -> list[Result]:
    """Check and time all contenders of a cell, in turns; those that are absent there are left out.

    Args:
        cell: The setting.
        names: Contenders.
        args: The options `seed`, `clock`, `warmup` and `rounds`.

    Raises:
        BenchmarkError: A contender computes something else than the reference.
    """
    torch.manual_seed(args.seed)
    master = CONTENDERS["ours"].build(cell.config)
    randomise(master)
    runners = [Runner(name, master, cell) for name in names if absence(name, cell) is None]
    if not runners:
        return []
    results = {runner.name: Result(cell, runner.name) for runner in runners}
    x = torch.randn(cell.shape, device=cell.device)
    maps, gradients = run_reference(master, x, cell)
    for runner in runners:
        results[runner.name].error = check(runner, x, maps, gradients)
        if cell.mode == "training" and cell.engine == "eager":
            measure_memory(runner, results[runner.name])
    del master, maps, gradients
    now = clock_of(args.clock, cell.device)
    for turn in range(args.warmup + args.rounds):
        first = turn % len(runners)
        for runner in [*runners[first:], *runners[:first]]:
            images = runner.image()
            start = now()
            runner.step(images)
            if turn >= args.warmup:
                results[runner.name].times.append(now() - start)
    return list(results.values())
