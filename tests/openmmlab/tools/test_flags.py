"""Mixed precision, as the flags and the machine have it."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config

from convnext_backbone.openmmlab.tools import flags as run_flags


def test_amp_asks_for_what_the_machine_has():
    cfg = Config({"optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD"}}})
    run_flags.enable_amp(cfg)
    assert cfg.optim_wrapper.type == "AutoAmpOptimWrapper"
    assert cfg.optim_wrapper.optimizer.type == "SGD"


@pytest.mark.parametrize("kind", ["AmpOptimWrapper", "AutoAmpOptimWrapper"])
def test_amp_leaves_a_config_that_has_it(kind, capsys):
    cfg = Config({"optim_wrapper": {"type": kind, "optimizer": {"type": "SGD"}}})
    run_flags.enable_amp(cfg)
    assert cfg.optim_wrapper.type == kind
    assert "already" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "kind"), [("cpu", "OptimWrapper"), ("cuda", "AmpOptimWrapper")])
def test_mixed_precision_of_a_config_stays_only_where_there_is_a_gpu(
    device, kind, monkeypatch, capsys
):
    monkeypatch.setattr(run_flags, "get_device", lambda: device)
    wrapper = {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": "dynamic"}
    cfg = Config({"optim_wrapper": wrapper})
    run_flags.keep_full_precision(cfg)
    assert cfg.optim_wrapper.type == kind
    assert ("loss_scale" in cfg.optim_wrapper) == (device == "cuda")
    assert ("float32" in capsys.readouterr().out) == (device == "cpu")
