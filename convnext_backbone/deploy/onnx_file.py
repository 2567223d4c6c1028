"""Writing an ONNX file with torch's exporter, for every kind of network."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .ops import onnx_translations
from .predict import load_network

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # from inputs to outputs, both by name
DEFAULT_OPSET = 18
OPSETS = range(18, 24)  # what torch's exporter writes, and LayerNormalization (17) with it


def write_onnx(
    network: Any,
    example: Tensor,
    free_sides: Mapping[int, Any],
    path: Path,
    opset: int = DEFAULT_OPSET,
) -> Run:
    """Write a network of one input; beyond 2 GiB the weights go into `path` + ".data".

    Args:
        network: A module with `output_names`, in order. Its `forward` takes the example and gives
            a tuple; the input is named as there.
        example: What it is traced with.
        free_sides: The axes of the input that stay open, for torch.export.
        path: The file.
        opset: The version of ONNX's operators.

    Returns:
        The file as it runs on the CPU.

    Raises:
        RuntimeError: The file has other outputs.
    """
    (input_name,) = inspect.signature(network.forward).parameters
    output_names = list(network.output_names)
    with warnings.catch_warnings():
        # torch's exporter warns about its own ways and future; the comparison decides.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[input_name],
            output_names=output_names,
            dynamic_shapes={input_name: dict(free_sides)},
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table=onnx_translations(),
        )
    assert program is not None  # the exporter returns None only when it is given a path
    program.save(path)
    written = [output.name for output in program.model.graph.outputs]
    if written != output_names:
        raise RuntimeError(f"the ONNX file has outputs {written}, they must be {output_names}")
    return load_network(str(path))


def load_with_logits(path: Path) -> Run:
    """Load a segmentor's file with one more output, `logits`, by which it chooses its labels.

    They are the input of the operator before `label_map`. The file is not changed.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers["label_map"]
    while node.op_type not in ("ArgMax", "Greater"):
        node = producers[node.input[0]]
    model.graph.node.append(onnx.helper.make_node("Identity", node.input[:1], ["logits"]))
    model.graph.output.append(onnx.ValueInfoProto(name="logits"))
    # In the same folder, since weights beyond 2 GiB are found by a relative name.
    extended = path.with_suffix(".logits.onnx")
    try:
        onnx.save(model, extended)
        return load_network(str(extended))
    finally:
        extended.unlink(missing_ok=True)
