"""One cell of the table: equal weights, equal images, checked, then timed in turns."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from convnext_backbone import ConvNextConfig

from .contenders import CONTENDERS, ENGINES, REFERENCE, BenchmarkError, copy_weights, randomise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative error of a contender's maps or gradients that is rounding: three times what the widest
# of the public archs shows.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Cell:
    """One setting in which all contenders are timed."""

    arch: str
    size: tuple[int, int]
    batch: int
    mode: str
    dtype: str
    engine: str
    device: str

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        return (
            f"{self.arch} {self.batch}x{size} {self.mode} {self.dtype} {self.engine} {self.device}"
        )


@dataclass
class Result:
    """What one contender did in one cell; times in milliseconds."""

    cell: Cell
    contender: str
    times: list[float] = field(default_factory=list)
    error: float = 0.0
    memory: int | None = None  # bytes held for the backward pass, or the allocator's peak
    note: str = ""

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """The distance of the quartiles over the median."""
        if len(self.times) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times, n=4)
        return (high - low) / self.median


def step(module: nn.Module, run: Callable[..., Any], x: Tensor, mode: str) -> Sequence[Tensor]:
    """Run one inference, or one forward and backward pass with fresh gradients.

    The gradients that come in are those of a linear head: of mixed signs, and the same whatever the
    maps' rounding.
    """
    if mode == "inference":
        with torch.inference_mode():
            return run(module, x)
    module.zero_grad(set_to_none=True)
    maps = tuple(run(module, x))
    torch.autograd.backward(maps, [head_gradient(m) for m in maps])
    return maps


def head_gradient(x: Tensor) -> Tensor:
    """Return a gradient for the map `x` that depends on nothing but its shape."""
    n, c, h, w = x.shape
    parts = (torch.arange(1, size + 1, device=x.device) for size in (n * c, h * w))
    rows, columns = (torch.sin(part * part).to(x.dtype) for part in parts)
    return torch.outer(rows, columns).view(n, c, h, w)


def clock_of(kind: str, device: str) -> Callable[[], float]:
    """Return a clock in milliseconds that waits for the device first."""
    read = time.process_time if kind == "cpu" else time.perf_counter

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return read() * 1e3

    return now


def build(name: str, master: nn.Module, config: ConvNextConfig, cell: Cell) -> nn.Module:
    """Build a contender with the weights of `master`, ready for the cell."""
    contender = CONTENDERS[name]
    module = contender.build(config)
    copy_weights(master, module, contender)
    module = module.to(device=cell.device, dtype=DTYPES[cell.dtype])
    module.train(cell.mode == "training")
    if contender.finish is not None:
        shape = (cell.batch, config.num_channels, *cell.size)
        module = contender.finish(module, DTYPES[cell.dtype], shape)
    if cell.engine == "compile":
        module.compile()
    return module


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest ||got - expected|| / ||expected||; a shape that differs is an error."""
    if [g.shape for g in got] != [e.shape for e in expected]:
        raise BenchmarkError(f"shapes {[tuple(g.shape) for g in got]} differ from {REFERENCE}'s")
    gaps = [
        ((g.detach().double() - e).norm() / e.norm()).item()
        for g, e in zip(got, (e.detach().double() for e in expected), strict=True)
    ]
    return max(gap if gap == gap else float("inf") for gap in gaps)


def reference(
    master: nn.Module, config: ConvNextConfig, x: Tensor, cell: Cell
) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
    """Return the maps and some gradients of `REFERENCE` in fp32; gradients by our names."""
    contender = CONTENDERS[REFERENCE]
    module = build(REFERENCE, master, config, replace(cell, dtype="float32", engine="eager"))
    maps = step(module, contender.run, x.float(), cell.mode)
    if cell.mode == "inference":
        return maps, {}
    wanted = ("downsample_layers.0.0.weight", "stages.0.0.pwconv1.weight")
    named = dict(module.named_parameters())
    gradients = {name: named[contender.name_of(name)].grad for name in wanted}
    return maps, {name: grad for name, grad in gradients.items() if grad is not None}


def check(
    name: str, module: nn.Module, x: Tensor, cell: Cell,
    maps: Sequence[Tensor], gradients: dict[str, Tensor],
) -> float:  # fmt: skip
    """Compare a contender with the reference; return its relative error.

    Raises:
        BenchmarkError: It computes something else.
    """
    error = relative_error(tuple(step(module, CONTENDERS[name].run, x, cell.mode)), maps)
    named = dict(module.named_parameters())
    for ours, expected in gradients.items():
        got = named[CONTENDERS[name].name_of(ours)].grad
        assert got is not None
        error = max(error, relative_error([got.view_as(expected)], [expected]))
    if not error <= TOLERANCE[cell.dtype]:
        raise BenchmarkError(f"{name} differs from {REFERENCE} by {error:.1e} in {cell}")
    return error


