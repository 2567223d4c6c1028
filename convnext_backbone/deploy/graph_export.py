"""A backbone or a classifier alone as a file that runs without this package.

ONNX, or torch's exported program. Batch, height and width stay free. The outputs carry the names of
the features, and every file is run and compared with the network before it is moved to its place.
`folder` writes whole detectors and segmentors.

Axes: N batch, C channels, H height, W width, in pixels.
"""

import copy
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.backbone import ConvNextBackbone
from ..models.classifier import ConvNextForImageClassification, ConvNextModel
from ..utils.checks import check_choice
from ..utils.files import atomic_files, errors_naming, expand_path
from .check import Comparison, Tolerance
from .onnx_file import DEFAULT_OPSET, OPSETS, Run, write_onnx
from .targets import PRECISIONS, SHORT_NAMES, TARGETS, Precision

_INPUT = "pixel_values"
_KINDS = (ConvNextBackbone, ConvNextModel, ConvNextForImageClassification)


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
    """Write a backbone or classifier alone as ONNX, compared on onnxruntime at three sizes.

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
    check_choice("precision", precision, TARGETS["onnx"].precisions)
    TARGETS["onnx"].require(precision)
    return _export(model, path, partial(write_onnx, opset=opset), PRECISIONS[precision])


def export_program(model: nn.Module, path: str | os.PathLike[str]) -> ExportResult:
    """Write a backbone or classifier alone as torch's exported program, and compare it.

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
    return _export(model, path, _write_program, PRECISIONS["float32"])


# A new target is one function and one entry; `export --to` takes its choices from here.
EXPORTERS: dict[str, Callable[..., ExportResult]] = {
    "onnx": export_onnx,
    "torch-export": export_program,
}


# ------------------------------------------------------------------------------ the network


class _TupleNetwork(nn.Module):
    """A copy of a network, in eval mode on the CPU, that returns a tuple of named outputs."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        if not isinstance(model, _KINDS):
            names = ", ".join(kind.__name__ for kind in _KINDS)
            raise TypeError(f"model must be one of {names}, got {type(model).__name__}")
        self.dtype = dtype
        self.model = copy.deepcopy(model).requires_grad_(False).cpu().to(dtype)
        self.model.config.update({"output_hidden_states": False, "return_dict": True})
        if isinstance(model, ConvNextBackbone):
            self.output_names, strides = model.out_features, model.strides
        else:
            pooled = isinstance(model, ConvNextModel)
            self.output_names = ("last_hidden_state", "pooler_output") if pooled else ("logits",)
            strides = model.config.strides
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

    def images(self, size: tuple[int, int, int]) -> Tensor:
        """Return random images of a size (N, H, W)."""
        generator = torch.Generator().manual_seed(sum(size))
        n, height, width = size
        shape = (n, self.model.config.num_channels, height, width)
        return torch.randn(shape, generator=generator).to(self.dtype)


# ------------------------------------------------------------------------------ the file


def _export(
    model: nn.Module,
    path: str | os.PathLike[str],
    write: Callable[[_TupleNetwork, Tensor, Mapping[int, Any], Path], Run],
    precision: Precision,
) -> ExportResult:
    """Write a network with `write`, and move the file to its place if it agrees."""
    network = _TupleNetwork(model, precision.dtype)
    path = Path(expand_path(path, "path"))
    # A batch of one would be taken for a constant.
    example = network.images((2, 2 * network.min_size, 3 * network.min_size))
    with errors_naming(path), atomic_files(path.parent, path.name) as folder:
        run = write(network, example, network.free_sides(), folder / path.name)
        seen = _compare(network, run, precision.tolerance)
    return ExportResult(path, network.output_names, tuple(seen.shapes), max(seen.worst.values()))


def _write_program(
    network: _TupleNetwork, example: Tensor, free_sides: Mapping[int, Any], path: Path
) -> Run:
    """Write an exported program of torch, and return it as it runs."""
    program = torch.export.export(network, (example,), dynamic_shapes=(free_sides,))
    buffer = io.BytesIO()  # given a path, torch ends the process where the disk is full
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        outputs = module(torch.from_numpy(inputs[_INPUT]))
        return dict(zip(network.output_names, outputs, strict=True))

    return run


def _compare(network: _TupleNetwork, run: Run, tolerance: Tolerance) -> Comparison:
    """Compare a written file with the network on images of three sizes.

    Raises:
        DisagreementError: An output has another shape, or is off by more than the tolerance.
    """
    comparison, least = Comparison(tolerance), network.min_size
    # The smallest, one that no stride divides, one larger and wider.
    for size in ((1, least, least), (3, least + 5, 2 * least + 1), (2, 4 * least, 3 * least)):
        images = network.images(size)
        with torch.inference_mode():
            expected = dict(zip(network.output_names, network(images), strict=True))
            comparison.compare_features(images, expected, run({_INPUT: images.numpy()}))
    return comparison
