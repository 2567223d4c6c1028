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

from convnext_backbone.openmmlab.tools.checks.checkpoint import (
    check_checkpoint,
    check_start,
    check_trained_classes,
    find_resumable,
)
from convnext_backbone.openmmlab.tools.checks.report import Report
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


def test_a_run_that_saves_no_optimizer_goes_on_without_it(work_dir):
    whole = {k: v for k, v in WHOLE.items() if k != "optimizer"}
    torch.save({**whole, "param_schedulers": [{}]}, work_dir / "iter_30.pth")
    torch.save(whole, work_dir / "best_mIoU.pth")  # without a schedule, as mmengine saves it
    os.utime(work_dir / "best_mIoU.pth", (3 * 10**9, 3 * 10**9))
    (work_dir / "last_checkpoint").write_text("moved.pth")
    hooks = {"checkpoint": {"save_optimizer": False}}
    run = {"resume": True, "work_dir": str(work_dir), "param_scheduler": [{"type": "LinearLR"}]}
    for hook, expected in ((hooks, 30), ({}, 20)):
        cfg = Config({**run, "default_hooks": hook})
        check_start(cfg, "--resume")
        assert cfg.load_from == str(work_dir / f"iter_{expected}.pth")


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


# --------------------------------------------------------------------------- names of classes


def evaluation(folder, classes, meta, head=None, path="run.pth"):
    """A run that tests on `classes`, and its checkpoint with this `meta`."""
    torch.save({"state_dict": {}, "meta": meta}, folder / "run.pth")
    head = head or {"type": "RetinaHead", "num_classes": 3}
    dataset = {"type": "CocoDataset", "metainfo": {"classes": classes}}
    cfg = Config(
        {
            "default_scope": "mmdet",
            "load_from": str(folder / path) if path else None,
            "model": {"bbox_head": head},
            "test_dataloader": {"dataset": {"type": "RepeatDataset", "dataset": dataset}},
        }
    )
    return Report(cfg, ("test",))


@pytest.mark.parametrize(
    ("classes", "key", "index"),
    [
        (("nut", "screw", "gear"), "dataset_meta", 1),
        (("bolt", "nut", "gear"), "dataset_meta", 0),
        (("nut", "bolt", "cog"), "CLASSES", 2),
    ],
    ids=["other names", "another order", "a file of mmdet 2"],
)
def test_as_many_classes_of_other_names_are_refused_with_both_lists(classes, key, index, tmp_path):
    names = ("nut", "bolt", "gear")
    meta = {"dataset_meta": {"classes": names}} if key == "dataset_meta" else {key: names}
    (tmp_path / "config_of_the_run.py").touch()
    with pytest.raises(UsageError) as error:
        check_trained_classes(evaluation(tmp_path, classes, meta))
    for words in (
        "trained on the classes 'nut', 'bolt', 'gear'",
        f"test_dataloader.dataset.dataset has {', '.join(map(repr, classes))}",
        "(test_dataloader.dataset.dataset.metainfo.classes)",
        f"class {index} is {names[index]!r} in the checkpoint and {classes[index]!r} in the data",
        "config_of_the_run.py",
        "--no-check",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"meta": {"dataset_meta": {"classes": ["Nut ", "bolt", "gear"]}}},
        {"meta": {}},
        {"meta": None},
        {"meta": {"dataset_meta": {"classes": ("a", "b")}}},
        {"head": {"type": "RPNHead", "num_classes": 3}},
        {"head": {"type": "GroundingDINOHead", "num_classes": 256}},
        {"path": None},
    ],
    ids=[
        "the same but for case and blanks", "no names", "no meta", "tensors show another number",
        "an RPN", "classes as words", "no checkpoint",
    ],
)  # fmt: skip
def test_checkpoints_whose_names_agree_or_say_nothing_pass(changes, tmp_path):
    other = {"meta": {"dataset_meta": {"classes": ("a", "b", "c")}}}
    check_trained_classes(evaluation(tmp_path, ("nut", "bolt", "gear"), **{**other, **changes}))
