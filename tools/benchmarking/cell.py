"""A setting of the benchmark, and what one contender did in it."""

import statistics
from dataclasses import dataclass, field

import torch

from convnext_backbone import ConvNextConfig

MODES = ("inference", "training")
ENGINES = ("eager", "compile")


class BenchmarkError(Exception):
    """The run cannot be done as asked; the message says why."""


@dataclass(frozen=True)
class Precision:
    """What a network computes in.

    Attributes:
        weights: The dtype of the weights and of the images.
        compute: The dtype of the products; under autocast another than that of the weights.
        tolerance: The relative error of maps and gradients that is rounding: three times what the
            widest of the public archs shows.
    """

    weights: torch.dtype
    compute: torch.dtype
    tolerance: float

    @property
    def autocast(self) -> bool:
        """Whether torch casts the operands of each product."""
        return self.weights != self.compute


PRECISIONS = {
    "float32": Precision(torch.float32, torch.float32, 1e-4),
    "bfloat16": Precision(torch.bfloat16, torch.bfloat16, 5e-2),
    "float16": Precision(torch.float16, torch.float16, 1e-2),
    "autocast-bfloat16": Precision(torch.float32, torch.bfloat16, 5e-2),
    "autocast-float16": Precision(torch.float32, torch.float16, 1e-2),
}


@dataclass(frozen=True)
class Cell:
    """One setting in which all contenders are timed.

    Attributes:
        arch: One of `list_archs()`.
        size: Height and width of the images, in pixels.
        batch: Images in a step.
        mode: One of `MODES`.
        dtype: One of `PRECISIONS`.
        engine: One of `ENGINES`: whether torch compiles the modules.
        device: "cpu" or "cuda".
    """

    arch: str
    size: tuple[int, int]
    batch: int
    mode: str
    dtype: str
    engine: str
    device: str

    @property
    def config(self) -> ConvNextConfig:
        """The architecture."""
        return ConvNextConfig.from_arch(self.arch)

    @property
    def version(self) -> int:
        """The version of the blocks, 1 or 2."""
        return 2 if self.config.use_grn else 1

    @property
    def precision(self) -> Precision:
        """What is computed in."""
        return PRECISIONS[self.dtype]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the images, (N, C, H, W)."""
        return (self.batch, self.config.num_channels, *self.size)

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        return (
            f"{self.arch} {self.batch}x{size} {self.mode} {self.dtype} {self.engine} {self.device}"
        )


@dataclass
class Result:
    """What one contender did in one cell.

    Attributes:
        cell: The setting.
        contender: Its name.
        times: Milliseconds, one per round.
        error: The largest relative error of its maps and gradients.
        memory: Bytes that a training step holds between its forward and its backward pass.
        peak: The most bytes that it holds at once.
    """

    cell: Cell
    contender: str
    times: list[float] = field(default_factory=list)
    error: float = 0.0
    memory: int | None = None
    peak: int | None = None

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
