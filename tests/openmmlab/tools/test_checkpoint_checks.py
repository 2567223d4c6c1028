"""Which checkpoint `--resume` takes: what `last_checkpoint` names, or the newest that is whole."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import os
import re

import pytest
import torch

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config

from convnext_backbone.openmmlab.tools.checkpoint_checks import (
    check_checkpoint,
    check_start,
    find_resumable,
)
from convnext_backbone.openmmlab.tools.errors import UsageError

WHOLE = {"meta": {}, "state_dict": {"w": torch.ones(100)}, "optimizer": {}, "message_hub": {}}


@pytest.fixture
def work_dir(tmp_path):
    """A run of three checkpoints, each newer than the one before, and a best one without state."""
    for age, name in enumerate(["best_mIoU", "iter_30", "iter_20", "iter_10"]):
        path = tmp_path / f"{name}.pth"
        torch.save(WHOLE if age else {"state_dict": {}}, path)
        os.utime(path, (10**9 - age, 10**9 - age))
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_30.pth"))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


def name_other(text):
    def change(folder):
        (folder / "last_checkpoint").write_text(text)

    return change


def lose_newest(folder):
    (folder / "iter_30.pth").unlink()


def cut_newest(folder):
    cut(folder / "iter_30.pth")


def lose_and_cut(folder):
    lose_newest(folder)
    cut(folder / "iter_20.pth")


@pytest.mark.parametrize(
    ("change", "expected", "said"),
    [
        (lambda folder: None, 30, ""),
        (lose_newest, 20, r"--resume '.*iter_30\.pth' not found"),
        (cut_newest, 20, r"cannot read checkpoint --resume '.*iter_30\.pth'"),
        (lose_and_cut, 10, r"iter_30\.pth' not found"),
        (name_other(""), 30, "--resume '' not found"),  # a disk that was full as it was written
        (name_other("work_dirs/old/iter_30.pth"), 30, "not found"),  # a directory that was moved
        (name_other("\0\xff"), 30, "not found"),
    ],
    ids=["sound", "lost", "cut", "lost and cut", "empty", "moved", "damaged"],
)
def test_a_run_goes_on_from_its_newest_whole_checkpoint(change, expected, said, work_dir, capsys):
    change(work_dir)
    cfg = Config({"resume": True, "work_dir": str(work_dir)})
    check_start(cfg, "--resume")
    assert cfg.load_from == str(work_dir / f"iter_{expected}.pth")
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == bool(said)
    assert re.search(said, printed)


def test_nothing_that_can_be_resumed_is_an_error_and_no_new_start(work_dir):
    for name in ("iter_10", "iter_20", "iter_30"):
        cut(work_dir / f"{name}.pth")
    with pytest.raises(UsageError, match=r"iter_30\.pth"):
        find_resumable(work_dir, "--resume")


def test_a_run_that_saved_nothing_starts_anew(tmp_path):
    cfg = Config({"resume": True, "work_dir": str(tmp_path / "new")})
    check_start(cfg, "--resume")
    assert cfg.get("load_from") is None


def test_pipes_are_refused_and_not_waited_for(work_dir):
    os.mkfifo(work_dir / "pipe.pth")
    with pytest.raises(UsageError, match=r"checkpoint .*pipe\.pth is a FIFO"):
        check_checkpoint(str(work_dir / "pipe.pth"), "checkpoint")
    (work_dir / "last_checkpoint").write_text(str(work_dir / "pipe.pth"))
    assert find_resumable(work_dir, "--resume") == str(work_dir / "iter_30.pth")
    (work_dir / "last_checkpoint").unlink()
    os.mkfifo(work_dir / "last_checkpoint")
    with pytest.raises(UsageError, match="last_checkpoint is a FIFO"):
        find_resumable(work_dir, "--resume")
