"""A ConvNeXt cut by FullyShardedDataParallel computes and learns as a whole one does."""
# ruff: noqa: E402 - imports follow the check that mmengine is there

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytest.importorskip("mmengine")
pytestmark = pytest.mark.openmmlab

from helpers.sharded_step import SETTINGS, worker


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_shards_step_as_one_and_keep_every_rate_and_decay(tmp_path):
    out = tmp_path / "out.pt"
    mp.spawn(worker, args=(str(tmp_path / "store"), out), nprocs=2)
    results, expected, state = torch.load(out, weights_only=True)
    assert results["blocks"][2] == 1 + sum(SETTINGS["depths"])
    assert results["stages"][2] == 1 + len(SETTINGS["depths"])
    assert results["layers"][2] > 1
    for policy, (groups, weights, _) in results.items():
        assert groups == expected, policy
        assert weights.keys() == state.keys(), policy
        for name, value in state.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)
