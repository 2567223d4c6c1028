"""A deployed network as OpenVINO's IR, in floating point or with backbone and neck in int8.

Quantization is NNCF's for transformers, with SmoothQuant (arXiv 2211.10438): in a ConvNeXt's
pointwise layers, as in a transformer's, few channels have large values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import predict

MODEL = "model.xml"
_QUANTIZED = "features"  # the part of the network that holds backbone and neck
Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def require_openvino(quantize: bool) -> None:
    """Check that the packages of the extra are there.

    Raises:
        ImportError: openvino is missing, or nncf for quantization.
    """
    try:
        import openvino  # noqa: F401

        if quantize:
            import nncf  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing: pip install 'convnext_backbone[openvino]'"
        ) from error


def write_openvino(
    onnx_path: Path, path: Path, input_name: str, calibration: Sequence[np.ndarray] | None = None
) -> Run:
    """Write the IR of an ONNX file, `path` and a .bin beside it.

    Args:
        onnx_path: The network in float32.
        path: Ends in .xml.
        input_name: Of its input.
        calibration: Inputs (N, 3, H, W) to quantize with; None keeps floating point.

    Returns:
        The network that was written, from an input to its outputs by name.
    """
    import openvino

    model = openvino.convert_model(str(onnx_path))
    if calibration is not None:
        model = _quantize(model, onnx_path, [{input_name: batch} for batch in calibration])
    openvino.save_model(model, str(path), compress_to_fp16=False)
    run = predict.load_network(str(path))
    return lambda batch: run({input_name: batch})


def _quantize(model: Any, onnx_path: Path, inputs: list[dict[str, np.ndarray]]) -> Any:
    import nncf

    quantized = set(_quantized_nodes(onnx_path))
    kept = {
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_friendly_name().partition("/")[0] not in quantized
    }
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(names=sorted(kept), validate=False),
    )


def _quantized_nodes(onnx_path: Path) -> Iterator[str]:
    """Yield the names of the ONNX nodes of backbone and neck, which those of the IR begin with."""
    import onnx

    for node in onnx.load(onnx_path, load_external_data=False).graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}
        if f"'{_QUANTIZED}'" in scopes.get("pkg.torch.onnx.name_scopes", ""):
            yield node.name


def calibration_inputs(
    paths: Sequence[str], rules: dict[str, Any], batch: int, dtype: str
) -> list[np.ndarray]:
    """Return inputs (N, 3, H, W) of images, prepared as predict.py does.

    Args:
        paths: The images.
        rules: "resize" and "pad" of deploy.json.
        batch: N; each image is repeated.
        dtype: Of the network's input.
    """
    inputs = []
    for path in paths:
        image, _ = predict.prepare(predict.read_image(Path(path)), rules)
        inputs.append(np.repeat(image.transpose(2, 0, 1)[None].astype(dtype), batch, axis=0))
    return inputs
