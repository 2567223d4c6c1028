"""A deployed network as OpenVINO's IR, in floating point or with backbone and neck in int8.

Quantization is NNCF's for transformers, with SmoothQuant (arXiv 2211.10438): in a ConvNeXt's
pointwise layers, as in a transformer's, few channels have large values.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_QUANTIZED = "features"  # the part of the network that holds backbone and neck


def write_openvino(
    onnx_path: Path, path: Path, calibration: Sequence[Mapping[str, Any]] | None
) -> None:
    """Write the IR of an ONNX file: `path` and a .bin next to it.

    Args:
        onnx_path: The network in float32.
        path: Ends in .xml.
        calibration: Inputs by name to quantize with; None keeps floating point.
    """
    import openvino

    model = openvino.convert_model(str(onnx_path))
    if calibration is not None:
        model = _quantize(model, onnx_path, calibration)
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _quantize(model: Any, onnx_path: Path, inputs: Sequence[Mapping[str, Any]]) -> Any:
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
