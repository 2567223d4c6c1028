"""Kills and full disks at every step of saving a checkpoint: the run resumes and ends the same.

The training runs in a fork that ends itself, by SIGKILL, at the n-th file that it opens, renames or
deletes; Python reports these to an audit hook before they happen.
"""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import errno
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
resource = pytest.importorskip("resource")

from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, METRICS, MODELS
from mmengine.runner import Runner

import convnext_backbone  # noqa: F401 - registers the hook
from convnext_backbone.openmmlab.checkpoint_hook import AtomicCheckpointHook
from convnext_backbone.openmmlab.tools.checks.checkpoint import find_resumable

pytestmark = pytest.mark.openmmlab
EPOCHS, BATCHES = 4, 3
FULL = OSError(errno.ENOSPC, "No space left on device")


@MODELS.register_module()
class Regression(BaseModel):
    """A linear layer; every step depends on the data, on momentum and on those before it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 64)

    def forward(self, inputs, mode="loss"):
        y = self.layer(inputs)
        return {"loss": (y - inputs.flip(-1)).pow(2).mean()} if mode == "loss" else [y]


@METRICS.register_module()
class Rising(BaseMetric):
    """Is better after every epoch but the third."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        epoch = MessageHub.get_current_instance().get_info("epoch")
        value = [0.1, 0.2, 0.15, 0.3][min(epoch, 3)]
        return {"acc": value, "aAcc": value}


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4 * BATCHES

    def __getitem__(self, index):
        return {"inputs": torch.arange(64.0).add(index).sin()}


def train(work_dir, hook, resume=False):
    """Train, in this process; `resume` is what tools/train.py --resume does."""
    path = find_resumable(Path(work_dir), "--resume") if resume else None
    loader = {"batch_size": 4, "num_workers": 0, "collate_fn": {"type": "default_collate"}}
    by_epoch = hook.get("by_epoch", True)
    loop = {"max_epochs": EPOCHS} if by_epoch else {"max_iters": EPOCHS * BATCHES}
    Runner(
        {"type": "Regression"},
        str(work_dir),
        train_dataloader={**loader, "dataset": Data(), "sampler": sampler(True)},
        train_cfg={"by_epoch": by_epoch, **loop, "val_interval": 1 if by_epoch else BATCHES},
        val_dataloader={**loader, "dataset": Data(), "sampler": sampler(False)},
        val_evaluator={"type": "Rising"},
        val_cfg={},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9}},
        default_hooks={"checkpoint": hook, "logger": None},
        log_level="ERROR",
        load_from=path,
        resume=path is not None,
        randomness={"seed": 3},
        experiment_name=f"{Path(work_dir).name}_{os.getpid()}",
        default_scope="mmengine",
    ).train()


def sampler(shuffle):
    return {"type": "DefaultSampler", "shuffle": shuffle}


def in_fork(action, *args, **options):
    """Run an action in a fork of this process, and return how that ended, as `os.wait` has it."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)
        warnings.simplefilter("ignore")
        action(*args, **options)
        os._exit(0)
    except OSError as error:
        os._exit(28 if error.errno in (errno.ENOSPC, errno.EFBIG) else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def disturb(work_dir, action):
    """Call `action` before each change of a file of checkpoints, with the number of this change."""
    count = 0

    def watch(event, args):
        nonlocal count
        if event not in ("open", "os.rename", "os.remove") or not isinstance(args[0], str | Path):
            return
        path = str(args[0])
        written = event != "open" or "w" in (args[1] or "") or "+" in (args[1] or "")
        if written and str(work_dir) in path and (".pth" in path or "last_checkpoint" in path):
            count += 1
            action(count)

    sys.addaudithook(watch)


def disturbed(work_dir, hook, action, resume=False):
    disturb(work_dir, action)
    train(work_dir, hook, resume)


def count_changes(work_dir, hook):
    """Count the changes of files of an undisturbed training."""
    reader, writer = os.pipe()
    assert in_fork(disturbed, work_dir, hook, lambda _: os.write(writer, b".")) == 0
    os.close(writer)
    with open(reader, "rb") as stream:
        return len(stream.read())


def weights(work_dir):
    last = Path((Path(work_dir) / "last_checkpoint").read_text())
    checkpoint = torch.load(last, weights_only=False)
    return checkpoint["state_dict"], checkpoint["optimizer"]["state"]


HOOK = {"type": "AtomicCheckpointHook", "interval": 1, "max_keep_ckpts": 1, "save_best": "acc"}


def kinds_of_hooks(tmp):
    return {
        "epochs": HOOK,
        "iterations": {**HOOK, "by_epoch": False, "interval": 2},
        "elsewhere": {**HOOK, "out_dir": str(tmp / "elsewhere"), "max_keep_ckpts": 2},
    }


@pytest.fixture(scope="module", autouse=True)
def _forks_are_quick(tmp_path_factory):
    """What a runner imports is imported here, and the machine is not described in every log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.runner.runner.collect_env", dict)
        patch.setattr("mmengine.runner.loops.time", SimpleNamespace(sleep=lambda seconds: None))
        train(tmp_path_factory.mktemp("first"), HOOK)
        yield


