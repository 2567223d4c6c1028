"""What the tools make of a config: its scope, its data sets, mixed precision, the folders made."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import warnings

import pytest
import torch

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config

from convnext_backbone.openmmlab import launch
from convnext_backbone.openmmlab.preflight import (
    UsageError,
    check_checkpoint,
    check_data,
    iter_datasets,
)


@pytest.mark.parametrize(
    ("config", "scope"),
    [
        ({"default_scope": "mmseg", "model": {"type": "MaskRCNN"}}, "mmseg"),
        ({"model": {"type": "MaskRCNN"}}, "mmdet"),
        ({"model": {"type": "EncoderDecoder"}}, "mmseg"),
        ({"model": {"type": "mmdet.Anything"}}, "mmdet"),
        (
            {"model": {"type": "Mine"}, "test_dataloader": {"dataset": {"type": "ADE20KDataset"}}},
            "mmseg",
        ),
        (
            {
                "model": {"type": "Mine"},
                "train_dataloader": {
                    "dataset": {"type": "RepeatDataset", "dataset": {"type": "CocoDataset"}}
                },
            },
            "mmdet",
        ),
    ],
)
def test_the_scope_is_found(config, scope):
    assert launch.find_scope(Config(config), "c.py") == scope


def test_a_class_as_type_tells_the_scope():
    from mmdet.models import MaskRCNN

    assert launch.scopes_of("MODELS", MaskRCNN) == ["mmdet"]


def test_a_type_of_both_packages_does_not_tell_the_scope():
    # Cityscapes is an instance set in mmdet and a label-map set in mmseg.
    assert launch.scopes_of("DATASETS", "CityscapesDataset") == ["mmdet", "mmseg"]
    config = Config(
        {
            "model": {"type": "Mine"},
            "train_dataloader": {"dataset": {"type": "CityscapesDataset"}},
        }
    )
    with pytest.raises(UsageError, match="default_scope = 'mmdet'"):
        launch.find_scope(config, "c.py")


def test_wrapped_data_sets_are_found_with_their_names():
    leaf = {"type": "CocoDataset"}
    wrapped = {
        "type": "ClassBalancedDataset",
        "dataset": {"type": "ConcatDataset", "datasets": [dict(leaf), {"dataset": leaf}]},
    }
    names = [name for _, name in iter_datasets(wrapped, "d")]
    assert names == ["d.dataset.datasets.0", "d.dataset.datasets.1.dataset"]


def test_remote_files_are_not_looked_for():
    dataset = {
        "type": "CocoDataset",
        "data_root": "s3://bucket/coco/",
        "ann_file": "annotations/train.json",
        "data_prefix": {"img": "train/"},
    }
    check_data({"train_dataloader": {"dataset": dataset}}, ("train",))
    check_checkpoint("https://example.org/weights.pth", "load_from")


def test_absolute_paths_do_not_hang_below_the_data_root(tmp_path):
    (tmp_path / "a.json").touch()
    dataset = {"data_root": "gone/", "ann_file": str(tmp_path / "a.json")}
    check_data({"test_dataloader": {"dataset": dataset}}, ("test",))


def test_amp_asks_for_what_the_machine_has():
    cfg = Config({"optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD"}}})
    launch.enable_amp(cfg)
    assert cfg.optim_wrapper.type == "AutoAmpOptimWrapper"
    assert cfg.optim_wrapper.optimizer.type == "SGD"


@pytest.mark.parametrize("kind", ["AmpOptimWrapper", "AutoAmpOptimWrapper"])
def test_amp_leaves_a_config_that_has_it(kind, capsys):
    cfg = Config({"optim_wrapper": {"type": kind, "optimizer": {"type": "SGD"}}})
    launch.enable_amp(cfg)
    assert cfg.optim_wrapper.type == kind
    assert "already" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "kind"), [("cpu", "OptimWrapper"), ("cuda", "AmpOptimWrapper")])
def test_mixed_precision_of_a_config_stays_only_where_there_is_a_gpu(
    device, kind, monkeypatch, capsys
):
    monkeypatch.setattr(launch, "get_device", lambda: device)
    wrapper = {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": "dynamic"}
    cfg = Config({"optim_wrapper": wrapper})
    launch.keep_full_precision(cfg)
    assert cfg.optim_wrapper.type == kind
    assert ("loss_scale" in cfg.optim_wrapper) == (device == "cuda")
    assert ("float32" in capsys.readouterr().out) == (device == "cpu")


def fail(cfg, error, *folders, begun=False):
    """Make folders inside `build_errors` and raise."""
    with launch.build_errors(cfg, "c.py") as started:
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "log").touch()
        if begun:
            started.before_train(None)
        raise error


@pytest.mark.parametrize("work_dir", ["made", "made/below", "there/made/below"])
def test_an_error_of_building_takes_back_only_what_it_made(work_dir, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    work = tmp_path / work_dir
    with pytest.raises(UsageError, match=r"c\.py"):
        fail(Config({"work_dir": str(work)}), KeyError("unknown type"), work)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_error_of_building_leaves_a_folder_that_another_run_uses(tmp_path):
    mine, other = tmp_path / "runs" / "mine", tmp_path / "runs" / "other"
    with pytest.raises(UsageError):
        fail(Config({"work_dir": str(mine)}), KeyError("unknown type"), mine, other)
    assert list((tmp_path / "runs").iterdir()) == [other]


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError])
def test_an_error_of_training_is_not_touched(error, tmp_path):
    work = tmp_path / "run"
    with pytest.raises(error, match="in a step"):
        fail(Config({"work_dir": str(work)}), error("in a step"), work, begun=True)
    assert work.exists()


def warn(*, then_fail):
    with launch.late_warnings():
        warnings.warn("library chatter", UserWarning, stacklevel=1)
        if then_fail:
            raise UsageError("the mistake")


def test_warnings_are_shown_after_the_checks_went_well():
    with pytest.warns(UserWarning, match="library chatter"):
        warn(then_fail=False)


def test_warnings_do_not_hide_a_mistake(recwarn):
    with pytest.raises(UsageError, match="the mistake"):
        warn(then_fail=True)
    assert list(recwarn) == []


def test_only_pytorch_launches_processes_without_a_gpu(monkeypatch):
    monkeypatch.setattr(launch, "get_device", lambda: "cpu")
    with pytest.raises(UsageError, match="slurm"):
        launch.prepare_processes(Config({"launcher": "slurm"}))
    assert not torch.distributed.is_initialized()
