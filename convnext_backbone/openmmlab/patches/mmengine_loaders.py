"""Loaders for every scheme of mmengine's `CheckpointLoader` that never unpickle unsafely.

Importing this module registers them, by mmengine's own hook for it. It imports
`mmengine.runner.checkpoint`, so `compat` imports it only after that module.

What they replace: mmengine 0.10.7 calls `torch.load` without `weights_only`, which the variable
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD turns into unsafe loading; onedl-mmengine 0.10.12 falls back to
`weights_only=False` when safe loading refuses a file (`_safe_torch_load`); both read http(s)
through `torch.hub.load_state_dict_from_url`, whose `weights_only` is False by default.

mmengine prints `Loads checkpoint by <x> backend` for a function named `load_from_<x>`.
"""

import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from zipfile import BadZipFile

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.runner import checkpoint as mmengine_checkpoint

from .mmengine_safe_globals import allow_mmengine_types

_scheme = mmengine_checkpoint.CheckpointLoader.register_scheme


# What torch raises on a file that is damaged, or none of its own.
_DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    AttributeError,
    ValueError,
    TypeError,
    AssertionError,
    BadZipFile,
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not because that would run foreign code."""


def load_safely(file: Path | BinaryIO, map_location: Any, name: str) -> Any:
    """Read a checkpoint with `torch.load(weights_only=True)`.

    Args:
        file: A path, or an open binary file.
        map_location: See `torch.load`.
        name: What to call the file in an error.

    Raises:
        CheckpointError: If the file is no checkpoint, or holds a type that is not on torch's
            allow-list.
    """
    return _explain(name, lambda: torch.load(file, map_location=map_location, weights_only=True))


def _explain(name: str, load: Callable[[], Any]) -> Any:
    """Load with mmengine's types allowed, and say in one line what was wrong if it fails."""
    allow_mmengine_types()
    try:
        return load()
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL (.+?) (?:was not an allowed global|whose module)", str(error))
        if refused is None:
            raise CheckpointError(f"cannot read checkpoint {name}: {_gist(error)}") from error
        raise CheckpointError(
            f"refused to read checkpoint {name}: it asks for {refused[1]}, which is not known to "
            "be harmless; nothing of it was executed. If you trust the file, allow the type by "
            "torch.serialization.add_safe_globals"
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(f"cannot read checkpoint {name}: {_gist(error)}") from error


def _gist(error: Exception) -> str:
    """The part of torch's long messages that tells what was wrong."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return text.strip().partition("\n")[0] or type(error).__name__


@_scheme(prefixes="", force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a file of this machine.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: See `load_safely`.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {filename} does not exist or is not a file")
    return load_safely(path, map_location, filename)


@_scheme(prefixes=("http://", "https://"), force=True)
def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Read a web address, through torch's download cache; the first process downloads.

    Raises:
        CheckpointError: See `load_safely`.
    """
    options: dict[str, Any] = {
        "map_location": map_location,
        "progress": os.isatty(0),
        "weights_only": True,
    }
    first = get_rank() == 0
    if not first:
        barrier()
    try:
        return _explain(filename, lambda: torch.hub.load_state_dict_from_url(filename, **options))
    finally:
        if first:
            barrier()


@_scheme(prefixes="pavi://", force=True)
def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """Read from SenseTime's model cloud, which needs their package `pavi`."""
    from pavi import modelcloud

    model = modelcloud.get(_after_scheme(filename))
    with TemporaryDirectory() as directory:
        path = Path(directory, model.name)
        model.download(str(path))
        return load_safely(path, map_location, filename)


@_scheme(prefixes=(r"(\S+\:)?s3://", r"(\S+\:)?petrel://"), force=True)
def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """Read from an object store by mmengine's petrel backend."""
    backend = get_file_backend(filename, backend_args={"backend": "petrel"})
    return load_safely(io.BytesIO(backend.get(filename)), map_location, filename)


@_scheme(prefixes=("modelzoo://", "torchvision://"), force=True)
def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Read a weight of torchvision by its name."""
    addresses = mmengine_checkpoint.get_torchvision_models()
    return load_from_http(_look_up(addresses, _after_scheme(filename), filename), map_location)


@_scheme(prefixes=("open-mmlab://", "openmmlab://"), force=True)
def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """Read a weight of OpenMMLab's list, or of the user's own beside it, by its name."""
    name = _after_scheme(filename)
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    address = _look_up(mmengine_checkpoint.get_external_models(), name, filename)
    if address.startswith(("http://", "https://")):
        return load_from_http(address, map_location)
    # The user's list may name files beside itself.
    return load_from_local(
        os.path.join(mmengine_checkpoint._get_mmengine_home(), address), map_location
    )


@_scheme(prefixes="mmcls://", force=True)
def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """Read the backbone of a classifier of OpenMMLab's list by its name."""
    addresses = mmengine_checkpoint.get_mmcls_models()
    address = _look_up(addresses, _after_scheme(filename), filename)
    return mmengine_checkpoint._process_mmcls_checkpoint(load_from_http(address, map_location))


def _after_scheme(filename: str) -> str:
    return filename.partition("://")[2]


def _look_up(addresses: Mapping[str, str], name: str, filename: str) -> str:
    if name not in addresses:
        raise CheckpointError(f"cannot read checkpoint {filename}: no weight is named {name!r}")
    return addresses[name]
