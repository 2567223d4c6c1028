"""How a run begins, is stopped, goes on and is refused, as a user sees it."""

import json
import re
from importlib.util import find_spec

import pytest
import torch
from helpers.tool_process import run_tool, write_config

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

# What a shipped config's logger does on a long run: the first line would come late.
SLOW_LOGGER = ("--cfg-options", "default_hooks.logger.interval=50")


@pytest.fixture(scope="module")
def trained(detector, tmp_path_factory):
    """A detector trained for an epoch of three iterations, and what that printed."""
    folder = tmp_path_factory.mktemp("trained")
    result = run_tool("train.py", detector, "--work-dir", "run", *SLOW_LOGGER, cwd=folder)
    assert result.code == 0, result.err
    return folder / "run", result.out


@pytest.fixture(scope="module")
def fewer_classes(detector, digits, tmp_path_factory):
    """The same detector on three of the ten classes, and its config."""
    folder = tmp_path_factory.mktemp("fewer")
    for split in ("train", "val"):
        path = digits / "annotations" / f"instances_{split}.json"
        data = json.loads(path.read_text())
        data["categories"] = data["categories"][:3]
        kept = {category["id"] for category in data["categories"]}
        data["annotations"] = [a for a in data["annotations"] if a["category_id"] in kept]
        (folder / path.name).write_text(json.dumps(data))
    return write_config(
        folder / "fewer.py",
        f"""
        _base_ = ['{detector}']
        custom_dataset = dict(
            train_ann='{folder}/instances_train.json', train_img='images/training/',
            val_ann='{folder}/instances_val.json', val_img='images/validation/')
        """,
    )


def test_the_terminal_gets_a_dozen_lines_and_the_log_file_everything(trained):
    run, out = trained
    lines = out.splitlines()
    first_loss = next(index for index, line in enumerate(lines) if "loss_rpn_cls" in line)
    assert first_loss <= 12, lines[:first_loss]
    assert "Epoch(train) [1][1/3]" in lines[first_loss]
    summary = "\n".join(lines[:first_loss])
    for part in ("MaskRCNN convnext_atto", "12 images, 4 a step, 3 steps", "AdamW", str(run)):
        assert part in summary
    (log,) = run.glob("*/*.log")
    logged = log.read_text()
    for part in ("System environment:", "Config:", "paramwise_options"):
        assert part in logged
        assert part not in out
    assert "creating index" not in out


def test_resuming_and_starting_from_weights_report_every_tensor(trained, detector, fewer_classes):
    run, _ = trained
    checkpoint = run / "epoch_1.pth"
    more = ("--cfg-options", "train_cfg.max_epochs=2")
    resumed = run_tool("train.py", detector, "--work-dir", "run", "--resume", *more, cwd=run.parent)
    assert resumed.code == 0, resumed.err
    tensors = torch.load(checkpoint, weights_only=False)["state_dict"]
    total = sum(not key.endswith("num_batches_tracked") for key in tensors)
    assert f"source            {checkpoint}" in resumed.out
    assert f"loaded            {total:>5}" in resumed.out
    assert "newly initialized     0" in resumed.out
    start = ("--cfg-options", f"load_from={checkpoint}")
    started = run_tool("train.py", fewer_classes, "--work-dir", "few", *start, cwd=run.parent)
    assert started.code == 0, started.err
    # The classes' tensors are the heads' last layers: weight and bias of three.
    assert f"loaded            {total - 6:>5}" in started.out
    assert "roi_head.bbox_head.fc_cls.weight is (11, 256) in the file, (4, 256)" in started.out
    (log,) = (run.parent / "few").glob("*/*.log")
    assert "newly initialized     6" in log.read_text()


