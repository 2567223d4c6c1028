"""Mixed precision, as the flags and the machine have it; the hook that saves checkpoints."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from convnext_backbone.openmmlab.checkpoint_hook import AtomicCheckpointHook
from convnext_backbone.openmmlab.config_walk import split_datasets
from convnext_backbone.openmmlab.tools import flags as run_flags
from convnext_backbone.openmmlab.tools.errors import UsageError


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


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
@pytest.mark.parametrize("wrapper", [None, "ConcatDataset", "RepeatDataset"])
def test_augmentation_reaches_the_data_set_inside_a_wrapper(scope, wrapper):
    dataset = {"type": "OwnDataset", "pipeline": [{"type": "Load"}, {"type": "Pack"}]}
    key, value = {"ConcatDataset": ("datasets", [dataset])}.get(wrapper, ("dataset", dataset))
    settings = {
        "default_scope": scope,
        "model": {"type": "Own"},
        "tta_model": {"type": "OwnTTAModel"},
        "tta_pipeline": [{"type": "TestTimeAug"}],
        "test_dataloader": {"dataset": {"type": wrapper, key: value} if wrapper else dataset},
    }
    cfg = Config(settings)
    run_flags.enable_tta(cfg, "c.py")
    assert cfg.model == {"type": "OwnTTAModel", "module": {"type": "Own"}}
    ((inner, _),) = split_datasets(cfg, "test")
    assert inner.pipeline == settings["tta_pipeline"]
    assert wrapper is None or "pipeline" not in cfg.test_dataloader.dataset


@pytest.mark.parametrize("given", [True, False])
def test_masks_are_augmented_by_a_model_of_the_users_only(given):
    cfg = Config(
        {
            "default_scope": "mmdet",
            "model": {"type": "Own", "mask_head": {}},
            "test_dataloader": {"dataset": {"pipeline": [{"type": "Pack"}]}},
            **({"tta_model": {"type": "OwnTTAModel"}} if given else {}),
        }
    )
    if given:
        run_flags.enable_tta(cfg, "c.py")
        assert cfg.model.type == "OwnTTAModel"
        return
    with pytest.raises(UsageError, match="merges boxes, not masks"):
        run_flags.enable_tta(cfg, "c.py")


class Own(CheckpointHook):
    """A hook of a user's."""


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
@pytest.mark.parametrize(
    "type_", ["CheckpointHook", "mmengine.CheckpointHook", "mmengine.hooks.CheckpointHook",
              CheckpointHook])  # fmt: skip
def test_mmengines_own_checkpoint_hook_becomes_the_one_that_loses_nothing(type_, scope):
    hook = {"type": type_, "interval": 3, "save_best": "mIoU"}
    cfg = Config({"default_scope": scope, "default_hooks": {"checkpoint": dict(hook)},
                  "custom_hooks": [{"type": "EMAHook"}, dict(hook)]})  # fmt: skip
    run_flags.protect_checkpoints(cfg)
    for changed in (cfg.default_hooks.checkpoint, cfg.custom_hooks[1]):
        built = HOOKS.build(changed)
        assert type(built) is AtomicCheckpointHook
        assert (built.interval, built.save_best) == (3, ["mIoU"])
    assert cfg.custom_hooks[0].type == "EMAHook"


def test_a_config_without_a_checkpoint_hook_gets_it_as_often_as_from_mmengine():
    for hooks in ({}, {"default_hooks": {"logger": {"type": "LoggerHook"}}}):
        cfg = Config({"default_scope": "mmdet", **hooks})
        run_flags.protect_checkpoints(cfg)
        built = HOOKS.build(cfg.default_hooks.checkpoint)
        assert (type(built), built.interval) == (AtomicCheckpointHook, 1)


@pytest.mark.parametrize("hook", [None, {"type": Own}, {"type": "AtomicCheckpointHook"}])
def test_a_users_own_choice_of_a_checkpoint_hook_stays(hook):
    cfg = Config({"default_scope": "mmdet", "default_hooks": {"checkpoint": hook}})
    run_flags.protect_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint == hook
