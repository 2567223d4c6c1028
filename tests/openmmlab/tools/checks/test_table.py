"""tools/check_data.py and tools/train.py make the same checks, with the same messages."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import pytest

pytest.importorskip("mmdet")
pytestmark = pytest.mark.openmmlab

from helpers.own_data import DETECTOR, write_detection

from convnext_backbone.openmmlab.tools.check_data import main as check_data
from convnext_backbone.openmmlab.tools.launch import train


@pytest.fixture
def options(tmp_path):
    return [f"custom_dataset.{key}={value}" for key, value in write_detection(tmp_path).items()]


@pytest.mark.parametrize(
    "mistake",
    [
        "train_cfg.max_epochs=0",
        "optim_wrapper.constructor=LearningRateDecayOptimizerConstructor",
        "optim_wrapper.optimizer.type=Adamw",
        "default_hooks.checkpoint.save_best=coco/bbox_map",
        "val_evaluator.metric_items=[map]",
        "model.roi_head.bbox_head.reg_class_agnostic_=True",
        "train_dataloader.batch_size=0",
    ],
)
def test_what_training_refuses_check_data_refuses_in_the_same_words(
    mistake, options, tmp_path, capsys
):
    arguments = [str(DETECTOR), "--cfg-options", *options, mistake]
    assert check_data(arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert train([*arguments, "--work-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == found.err.replace("check_data.py", "train.py")
    assert not (tmp_path / "run").exists()


def test_chosen_splits_need_no_files_of_the_others(options, tmp_path, capsys):
    (tmp_path / "train" / "1.jpg").unlink()
    arguments = [str(DETECTOR), "--cfg-options", *options]
    assert check_data(arguments) == 2
    assert check_data([*arguments, "--splits", "val"]) == 0
    printed = capsys.readouterr().out
    assert "val_dataloader" in printed
    assert "train_dataloader" not in printed


def test_settings_are_checked_in_spite_of_no_check(options, tmp_path, capsys):
    arguments = ["--no-check", "--work-dir", str(tmp_path / "run"), "--cfg-options", *options]
    assert train([str(DETECTOR), *arguments, "train_cfg.val_interval=0"]) == 2
    assert "train_cfg.val_interval must be an integer of at least 1" in capsys.readouterr().err