def held_bytes(name: str, module: nn.Module, x: Tensor, device: str) -> int:
    """Return the bytes that a training step holds for its backward pass.

    On CUDA, the allocator's peak over the step, less what was there before. On the CPU, what was
    allocated in the forward pass and is still there after it, by torch's profiler: hooks on saved
    tensors would not see what selective checkpointing keeps in its own cache.
    """
    run = CONTENDERS[name].run
    if device == "cuda":
        module.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(module, run, x, "training")
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        maps = run(module, x)
    assert maps
    # What an operation allocates and frees is its own; what Python frees later is "[memory]".
    return sum(
        event.cpu_memory_usage if event.name == "[memory]" else event.self_cpu_memory_usage
        for event in profiler.events()
    )


def run_cell(cell: Cell, names: Sequence[str], args: argparse.Namespace) -> list[Result]:
    """Check and time all contenders of a cell, in turns."""
    torch.manual_seed(args.seed)
    config = ConvNextConfig.from_arch(cell.arch)
    version = 2 if config.use_grn else 1
    names = [
        n for n in names
        if version in CONTENDERS[n].versions
        and cell.mode in CONTENDERS[n].modes
        and cell.device in CONTENDERS[n].devices
        and cell.dtype in CONTENDERS[n].dtypes
        and (cell.engine == "eager" or n not in ENGINES)
    ]  # fmt: skip
    master = CONTENDERS["ours"].build(config)
    randomise(master)
    modules = {name: build(name, master, config, cell) for name in names}
    master.to(cell.device)

    def image() -> Tensor:
        return torch.randn(cell.batch, config.num_channels, *cell.size, device=cell.device).to(
            DTYPES[cell.dtype]
        )

    x = image()
    maps, gradients = reference(master, config, x, cell)
    results = {name: Result(cell, name) for name in names}
    for name, module in modules.items():
        results[name].error = check(name, module, x, cell, maps, gradients)
        if cell.mode == "training" and cell.engine == "eager":
            results[name].memory = held_bytes(name, module, x, cell.device)
    del master, maps, gradients
    now = clock_of(args.clock, cell.device)
    for turn in range(args.warmup + args.rounds):
        order = [*names[turn % len(names) :], *names[: turn % len(names)]]
        for name in order:
            x = image()
            start = now()
            step(modules[name], CONTENDERS[name].run, x, cell.mode)
            if turn >= args.warmup:
                results[name].times.append(now() - start)
    return list(results.values())


# Work and ceilings


def work_of(config: ConvNextConfig, cell: Cell) -> dict[str, float]:
    """Return the FLOPs of a step and the fewest bytes that it moves, each map once per layer pair.

    The bytes are those of a block in three fused operations: depthwise convolution and norm (read
    x, write C), first pointwise layer and GELU (read C, write 4C), second pointwise layer and
    residual (read 4C and x, write C). A backward pass does twice the work of a forward pass.
    """
    size, flops, moved = DTYPES[cell.dtype].itemsize, 0.0, 0.0
    height, width = (side // config.patch_size for side in cell.size)
    before, kernel = config.num_channels, config.patch_size
    for index, (c, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        if index > 0:
            height, width, kernel = height // 2, width // 2, 2
        pixels = cell.batch * height * width
        flops += 2 * pixels * c * before * kernel**2
        moved += size * pixels * (before * kernel**2 + c)
        flops += depth * 2 * pixels * c * (config.kernel_size**2 + 8 * c)
        moved += depth * size * (pixels * c * (2 + 5 + 6) + c * (config.kernel_size**2 + 8 * c))
        before = c
    times = 3 if cell.mode == "training" else 1
    return {"flops": times * flops, "bytes": times * moved}


def ceilings(dtype: str, device: str, clock: str) -> dict[str, float]:
    """Measure FLOP/s of a large matrix product and bytes/s of a large copy, read and write counted.

    Random data: a product of zeros can run faster than any real one.
    """
    n, numel = (8192, 1 << 29) if device == "cuda" else (1536, 1 << 25)
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    source = torch.randn(numel, device=device).to(DTYPES[dtype])
    target = torch.empty_like(source)
    now = clock_of(clock, device)

    def best(run: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            start = now()
            run()
            times.append(now() - start)
        return min(times[2:]) / 1e3

    return {
        "flops": 2 * n**3 / best(lambda: torch.mm(a, b)),
        "bytes": 2 * source.nbytes / best(lambda: target.copy_(source)),
    }
