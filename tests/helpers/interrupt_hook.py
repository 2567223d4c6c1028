"""Hooks that stop a run, as Ctrl-C and a full disk do."""

import os
import resource
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class InterruptHook(Hook):
    """Sends SIGINT to its own process after `step` iterations."""

    def __init__(self, step):
        self.step = step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Interrupt at the chosen iteration."""
        if runner.iter + 1 == self.step:
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # a job in the background has none
            os.kill(os.getpid(), signal.SIGINT)


@HOOKS.register_module()
class FullDiskHook(Hook):
    """Lets no file grow beyond a mebibyte after `step` iterations."""

    def __init__(self, step):
        self.step = step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Set the limit, in place of a disk that has no more room."""
        if runner.iter + 1 == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
