"""Checks of the checkpoint that a run starts from."""

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from ...weights.torch_files import CheckpointError, read_torch_file, with_user_types
from ..config_walk import is_remote
from ..patches.mmengine_safe_globals import mmengine_types
from .errors import UsageError

# What mmengine reads back when a run is resumed.
_RESUME_KEYS = ("meta", "state_dict", "optimizer", "message_hub")


def check_start(cfg: Config, argument: str) -> None:
    """Check the checkpoint that `load_from` and `resume` choose, if any; see `check_checkpoint`."""
    path = cfg.get("load_from")
    if cfg.get("resume") and path is None and os.path.isdir(cfg.work_dir):
        path = find_latest_checkpoint(cfg.work_dir)
    if path is not None:
        check_checkpoint(str(path), argument, resume=bool(cfg.get("resume")))


def check_checkpoint(path: str, argument: str, *, resume: bool = False) -> None:
    """Check that a checkpoint exists, loads with `weights_only=True` and, to resume, is a run's.

    A URL is left to mmengine. `argument` is what the user called it, for the message.

    Raises:
        UsageError: It is missing, damaged, holds objects that safe loading refuses, or lacks what
            resuming needs.
    """
    if is_remote(path):
        return
    if not os.path.isfile(path):
        kind = "is a folder, not a checkpoint file" if os.path.isdir(path) else "not found"
        raise UsageError(f"{argument} {path!r} {kind}")
    checkpoint = _read_checkpoint(path, argument)
    if not isinstance(checkpoint, Mapping):
        kind = type(checkpoint).__name__
        raise UsageError(f"{argument} {path!r} holds a {kind}, not a checkpoint")
    missing = [key for key in _RESUME_KEYS if key not in checkpoint]
    if resume and missing:
        raise UsageError(
            f"{argument} {path!r} cannot be resumed: it has no {missing[0]!r}; "
            "to start from its weights alone use --cfg-options load_from=PATH"
        )


def _read_checkpoint(path: str, argument: str) -> Any:
    # Also the types that the user allows: mmengine's loader takes them too.
    types = with_user_types(mmengine_types())
    with warnings.catch_warnings():
        # torch's hints about pickle protocols do not help a user who chose the wrong file.
        warnings.simplefilter("ignore", UserWarning)
        try:
            # mmap spares reading weights that only a later load needs. The format of torch < 1.6
            # cannot be mapped.
            mmap = zipfile.is_zipfile(path)
            return read_torch_file(Path(path), f"{argument} {path!r}", types=types, mmap=mmap)
        except CheckpointError as error:
            raise UsageError(str(error)) from error
