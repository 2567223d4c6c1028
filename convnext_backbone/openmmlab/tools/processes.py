"""The processes of a distributed run: which of them prints, and how they run without a GPU."""

import datetime
import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS

from ..cpu_sync_bn import CpuSyncBN
from .errors import UsageError

GLOO_REST = 0.2  # seconds
DDP_WRAPPER: Mapping[str, Any] = {"type": "MMDistributedDataParallel", "broadcast_buffers": False}
# By the name of the launcher, the variables in which torchrun, Slurm and Open MPI give a process
# its rank and the number of processes. Without a launcher they are those of something else.
LAUNCHERS: Mapping[str, tuple[str, str]] = {
    "pytorch": ("RANK", "WORLD_SIZE"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}
_NO_VARIABLES = ("", "")
# mmengine's strategies that work without a GPU: the wrapper of a config that names none, and the
# option that keeps any wrapper off the GPU of the process's local rank.
STRATEGIES_ON_CPU: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "DDPStrategy": (DDP_WRAPPER, {"device_ids": None}),
    "FSDPStrategy": ({}, {"device_id": "cpu"}),
}


_launcher = "none"  # of this process, as its command line names it


def set_launcher(launcher: str) -> None:
    """Set what started this process, before anything is printed."""
    global _launcher
    _launcher = launcher


def is_main_process() -> bool:
    """Return whether this is the process of a distributed run that prints.

    Needed before mmengine has set up the run, when there are only the launcher's variables.
    """
    rank, _ = LAUNCHERS.get(_launcher, _NO_VARIABLES)
    return os.environ.get(rank, "0") == "0"


def print_once(message: str) -> None:
    """Print a line, once per distributed run."""
    if is_main_process():
        print(message, flush=True)


def count_processes(cfg: Config) -> int:
    """Return how many processes the run's launcher started, before mmengine has set up the run."""
    _, number = LAUNCHERS.get(cfg.get("launcher", "none"), _NO_VARIABLES)
    return int(os.environ.get(number, 1))


def prepare_processes(cfg: Config) -> None:
    """Make a distributed run work without a GPU, where mmengine would use one.

    The process group is made here, over gloo; mmengine uses a group that exists. The wrapper of the
    model must not name a GPU, and batch norm must synchronise without one.

    Raises:
        UsageError: The launcher cannot be used without a GPU, or did not start this process.
    """
    if cfg.launcher == "none" or get_device() != "cpu":
        return
    if cfg.launcher != "pytorch":
        raise UsageError(f"--launcher {cfg.launcher} needs a GPU; without one use pytorch")
    missing = [
        name
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if missing:
        raise UsageError(
            f"--launcher pytorch: {missing[0]} is not set; start with tools/dist_train.sh, "
            "tools/dist_test.sh or torchrun"
        )
    settings = (cfg.get("env_cfg") or {}).get("dist_cfg") or {}
    seconds = settings.get("timeout")
    timeout = datetime.timedelta(seconds=seconds) if seconds is not None else None
    torch.distributed.init_process_group("gloo", timeout=timeout)
    wrap_on_cpu(cfg)
    synchronise_on_cpu()
    print_once(f"no GPU: {torch.distributed.get_world_size()} processes on the CPU, over gloo")


def wrap_on_cpu(cfg: Config) -> None:
    """Let the wrapper of the model, mmengine's default or the config's own, name no GPU."""
    if "strategy" not in cfg:
        wrapper = cfg.get("model_wrapper_cfg") or {
            **DDP_WRAPPER,
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
        }
        cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    elif cfg.strategy.type in STRATEGIES_ON_CPU:
        default, device = STRATEGIES_ON_CPU[cfg.strategy.type]
        cfg.strategy.model_wrapper = dict(cfg.strategy.get("model_wrapper") or default, **device)


def synchronise_on_cpu() -> None:
    """Let `SyncBN` name a batch norm that synchronises on the CPU, which torch's refuses."""
    import mmcv.cnn  # noqa: F401 - registers torch's, whose place this one takes

    MODELS.register_module("SyncBN", module=CpuSyncBN, force=True)


def leave_processes() -> None:
    """End the process group, if there is one.

    A thread of gloo takes Python's lock to drop the tensors of its last operation, and aborts the
    process if Python ends first. Ending the group waits for its threads only where nothing refers
    to the group any more, but a sharded model does.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if torch.distributed.get_backend() == "gloo":
        time.sleep(GLOO_REST)
    torch.distributed.destroy_process_group()
