"""A hook that stops a run as Ctrl-C does."""

import os
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
