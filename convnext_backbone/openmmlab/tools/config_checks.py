"""Checks of a config by itself: its files exist, its types are registered, its model is built."""

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import (
    DATASETS,
    EVALUATOR,
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    TRANSFORMS,
    DefaultScope,
    Registry,
)

from ..config_walk import is_local, is_remote, join_root, split_datasets, split_metrics
from .channels import check_built_maps
from .datasets import find_class
from .errors import BUILD_ERRORS, UsageError, describe_error
from .image_checks import ImageReader


def check_files(cfg: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that the annotation files and folders of every data set and metric exist.

    Those that are read through a storage backend, or by steps that are not known, are passed over.

    Raises:
        UsageError: One is missing.
    """
    try:
        _check_files(cfg, splits)
    except UsageError as error:
        own = cfg.get("custom_dataset")
        if own is None or own.get("root") or own.get("train_ann"):
            raise
        raise UsageError(f"{error}; custom_dataset names data of your own") from None


def _check_files(cfg: Mapping[str, Any], splits: Sequence[str]) -> None:
    for split in splits:
        for dataset, where in split_datasets(cfg, split):
            if not is_local(dataset):
                continue
            root = dataset.get("data_root")
            ann_file = dataset.get("ann_file") or ""
            # mmsegmentation lists the images where it is a folder.
            is_folder = cfg.get("default_scope") == "mmseg" and os.path.isdir(
                join_root(root, str(ann_file))
            )
            if isinstance(ann_file, str) and ann_file and not is_folder:
                _require(join_root(root, ann_file), f"{where}.ann_file", "annotation file")
            # Other loaders may take it for the name of an archive, or for part of a key.
            opens_images = ImageReader(dataset.get("pipeline")).opens_files
            for key, prefix in (dataset.get("data_prefix") or {}).items():
                if isinstance(prefix, str) and (opens_images or not key.startswith("img")):
                    _require(join_root(root, prefix), f"{where}.data_prefix.{key}", "folder")
        for metric, where in split_metrics(cfg, split):
            ann_file = metric.get("ann_file")
            if isinstance(ann_file, str) and is_local(metric):
                _require(ann_file, f"{where}.ann_file", "annotation file")


def _require(path: str, where: str, kind: str) -> None:
    if not path or is_remote(path):
        return
    exists = os.path.isdir(path) if kind == "folder" else os.path.isfile(path)
    if not exists:
        raise UsageError(f"{kind} {path!r} not found ({where})")


def check_types(cfg: Config, splits: Sequence[str]) -> None:
    """Check that the types which mmengine looks up late are registered.

    The model is not among them: `check_model` builds it.

    Raises:
        UsageError: A type is unknown.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for registry, type_, where in _iter_types(cfg, splits):
            if isinstance(type_, str) and find_class(type_, registry) is None:
                raise UsageError(f"{where}: {type_!r} is not among mmengine's {registry.name}s")


def _iter_types(cfg: Config, splits: Sequence[str]) -> Iterator[tuple[Registry, Any, str]]:
    """Walk through the types of data sets, their transforms, metrics, optimizer and hooks.

    Yields:
        The registry, the type and its name in the config.
    """
    for split in splits:
        for dataset, where in split_datasets(cfg, split):
            yield DATASETS, dataset.get("type"), f"{where}.type"
            for index, step in enumerate(dataset.get("pipeline") or ()):
                yield TRANSFORMS, step.get("type"), f"{where}.pipeline.{index}.type"
        evaluator = cfg.get(f"{split}_evaluator")
        if isinstance(evaluator, Mapping) and "metrics" in evaluator:
            yield EVALUATOR, evaluator.get("type"), f"{split}_evaluator.type"
        for metric, where in split_metrics(cfg, split):
            yield METRICS, metric.get("type"), f"{where}.type"
    wrapper = cfg.get("optim_wrapper") or {}
    yield OPTIM_WRAPPERS, wrapper.get("type"), "optim_wrapper.type"
    optimizer = wrapper.get("optimizer") or {}
    yield OPTIMIZERS, optimizer.get("type"), "optim_wrapper.optimizer.type"
    for name, hook in (cfg.get("default_hooks") or {}).items():
        yield HOOKS, (hook or {}).get("type"), f"default_hooks.{name}.type"
    for index, hook in enumerate(cfg.get("custom_hooks") or ()):
        yield HOOKS, hook.get("type"), f"custom_hooks.{index}.type"


def check_model(cfg: Config) -> None:
    """Build the model once, without storage, so that its mistakes show before anything is written.

    The runner builds it again after seeding, which keeps runs comparable with OpenMMLab's tools.

    Raises:
        UsageError: The model cannot be built, or expects other strides than its levels have.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second building warns again
        try:
            try:
                model = _build_model(cfg, "meta")
            except (NotImplementedError, RuntimeError):
                # Some models compute their rates of stochastic depth with a tensor.
                model = _build_model(cfg, "cpu")
        except BUILD_ERRORS as error:
            raise UsageError(f"config {cfg.filename!r}, model: {describe_error(error)}") from error
    check_built_maps(cfg, model)


def _build_model(cfg: Config, device: str) -> Any:
    model = copy.deepcopy(cfg.model)
    if "data_preprocessor" in cfg:
        model.setdefault("data_preprocessor", copy.deepcopy(cfg.data_preprocessor))
    with torch.device(device):
        return MODELS.build(model)
