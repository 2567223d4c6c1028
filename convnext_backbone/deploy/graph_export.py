"""A network as a file that runs without this package: ONNX, or torch's exported program.

Batch, height and width stay free. The outputs carry the names of the features, and every file is
run and compared with the network before it is called done.

Axes: N batch, C channels, H height, W width, in pixels.
"""

import copy
import errno
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..models.backbone import ConvNextBackbone
from ..models.classifier import ConvNextForImageClassification, ConvNextModel
from ..utils.checks import check_choice
from ..utils.files import errors_naming

INPUT = "pixel_values"
DEFAULT_OPSET = 18
_OPSETS = range(18, 24)  # what torch's exporter writes, and LayerNormalization (17) with it
# precision -> dtype and what a value may be off by, over the largest value of its output
_PRECISIONS: Mapping[str, tuple[torch.dtype, float]] = MappingProxyType(
    {"float32": (torch.float32, 1e-4), "float16": (torch.float16, 2e-2)}
)
PRECISIONS = tuple(_PRECISIONS)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        outputs: The names of its outputs.
        sizes: The shapes (N, H, W) that it was compared at.
        error: The largest difference to the network that was seen, over the largest value.
    """

    path: Path
    outputs: tuple[str, ...]
    sizes: tuple[tuple[int, int, int], ...]
    error: float


class _Named(nn.Module):
    """A network whose outputs are a plain tuple, and the names that they have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> Any:
        """The architecture."""
        return self.model.config

    @property
    def least(self) -> int:
        """The least height and width, in pixels.

        Twice the stride of the last output: torch.export fixes the layout of maps of one pixel.
        """
        strides = self.model.strides if isinstance(self.model, ConvNextBackbone) else ()
        return 2 * max(strides or self.config.strides)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs."""
        if isinstance(self.model, ConvNextBackbone):
            return self.model.out_features
        if isinstance(self.model, ConvNextModel):
            return ("last_hidden_state", "pooler_output")
        return ("logits",)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.model, ConvNextBackbone):
            return tuple(self.model(pixel_values))
        return self.model(pixel_values, return_dict=False)


def _named(model: nn.Module, dtype: torch.dtype) -> _Named:
    kinds = (ConvNextBackbone, ConvNextModel, ConvNextForImageClassification)
    if not isinstance(model, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"model must be one of {names}, got {type(model).__name__}")
    own = copy.deepcopy(model).eval().requires_grad_(False).cpu().to(dtype)
    own.config.update({"output_hidden_states": False, "return_dict": True})
    return _Named(own).eval()


def _program(model: _Named, dtype: torch.dtype) -> Any:
    return torch.export.export(
        model, (_example(model, dtype),), dynamic_shapes={INPUT: _free_sides(model)}
    )


def _free_sides(model: _Named) -> dict[int, Any]:
    least = model.least
    return {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height", min=least),
        3: torch.export.Dim("width", min=least),
    }


def _example(model: _Named, dtype: torch.dtype) -> Tensor:
    # A batch of one would be taken for a constant.
    return torch.zeros(2, model.config.num_channels, 2 * model.least, 3 * model.least, dtype=dtype)


def _check_sizes(model: _Named) -> tuple[tuple[int, int, int], ...]:
    """Choose three shapes: the smallest, one that no stride divides, one larger and wider."""
    least = model.least
    return ((1, least, least), (3, least + 5, 2 * least + 1), (2, 4 * least, 3 * least))


def _compare(model: _Named, got: Sequence[Any], images: Tensor, limit: float, what: str) -> float:
    with torch.inference_mode():
        expected = model(images)
    worst = 0.0
    for name, ours, theirs in zip(model.names, expected, got, strict=True):
        theirs = torch.as_tensor(theirs)
        if theirs.shape != ours.shape:
            raise RuntimeError(
                f"{what} gives {name} of shape {tuple(theirs.shape)} for images of "
                f"{tuple(images.shape)}, it must be {tuple(ours.shape)}"
            )
        scale = max(1.0, float(ours.abs().max()))
        off = float((theirs.float() - ours.float()).abs().max()) / scale
        if not off <= limit:  # also when it is nan
            raise RuntimeError(
                f"{what} gives {name} off by {off:.2g} for images of {tuple(images.shape)}, "
                f"allowed is {limit:g}"
            )
        worst = max(worst, off)
    return worst


def _images(model: _Named, size: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    n, height, width = size
    shape = (n, model.config.num_channels, height, width)
    return torch.randn(shape, generator=generator).to(dtype)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    opset: int = DEFAULT_OPSET,
    precision: str = "float32",
) -> Exported:
    """Write a network as ONNX, and compare it with the network on onnxruntime at three sizes.

    Args:
        model: A `ConvNextBackbone`, `ConvNextModel` or `ConvNextForImageClassification`.
        path: The file to write; it appears only when the comparison held.
        opset: The version of ONNX's operators, 18 to 23.
        precision: "float32", or "float16" for weights and values in half precision.

    Returns:
        What was written. fp32 is held to 1e-4 of the largest value of each output.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is missing.
        ValueError: An argument is out of its range.
        RuntimeError: The file does not compute what the network does.
        OSError: The file cannot be written.
    """
    if opset not in _OPSETS:
        raise ValueError(f"opset must be from {_OPSETS[0]} to {_OPSETS[-1]}, got {opset!r}")
    dtype, limit = _precision(precision)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing: pip install 'convnext_backbone[export]'"
        ) from error
    named = _named(model, dtype)
    with _replacing(path) as partial:
        with warnings.catch_warnings():
            # torch's exporter warns about its own future.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.onnx.export(
                named,
                (_example(named, dtype),),
                input_names=[INPUT],
                output_names=list(named.names),
                dynamic_shapes={INPUT: _free_sides(named)},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        assert program is not None  # without a path the exporter returns what it made
        program.save(partial)
        session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        found = tuple(output.name for output in session.get_outputs())
        if found != named.names:
            raise RuntimeError(f"the ONNX file has outputs {found}, they must be {named.names}")
        off = 0.0
        for size in _check_sizes(named):
            images = _images(named, size, dtype)
            got = session.run(list(named.names), {INPUT: images.numpy()})
            off = max(off, _compare(named, got, images, limit, "the ONNX file"))
    return Exported(Path(path), named.names, _check_sizes(named), off)


def export_program(model: nn.Module, path: str | os.PathLike[str]) -> Exported:
    """Write a network as torch's exported program, and compare it with the network.

    `torch.export.load(path).module()(pixel_values)` gives the outputs as a tuple, in the order of
    their names.

    Args:
        model: A `ConvNextBackbone`, `ConvNextModel` or `ConvNextForImageClassification`.
        path: The file to write, usually `.pt2`.

    Raises:
        TypeError: The model is of another kind.
        RuntimeError: The file does not compute what the network does.
        OSError: The file cannot be written.
    """
    dtype, limit = _PRECISIONS["float32"]
    named = _named(model, dtype)
    with _replacing(path) as partial:
        buffer = io.BytesIO()  # given a path, torch ends the process where the disk is full
        torch.export.save(_program(named, dtype), buffer)
        Path(partial).write_bytes(buffer.getvalue())
        loaded = torch.export.load(partial).module()
        error = 0.0
        for size in _check_sizes(named):
            images = _images(named, size, dtype)
            with torch.inference_mode():
                got = loaded(images)
            error = max(error, _compare(named, got, images, limit, "the exported program"))
    return Exported(Path(path), named.names, _check_sizes(named), error)


def _precision(precision: str) -> tuple[torch.dtype, float]:
    check_choice("precision", precision, PRECISIONS)
    return _PRECISIONS[precision]


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a place to write to under the final name, and move it in when all went well.

    A network beyond 2 GiB is two files, `x.onnx` and `x.onnx.data`, that know each other's name.

    Raises:
        OSError: A file cannot be written; it names `path`.
    """
    path = Path(path)
    with errors_naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-") as folder:
            yield os.path.join(folder, path.name)
            # The file that refers to the others comes last.
            for name in sorted(os.listdir(folder), key=len, reverse=True):
                os.replace(os.path.join(folder, name), path.with_name(name))
