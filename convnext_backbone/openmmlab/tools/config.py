"""Reading a config, finding out whether it is mmdet's or mmseg's, and building its model."""

import copy
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from ...utils.checks import check_choice
from ...utils.commandline import one_line
from ..config_walk import split_datasets
from .checks.options import check_option_names, check_windows
from .config_options import apply_options
from .errors import BUILD_ERRORS, CONFIG_ERRORS, UsageError, describe_error, naming_config

SCOPES = ("mmdet", "mmseg")
# The keys that a command needs.
NEEDED: Mapping[str, Sequence[str]] = {
    "train": ("model", "train_dataloader", "train_cfg", "optim_wrapper"),
    "test": ("model", "test_dataloader", "test_cfg", "test_evaluator"),
}


def load_config(
    path: str, options: Mapping[str, Any] | None, needed: Sequence[str], launcher: str = "none"
) -> Config:
    """Read a config, merge `--cfg-options` into it, and set its `default_scope` and `launcher`.

    Raises:
        UsageError: The config is missing, broken, of no known scope, or lacks a `needed` key.
    """
    if not os.path.isfile(path):
        raise UsageError(f"config {path!r} not found")
    try:
        cfg = Config.fromfile(path)
    except CONFIG_ERRORS as error:
        raise UsageError(f"config {path!r} cannot be read: {describe_error(error)}") from error
    check_option_names(cfg, options)
    for key, value in (options or {}).items():
        try:
            cfg.merge_from_dict({key: value})
        except BUILD_ERRORS as error:
            raise UsageError(f"--cfg-options {key}: {one_line(error)}") from error
    missing = [key for key in needed if cfg.get(key) is None]
    if missing:
        raise UsageError(f"config {path!r} has no {missing[0]!r}")
    cfg.default_scope = find_scope(cfg, path)
    cfg.launcher = launcher
    with naming_config(path, options):
        apply_options(cfg, options)
        check_windows(cfg)
    return cfg


def find_scope(cfg: Mapping[str, Any], path: str) -> str:
    """Find out whether a config is mmdet's or mmseg's.

    `default_scope` decides; without one, the model and then the data sets do: by the prefix of
    their type ("mmdet.MaskRCNN") or by being registered in only one of the two packages.

    Raises:
        UsageError: There is no default scope, and the types fit both packages or none.
    """
    if cfg.get("default_scope"):
        return cfg["default_scope"]
    types = [("MODELS", cfg["model"].get("type"))]
    types += [("DATASETS", dataset.get("type")) for dataset, _ in split_datasets(cfg)]
    for registry, type_ in types:
        scopes = scopes_of(registry, type_)
        if len(scopes) == 1:
            return scopes[0]
    raise UsageError(
        f"config {path!r} has no default_scope, and its types fit both mmdet and mmseg, or neither:"
        " add default_scope = 'mmdet' or default_scope = 'mmseg'"
    )


def scopes_of(registry: str, type_: Any) -> list[str]:
    """List the scopes that a type belongs to: a class, or a name with or without its scope."""
    if not isinstance(type_, str):
        name = getattr(type_, "__module__", "")
    elif "." in type_:
        name = type_
    else:
        return [scope for scope in SCOPES if _is_own_type(scope, registry, type_)]
    return [scope for scope in SCOPES if name.partition(".")[0] == scope]


def _is_own_type(scope: str, registry: str, name: str) -> bool:
    """Return whether `name` is registered in this scope itself, not in mmengine's root."""
    own = getattr(importlib.import_module(f"{scope}.registry"), registry)
    own.import_from_location()
    return name in own.module_dict


def build_model(cfg: Config, device: str = "meta") -> Any:
    """Build the model of a config on `device`, by default without any storage, to evaluate it.

    Raises:
        ValueError: The config's `default_scope` is neither mmdet nor mmseg.
        KeyError: A type of the config is not registered.
    """
    register_models(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    return build_as_run(cfg, device).eval()


def build_as_run(cfg: Config, device: str) -> Any:
    """Build the model of a config as mmengine's `Runner` does, and leave the config as it is."""
    model = copy.deepcopy(cfg.model)
    if cfg.get("data_preprocessor") is not None:
        model.setdefault("data_preprocessor", copy.deepcopy(cfg.data_preprocessor))
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(model)


def register_models(scope: str) -> None:
    """Import the models of a config's `default_scope`, so that its types are known.

    Raises:
        ValueError: The scope is neither mmdet nor mmseg.
    """
    check_choice("default_scope", scope, SCOPES)
    importlib.import_module(f"{scope}.models")
