"""Two processes on the CPU, over gloo, do what one process does."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from helpers.tool_process import ROOT, run_tool, write_config

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

if torch.cuda.is_available():
    pytest.skip("without a GPU", allow_module_level=True)

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from convnext_backbone.openmmlab.tools.config import build_model

HALVES = ("--cfg-options", "train_dataloader.batch_size=2", "val_dataloader.batch_size=2")
TWO_STEPS = ("train_cfg.max_iters=2", "train_cfg.val_interval=2")


def run_script(script, *args, cwd):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return subprocess.run(
        ["bash", str(ROOT / "tools" / script), *(str(arg) for arg in args)],
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, "PORT": str(port), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def mean_iou(text):
    return re.findall(r"mIoU: ([\d.]+)", text)[-1]


@pytest.fixture(scope="module")
def both(segmentor, tmp_path_factory):
    """The same two steps by one process with batches of four and by two with batches of two."""
    folder = tmp_path_factory.mktemp("distributed")
    options = ("--cfg-options", *TWO_STEPS)
    single = run_tool("train.py", segmentor, "--work-dir", "one", *options, cwd=folder)
    assert single.code == 0, single.err
    args = ("--work-dir", "two", *HALVES, *TWO_STEPS)
    double = run_script("dist_train.sh", segmentor, 2, *args, cwd=folder)
    assert double.returncode == 0, double.stderr
    return folder, single, double


def test_it_says_that_it_uses_gloo_once(both):
    _, _, double = both
    assert double.stdout.count("2 processes on the CPU, over gloo") == 1


def test_two_processes_end_with_the_weights_of_one(both):
    folder, _, _ = both
    one, two = (
        CheckpointLoader.load_checkpoint(str(folder / name / "iter_2.pth"))["state_dict"]
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_the_dumped_config_keeps_its_batch_norm_and_builds_in_one_process(both, segmentor):
    cfg = Config.fromfile(both[0] / "two" / segmentor.name)
    assert cfg.model.decode_head.norm_cfg.type == "SyncBN"
    assert build_model(cfg).decode_head.conv_seg.out_channels == 11


def test_two_processes_see_the_whole_validation_set(both, segmentor):
    folder, single, double = both
    assert mean_iou(double.stdout) == mean_iou(single.out)
    tested = run_script(
        "dist_test.sh", segmentor, folder / "two" / "iter_2.pth", 2, "--work-dir", "t", cwd=folder
    )
    assert tested.returncode == 0, tested.stderr
    assert mean_iou(tested.stdout) == mean_iou(single.out)


def test_a_mistake_is_told_once(segmentor, tmp_path):
    result = run_script(
        "dist_train.sh", segmentor, 2, "--resume", "gone.pth", "--work-dir", "run", cwd=tmp_path
    )
    assert result.returncode != 0
    assert result.stderr.count("train.py: error: --resume 'gone.pth' not found") == 1
    assert list(tmp_path.iterdir()) == []


FSDP = ROOT / "configs/upernet/upernet_convnextv2-h_8xb2-amp-fsdp-160k_ade20k-512x512.py"


@pytest.fixture(scope="module")
def sharded(digits, tmp_path_factory):
    """The shipped sharded segmentor made small: two steps on the digits, nothing random."""
    path = tmp_path_factory.mktemp("sharded") / "sharded.py"
    text = f"""
        _base_ = ['{FSDP}']
        head = dict(channels=16, dropout_ratio=0.0, num_classes=11)
        model = dict(
            data_preprocessor=dict(size=(64, 64)),
            backbone=dict(arch='convnextv2_atto', drop_path_rate=0.0, init_cfg=None),
            decode_head=dict(in_channels=[40, 80, 160, 320], **head),
            auxiliary_head=dict(in_channels=160, **head),
            test_cfg=dict(_delete_=True, mode='whole'),
        )
        steps = [dict(type=step) for step in ('LoadImageFromFile', 'LoadAnnotations')]
        pipeline = [*steps, dict(type='PackSegInputs')]
        part = dict(
            _delete_=True, type='BaseSegDataset', data_root='{digits}', img_suffix='.png',
            reduce_zero_label=True, metainfo=dict(classes=tuple('abcdefghijk')),
            pipeline=pipeline)
        prefix = dict(img_path='images/training', seg_map_path='annotations/training')
        loader = dict(num_workers=0, persistent_workers=False)
        train_dataloader = dict(
            batch_size=4, dataset=dict(data_prefix=prefix, **part), **loader)
        val_dataloader = dict(dataset=dict(data_prefix=prefix, **part), **loader)
        test_dataloader = val_dataloader
        train_cfg = dict(max_iters=2, val_interval=2)
        param_scheduler = []
        optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.1, weight_decay=0.05))
        default_hooks = dict(checkpoint=dict(interval=2))
        randomness = dict(seed=0)
        """
    return write_config(path, text)


@pytest.fixture
def start(sharded, tmp_path):
    """Initial weights for both runs: the runners draw different ones from the same seed."""
    path = tmp_path / "start.pth"
    torch.manual_seed(0)
    model = build_model(Config.fromfile(sharded), "cpu")
    model.init_weights()
    torch.save({"state_dict": model.state_dict()}, path)
    return f"load_from={path}"


def test_the_shipped_sharded_config_steps_on_the_cpu_as_one_process_does(sharded, start, tmp_path):
    options = ("--cfg-options", start)
    halves = (*options, "train_dataloader.batch_size=2")
    double = run_script("dist_train.sh", sharded, 2, "--work-dir", "two", *halves, cwd=tmp_path)
    assert double.returncode == 0, double.stderr
    assert "System environment" not in double.stdout
    assert "Iter(train) [1/2]" in double.stdout
    assert double.stdout.count("2 processes on the CPU, over gloo") == 1
    text = f"_base_ = ['{sharded}']\nrunner_type = 'Runner'\noptim_wrapper = dict(use_fsdp=False)\n"
    whole = write_config(tmp_path / "whole.py", text)
    single = run_tool("train.py", whole, "--work-dir", "one", *options, cwd=tmp_path)
    assert single.code == 0, single.err
    one, two, before = (
        CheckpointLoader.load_checkpoint(str(tmp_path / name))["state_dict"]
        for name in ("one/iter_2.pth", "two/iter_2.pth", "start.pth")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    for name in ("backbone.stages.3.1.grn.gamma", "decode_head.bottleneck.bn.running_var"):
        assert not torch.equal(two[name], before[name])
