"""Checks that a config's files exist and can be read, before anything is built or written.

mmengine finds a missing image only when a worker opens it, and an unreadable checkpoint only
after the work directory, the log and the model exist. These checks come first.
"""

import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    TRANSFORMS,
    DefaultScope,
    Registry,
)
from mmengine.utils import is_abs

from ..patches.mmengine_safe_globals import allow_mmengine_types

# What mmengine reads back when a run is resumed.
RESUME_KEYS = ("meta", "state_dict", "optimizer", "message_hub")
# What torch.load raises for bytes that are no checkpoint.
UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


class UsageError(Exception):
    """A mistake in what the user gave: told in one line, with exit code 2."""


def is_remote(path: str) -> bool:
    """Say whether `path` is a URL or names a storage backend, so that no local file is meant."""
    return "://" in path


def iter_datasets(dataset: Any, where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Walk through dataset wrappers down to the data sets that read files.

    Args:
        dataset: A data set's config, possibly that of a wrapper such as `RepeatDataset`.
        where: Name of `dataset` in the config.

    Yields:
        The config of each innermost data set and its name in the config.
    """
    if not isinstance(dataset, Mapping):
        return
    inner = {key: dataset[key] for key in ("dataset", "datasets") if key in dataset}
    if not inner:
        yield dataset, where
    for key, value in inner.items():
        if isinstance(value, Mapping):
            yield from iter_datasets(value, f"{where}.{key}")
        else:
            for index, item in enumerate(value or ()):
                yield from iter_datasets(item, f"{where}.{key}.{index}")


def check_dataset(dataset: Mapping[str, Any], where: str) -> None:
    """Check that the annotation file and the folders of a data set exist.

    Args:
        dataset: Config of a data set as mmengine's `BaseDataset` reads it.
        where: Its name in the config, for the message.

    Raises:
        UsageError: A file or folder is missing.
    """
    root = dataset.get("data_root") or ""
    ann_file = dataset.get("ann_file") or ""
    if isinstance(ann_file, str) and ann_file:
        require_path(joined(root, ann_file), f"{where}.ann_file", "annotation file")
    for key, prefix in (dataset.get("data_prefix") or {}).items():
        if isinstance(prefix, str):
            require_path(joined(root, prefix), f"{where}.data_prefix.{key}", "folder")


def joined(root: str, path: str) -> str:
    """Join as mmengine's `BaseDataset` does: an absolute path or a URL stands alone."""
    return path if not root or is_abs(path) else os.path.join(root, path)


def require_path(path: str, where: str, kind: str) -> None:
    """Check that a local file ("annotation file") or a "folder" exists.

    Raises:
        UsageError: It does not.
    """
    if not path or is_remote(path):
        return
    exists = os.path.isdir(path) if kind == "folder" else os.path.isfile(path)
    if not exists:
        raise UsageError(f"{kind} {path!r} not found ({where})")


def check_data(cfg: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Check the files of every data set and metric that a run will use.

    Args:
        cfg: The config.
        parts: Which of its parts run, of "train", "val" and "test".

    Raises:
        UsageError: An annotation file or an image folder is missing.
    """
    for part in parts:
        loader = cfg.get(f"{part}_dataloader") or {}
        name = f"{part}_dataloader.dataset"
        for dataset, where in iter_datasets(loader.get("dataset"), name):
            check_dataset(dataset, where)
        for metric, where in iter_metrics(cfg.get(f"{part}_evaluator"), f"{part}_evaluator"):
            ann_file = metric.get("ann_file")
            if isinstance(ann_file, str):
                require_path(ann_file, f"{where}.ann_file", "annotation file")


def check_types(cfg: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Check that the types which mmengine looks up late are registered.

    The model is no part of it: building it checks more.

    Args:
        cfg: The config, with its `default_scope`.
        parts: Which of its parts run, of "train", "val" and "test".

    Raises:
        UsageError: A type is unknown.
    """
    with DefaultScope.overwrite_default_scope(cfg["default_scope"]):
        for registry, type_, where in iter_types(cfg, parts):
            if isinstance(type_, str) and not is_registered(registry, type_):
                raise UsageError(f"{where}: {type_!r} is not among mmengine's {registry.name}s")


def is_registered(registry: Registry, type_: str) -> bool:
    """Look a type up as building it will: in the scope of the config, then in the root."""
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(type_) is not None


def iter_types(cfg: Mapping[str, Any], parts: Sequence[str]) -> Iterator[tuple[Registry, Any, str]]:
    """Walk through the types of data sets, their transforms, metrics, optimizer and hooks.

    Yields:
        The registry, the type and its name in the config.
    """
    for part in parts:
        loader = cfg.get(f"{part}_dataloader") or {}
        name = f"{part}_dataloader.dataset"
        for dataset, where in iter_datasets(loader.get("dataset"), name):
            yield DATASETS, dataset.get("type"), f"{where}.type"
            for index, step in enumerate(dataset.get("pipeline") or ()):
                yield TRANSFORMS, step.get("type"), f"{where}.pipeline.{index}.type"
        for metric, where in iter_metrics(cfg.get(f"{part}_evaluator"), f"{part}_evaluator"):
            yield METRICS, metric.get("type"), f"{where}.type"
    wrapper = cfg.get("optim_wrapper") or {}
    yield OPTIM_WRAPPERS, wrapper.get("type"), "optim_wrapper.type"
    optimizer = wrapper.get("optimizer") or {}
    yield OPTIMIZERS, optimizer.get("type"), "optim_wrapper.optimizer.type"
    for name, hook in (cfg.get("default_hooks") or {}).items():
        yield HOOKS, (hook or {}).get("type"), f"default_hooks.{name}.type"
    for index, hook in enumerate(cfg.get("custom_hooks") or ()):
        yield HOOKS, hook.get("type"), f"custom_hooks.{index}.type"


def iter_metrics(evaluator: Any, where: str) -> Iterator[tuple[ConfigDict, str]]:
    """Walk through an evaluator's config: one metric or a list of them, each with its name."""
    if isinstance(evaluator, Mapping):
        yield evaluator, where
    elif isinstance(evaluator, Sequence) and not isinstance(evaluator, str):
        for index, metric in enumerate(evaluator):
            yield from iter_metrics(metric, f"{where}.{index}")


def check_checkpoint(path: str, argument: str, *, resume: bool = False) -> None:
    """Check that a checkpoint exists and loads with `weights_only=True`.

    Args:
        path: The file; a URL is left to mmengine.
        argument: What the user called it, for the message.
        resume: Also require what resuming a run needs.

    Raises:
        UsageError: It is missing, damaged, holds objects that safe loading refuses, or is not a
            checkpoint of a run when `resume` is set.
    """
    if is_remote(path):
        return
    if not os.path.isfile(path):
        kind = "is a folder, not a checkpoint file" if os.path.isdir(path) else "not found"
        raise UsageError(f"{argument} {path!r} {kind}")
    checkpoint = read_checkpoint(path, argument)
    if not isinstance(checkpoint, Mapping):
        kind = type(checkpoint).__name__
        raise UsageError(f"{argument} {path!r} holds a {kind}, not a checkpoint")
    missing = [key for key in RESUME_KEYS if key not in checkpoint]
    if resume and missing:
        raise UsageError(
            f"{argument} {path!r} cannot be resumed: it has no {missing[0]!r}; "
            "to start from its weights alone use --cfg-options load_from=PATH"
        )


def read_checkpoint(path: str, argument: str) -> Any:
    """Read a checkpoint without running anything in it.

    Raises:
        UsageError: It is damaged or holds objects that safe loading refuses.
    """
    allow_mmengine_types()
    with warnings.catch_warnings():
        # torch's hints about pickle protocols are no help to whoever chose the wrong file.
        warnings.simplefilter("ignore", UserWarning)
        try:
            # Mapping the file spares reading weights that only a later load needs. The format
            # of torch < 1.6 cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except UNREADABLE as error:
            raise UsageError(f"{argument} {path!r} {refusal(error)}") from error


def refusal(error: BaseException) -> str:
    """Put in a few words why torch did not load a file; its own message is a page of advice."""
    refused = re.search(r"(?:GLOBAL|global|class) ([\w.]+) ", str(error))
    if isinstance(error, pickle.UnpicklingError) and refused:
        return f"holds {refused[1]}, which safe loading refuses: only tensors and plain data load"
    return "is not a readable checkpoint: it is damaged, or torch.save did not write it"
