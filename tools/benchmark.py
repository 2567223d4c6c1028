"""Time and memory of our backbone beside the other ConvNeXts, with equal weights and inputs.

    python tools/benchmark.py --arch convnext_tiny --size 224 512 --mode inference training
    python tools/benchmark.py --preset gpu-targets --json gpu.json --plot gpu.png

Every contender gives the raw map of each stage, as a detector takes it. In one process the
contenders take turns, each on a fresh random image, and a table gives the median, the spread and
the ratio to the best peer. Before anything is timed, its maps (and in training its gradients) are
compared with those of our definition in fp32. The machine's ceilings, a large matrix product and a
large copy, are measured in the same run.

On a machine that others share, `--clock cpu --threads 1` counts the processor time of this process,
which waiting does not lengthen.
"""

import argparse
import gc
import importlib
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from convnext_backbone import ConvNextBackbone, ConvNextConfig, list_archs
from convnext_backbone.kernels import use_kernels

STAGES = ("stage1", "stage2", "stage3", "stage4")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative error of a contender's maps or gradients that is rounding: three times what the widest
# of the public archs shows.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
MODES, ENGINES, CLOCKS = ("inference", "training"), ("eager", "compile"), ("wall", "cpu")


class BenchmarkError(Exception):
    """The run cannot be done as asked; the message says why."""


# ------------------------------------------------------------------ contenders


@dataclass(frozen=True)
class Contender:
    """One implementation.

    Attributes:
        build: Makes the module from a config; its weights do not matter yet.
        run: Gives the stages' maps of an image.
        rename: Pairs of a pattern in our parameter names and what stands there in theirs.
        needs: Modules that must be importable.
        modes: Modes that it takes part in.
        devices: Devices that it runs on.
        versions: 1 and 2, the block versions that it has.
    """

    build: Callable[[ConvNextConfig], nn.Module]
    run: Callable[[nn.Module, Tensor], Sequence[Tensor]]
    rename: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = MODES
    devices: tuple[str, ...] = ("cpu", "cuda")
    versions: tuple[int, ...] = (1, 2)
    finish: Callable[[nn.Module, torch.dtype], nn.Module] | None = None

    def name_of(self, name: str) -> str:
        """Return the name of our parameter `name` in this implementation."""
        for pattern, replacement in self.rename:
            name = re.sub(pattern, replacement, name)
        return name


def _ours(with_cp: bool | str = False) -> Callable[[ConvNextConfig], nn.Module]:
    def build(config: ConvNextConfig) -> nn.Module:
        backbone = ConvNextBackbone(config, out_features=STAGES, with_cp=with_cp)
        # The peers give raw maps: equal work asks the same of ours.
        backbone.norms = nn.ModuleDict({name: nn.Identity() for name in STAGES})
        return backbone

    return build


