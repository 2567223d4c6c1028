"""Batch norm over two processes on the CPU is batch norm over their images together."""
# ruff: noqa: E402 - imports follow the check that mmengine is there

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytest.importorskip("mmengine")
pytestmark = [
    pytest.mark.openmmlab,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo"),
]

from helpers.sync_bn_step import CASES, batch, filled, run, worker


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes has computed, `{name of a case: results}`."""
    folder = tmp_path_factory.mktemp("sync_bn")
    mp.spawn(worker, args=(str(folder / "store"), str(folder / "out")), nprocs=2)
    return [torch.load(folder / f"out{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", [name for name in CASES if name != "bfloat16"])
def test_two_processes_with_unequal_shares_are_one_with_all_images(case, processes):
    parts = [process[case] for process in processes]
    layer = filled(torch.nn.BatchNorm2d(5, **CASES[case][0], dtype=torch.float64))
    y, x_grad, grads, buffers, evaluated = run(layer, *batch())
    close = {"atol": 1e-12, "rtol": 1e-10}
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), y, **close)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), x_grad, **close)
    # Of the weights each process has the gradient of its images; DDP brings them together.
    sums = [sum(pair) for pair in zip(*(part[2] for part in parts), strict=True)]
    torch.testing.assert_close(sums, grads, **close)
    for part in parts:
        torch.testing.assert_close(part[3], buffers, **close)
    if layer.track_running_stats:  # without, a process that evaluates takes its own statistics
        torch.testing.assert_close(torch.cat([part[4] for part in parts]), evaluated, **close)


def test_bfloat16_comes_and_goes_with_statistics_in_float32(processes):
    parts = [process["bfloat16"] for process in processes]
    images, grad = (x.bfloat16().float() for x in batch())
    y, x_grad, _, buffers, _ = run(filled(torch.nn.BatchNorm2d(5)), images, grad)
    for part in parts:
        assert (part[0].dtype, part[1].dtype) == (torch.bfloat16, torch.bfloat16)
        torch.testing.assert_close(part[3], buffers, atol=1e-5, rtol=1e-5)
    rounding = {"atol": 1e-2, "rtol": 2**-8, "check_dtype": False}
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), y, **rounding)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), x_grad, **rounding)