@pytest.fixture(scope="module", params=["epochs", "iterations", "elsewhere"])
def whole_run(request, tmp_path_factory):
    """An undisturbed run: its hook, its directory, and how many changes of files it made."""
    tmp = tmp_path_factory.mktemp(request.param)
    hook = kinds_of_hooks(tmp)[request.param]
    return hook, tmp / "whole", count_changes(tmp / "whole", hook)


def moments(changes, few=4):
    """Return moments spread over a run."""
    return range(1, changes + 1, -(-changes // few))


def same(run, other):
    ours, theirs = weights(run), weights(other)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_kill_at_any_moment_leaves_a_run_that_resumes_to_the_same_end(whole_run, tmp_path):
    hook, whole, changes = whole_run
    hook = {**hook, "out_dir": str(tmp_path / "out")} if "out_dir" in hook else hook
    for moment in moments(changes):
        run = tmp_path / f"killed_{moment}"

        def kill(count, moment=moment):
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        assert in_fork(disturbed, run, hook, kill) == signal.SIGKILL
        assert in_fork(train, run, hook, resume=True) == 0
        same(run, whole)
        folder = tmp_path / "out" / run.name if "out_dir" in hook else run
        names = sorted(path.name for path in folder.iterdir() if "part" in path.name)
        assert names == []


def test_a_full_disk_at_any_moment_leaves_a_run_that_resumes_to_the_same_end(whole_run, tmp_path):
    hook, whole, changes = whole_run
    hook = {**hook, "out_dir": str(tmp_path / "out")} if "out_dir" in hook else hook
    for moment in moments(changes):
        run = tmp_path / f"full_{moment}"

        def fill(count, moment=moment):
            if count >= moment:
                raise FULL

        assert os.waitstatus_to_exitcode(in_fork(disturbed, run, hook, fill)) in (0, 28)
        assert in_fork(train, run, hook, resume=True) == 0
        same(run, whole)


def test_a_file_that_is_cut_short_never_has_a_checkpoints_name(tmp_path):
    """The disk takes the first 10,000 bytes of each file and no more."""

    def full(run):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        train(run, HOOK, resume=True)

    run, whole = tmp_path / "run", tmp_path / "whole"
    assert in_fork(train, whole, HOOK) == 0
    assert os.waitstatus_to_exitcode(in_fork(full, run)) == 28
    assert not list(run.glob("*.pth"))
    assert not list(run.glob(".*.part"))
    assert in_fork(train, run, HOOK, resume=True) == 0
    same(run, whole)


def test_what_is_kept_is_what_mmengines_own_hook_keeps(tmp_path):
    for max_keep in (1, 2, -1):
        left = []
        for type_ in ("CheckpointHook", "AtomicCheckpointHook"):
            run = tmp_path / f"{type_}_{max_keep}"
            assert in_fork(train, run, {**HOOK, "type": type_, "max_keep_ckpts": max_keep}) == 0
            left.append(sorted(path.name for path in run.glob("*.pth")))
        assert left[0] == left[1]
        assert "best_acc_epoch_4.pth" in left[0]
        assert len(left[0]) == 1 + (max_keep if max_keep > 0 else EPOCHS)


def test_the_best_checkpoint_of_each_of_several_metrics_is_kept(tmp_path):
    hook = {**HOOK, "save_best": ["acc", "aAcc"], "rule": ["greater", "less"]}
    assert in_fork(train, tmp_path, hook) == 0
    names = {path.name for path in tmp_path.glob("best_*.pth")}
    assert names == {"best_acc_epoch_4.pth", "best_aAcc_epoch_1.pth"}
    assert sorted(path.name for path in tmp_path.glob("epoch_*")) == ["epoch_4.pth"]


def test_the_name_in_configs_builds_the_hook_which_is_a_checkpoint_hook():
    hook = HOOKS.build({"type": "AtomicCheckpointHook", "interval": 7})
    assert isinstance(hook, AtomicCheckpointHook)
    assert isinstance(hook, CheckpointHook)
    assert hook.interval == 7
