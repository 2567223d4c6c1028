"""What the tools add to a run: the summary before it, the report of its weights, the first loss."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint
from torch import nn
from torch.utils.data import DataLoader

from ...models.trunk import ConvNextTrunk
from ...utils.checks import shorten_list
from ...weights.report import LoadReport
from ..config_walk import as_list, type_name
from .errors import UsageError
from .loading import load_and_report, refuse_incomplete


class RunHook(Hook):
    """Reports what a run starts from, and records that it has started."""

    priority = "VERY_LOW"  # after the EMA hook has put the averaged weights in their place

    def __init__(self, cfg: Config, *, partial: bool) -> None:
        self.cfg = cfg
        self.partial = partial  # whether a checkpoint may leave parts of the model untrained
        self.started = False  # until the first iteration begins, an error is the config's
        self.iteration = 0  # of this process, to report where a run was stopped
        self.loaded: LoadReport | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Load the checkpoint, log what became of every tensor, and hand mmengine the result.

        Raises:
            UsageError: It does not fit the model.
        """
        model = unwrap_model(runner.model)
        if is_sharded(model):  # mmengine loads it, in pieces
            return
        path = str(runner._load_from or find_latest_checkpoint(runner.work_dir))
        self.loaded = load_and_report(model, checkpoint, path)
        runner.logger.info(f"Weights of {path}:\n{self.loaded}")
        if not self.partial or runner._resume:
            refuse_incomplete(self.loaded, checkpoint, str(self.cfg.filename))
        if not self.loaded.loaded:
            raise UsageError(f"checkpoint {path!r} has nothing in common with the model")
        checkpoint["state_dict"] = model.state_dict()

    def before_train(self, runner: Runner) -> None:
        """Log the summary."""
        self.started = True
        for name, report in initial_reports(runner.model):
            runner.logger.info(f"Weights of {name} by init_cfg:\n{report}")
        table = [f"{name:<9} {text}" for name, text in summarise(runner, self.cfg, self.loaded)]
        runner.logger.info("\n".join(["Training:", *table]))
        loop = runner.train_loop
        unit = "epoch" if isinstance(loop, EpochBasedTrainLoop) else "iter"
        done, length = getattr(loop, unit), getattr(loop, f"max_{unit}s")
        if done >= length:
            runner.logger.warning(
                f"Nothing is left to train: the run that was resumed is at {unit} {done}, and "
                f"train_cfg.max_{unit}s is {length}"
            )

    def before_test(self, runner: Runner) -> None:
        """Record that testing begins."""
        self.started = True

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the first loss at once: the logger's own interval may take minutes."""
        self.iteration += 1
        logger = (self.cfg.get("default_hooks") or {}).get("logger") or {}
        if self.iteration == 1 and logger.get("interval", 10) > 1:
            _, line = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
            runner.logger.info(line)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the detector or segmentor inside wrappers for processes and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.get_submodule("module")
    return model


def is_sharded(model: nn.Module) -> bool:
    """Return whether processes hold parts of the model, whose names and shapes are then others."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def initial_reports(model: nn.Module) -> Iterator[tuple[str, LoadReport]]:
    """Yield the names of the backbones that `init_cfg` has filled, and their reports."""
    for name, module in unwrap_model(model).named_modules():
        if isinstance(module, ConvNextTrunk) and module.load_report is not None:
            yield name or type(module).__name__, module.load_report


def images_per_step(loader: DataLoader[Any]) -> int | None:
    """Return the batch size; with a batch sampler, as mmdet's, only that may know it."""
    return loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)


def summarise(runner: Runner, cfg: Config, loaded: LoadReport | None) -> Iterator[tuple[str, str]]:
    """Yield what a training is about to do, as names and values of one line each."""
    model = unwrap_model(runner.model)
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters) / 1e6
    trained = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
    arch = (cfg.model.get("backbone") or {}).get("arch", "")
    size = f"{total:.2f} M parameters, {trained:.2f} M of them trained"
    where = f"on {parameters[0].device} by {type(runner.optim_wrapper).__name__}"
    yield "model", f"{type(model).__name__} {arch}, {size}, {where}"
    reports = [loaded] if loaded else [report for _, report in initial_reports(model)]
    sources = "; ".join(f"{len(r.loaded)} tensors of {r.source}" for r in reports)
    yield "weights", sources or "newly initialized: neither init_cfg nor load_from names any"
    loader = runner.train_dataloader
    processes = f" in each of {get_world_size()} processes" if get_world_size() > 1 else ""
    batch = images_per_step(loader)
    step = f", {batch} a step{processes}" if batch else ""
    yield "train", f"{len(loader.dataset)} images{step}, {len(loader)} steps"
    validated = getattr(runner.val_loop and runner.val_dataloader, "dataset", None)
    if validated is not None:  # a loop of the user's may have several
        yield "val", f"{len(validated)} images"
    classes = (getattr(loader.dataset, "metainfo", None) or {}).get("classes")
    if classes:
        yield "classes", f"{len(classes)}: {shorten_list([str(name) for name in classes], 10)}"
    loop = runner.train_loop
    length = f"{loop.max_iters} steps"
    if isinstance(loop, EpochBasedTrainLoop):
        length = f"{loop.max_epochs} epochs of {len(loader)} steps"
    optimizer = cfg.optim_wrapper.get("optimizer") or {}
    names = ", ".join(map(type_name, as_list(cfg.get("param_scheduler"))))
    yield "schedule", f"{length}, {type_name(optimizer)} at {optimizer.get('lr')}, {names}"
    yield "files", f"{runner.work_dir}; log: {runner.logger.log_file}"
