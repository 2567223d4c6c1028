"""Writing an ONNX file with torch's exporter, for every kind of network."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DEFAULT_OPSET = 18
OPSETS = range(18, 24)  # what torch's exporter writes, and LayerNormalization (17) with it
# Of precisions, as other exporters call them.
SHORT_NAMES = {"fp32": "float32", "fp16": "float16"}


def require_onnx() -> None:
    """Check that the packages of the extra are there.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing: pip install 'convnext_backbone[export]'"
        ) from error


def write_onnx(
    network: nn.Module,
    example: Tensor,
    path: str,
    *,
    input_name: str,
    output_names: Sequence[str],
    free_sides: Mapping[int, Any],
    opset: int,
    translations: Mapping[Any, Callable[..., Any]] | None = None,
) -> Any:
    """Write a network of one input; beyond 2 GiB the weights go into `path` + ".data".

    Args:
        network: Its `forward` takes the example, under the name `input_name`, and gives a tuple.
        example: What it is traced with.
        path: The file.
        input_name: Of the input, and of the argument of `forward`.
        output_names: Of the outputs, in order.
        free_sides: The axes of the input that stay open, for torch.export.
        opset: The version of ONNX's operators.
        translations: What to write for operations that are not torch's own.

    Returns:
        onnxruntime's session of the file, on the CPU.

    Raises:
        RuntimeError: The file has other outputs.
    """
    import onnxruntime

    with warnings.catch_warnings():
        # torch's exporter warns about its own ways and future; the comparison decides.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes={input_name: dict(free_sides)},
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table=dict(translations or {}),
        )
    assert program is not None  # the exporter returns None only when it is given a path
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    written = [output.name for output in session.get_outputs()]
    if written != list(output_names):
        raise RuntimeError(f"the ONNX file has outputs {written}, they must be {output_names}")
    return session


def read_before(path: str, output: str, operators: Sequence[str]) -> Callable[..., Any]:
    """Make an inner value of a network readable: the input of the operator that gives an output.

    Args:
        path: The file; it is not changed.
        output: The name of the output.
        operators: Names of ONNX operators; the nearest before the output is taken.

    Returns:
        A function of the network's inputs by name that returns the value.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers[output]
    while node.op_type not in operators:
        node = producers[node.input[0]]
    name = node.input[0]
    if name not in [value.name for value in model.graph.output]:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    # Beside the file, since weights beyond 2 GiB are found by a relative name.
    beside = f"{path}.inner"
    try:
        onnx.save(model, beside)
        session = onnxruntime.InferenceSession(beside, providers=["CPUExecutionProvider"])
    finally:
        Path(beside).unlink(missing_ok=True)
    return lambda inputs: session.run([name], inputs)[0]
