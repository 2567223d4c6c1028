"""The arguments of FeatureExtractor, described there, in three groups that check their values.

A new option is a field here, an argument there and the code that reads the field; what it changes
of the features, `FeatureExtractor.describe` reports unless the field is `_UNRECORDED`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..images.processor import ConvNextImageProcessor, check_pixels
from ..models.config import ConvNextConfig
from ..models.trunk import ConvNextTrunk
from ..utils.checks import as_int, check_choice, check_min, first_line


def _generalised_mean(x: Tensor, p: float) -> Tensor:
    # Half precision is too coarse for powers, and those of the values themselves would overflow.
    y = x.float().clamp(min=1e-6)
    largest = y.amax(dim=(-2, -1), keepdim=True)
    mean = (y / largest).pow(p).mean(dim=(-2, -1)).pow(1 / p)
    return (largest[..., 0, 0] * mean).to(x.dtype)


# A new pooling is one entry: name -> function of a map (C, H, W) to a vector (C,) and of the power
# of "gem", which the others ignore.
POOLS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "avg": lambda x, _: x.mean(dim=(-2, -1)),
    "max": lambda x, _: x.amax(dim=(-2, -1)),
    "gem": _generalised_mean,
}
CLS = "cls"  # the pooling that uses a model's final norm instead of `POOLS`
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Size = int | tuple[int, int] | str | None
# Of a field that does not change the values of features, or that `describe` reports in other words.
_UNRECORDED = {"recorded": False}
_Group = TypeVar("_Group", bound="OutputOptions | ImageOptions | RunOptions")


def choose_options(kind: type[_Group], arguments: Mapping[str, Any]) -> _Group:
    """Build a group out of all arguments."""
    return kind(**{f.name: arguments[f.name] for f in fields(kind)})


def recorded_options(group: _Group) -> dict[str, Any]:
    """Return what of a group changes the values of features."""
    return {f.name: getattr(group, f.name) for f in fields(group) if f.metadata != _UNRECORDED}


@dataclass(frozen=True)
class OutputOptions:
    """Which features, and in which form; ValueError for a value out of its range."""

    out_features: Sequence[str] | str | None = field(metadata=_UNRECORDED)
    out_indices: Sequence[int] | None = field(metadata=_UNRECORDED)
    norm: bool
    pool: str | None
    gem_p: float

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, (None, *POOLS, CLS))
        p = self.gem_p.item() if isinstance(self.gem_p, np.number) else self.gem_p
        number = isinstance(p, int | float) and not isinstance(p, bool)
        if not number or not 0 < p <= sys.float_info.max:
            raise ValueError(f"gem_p must be positive and finite, got {p!r}")
        object.__setattr__(self, "gem_p", float(p))
        if self.pool == CLS and self._chosen():
            raise ValueError(
                f"pool='cls' is one vector and takes no choice of stages, got {self._chosen()}"
            )

    def _chosen(self) -> dict[str, Any]:
        outputs = {"out_features": self.out_features, "out_indices": self.out_indices}
        return {name: value for name, value in outputs.items() if value is not None}

    def apply_to(self, config: ConvNextConfig) -> ConvNextConfig:
        """Return the config with these outputs; with its own where none are chosen."""
        outputs = self._chosen()
        if self.out_features == "stages":
            outputs["out_features"] = config.stage_names[1:]
        return config.replace(**outputs)


@dataclass(frozen=True)
class ImageOptions:
    """How images are prepared; TypeError for a processor of another kind."""

    processor: ConvNextImageProcessor | None = field(metadata=_UNRECORDED)
    size: Size
    pad: bool

    def __post_init__(self) -> None:
        if not isinstance(self.processor, ConvNextImageProcessor | None):
            given = type(self.processor).__name__
            raise TypeError(f"processor must be a ConvNextImageProcessor, got {given}")

    def build_processor(self, default: ConvNextImageProcessor) -> ConvNextImageProcessor:
        """Return the processor to use; it resizes where `size` leaves that to it."""
        processor = self.processor or default
        if self.size is None:
            return processor
        if isinstance(self.size, int):
            return replace(processor, do_resize=True, size=self.size)
        return replace(processor, do_resize=False)


@dataclass(frozen=True)
class RunOptions:
    """How the network is run; ValueError for a value out of its range."""

    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    batch_size: int
    num_workers: int = field(metadata=_UNRECORDED)
    compute_workers: int = field(metadata=_UNRECORDED)
    on_error: str = field(metadata=_UNRECORDED)
    progress: bool = field(metadata=_UNRECORDED)

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "num_workers": 0, "compute_workers": 0}.items():
            object.__setattr__(self, name, check_min(name, getattr(self, name), least))
        check_choice("on_error", self.on_error, ("raise", "skip"))

    def prepare_model(self, model: ConvNextTrunk) -> ConvNextTrunk:
        """Return the network on the device and in the dtype, for inference only."""
        model = model.eval().requires_grad_(False).to(self.device, self.dtype)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model


def parse_size(size: Any) -> Size:
    """Return None, "native", a side or (height, width); ValueError for anything else."""
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2:
        height, width = (check_min("size", side, 1) for side in size)
        check_pixels("size", height, width)
        return height, width
    if size is None or (isinstance(size, str) and size == "native"):
        return size
    if as_int(size) is not None:
        return check_min("size", size, 1)
    raise ValueError(f"size must be None, a number, (height, width) or 'native', got {size!r}")


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a dtype of `DTYPES`, given itself or its name; ValueError for any other."""
    if isinstance(dtype, str):
        check_choice("dtype", dtype, tuple(DTYPES))
        return DTYPES[dtype]
    check_choice("dtype", dtype, tuple(DTYPES.values()))
    return dtype


def parse_device(device: torch.device | str | None) -> torch.device:
    """Return a device that works; None takes CUDA where there is one.

    ValueError for one that does not work, TypeError for what names none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except TypeError as error:
        text = f"device must be a name, an index or a torch.device, got {device!r}"
        raise TypeError(text) from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error
    if resolved.type == "meta":
        raise ValueError("device 'meta' cannot be used: its tensors hold no values")
    return resolved
