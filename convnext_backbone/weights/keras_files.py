"""The h5 files of TensorFlow and Keras, and Keras archives; needs h5py.

Keys are the variables' paths: `convnext_tiny_stem/convnext_tiny_stem_conv/kernel`, or with a number
for a name where Keras stores numbers.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_H5PY_HINT = "reading Keras and TensorFlow files needs h5py: pip install 'convnext_backbone[keras]'"
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_WEIGHTS = "model.weights.h5"  # the part of an archive that holds the variables


def read_h5(file: Path | BinaryIO, source: str) -> dict[str, Tensor]:
    """Read an h5 file of TensorFlow, of Keras (`.h5`) or of Keras >= 3.7 (`.weights.h5`).

    Raises:
        ValueError: The file is damaged, or of another program.
        ImportError: h5py is missing.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(_H5PY_HINT) from error
    try:
        with h5py.File(file, "r") as root:
            group = root.get("model_weights", root)
            if "layer_names" in group.attrs:
                return dict(_legacy_variables(group, source))
            container = next((k for k in _CONTAINERS if k in group), None)
            if container is None:
                raise ValueError(f"{source}: the h5 file is of neither Keras nor TensorFlow")
            named = dict(_named_variables(group[container], ""))
            if not named:
                raise ValueError(
                    f"{source}: the h5 file does not name its layers, as Keras before 3.7 wrote "
                    "it: load it there and save the model as .keras or .h5"
                )
            return named
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{source}: the h5 file is truncated or damaged: {error}") from error


def _tensor(dataset: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(dataset[()]))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _legacy_variables(root: Any, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what `save_weights` of Keras 2 and `.h5` of Keras 3 store, layer by layer."""
    for layer in map(_text, root.attrs["layer_names"]):
        if layer not in root:
            raise ValueError(f"{source}: the layer {layer} is missing")
        group = root[layer]
        for name in map(_text, group.attrs["weight_names"]):
            path = re.sub(r":\d+$", "", name)
            # A nested model leaves its own name out of its variables' paths, and so do Keras 2's
            # layers; TensorFlow's paths have it in their middle.
            inside = layer in path.split("/")[:-1]
            yield path if inside else f"{layer}/{path}", _tensor(group[name])


def _named_variables(layers: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what `.weights.h5` of Keras 3 stores, each group of variables under its layer's name.

    The group itself is named by its layer's class and a counter; its attribute has the name.
    """
    for layer in layers.values():
        name = _text(layer["vars"].attrs.get("name", "")) if "vars" in layer else ""
        if not name:
            continue
        for index, dataset in layer["vars"].items():
            yield f"{path}{name}/{index}", _tensor(dataset)
        if "layers" in layer:
            yield from _named_variables(layer["layers"], f"{path}{name}/")


def is_keras_archive(file: Path) -> bool:
    """Return whether a zip file is a Keras archive; PyTorch's files are zip files as well."""
    try:
        with zipfile.ZipFile(file) as archive:
            return _WEIGHTS in archive.namelist()
    except zipfile.BadZipFile:
        return False


def read_keras_archive(file: Path) -> dict[str, Tensor]:
    """Read a `.keras` archive.

    Raises:
        ValueError: The archive is damaged.
        ImportError: h5py is missing.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return read_h5(io.BytesIO(archive.read(_WEIGHTS)), str(file))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file}: the Keras archive is damaged: {error}") from error
