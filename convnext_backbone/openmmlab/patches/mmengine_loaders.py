"""mmengine's checkpoint loaders, none of which may unpickle unsafely.

mmengine 0.10.7 calls `torch.load` without `weights_only`, which the variable
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD turns into unsafe loading. onedl-mmengine 0.10.12 loads with
`weights_only=False` whatever safe loading refuses. Both read http(s) with `weights_only=False`,
the default of `torch.hub.load_state_dict_from_url`, which also keeps whatever a server sends.

Each registered loader stays, and runs under torch's own switch TORCH_FORCE_WEIGHTS_ONLY_LOAD, which
overrides the `weights_only` of any caller of `torch.load`. Goes when every loader of both families
passes `weights_only=True`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...weights.download import DownloadError, cache_directory, fetch_url
from ...weights.torch_files import (
    CheckpointError,
    allow_only,
    check_torch_file,
    checkpoint_errors,
)
from .mmengine_safe_globals import mmengine_types

_FORCE, _FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_Loader = Callable[..., Any]


def repair(checkpoint: ModuleType) -> None:
    """Make every loader of `mmengine.runner.checkpoint` safe."""
    vars(checkpoint)["load_url"] = _load_url  # which every scheme of a web address calls
    loaders = checkpoint.CheckpointLoader
    for prefix, loader in list(loaders._schemes.items()):
        loaders.register_scheme(prefix, _load_safely(loader), force=True)
    if hasattr(checkpoint, "_safe_torch_load"):
        # onedl's function would put the real `getattr` on torch's allow-list.
        vars(checkpoint)["_safe_torch_load"] = torch.load


def _load_safely(loader: _Loader) -> _Loader:
    # mmengine logs the name of a loader without its "load_from_".
    @wraps(loader, assigned=("__name__", "__qualname__", "__doc__"))
    def load(filename: str, map_location: Any = None, **options: Any) -> Any:
        try:
            with checkpoint_errors(filename), _weights_only():
                _check_file(Path(filename).expanduser(), filename)
                checkpoint = loader(filename, map_location=map_location, **options)
                _remove_configs(checkpoint)
                return checkpoint
        except CheckpointError as error:
            cause, name = error.__cause__, filename.partition("://")[2]
            if isinstance(cause, DownloadError):
                raise CheckpointError(f"cannot fetch checkpoint {cause}") from cause
            if isinstance(cause, FileNotFoundError):
                raise FileNotFoundError(f"checkpoint {filename}: {cause}") from cause
            if isinstance(cause, KeyError) and cause.args == (name,):
                reason = f"no weight is named {name!r}"
                raise CheckpointError(f"cannot read checkpoint {filename}: {reason}") from cause
            raise

    return load


def _load_url(
    url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True
) -> Any:
    """Take the place of `torch.hub.load_state_dict_from_url`, with this package's checks."""
    directory = cache_directory() if model_dir is None else Path(model_dir)  # as there
    path = fetch_url(url, progress=progress, directory=directory)
    _check_file(path, url)
    return torch.load(path, map_location=map_location)


def _check_file(path: Path, name: str) -> None:
    """Check what a file claims; other schemes' files and missing ones are the loaders'."""
    if path.is_file():
        with path.open("rb") as file:
            check_torch_file(file, name)


def _remove_configs(checkpoint: Any) -> None:
    """Remove the config's text, which is Python that mmengine would run.

    `Runner.resume` runs `meta["config"]`, and inferencers that are given no config run the other
    two (mmengine/runner/runner.py, infer/infer.py). They then say that they need a config.
    """
    if not isinstance(checkpoint, dict):
        return
    hub = checkpoint.get("message_hub")
    info = hub.get("runtime_info") if isinstance(hub, dict) else None
    for holder in (checkpoint.get("meta"), info):
        if isinstance(holder, dict):
            holder.pop("config", None)
            holder.pop("cfg", None)


@contextmanager
def _weights_only() -> Iterator[None]:
    # The lock of `allow_only` holds for the environment too, which belongs to the whole process.
    with allow_only(mmengine_types()):
        before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORBID)}
        os.environ[_FORCE] = "1"
        try:
            yield
        finally:
            del os.environ[_FORCE]
            os.environ.update({name: value for name, value in before.items() if value is not None})
