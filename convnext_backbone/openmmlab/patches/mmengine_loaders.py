"""mmengine's checkpoint loaders, none of which may unpickle unsafely.

mmengine 0.10.7 calls `torch.load` without `weights_only`, which refuses its own checkpoints, or,
where the variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, loads unsafely. onedl-mmengine 0.10.12
loads with `weights_only=False` whatever safe loading refuses. Both read http(s) by
`torch.hub.load_state_dict_from_url`, which also keeps whatever a server sends.

Each registered loader stays, and finds this package's reader in the place of `torch.load`. Goes
when every loader of both families passes `weights_only=True` and reads its own checkpoints.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

import torch
from torch.storage import UntypedStorage

from ...weights.download import DownloadError, cache_directory, fetch_url
from ...weights.torch_files import CheckpointError, Place, checkpoint_errors, read_torch_file
from .mmengine_types import mmengine_types

_Loader = Callable[..., Any]
_LOCK = RLock()  # `torch.load` belongs to all threads of the process


def repair(checkpoint: ModuleType) -> None:
    """Make every loader of `mmengine.runner.checkpoint` safe."""
    vars(checkpoint)["load_url"] = _load_url  # which every scheme of a web address calls
    loaders = checkpoint.CheckpointLoader
    for prefix, loader in list(loaders._schemes.items()):
        loaders.register_scheme(prefix, _load_safely(loader), force=True)
    if hasattr(checkpoint, "_safe_torch_load"):  # onedl's, which falls back to unsafe loading
        vars(checkpoint)["_safe_torch_load"] = lambda *args, **kwargs: torch.load(*args, **kwargs)


def load(file: Any, map_location: Any = None, *_: Any, name: str | None = None, **__: Any) -> Any:
    """Take the place of `torch.load`, for checkpoints of mmengine, and whatever it is asked for.

    Without `map_location`, tensors are on the CPU. `name` is the file's in errors.
    """
    source = Path(file) if isinstance(file, str | Path) else file
    return read_torch_file(source, name, types=mmengine_types(), place=_place(map_location))


def _place(map_location: Any) -> Place | None:
    """Return what moves a storage as `torch.load(map_location=...)` does."""
    if map_location is None or callable(map_location):
        return map_location

    def place(storage: UntypedStorage, location: str) -> UntypedStorage:
        is_map = isinstance(map_location, dict)
        device = torch.device(map_location.get(location, location) if is_map else map_location)
        memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        return storage if device.type == "cpu" else memory.to(device).untyped_storage()

    return place


@contextmanager
def _loads_by(read: Callable[..., Any]) -> Iterator[None]:
    with _LOCK:
        before = torch.load
        torch.load = read
        try:
            yield
        finally:
            torch.load = before


def _load_safely(loader: _Loader) -> _Loader:
    # mmengine logs the name of a loader without its "load_from_".
    @wraps(loader, assigned=("__name__", "__qualname__", "__doc__"))
    def load_from(filename: str, map_location: Any = None, **options: Any) -> Any:
        try:
            with checkpoint_errors(filename), _loads_by(partial(load, name=filename)):
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

    return load_from


def _load_url(
    url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True
) -> Any:
    """Take the place of `torch.hub.load_state_dict_from_url`, with this package's checks."""
    directory = cache_directory() if model_dir is None else Path(model_dir)  # as there
    return load(fetch_url(url, progress=progress, directory=directory), map_location, name=url)


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
