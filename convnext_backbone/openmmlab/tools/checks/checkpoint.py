"""Checks of the checkpoint that a run starts from."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope

from ....utils.files import check_regular
from ....weights.torch_files import CheckpointError, read_torch_file
from ...config_walk import class_count_key, is_remote, iter_heads, split_datasets
from ...patches.mmengine_types import mmengine_types
from ..datasets import resolve_dataset
from ..errors import UsageError
from ..loading import advise_config, first_other_class, trained_classes
from ..processes import print_once
from .report import Report, list_quoted

# What mmengine reads back when a run is resumed.
_RESUME_KEYS = ("meta", "state_dict", "optimizer", "message_hub")


def resume_keys(cfg: Config) -> Sequence[str]:
    """Return what a checkpoint needs for a run to be resumed from it.

    Where the run saves no optimizers, its schedule sets its checkpoints apart from the best ones
    and from those of other runs, which lack both.
    """
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    if hook.get("save_optimizer", True):
        return _RESUME_KEYS
    schedule = ("param_schedulers",) if cfg.get("param_scheduler") else ()
    return (*(key for key in _RESUME_KEYS if key != "optimizer"), *schedule)


def check_start(cfg: Config, argument: str) -> None:
    """Check the checkpoint that `load_from` and `resume` choose, if any; see `check_checkpoint`.

    To resume the newest of the work directory, `load_from` becomes its path.
    """
    path = cfg.get("load_from")
    if path is not None:
        check_checkpoint(str(path), argument, resume_keys(cfg) if cfg.get("resume") else ())
    elif cfg.get("resume"):
        cfg.load_from = find_resumable(Path(cfg.work_dir), argument, resume_keys(cfg))


def find_resumable(
    work_dir: Path, argument: str, needed: Sequence[str] = _RESUME_KEYS
) -> str | None:
    """Return the checkpoint that `last_checkpoint` names, or else the newest that can be resumed.

    Runs that were killed under mmengine's own hook may name a file that is missing or cut short,
    and a work directory that was moved names files of its old place. None: nothing was saved yet.

    Raises:
        UsageError: `last_checkpoint` is there, but no checkpoint can be resumed.
    """
    marker = work_dir / "last_checkpoint"
    if not marker.exists():
        return None
    try:
        check_regular(marker)
    except ValueError as error:
        raise UsageError(f"{argument}: {error}") from error
    named = marker.read_text(errors="replace").strip()
    folders = {work_dir, Path(named).parent} if named else {work_dir}
    saved = {path for folder in folders for path in folder.glob("*.pth") if path.is_file()}
    newest = sorted(saved, key=lambda path: path.stat().st_mtime, reverse=True)
    errors = []
    for path in (named, *map(str, newest)):
        try:
            check_checkpoint(path, argument, needed)
        except UsageError as error:
            errors.append(error)
            continue
        if errors:
            print_once(f"{errors[0]} (as {marker} names it); going on from {path!r}")
        return path
    raise errors[0]


def check_trained_classes(report: Report) -> None:
    """Check that the run's checkpoint was trained on the classes of its data, in their order.

    Only the names show it: with as many other classes every tensor fits, and every score is wrong.
    Checkpoints that name no classes pass, and heads that do not predict those of the data, such as
    an RPN's or one that is asked in words. A training that is not resumed may have others.

    Raises:
        UsageError: It was not.
    """
    cfg, split = report.cfg, report.splits[0]
    path = cfg.get("load_from")
    begins = split == "train" and not cfg.get("resume")
    if path is None or begins or is_remote(str(path)):
        return
    trained = trained_classes(_read_checkpoint(str(path), "checkpoint"))
    numbers = [head[class_count_key(head)] for head, _ in iter_heads(cfg)]
    for dataset, where in split_datasets(cfg, split):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            source = resolve_dataset(dataset)
        classes = source.classes if source else ()
        index = first_other_class(trained, classes)
        if index is None or len(classes) not in numbers:
            continue
        option = report.option(where, "metainfo.classes", "classes")
        raise UsageError(
            f"checkpoint {path!r} was trained on the classes {list_quoted(trained)}, but {where} "
            f"has {list_quoted(classes)} ({option}): class {index} is {trained[index]!r} in the "
            f"checkpoint and {classes[index]!r} in the data; "
            f"{advise_config(str(path))}, or --no-check if they mean the same"
        )


def check_checkpoint(path: str, argument: str, needed: Sequence[str] = ()) -> None:
    """Check that a checkpoint exists, can be read and has what is needed.

    A URL is left to mmengine. `argument` is what the user called it, for the message; `needed` is
    empty but for a run to be resumed.

    Raises:
        UsageError: It is missing or damaged, holds what weights have no need of, or lacks what
            resuming needs.
    """
    if is_remote(path):
        return
    if os.path.isdir(path) or not os.path.exists(path):
        kind = "is a folder, not a checkpoint file" if os.path.isdir(path) else "not found"
        raise UsageError(f"{argument} {path!r} {kind}")
    try:
        check_regular(path)
    except ValueError as error:
        raise UsageError(f"{argument} {error}") from error
    checkpoint = _read_checkpoint(path, argument)
    if not isinstance(checkpoint, Mapping):
        kind = type(checkpoint).__name__
        raise UsageError(f"{argument} {path!r} holds a {kind}, not a checkpoint")
    tensors = checkpoint.get("state_dict", {})
    if not isinstance(tensors, Mapping):
        kind = type(tensors).__name__
        raise UsageError(f"{argument} {path!r}: its 'state_dict' is a {kind}, not a mapping")
    missing = [key for key in needed if key not in checkpoint]
    if missing:
        raise UsageError(
            f"{argument} {path!r} cannot be resumed: it has no {missing[0]!r}; "
            "to start from its weights alone use --cfg-options load_from=PATH"
        )


def _read_checkpoint(path: str, argument: str) -> Any:
    name = repr(path) if argument == "checkpoint" else f"{argument} {path!r}"
    try:
        # mmap spares reading weights that only a later load needs.
        return read_torch_file(Path(path), name, types=mmengine_types(), mmap=True)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