def _optimized(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    assert isinstance(module, ConvNextBackbone)
    return module.eval().optimize_for_inference(dtype=dtype, compile=False)


def _call(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
    return module(x)


def _build_timm(config: ConvNextConfig) -> nn.Module:
    import timm

    name = "convnextv2_tiny" if config.use_grn else "convnext_tiny"
    options: dict[str, Any] = {"depths": config.depths, "dims": config.hidden_sizes}
    if not config.use_grn:
        options["ls_init_value"] = config.layer_scale_init_value
    return timm.create_model(name, features_only=True, norm_eps=config.norm_eps, **options)


def _build_torchvision(config: ConvNextConfig) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    outs = (*config.hidden_sizes[1:], None)
    setting = [
        CNBlockConfig(*entry)
        for entry in zip(config.hidden_sizes, outs, config.depths, strict=True)
    ]
    return ConvNeXt(setting, layer_scale=config.layer_scale_init_value, num_classes=1).features


def _run_torchvision(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
    maps = []
    for index, layer in enumerate(module.children()):
        x = layer(x)
        if index % 2:  # a downsampling layer, a stage, a downsampling layer, ...
            maps.append(x)
    return maps


def _build_transformers(config: ConvNextConfig) -> nn.Module:
    import transformers

    family = "ConvNextV2" if config.use_grn else "ConvNext"
    sizes = {"hidden_sizes": list(config.hidden_sizes), "depths": list(config.depths)}
    scale = {} if config.use_grn else {"layer_scale_init_value": config.layer_scale_init_value}
    theirs = getattr(transformers, f"{family}Config")(**sizes, **scale, out_features=list(STAGES))
    module = getattr(transformers, f"{family}Backbone")(theirs)
    for name in STAGES:
        module.hidden_states_norms[name] = nn.Identity()
    return module


def _build_mmpretrain(config: ConvNextConfig) -> nn.Module:
    backbones = importlib.import_module("mmpretrain.models.backbones")
    arch = {"depths": list(config.depths), "channels": list(config.hidden_sizes)}
    module = backbones.ConvNeXt(
        arch, use_grn=config.use_grn, layer_scale_init_value=config.layer_scale_init_value,
        out_indices=[0, 1, 2, 3], gap_before_final_norm=False,
    )  # fmt: skip
    for index in range(len(STAGES)):
        setattr(module, f"norm{index}", nn.Identity())
    return module


def _build_facebook(config: ConvNextConfig) -> nn.Module:
    file, name = ("convnextv2", "ConvNeXtV2") if config.use_grn else ("convnext", "ConvNeXt")
    build = getattr(importlib.import_module(f"models.{file}"), name)
    scale = {} if config.use_grn else {"layer_scale_init_value": config.layer_scale_init_value}
    return build(depths=list(config.depths), dims=list(config.hidden_sizes), **scale)


def _run_facebook(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
    maps = []
    parts = (module.get_submodule(name).children() for name in ("downsample_layers", "stages"))
    for downsample, stage in zip(*parts, strict=True):
        x = stage(downsample(x))
        maps.append(x)
    return maps


_TIMM_NAMES = (
    (r"^downsample_layers\.0\.(\d)", r"stem_\1"),
    (r"^downsample_layers\.(\d)\.(\d)", r"stages_\1.downsample.\2"),
    (r"^stages\.(\d)\.(\d+)", r"stages_\1.blocks.\2"),
    (r"dwconv", "conv_dw"), (r"pwconv", "mlp.fc"),
    (r"grn\.gamma", "mlp.grn.weight"), (r"grn\.beta", "mlp.grn.bias"),
)  # fmt: skip
_TORCHVISION_NAMES = (
    (r"^downsample_layers\.0\.(\d)", r"0.\1"), (r"^downsample_layers\.1\.(\d)", r"2.\1"),
    (r"^downsample_layers\.2\.(\d)", r"4.\1"), (r"^downsample_layers\.3\.(\d)", r"6.\1"),
    (r"^stages\.0\.", "1."), (r"^stages\.1\.", "3."),
    (r"^stages\.2\.", "5."), (r"^stages\.3\.", "7."),
    (r"dwconv", "block.0"), (r"\.norm\.", ".block.2."),
    (r"pwconv1", "block.3"), (r"pwconv2", "block.5"), (r"gamma$", "layer_scale"),
)  # fmt: skip
_TRANSFORMERS_NAMES = (
    (r"^downsample_layers\.0\.0", "embeddings.patch_embeddings"),
    (r"^downsample_layers\.0\.1", "embeddings.layernorm"),
    (r"^downsample_layers\.(\d)\.(\d)", r"encoder.stages.\1.downsampling_layer.\2"),
    (r"^stages\.(\d)\.(\d+)", r"encoder.stages.\1.layers.\2"),
    (r"\.norm\.", ".layernorm."), (r"grn\.gamma", "grn.weight"), (r"grn\.beta", "grn.bias"),
    (r"(layers\.\d+)\.gamma$", r"\1.layer_scale_parameter"),
)  # fmt: skip
_MMPRETRAIN_NAMES = ((r"dwconv", "depthwise_conv"), (r"pwconv", "pointwise_conv"))

CONTENDERS: Mapping[str, Contender] = {
    "ours": Contender(_ours(), _call),
    "ours selective": Contender(_ours("selective"), _call, modes=("training",)),
    "ours full": Contender(_ours(True), _call, modes=("training",)),
    "ours optimized": Contender(_ours(), _call, modes=("inference",), finish=_optimized),
    "ours triton": Contender(_ours(), _call, needs=("triton",), devices=("cuda",)),
    "timm": Contender(_build_timm, _call, _TIMM_NAMES, ("timm",)),
    "torchvision": Contender(
        _build_torchvision, _run_torchvision, _TORCHVISION_NAMES, versions=(1,)
    ),
    "transformers": Contender(
        _build_transformers, lambda m, x: m(x).feature_maps, _TRANSFORMERS_NAMES, ("transformers",)
    ),
    "mmpretrain": Contender(_build_mmpretrain, _call, _MMPRETRAIN_NAMES, ("mmpretrain",)),
    "facebookresearch": Contender(
        _build_facebook, _run_facebook, (), ("models.convnext", "models.convnextv2")
    ),
}


def is_peer(name: str) -> bool:
    """Whether the contender `name` is somebody else's."""
    return not name.startswith("ours")


def importable(contender: Contender) -> bool:
    """Whether the modules that the contender needs can be imported."""
    try:
        for name in contender.needs:
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def randomise(module: nn.Module) -> None:
    """Give every parameter a value that matters: a layer scale of 1e-6 would hide the blocks."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.02 if parameter.ndim > 1 else 0.1)
            scale = re.search(r"weight$|\d\.gamma$", name)  # of a norm, or the layer scale
            if scale and parameter.ndim == 1:
                parameter.add_(1.0)


def copy_weights(ours: nn.Module, theirs: nn.Module, contender: Contender) -> None:
    """Give `theirs` the weights of `ours`.

    Raises:
        BenchmarkError: A parameter of ours has no namesake in theirs.
    """
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            other = named.get(contender.name_of(name))
            if other is None or other.numel() != parameter.numel():
                raise BenchmarkError(f"{type(theirs).__name__} has no parameter for {name}")
            other.copy_(parameter.view_as(other))


# ------------------------------------------------------------------ one cell of the table


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
        module = contender.finish(module, DTYPES[cell.dtype])
    if cell.engine == "compile":
        module.compile()
    return module


def runner(name: str) -> Callable[[nn.Module, Tensor], Sequence[Tensor]]:
    """Return the contender's forward pass, with the kernels that it stands for switched on."""
    run = CONTENDERS[name].run
    if name != "ours triton":
        return run

    def with_triton(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
        with use_kernels(triton=True):
            return run(module, x)

    return with_triton


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest ||got - expected|| / ||expected||; a shape that differs is an error."""
    if [g.shape for g in got] != [e.shape for e in expected]:
        raise BenchmarkError(f"shapes {[tuple(g.shape) for g in got]} differ from ours")
    gaps = [
        ((g.detach().double() - e).norm() / e.norm()).item()
        for g, e in zip(got, (e.detach().double() for e in expected), strict=True)
    ]
    return max(gap if gap == gap else float("inf") for gap in gaps)


def reference(
    master: nn.Module, x: Tensor, cell: Cell
) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
    """Return the maps and some gradients of our definition in fp32."""
    with use_kernels(cpu=False, triton=False):
        maps = step(master.train(cell.mode == "training"), _call, x.float(), cell.mode)
    wanted = ("downsample_layers.0.0.weight", "stages.0.0.pwconv1.weight")
    named = dict(master.named_parameters())
    if cell.mode == "inference":
        return maps, {}
    return maps, {name: named[name].grad.clone() for name in wanted}  # type: ignore[union-attr]


def check(
    name: str, module: nn.Module, x: Tensor, cell: Cell,
    maps: Sequence[Tensor], gradients: dict[str, Tensor],
) -> float:  # fmt: skip
    """Compare a contender with the reference; return its relative error.

    Raises:
        BenchmarkError: It computes something else.
    """
    error = relative_error(tuple(step(module, runner(name), x, cell.mode)), maps)
    named = dict(module.named_parameters())
    for ours, expected in gradients.items():
        got = named[CONTENDERS[name].name_of(ours)].grad
        assert got is not None
        error = max(error, relative_error([got.view_as(expected)], [expected]))
    if not error <= TOLERANCE[cell.dtype]:
        raise BenchmarkError(f"{name} differs from ours by {error:.1e} in {cell}")
    return error


def held_bytes(name: str, module: nn.Module, x: Tensor, device: str) -> int:
    """Return the bytes that a training step holds for its backward pass.

    On CUDA, the allocator's peak over the step, less what was there before; on the CPU the bytes of
    the distinct storages that autograd saves, parameters left out.
    """
    run = runner(name)
    if device == "cuda":
        module.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(module, run, x, "training")
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        held[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        maps = run(module, x)
    assert maps
    return sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in own)


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
    ]  # fmt: skip
    master = _ours()(config)
    randomise(master)
    modules = {name: build(name, master, config, cell) for name in names}
    master.to(cell.device)

    def image() -> Tensor:
        return torch.randn(cell.batch, config.num_channels, *cell.size, device=cell.device).to(
            DTYPES[cell.dtype]
        )

    x = image()
    maps, gradients = reference(master, x, cell)
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
            step(modules[name], runner(name), x, cell.mode)
            if turn >= args.warmup:
                results[name].times.append(now() - start)
    return list(results.values())


# ------------------------------------------------------------------ work and ceilings


def work_of(config: ConvNextConfig, cell: Cell) -> dict[str, float]:
    """Return the FLOPs of a step and the fewest bytes that it moves, each map once per layer pair.

    The bytes are those of a block in three fused kernels: depthwise convolution and norm (read x,
    write C), first pointwise layer and GELU (read C, write 4C), second pointwise layer and residual
    (read 4C and x, write C). A backward pass does twice the work of a forward pass.
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


# ------------------------------------------------------------------ targets


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


# ------------------------------------------------------------------ reports


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


# ------------------------------------------------------------------ command line

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
