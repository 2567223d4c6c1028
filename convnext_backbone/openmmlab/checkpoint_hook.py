"""A checkpoint hook whose runs can be resumed after a kill or a full disk at any moment.

mmengine's `CheckpointHook` deletes the old checkpoint, writes the new one under its own name, and
then overwrites `last_checkpoint`: a run that ends in between has lost both. Here the new file is
written beside its place, flushed and moved; then `last_checkpoint` is replaced in the same way; and
only then are old checkpoints deleted. The disk needs room for one checkpoint more than are kept.
"""

import os
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

from ..utils.files import errors_naming, move_into_place, write_bytes


class _AtomicSaves:
    """A runner whose checkpoints appear under their names once they are whole."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **options: Any) -> None:
        path = Path(out_dir, filename)
        partial = path.with_name(f".{path.name}.part")  # the same in every process
        try:
            with errors_naming(path):
                self._runner.save_checkpoint(out_dir, str(partial.relative_to(out_dir)),
                                             *args, **options)  # fmt: skip
                barrier()  # a sharded model is a directory, into which every process writes
                if is_main_process():
                    _move(partial, path)
        except OSError:
            _delete(partial)  # a full disk needs the room
            raise


def _move(partial: Path, path: Path) -> None:
    if partial.is_dir():
        _delete(path)  # os.replace does not replace a directory
        os.replace(partial, path)
    else:
        move_into_place(partial, path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class AtomicCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook`, with its arguments; no run is ever without a checkpoint.

    Checkpoints on a remote storage are written under their own names, which it does in one step.

    Example:
        >>> default_hooks = dict(checkpoint=dict(type="AtomicCheckpointHook", max_keep_ckpts=1))

    Raises:
        OSError: The disk is full; the error names the checkpoint, and the one before is as it was.
    """

    keep_ckpt_ids: deque[int]

    def before_train(self, runner: Any) -> None:
        """Find the directory of checkpoints, and remove what an earlier run left unfinished."""
        super().before_train(runner)
        if is_main_process() and self._is_local:
            for name in (self.filename_tmpl.format("*"), "best_*", "last_checkpoint.*"):
                for folder in (self.out_dir, runner.work_dir):
                    for partial in Path(folder).glob(f".{name}.part"):
                        _delete(partial)

    @property
    def _is_local(self) -> bool:
        # Of the deprecated `file_client_args`, the client is the backend.
        return isinstance(getattr(self.file_backend, "client", self.file_backend), LocalBackend)

    def _save_checkpoint(self, runner: Any) -> None:
        super()._save_checkpoint(self._saver(runner))

    def _saver(self, runner: Any) -> Any:
        return _AtomicSaves(runner) if self._is_local else runner

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        kept: list[int] = []
        if self.max_keep_ckpts > 0:
            kept = [*(old for old in self.keep_ckpt_ids if old != step), step]
            # The file lists those that are deleted after it: a resumed run deletes what is left.
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_bytes(Path(runner.work_dir, "last_checkpoint"), str(self.last_ckpt).encode())
        if kept:
            for old in kept[: -self.max_keep_ckpts]:
                outdated = self.filename_tmpl.format(old)
                self._remove(self.file_backend.join_path(self.out_dir, outdated))
            self.keep_ckpt_ids = deque(kept[-self.max_keep_ckpts :], self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Any, metrics: Mapping[str, Any]) -> None:
        if not self.save_best:
            return
        before = self._best_paths
        self._best_paths = dict.fromkeys(before)  # mmengine would delete these first
        super()._save_best_checkpoint(self._saver(runner), metrics)
        after = self._best_paths
        self._best_paths = {key: after[key] or before[key] for key in before}
        for key, path in before.items():
            if path and after[key] not in (None, path):
                self._remove(path)

    @property
    def _best_paths(self) -> dict[str, str | None]:
        single = len(self.key_indicators) == 1
        return {"": self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)

    @_best_paths.setter
    def _best_paths(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths[""]
        else:
            self.best_ckpt_path_dict = paths

    def _remove(self, path: str) -> None:
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # of a sharded model
            self.file_backend.rmtree(path)
