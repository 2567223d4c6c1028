"""Writing an ONNX file with torch's exporter, for every kind of network."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

DEFAULT_OPSET = 18
OPSETS = range(18, 24)  # what torch's exporter writes, and LayerNormalization (17) with it


def check_opset(opset: int) -> None:
    """Refuse a version of ONNX's operators that is not among `OPSETS`, with a ValueError."""
    if opset not in OPSETS:
        raise ValueError(f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}")


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
