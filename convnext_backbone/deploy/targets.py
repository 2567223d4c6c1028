"""What a network is written as: the precisions, and the runtimes of a deployed folder.

A new runtime is a row of `TARGETS`. How its file is run stands in `predict.load_network`, by the
suffix, since predict.py stands alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .check import Tolerance
from .openvino_file import write_openvino


@dataclass(frozen=True)
class Precision:
    """What a network computes in, and how far it may be from the original for it.

    Attributes:
        dtype: Of the weights and maps; of a whole model, of those of backbone and neck.
        tolerance: What the network is held to as it is written.
        quantized: What a file is held to that is made of it with calibration images; None if
            there is none.
    """

    dtype: torch.dtype
    tolerance: Tolerance
    quantized: Tolerance | None = None


PRECISIONS = {
    "float32": Precision(torch.float32, Tolerance()),
    "float16": Precision(
        torch.float16,
        Tolerance(
            features=2e-2,
            boxes=2.0,
            scores=2e-2,
            masks=5e-2,
            overlaps=5e-2,
            ties=0.1,
            labels=1e-2,
            logits=2e-2,
            margin=1e-3,
        ),
    ),
    # Its differences are reported; it is judged by its accuracy.
    "int8": Precision(torch.float32, Tolerance(), Tolerance(boxes=8.0, scores=0.1, refuse=False)),
}
# As other exporters call them.
SHORT_NAMES = {"fp32": "float32", "fp16": "float16"}


@contextmanager
def naming_extra(extra: str) -> Iterator[None]:
    """Make an ImportError name the extra that installs what is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing: pip install 'convnext_backbone[{extra}]'"
        ) from error


@dataclass(frozen=True)
class Target:
    """A runtime that `deploy_model(to=)` writes a file for.

    Attributes:
        extra: The extra of this package that installs what it needs.
        precisions: Those that it has, with the packages that each needs.
        files: What it adds to model.onnx. The first is the one that predict.py runs.
        write: Writes `files` from model.onnx: takes its path, the path of the first, and the inputs
            by name to quantize with, or None.
    """

    extra: str
    precisions: Mapping[str, Sequence[str]]
    files: tuple[str, ...] = ()
    write: Callable[[Path, Path, Sequence[Mapping[str, Any]] | None], None] | None = None

    def require(self, precision: str) -> None:
        """Import the packages; an ImportError names the extra that installs a missing one."""
        with naming_extra(self.extra):
            for package in self.precisions[precision]:
                import_module(package)


_ONNX = ("onnx", "onnxruntime", "onnxscript")  # torch's exporter needs the last
_OPENVINO = (*_ONNX, "openvino")
TARGETS = {
    "onnx": Target(extra="export", precisions={"float32": _ONNX, "float16": _ONNX}),
    "openvino": Target(
        extra="openvino",
        precisions={"float32": _OPENVINO, "float16": _OPENVINO, "int8": (*_OPENVINO, "nncf")},
        files=("model.xml", "model.bin"),
        write=write_openvino,
    ),
}
