"""How long a training is, and schedules that are relative to it."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from ..config_walk import iter_named_dicts, type_name
from .errors import UsageError, check_count
from .processes import count_processes
from .typed import TypedOptions

LENGTHS = ("epochs", "iters")  # of `custom_dataset`
_WARM_UPS = ("LinearLR", "ConstantLR", "QuadraticWarmupLR")
_FIRST_FACTORS: Mapping[str, str] = {"LinearLR": "start_factor", "ConstantLR": "factor"}
_BY_METRIC = "ReduceOnPlateau"  # such a scheduler waits for validations, whatever the length
_DURATIONS = ("T_max", "step_size", "total_steps")  # of a scheduler
_MAX_WARM_UP = 500  # iterations
_MAX_WARM_UP_PART = 0.05
_HOOK_EPOCHS = ("switch_epoch", "num_last_epochs")  # of hooks that end the heavy augmentation


def iterations_per_epoch(cfg: Config, num_images: int) -> int:
    """Return the number of iterations of one epoch, which the processes of the run share."""
    loader = cfg.train_dataloader
    share = math.ceil(num_images / count_processes(cfg))
    rounded = math.floor if loader.get("drop_last") else math.ceil
    size = loader.get("batch_size", 1)  # torch's default
    check_count("train_dataloader.batch_size", size)
    number = max(1, rounded(share / size))
    return min(number, loader.get("num_batch_per_epoch") or number)


def length_key(cfg: Config) -> str | None:
    """Return the name of the length of the training loop; None for a loop of another kind."""
    return next((key for key in ("max_iters", "max_epochs") if key in cfg.train_cfg), None)


def fit_schedule(
    cfg: Config, options: Mapping[str, Any], num_images: int, typed: TypedOptions
) -> None:
    """Make a training as long as `custom_dataset.epochs` or `.iters`, and its schedule with it.

    Every step, cosine and interval keeps its place relative to the whole; the warm-up is at most
    5 % of the training and 500 iterations.

    `options` are those of `custom_dataset`; what the user typed stays.

    Raises:
        UsageError: Both were given, or one of them and another length of the loop.
    """
    key = length_key(cfg)
    assert key is not None
    unit = key.removeprefix("max_")
    per_epoch = iterations_per_epoch(cfg, num_images)
    ends = {by_epoch: _last_end(cfg, by_epoch) for by_epoch in (True, False)}
    # A typed length of the loop says nothing about the one that the schedulers are made for.
    published = 0 if typed.covers(f"train_cfg.{key}") else cfg.train_cfg[key]
    before = max(ends[unit == "epochs"] or 0, published) or cfg.train_cfg[key]
    ends[unit == "epochs"] = before
    _set_length(cfg, options, per_epoch, unit, key, typed)
    after = cfg.train_cfg[key]
    ratio = after / before
    total = after * (per_epoch if unit == "epochs" else 1)
    _scale_loop(cfg, ratio, typed)
    _scale_hooks(cfg, ratio, typed, by_epoch=unit == "epochs")
    _scale_schedulers(cfg, ends, total, per_epoch, typed)


def _scale_loop(cfg: Config, ratio: float, typed: TypedOptions) -> None:
    loop = cfg.train_cfg
    loop.setdefault("val_interval", 1)
    for key in ("val_interval", "val_begin"):
        if key in loop:
            typed.fill_in(loop, key, _scale(loop[key], ratio), where="train_cfg")
    if "dynamic_intervals" in loop and not typed.covers("train_cfg.dynamic_intervals"):
        loop.dynamic_intervals = [(_scale(begin, ratio), n) for begin, n in loop.dynamic_intervals]


def _scale_hooks(cfg: Config, ratio: float, typed: TypedOptions, *, by_epoch: bool) -> None:
    checkpoint: Any = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    if "interval" in checkpoint and checkpoint.get("by_epoch", True) == by_epoch:
        value = _scale(checkpoint["interval"], ratio)
        typed.fill_in(checkpoint, "interval", value, where="default_hooks.checkpoint")
    for hook, where in iter_named_dicts(cfg.get("custom_hooks") or (), "custom_hooks"):
        for key in _HOOK_EPOCHS:
            if key in hook:
                typed.fill_in(hook, key, _scale(hook[key], ratio), where=where)


def _last_end(cfg: Config, by_epoch: bool) -> int | None:
    """Return where the schedulers end that count epochs, or those that count iterations."""
    schedulers = [s for s, _ in iter_schedulers(cfg) if "end" in s and not is_warm_up(s)]
    found = [s["end"] for s in schedulers if s.get("by_epoch", True) == by_epoch]
    return max(found, default=None)


def _set_length(
    cfg: Config,
    options: Mapping[str, Any],
    per_epoch: int,
    unit: str,
    key: str,
    typed: TypedOptions,
) -> None:
    given = [name for name in LENGTHS if options.get(name) is not None]
    asked = [name for name in given if typed.get(f"custom_dataset.{name}") is not None] or given
    if len(asked) > 1:
        raise UsageError("custom_dataset takes epochs or iters, not both")
    (name,) = asked
    length = options[name]
    check_count(f"custom_dataset.{name}", length)
    if name != unit:
        length = length * per_epoch if unit == "iters" else max(1, math.ceil(length / per_epoch))
    typed.fill_in(cfg.train_cfg, key, length, where="train_cfg", option=f"custom_dataset.{name}")


def _scale(interval: int, ratio: float) -> int:
    return max(1, round(interval * ratio))


def _scale_schedulers(
    cfg: Config, ends: Mapping[bool, int | None], total: int, per_epoch: int, typed: TypedOptions
) -> None:
    """Convert the schedulers to iterations of a training of `total` iterations.

    `ends` is the length that they were made for, in epochs (True) and in iterations (False).
    """
    schedulers = [
        scheduler
        for scheduler, where in iter_schedulers(cfg)
        if not typed.covers(where) and not type_name(scheduler).startswith(_BY_METRIC)
    ]
    warm_ups = [scheduler for scheduler in schedulers if is_warm_up(scheduler)]
    others = [scheduler for scheduler in schedulers if not is_warm_up(scheduler)]
    warm_up_ends: dict[int, int] = {}  # the published one -> the new one
    most = max(1, min(_MAX_WARM_UP, int(total * _MAX_WARM_UP_PART)))
    for scheduler in warm_ups:
        end = in_iterations(scheduler, scheduler.end, per_epoch)
        warm_up_ends[end] = scheduler.end = min(end, most)
        factor = _FIRST_FACTORS.get(type_name(scheduler))
        if scheduler.end == 1 and factor:  # mmengine would stay at it
            scheduler[factor] = scheduler.get("end_factor", 1.0)
        _count_iterations(scheduler)
    for scheduler in others:
        before = ends[scheduler.get("by_epoch", True)]
        if before is not None:
            _scale_scheduler(scheduler, before, total, warm_up_ends)
    # What no iteration is left for; mmengine refuses an empty range.
    empty = [id(s) for s in others if s.get("begin", 0) >= s.get("end", math.inf)]
    if isinstance(cfg.get("param_scheduler"), list):
        cfg.param_scheduler = [s for s in cfg.param_scheduler if id(s) not in empty]


def _scale_scheduler(
    scheduler: ConfigDict, before: int, total: int, warm_up_ends: Mapping[int, int]
) -> None:
    by_epoch = scheduler.get("by_epoch", True)

    def rescale(value: int) -> int:
        # What begins where the warm-up ends still does.
        after_warm_up = not by_epoch and value in warm_up_ends
        return warm_up_ends[value] if after_warm_up else round(value / before * total)

    begin, end = scheduler.get("begin", 0), min(scheduler.get("end", before), before)

    def length(value: int) -> int:
        return max(1, rescale(begin + value) - rescale(begin))

    for key in _DURATIONS:
        if scheduler.get(key) is not None:
            scheduler[key] = length(scheduler[key])
    if "milestones" in scheduler:
        scheduler.milestones = [rescale(milestone) for milestone in scheduler.milestones]
    if "periods" in scheduler:
        ends = [length(value) for value in itertools.accumulate(scheduler.periods)]
        scheduler.periods = [b - a for a, b in itertools.pairwise([0, *ends])]
    if type_name(scheduler).startswith("Exponential") and end > begin:
        scheduler.gamma **= (end - begin) / max(1, rescale(end) - rescale(begin))  # of each step
    scheduler.begin, scheduler.end = rescale(begin), rescale(end)
    _count_iterations(scheduler)


def _count_iterations(scheduler: ConfigDict) -> None:
    scheduler.by_epoch = False
    scheduler.pop("convert_to_iter_based", None)


def iter_schedulers(cfg: Config) -> Iterator[tuple[ConfigDict, str]]:
    """Yield the schedulers of a config, each with its name."""
    for scheduler, where in iter_named_dicts(cfg.get("param_scheduler") or (), "param_scheduler"):
        if "type" in scheduler:
            yield scheduler, where


def is_warm_up(scheduler: Mapping[str, Any]) -> bool:
    """Return whether a scheduler raises the learning rate at the beginning of a training."""
    rises = scheduler.get("end_factor", 1.0) > scheduler.get("start_factor", 1 / 3)
    return (
        type_name(scheduler) in _WARM_UPS
        and rises
        and scheduler.get("begin", 0) == 0
        and "end" in scheduler
    )


def in_iterations(scheduler: Mapping[str, Any], value: int, per_epoch: int) -> int:
    """Return a number of a scheduler, which may be of epochs, as iterations."""
    return value * per_epoch if scheduler.get("by_epoch", True) else value
