"""Two processes on the CPU, over gloo, do what one process does."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from tool_process import ROOT, run_tool

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

if torch.cuda.is_available():
    pytest.skip("without a GPU", allow_module_level=True)

from convnext_backbone.openmmlab.safe_globals import allow_mmengine_types

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
    allow_mmengine_types()
    one, two = (
        torch.load(folder / name / "iter_2.pth", weights_only=True)["state_dict"]
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


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
