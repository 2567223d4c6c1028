"""Is the length of a training the one that was typed, and does its schedule fit?"""

from mmengine.config import Config

from ...config_walk import type_name
from ..datasets import count_training_images
from ..errors import UsageError
from ..schedule import (
    LENGTHS,
    in_iterations,
    is_warm_up,
    iter_schedulers,
    iterations_per_epoch,
    length_key,
)
from ..typed import TypedOptions
from .files import check_files
from .report import Report

_ODD_WARM_UP_PART = 0.2


def check_length(cfg: Config, typed: TypedOptions) -> None:
    """Refuse a length that was typed and could not be applied, rather than train for another.

    Raises:
        UsageError: There is one: the files are missing, or their number is not known.
    """
    options = cfg.get("custom_dataset") or {}
    for name in LENGTHS:
        value = typed.get(f"custom_dataset.{name}")
        if value is not None and options.get(name) is not None:
            if length_key(cfg) is None:
                raise UsageError(
                    f"custom_dataset.{name}={value}: train_cfg ({type_name(cfg.train_cfg)}) has "
                    "neither max_epochs nor max_iters"
                )
            check_files(cfg, ("train",))
            raise UsageError(
                f"custom_dataset.{name}={value}: the number of images of train_dataloader.dataset "
                f"({type_name(cfg.train_dataloader.dataset)}) is not known; set the length of "
                "train_cfg and param_scheduler"
            )


def check_schedule(report: Report) -> None:
    """Report what is odd about a schedule: a warm-up that hardly ends, steps that never come."""
    cfg, key = report.cfg, length_key(report.cfg)
    num_images = count_training_images(cfg) if key and "train" in report.splits else None
    if key is None or not num_images:
        return
    per_epoch = iterations_per_epoch(cfg, num_images)
    total = int(cfg.train_cfg[key]) * (per_epoch if key == "max_epochs" else 1)
    advice = "custom_dataset.epochs or custom_dataset.iters fits the schedule to the training"
    for scheduler, where in iter_schedulers(cfg):
        name = f"{where} ({scheduler['type']})"
        if is_warm_up(scheduler):
            end = in_iterations(scheduler, scheduler["end"], per_epoch)
            if end > _ODD_WARM_UP_PART * total:
                report.warn(
                    f"{name}: the warm-up takes {end} of the {total} iterations of the training; "
                    f"{advice}"
                )
            continue
        last = max(scheduler.get("milestones") or [scheduler.get("T_max", 0)])
        last = in_iterations(scheduler, last, per_epoch)
        if last > total:
            report.warn(
                f"{name}: its end or last step, at iteration {last}, is after the end of the "
                f"training at {total}; {advice}"
            )
