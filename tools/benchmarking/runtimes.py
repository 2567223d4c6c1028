"""Runtimes that run our network from an ONNX file: onnxruntime and OpenVINO, on the CPU.

Both take and give arrays in fp32, whatever they compute in, and get as many threads as torch.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .cell import BenchmarkError, Cell

# The first opset with GELU as one operation: onnxruntime gains 2 % by it, OpenVINO nothing.
OPSET = 20


class RuntimeModule(nn.Module):
    """A prepared network, called like a module on arrays (N, C, H, W)."""

    def __init__(self, run: Callable[[Any], Sequence[Any]]) -> None:
        super().__init__()
        self._run = run

    def forward(self, pixel_values: Any) -> Sequence[Any]:
        """Return the map of each stage, as arrays."""
        return self._run(pixel_values)


def to_array(x: Tensor) -> Any:
    """Return the images as runtimes take them."""
    return x.float().numpy()


@contextmanager
def _onnx_file(module: nn.Module, cell: Cell) -> Iterator[str]:
    """Write the network for images of the cell's shape.

    The weights are those of the cell's dtype, so that runtimes get what torch's contenders get. A
    file, since weights above 2 GB do not fit into one protobuf message.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # torch's exporter warns about its own future.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            module.float().eval(), (torch.zeros(cell.shape),),
            dynamo=True, opset_version=OPSET, verbose=False,
        )  # fmt: skip
        assert program is not None  # the exporter returns None only when it is given a path
        path = str(Path(folder, "network.onnx"))
        program.save(path, external_data=True)
        yield path


def prepare_onnxruntime(module: nn.Module, cell: Cell) -> RuntimeModule:
    """Return the network on onnxruntime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    # Threads that go on spinning after a run would take time from the next contender.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with _onnx_file(module, cell) as path:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return RuntimeModule(lambda x: session.run(None, {name: x}))


_OPENVINO_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def openvino_computes_in(dtype: str) -> bool:
    """Whether OpenVINO computes in a dtype on this CPU; without bf16 it would take fp32."""
    import openvino

    if dtype == "bfloat16":
        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return dtype in _OPENVINO_HINTS


def prepare_openvino(module: nn.Module, cell: Cell) -> RuntimeModule:
    """Return the network on OpenVINO's CPU plugin.

    Raises:
        BenchmarkError: OpenVINO chose another dtype or number of threads.
    """
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": _OPENVINO_HINTS[cell.dtype],
        "ENABLE_CPU_PINNING": False,  # torch's threads are not bound to cores either
    }
    with _onnx_file(module, cell) as path:
        compiled = openvino.Core().compile_model(path, "CPU", options)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    if (chosen, threads) != (options["INFERENCE_PRECISION_HINT"], torch.get_num_threads()):
        raise BenchmarkError(f"openvino computes in {chosen} with {threads} threads in {cell}")
    request = compiled.create_infer_request()

    def run(x: Any) -> list[Any]:
        # Shared arrays are not copied; the next call overwrites what this one returns.
        return list(request.infer([x], share_inputs=True, share_outputs=True).values())

    return RuntimeModule(run)
