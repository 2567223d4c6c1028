"""A network as a file that runs without this package: ONNX, or torch's exported program.

Batch, height and width stay free. The outputs carry the names of the features, and every file is
run and compared with the network before it is moved to its place.

Axes: N batch, C channels, H height, W width, in pixels.
"""

import copy
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.backbone import ConvNextBackbone
from ..models.classifier import ConvNextForImageClassification, ConvNextModel
from ..utils.checks import check_choice
from ..utils.files import atomic_files, check_path, errors_naming
from .onnx_file import DEFAULT_OPSET, OPSETS, SHORT_NAMES, require_onnx, write_onnx

INPUT = "pixel_values"
_Network = ConvNextBackbone | ConvNextModel | ConvNextForImageClassification


@dataclass(frozen=True)
class Precision:
    """A dtype to export in.

    Attributes:
        dtype: Of the weights and the values.
        tolerance: The largest error that is accepted, over the largest value of the output.
    """

    dtype: torch.dtype
    tolerance: float


PRECISIONS = {
    "float32": Precision(torch.float32, 1e-4),
    "float16": Precision(torch.float16, 2e-2),
}


@dataclass(frozen=True)
class ExportResult:
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


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    opset: int = DEFAULT_OPSET,
    precision: str = "float32",
) -> ExportResult:
    """Write a network as ONNX, and compare it with the network on onnxruntime at three sizes.

    The input is `pixel_values` (N, C, H, W), the outputs are those of the network by name.

    Example:
        >>> backbone = ConvNextBackbone("convnext_atto", out_features=["stage3", "stage4"])
        >>> export_onnx(backbone, "backbone.onnx").outputs
        ('stage3', 'stage4')

    Args:
        model: A `ConvNextBackbone`, `ConvNextModel` or `ConvNextForImageClassification`.
        path: The file to write; it appears only when the comparison held.
        opset: The version of ONNX's operators, 18 to 23.
        precision: "float32", or "float16" for weights and values in half precision
            ("fp32" and "fp16" are the same).

    Returns:
        What was written. fp32 is held to 1e-4 of the largest value of each output.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is missing.
        TypeError: The model is of another kind.
        ValueError: An argument is out of its range.
        RuntimeError: The file does not compute what the network does.
        OSError: The file cannot be written.
    """
    check_choice("opset", opset, OPSETS)
    precision = SHORT_NAMES.get(precision, precision)
    check_choice("precision", precision, PRECISIONS)
    require_onnx()
    network = _TupleNetwork(model, PRECISIONS[precision])
    check_path(path, "path")
    path = Path(path)
    with errors_naming(path), atomic_files(path.parent, path.name) as folder:
        session = write_onnx(
            network,
            network.example(),
            str(folder / path.name),
            input_name=INPUT,
            output_names=network.names,
            free_sides=network.free_sides(),
            opset=opset,
        )

        def run(images: Tensor) -> Sequence[Any]:
            return session.run(list(network.names), {INPUT: images.numpy()})

        return _compare(network, run, path, "the ONNX file")


def export_program(model: nn.Module, path: str | os.PathLike[str]) -> ExportResult:
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
    network = _TupleNetwork(model, PRECISIONS["float32"])
    check_path(path, "path")
    path = Path(path)
    with errors_naming(path), atomic_files(path.parent, path.name) as folder:
        program = torch.export.export(
            network, (network.example(),), dynamic_shapes={INPUT: network.free_sides()}
        )
        buffer = io.BytesIO()  # given a path, torch ends the process where the disk is full
        torch.export.save(program, buffer)
        (folder / path.name).write_bytes(buffer.getvalue())
        loaded = torch.export.load(folder / path.name).module()
        return _compare(network, loaded, path, "the exported program")


# A new target is one function and one entry; `export --to` takes its choices from here.
EXPORTERS: dict[str, Callable[..., ExportResult]] = {
    "onnx": export_onnx,
    "torch-export": export_program,
}


# ------------------------------------------------------------------------------ the network


class _TupleNetwork(nn.Module):
    """A copy of a network, in eval mode on the CPU, that returns a tuple of named outputs."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        if not isinstance(model, _Network):
            kinds = (ConvNextBackbone, ConvNextModel, ConvNextForImageClassification)
            names = ", ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"model must be one of {names}, got {type(model).__name__}")
        self.precision = precision
        self.model = copy.deepcopy(model).requires_grad_(False).cpu().to(precision.dtype)
        self.config = self.model.config
        self.config.update({"output_hidden_states": False, "return_dict": True})
        if isinstance(model, ConvNextBackbone):
            self.names, strides = model.out_features, model.strides
        else:
            pooled = isinstance(model, ConvNextModel)
            self.names = ("last_hidden_state", "pooler_output") if pooled else ("logits",)
            strides = self.config.strides
        # The least height and width. torch.export fixes the layout of maps of one pixel.
        self.min_size = 2 * max(strides)
        self.eval()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.model, ConvNextBackbone):
            return tuple(self.model(pixel_values))
        return self.model(pixel_values, return_dict=False)

    def free_sides(self) -> dict[int, Any]:
        """Return the axes of the input that the file leaves open, for torch.export."""
        return {
            0: torch.export.Dim("batch"),
            2: torch.export.Dim("height", min=self.min_size),
            3: torch.export.Dim("width", min=self.min_size),
        }

    def example(self) -> Tensor:
        """Return the images that the network is traced with."""
        n = 2  # a batch of one would be taken for a constant
        return self.images((n, 2 * self.min_size, 3 * self.min_size))

    def images(self, size: tuple[int, int, int]) -> Tensor:
        """Return random images of a size (N, H, W)."""
        generator = torch.Generator().manual_seed(sum(size))
        n, height, width = size
        shape = (n, self.config.num_channels, height, width)
        return torch.randn(shape, generator=generator).to(self.precision.dtype)


# ------------------------------------------------------------------------------ the comparison


def _compare(
    network: _TupleNetwork, run: Callable[[Tensor], Sequence[Any]], path: Path, what: str
) -> ExportResult:
    """Run the written file beside the network.

    Raises:
        RuntimeError: An output has another shape, or is off by more than the tolerance.
    """
    least = network.min_size
    # The smallest, one that no stride divides, one larger and wider.
    sizes = ((1, least, least), (3, least + 5, 2 * least + 1), (2, 4 * least, 3 * least))
    worst = 0.0
    for size in sizes:
        images = network.images(size)
        with torch.inference_mode():
            pairs = zip(network.names, network(images), run(images), strict=True)
        for name, expected, got in pairs:
            place = f"{what} gives {name}", f"for images of {tuple(images.shape)}"
            worst = max(worst, _error(expected, torch.as_tensor(got), network.precision, place))
    return ExportResult(path, network.names, sizes, worst)


def _error(expected: Tensor, got: Tensor, precision: Precision, place: tuple[str, str]) -> float:
    output, images = place
    if got.shape != expected.shape:
        raise RuntimeError(
            f"{output} of shape {tuple(got.shape)} {images}, it must be {tuple(expected.shape)}"
        )
    scale = max(1.0, float(expected.abs().max()))
    error = float((got.float() - expected.float()).abs().max()) / scale
    if not error <= precision.tolerance:  # also when it is nan
        raise RuntimeError(
            f"{output} off by {error:.2g} {images}, allowed is {precision.tolerance:g}"
        )
    return error
