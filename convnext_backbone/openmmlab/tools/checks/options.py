"""Settings by themselves: what was typed is obeyed or refused, never passed over."""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

from ...config_walk import SEGMENTORS, inner_model, is_pair, type_name
from ..channels import find_backbone
from ..errors import UsageError, check_count
from ..processes import print_once

# Top-level keys that mmengine, mmdet, mmseg or these tools read besides the runner's arguments.
_READ = {
    *("activation_checkpointing", "backend_args", "compile", "custom_dataset", "custom_imports"),
    *("dataset_meta", "efficient_conv_bn_eval", "find_unused_parameters", "from_scratch"),
    *("init_weights_for_test", "init_weights_for_test_or_val", "model_wrapper_cfg", "runner_type"),
    *("tta_model", "tta_pipeline"),
}
# mmdet's and mmseg's constructors, which know the ConvNeXt of mmpretrain only.
_FOREIGN_LAYER_DECAY = ("LearningRateDecayOptimizerConstructor", "LayerDecayOptimizerConstructor")
_OWN_LAYER_DECAY = "ConvNextLayerDecayOptimWrapperConstructor"
_COUNTS = ("max_epochs", "max_iters", "val_interval")
_MODES = ("whole", "slide")


def check_option_names(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Check, before they are merged, that `--cfg-options` name what a run reads.

    Many configs hold variables (`max_epochs = 36`) that were used while the file was read; to set
    one afterwards changes nothing. A key of the file that stands nowhere else passes with a note: a
    hook of the user's may read it.

    Raises:
        UsageError: A top-level key is read by nothing, or an index does not name a list's item.
    """
    known = _READ | _parameters(Runner) | _parameters(FlexibleRunner)
    settings = cfg.to_dict()
    for key in options or {}:
        top, *rest = key.split(".")
        if top not in known:
            _refuse_unread(key, top, settings)
        _check_indices(settings, key, [top, *rest])


def _refuse_unread(key: str, top: str, settings: Mapping[str, Any]) -> None:
    places = [path for path in _iter_paths(settings) if path.endswith(f".{top}")]
    hint = f"; did you mean {' or '.join(places[:3])}?" if places else ""
    if top not in settings:
        raise UsageError(f"--cfg-options {key}: unknown setting {top!r}{hint}")
    if places:
        raise UsageError(
            f"--cfg-options {key}: {top!r} is a variable inside the config file; setting it now "
            f"has no effect{hint}"
        )
    print_once(
        f"--cfg-options {key}: mmengine has no setting {top!r}; only your own code can use it"
    )


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _iter_paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted names of all entries of nested dicts."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = f"{path}.{key}" if path else str(key)
            yield name
            yield from _iter_paths(item, name)


def _check_indices(value: Any, key: str, parts: Sequence[str]) -> None:
    for position, part in enumerate(parts):
        if isinstance(value, Sequence) and not isinstance(value, str):
            if not part.isdecimal() or int(part) >= len(value):
                name = ".".join(parts[:position])
                raise UsageError(
                    f"--cfg-options {key}: {name} is a list of {len(value)}, without {part!r}"
                )
            value = value[int(part)]
            continue
        if part.isdecimal() and not (isinstance(value, Mapping) and part in value):
            name = ".".join(parts[:position])
            raise UsageError(
                f'--cfg-options {key}: {name} is no list; set it as {name}="[dict(...)]"'
            )
        value = value.get(part) if isinstance(value, Mapping) else None


def check_loop(cfg: Config) -> None:
    """Check that training does something, and that validation comes at all.

    Raises:
        UsageError: A number of epochs, iterations or an interval is not a positive integer.
    """
    for key in _COUNTS:
        value = cfg.train_cfg.get(key, 1)
        is_whole = isinstance(value, float) and value.is_integer()  # which mmengine takes as well
        check_count(f"train_cfg.{key}", int(value) if is_whole else value)


def check_windows(cfg: Config) -> None:
    """Check how a segmentor goes over an image when it predicts.

    Raises:
        UsageError: The mode is unknown, or that of sliding windows lacks their size or stride.
    """
    model = inner_model(cfg)
    test_cfg = model.get("test_cfg")
    if type_name(model) not in SEGMENTORS or not isinstance(test_cfg, Mapping):
        return
    mode = test_cfg.get("mode", _MODES[0])
    if mode not in _MODES:
        raise UsageError(f"model.test_cfg.mode: {mode!r} is none of {', '.join(_MODES)}")
    for key in ("crop_size", "stride") if mode == "slide" else ():
        value: Any = test_cfg.get(key)
        if not is_pair(value) or min(value) < 1:
            raise UsageError(
                f"model.test_cfg.{key} must be (height, width) in pixels for mode='slide', "
                f"got {value!r}"
            )


def check_optimizer(cfg: Config) -> None:
    """Name the layer decay that knows `ConvNextBackbone` where another one is configured.

    Raises:
        UsageError: The constructor is mmdet's or mmseg's.
    """
    constructor = type_name({"type": cfg.optim_wrapper.get("constructor")})
    if constructor in _FOREIGN_LAYER_DECAY and find_backbone(cfg) is not None:
        raise UsageError(
            f"optim_wrapper.constructor {constructor!r} does not know ConvNextBackbone; "
            f"use {_OWN_LAYER_DECAY!r}, which takes the same paramwise_cfg"
        )


def check_folders(**folders: str | None) -> None:
    """Check that the folders to write, given by the names of their flags, are no files.

    Raises:
        UsageError: One is a file, or lies below one.
    """
    for flag, folder in folders.items():
        path = os.path.abspath(folder) if folder else ""
        while path and not os.path.exists(path):
            path = os.path.dirname(path)
        if path and not os.path.isdir(path):
            raise UsageError(f"--{flag.replace('_', '-')} {folder!r}: {path!r} is a file")
