"""What a distributed run without a GPU needs of its config."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import pytest
import torch

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmcv.cnn import build_norm_layer
from mmengine.config import Config
from mmengine.registry import MODELS

from convnext_backbone.openmmlab.cpu_sync_bn import CpuSyncBN
from convnext_backbone.openmmlab.tools import processes as run_processes
from convnext_backbone.openmmlab.tools.errors import UsageError


def test_only_pytorch_launches_processes_without_a_gpu(monkeypatch):
    monkeypatch.setattr(run_processes, "get_device", lambda: "cpu")
    with pytest.raises(UsageError, match="slurm"):
        run_processes.prepare_processes(Config({"launcher": "slurm"}))
    assert not torch.distributed.is_initialized()


RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}


@pytest.mark.parametrize("launcher", ["none", *RANKS])
@pytest.mark.parametrize("variable", RANKS.values())
def test_one_process_of_a_launcher_speaks(launcher, variable, monkeypatch, capsys):
    for name in RANKS.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_processes, "_launcher", "none")
    run_processes.set_launcher(launcher)
    for number in ("0", "1", "10"):
        monkeypatch.setenv(variable, number)
        run_processes.print_once(f"from {number}")
    # The variables of another launcher, as in a shell inside a Slurm job, are no rank.
    count = 1 if variable == RANKS.get(launcher) else 3
    assert capsys.readouterr().out.splitlines() == ["from 0", "from 1", "from 10"][:count]


@pytest.fixture
def joined(monkeypatch):
    """A process that a launcher started, on a machine without a GPU; the group is not made."""
    monkeypatch.setattr(run_processes, "get_device", lambda: "cpu")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setitem(MODELS.module_dict, "SyncBN", MODELS.get("SyncBN"))


def prepared(**settings):
    cfg = Config({"launcher": "pytorch", "model": {}, **settings})
    run_processes.prepare_processes(cfg)
    return cfg


DDP = {"type": "MMDistributedDataParallel", "broadcast_buffers": False}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {**DDP, "find_unused_parameters": False, "device_ids": None}),
        ({"type": "Mine", "x": 1}, {"type": "Mine", "x": 1, "device_ids": None}),
    ],
)
def test_the_runners_wrapper_names_no_gpu(given, expected, joined):
    assert prepared(model_wrapper_cfg=given).model_wrapper_cfg == expected


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({"type": "DDPStrategy"}, {**DDP, "device_ids": None}),
        ({"type": "FSDPStrategy"}, {"device_id": "cpu"}),
        (
            {"type": "FSDPStrategy", "model_wrapper": {"auto_wrap_policy": "p"}},
            {"auto_wrap_policy": "p", "device_id": "cpu"},
        ),
    ],
)
def test_the_wrapper_of_a_strategy_names_no_gpu(strategy, expected, joined):
    cfg = prepared(strategy=strategy)
    assert cfg.strategy.model_wrapper == expected
    assert "model_wrapper_cfg" not in cfg


def test_synchronised_batch_norm_is_one_that_works_without_a_gpu(joined):
    model = {"norm_cfg": {"type": "SyncBN", "eps": 1e-3}}
    cfg = prepared(model=model)
    assert cfg.model == model  # what the user wrote is what the dumped config says
    name, layer = build_norm_layer(cfg.model.norm_cfg, 4)
    assert (name, type(layer), layer.eps) == ("bn", CpuSyncBN, 1e-3)
    assert torch.equal(layer.weight, torch.ones(4))  # mmcv's own begins with random ones


def test_a_group_is_left(monkeypatch):
    waits = []
    monkeypatch.setattr(run_processes.time, "sleep", waits.append)
    run_processes.leave_processes()
    assert waits == []
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    run_processes.leave_processes()
    assert not torch.distributed.is_initialized()
    assert waits == [run_processes.GLOO_REST]
