"""The h5 files of TensorFlow and Keras, and Keras archives; needs h5py.

Keys are the variables' paths: `convnext_tiny_stem/convnext_tiny_stem_conv/kernel`, or with a number
for a name where Keras stores numbers.
"""

import io
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .containers import DAMAGED, CheckpointError, check_inflation, check_zip, damage_errors

_H5PY_HINT = "reading Keras and TensorFlow files needs h5py: pip install 'convnext_backbone[keras]'"
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_MAX_DEPTH = 32  # of groups inside each other
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # of HDF5 and h5py themselves; others load a plugin
_WEIGHTS = "model.weights.h5"  # the part of an archive that holds the variables


def read_h5(file: Path | BinaryIO, source: str) -> dict[str, Tensor]:
    """Read an h5 file of TensorFlow, of Keras (`.h5`) or of Keras >= 3.7 (`.weights.h5`)."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(_H5PY_HINT) from error
    with damage_errors(source, "h5 file"), h5py.File(file, "r") as root:
        _check_contents(root, h5py, source)
        group = root.get("model_weights", root)
        if "layer_names" in group.attrs:
            return _unique(_legacy_variables(group, source), source)
        container = next((k for k in _CONTAINERS if k in group), None)
        if container is None:
            raise CheckpointError(f"{source}: the h5 file is of neither Keras nor TensorFlow")
        named = _unique(_named_variables(group[container], ""), source)
        if not named:
            raise CheckpointError(
                f"{source}: the h5 file does not name its layers, as Keras before 3.7 wrote it: "
                "load it there and save the model as .keras or .h5"
            )
        return named


def _check_contents(root: Any, h5py: Any, source: str) -> None:
    """Refuse what makes HDF5 read other files, objects, or far more than the file has.

    What it finds elsewhere would be taken for weights, and written out by `convert`.
    """
    seen, waiting = {h5py.h5o.get_info(root.id).addr}, [root]
    size = stored = 0
    file_size = root.id.get_filesize()  # chunks may overlap, and declare more than there is
    while waiting:
        group = waiting.pop()
        for name in group:
            path = f"{group.name.rstrip('/')}/{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
                raise CheckpointError(f"{source}: {path} is {kind}, which is not followed")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Dataset):
                _check_dataset(item, f"{source}: {path}")
                # A product of Python's integers cannot overflow.
                size += math.prod(item.shape or ()) * item.dtype.itemsize
                stored += 0 if address in seen else item.id.get_storage_size()
                check_inflation(f"{source}: {path}", size, min(stored, file_size))
            elif isinstance(item, h5py.Group):
                if address in seen or path.count("/") > _MAX_DEPTH:
                    what = "linked more than once" if address in seen else "too deep inside others"
                    raise CheckpointError(f"{source}: the group {path} is {what}")
                waiting.append(item)
            seen.add(address)


def _check_dataset(dataset: Any, name: str) -> None:
    if dataset.external:
        raise CheckpointError(f"{name} has external storage, which is not read")
    if dataset.is_virtual:
        raise CheckpointError(f"{name} is a virtual data set, which is not read")
    if dataset.dtype.hasobject:
        raise CheckpointError(f"{name} holds objects (text, references or ragged rows)")
    plist = dataset.id.get_create_plist()
    filters = {plist.get_filter(index)[0] for index in range(plist.get_nfilters())}
    if not filters <= _FILTERS:
        raise CheckpointError(f"{name} needs a plugin for the filter {max(filters - _FILTERS)}")


def _unique(variables: Iterator[tuple[str, Tensor]], source: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, tensor in variables:
        if key in found:
            raise CheckpointError(f"{source}: the variable {key} is there twice")
        found[key] = tensor
    return found


def _tensor(dataset: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(dataset[()]))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _legacy_variables(root: Any, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what `save_weights` of Keras 2 and `.h5` of Keras 3 store, layer by layer."""
    for layer in map(_text, root.attrs["layer_names"]):
        if layer not in root:
            raise CheckpointError(f"{source}: the layer {layer} is missing")
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
    except DAMAGED:
        return False


def read_keras_archive(file: Path) -> dict[str, Tensor]:
    """Read a `.keras` archive."""
    with damage_errors(str(file), "Keras archive"), open(file, "rb") as stream:
        check_zip(stream, str(file))
        with zipfile.ZipFile(stream) as archive:
            content = io.BytesIO(archive.read(_WEIGHTS))
    return read_h5(content, str(file))
