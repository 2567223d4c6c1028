"""Are the types registered that mmengine looks up late, some only after an epoch?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import (
    DATASETS,
    EVALUATOR,
    HOOKS,
    METRICS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    TRANSFORMS,
    DefaultScope,
    Registry,
)

from ...config_walk import split_datasets, split_metrics
from ..datasets import find_class
from ..errors import UsageError


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