@pytest.mark.parametrize("command", ["test", "resume"])
def test_a_checkpoint_of_other_classes_is_refused_with_the_config_that_fits(
    command, trained, detector, fewer_classes, tmp_path
):
    run, _ = trained
    checkpoint = run / "epoch_1.pth"
    line = {
        "test": ("test.py", fewer_classes, checkpoint),
        "resume": ("train.py", fewer_classes, "--resume", checkpoint),
    }[command]
    work = tmp_path / "work"
    work.mkdir()
    result = run_tool(*line, cwd=work)
    assert result.code == 2, result.out
    (error,) = [line for line in result.err.splitlines() if "error:" in line]
    assert "does not fit config" in error
    assert "trained on 10 classes (0, 1, 2, 3, 4 and 5 more)" in error
    assert str(run / detector.name) in error
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize("command", ["test", "resume"])
def test_a_checkpoint_of_as_many_classes_in_another_order_is_refused(
    command, trained, detector, tmp_path
):
    checkpoint = torch.load(trained[0] / "epoch_1.pth", weights_only=False)
    meta = checkpoint["meta"]["dataset_meta"]
    meta["classes"] = meta["classes"][::-1]
    torch.save(checkpoint, tmp_path / "other.pth")
    work = tmp_path / "work"
    work.mkdir()
    line = {"test": ("test.py", detector), "resume": ("train.py", detector, "--resume")}[command]
    result = run_tool(*line, tmp_path / "other.pth", cwd=work)
    assert result.code == 2, result.out
    assert "class 0 is '9' in the checkpoint and '0' in the data" in result.err
    assert not list(work.iterdir())
    if command == "test":
        unchecked = run_tool(*line, tmp_path / "other.pth", "--no-check", cwd=work)
        assert unchecked.code == 0, unchecked.err


def test_weights_of_another_kind_of_model_are_refused(detector, tmp_path):
    torch.save({"state_dict": {"layer1.0.conv1.weight": torch.ones(3)}}, tmp_path / "resnet.pth")
    work = tmp_path / "work"
    work.mkdir()
    options = ("--cfg-options", f"load_from={tmp_path / 'resnet.pth'}")
    result = run_tool("train.py", detector, *options, cwd=work)
    assert result.code == 2
    assert "has nothing in common with the model" in result.err


def test_tensorboard_by_one_option_writes_events_or_says_what_to_install(detector, tmp_path):
    option = "visualizer.vis_backends.0.type=TensorboardVisBackend"
    work = tmp_path / "work"
    work.mkdir()
    result = run_tool("train.py", detector, "--work-dir", "r", "--cfg-options", option, cwd=work)
    if find_spec("tensorboard") is None:
        assert result.code == 2
        (line,) = [line for line in result.err.splitlines() if "error:" in line]
        assert re.search('"pip install .*tensorboard"', line)
        assert "Traceback" not in result.err
    else:
        assert result.code == 0, result.err
        assert [path.stat().st_size > 0 for path in work.rglob("events.out.tfevents.*")] == [True]


@pytest.mark.parametrize(("step", "words"), [(1, "before the first checkpoint"), (4, "--resume")])
def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(step, words, detector, tmp_path):
    config = write_config(
        tmp_path / "stopped.py",
        f"""
        _base_ = ['{detector}']
        train_cfg = dict(max_epochs=3)
        custom_hooks = [dict(type='InterruptHook', step={step})]
        custom_imports = dict(imports=['convnext_backbone', 'helpers.interrupt_hook'])
        """,
    )
    work = tmp_path / "work"
    work.mkdir()
    result = run_tool("train.py", config, "--work-dir", "run", cwd=work)
    assert result.code == 130
    (line,) = result.err.splitlines()
    assert line.startswith("train.py: stopped")
    assert words in line
    assert ("epoch_1.pth" in line) == (step == 4)


def test_a_full_disk_ends_in_one_line_that_says_how_to_go_on(detector, tmp_path):
    config = write_config(
        tmp_path / "full.py",
        f"""
        _base_ = ['{detector}']
        train_cfg = dict(max_epochs=2)
        default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
        custom_hooks = [dict(type='FullDiskHook', step=4)]
        custom_imports = dict(imports=['convnext_backbone', 'helpers.interrupt_hook'])
        """,
    )
    work = tmp_path / "work"
    work.mkdir()
    result = run_tool("train.py", config, "--work-dir", "run", cwd=work)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert re.search(r"File too large: '\S*epoch_2\.pth': stopped; .*--resume.*epoch_1\.pth", line)
    assert [path.name for path in (work / "run").glob("*.pth")] == ["epoch_1.pth"]
    assert not list((work / "run").glob(".*"))
