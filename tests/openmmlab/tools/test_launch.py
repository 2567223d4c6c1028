"""Which errors are the config's, and which warnings are shown."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import os
import warnings

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.config import Config
from torch.utils.data import DataLoader, SequentialSampler

from convnext_backbone.openmmlab.tools import launch, processes
from convnext_backbone.openmmlab.tools.errors import UsageError
from convnext_backbone.openmmlab.tools.run_hook import RunHook, images_per_step


def fail(error, *, begun):
    hook = RunHook(Config(), partial=True)
    hook.started = begun
    with launch.build_errors("c.py", hook):
        raise error


def test_an_error_of_building_names_the_config():
    with pytest.raises(UsageError, match=r"c\.py.*unknown type"):
        fail(KeyError("unknown type"), begun=False)


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError])
def test_an_error_of_training_is_not_touched(error):
    with pytest.raises(error, match="in a step"):
        fail(error("in a step"), begun=True)


def test_a_run_without_a_launcher_leaves_no_rank_to_other_libraries(monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert launch.train(["gone.py"]) == 2
    assert "LOCAL_RANK" not in os.environ


@pytest.mark.parametrize(("launcher", "lines"), [("none", 1), ("slurm", 0)])
def test_an_error_is_printed_where_the_launchers_rank_is_0(launcher, lines, monkeypatch, capsys):
    monkeypatch.setattr(processes, "_launcher", "none")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")  # a run sets it, and other libraries read it
    assert launch.train(["gone.py", "--launcher", launcher]) == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


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


def test_the_batch_size_is_found_whoever_makes_the_batches():
    images = list(range(8))
    batches = AspectRatioBatchSampler(SequentialSampler(images), batch_size=3)
    assert images_per_step(DataLoader(images, batch_size=3)) == 3
    assert images_per_step(DataLoader(images, batch_sampler=batches)) == 3
    assert images_per_step(DataLoader(images, batch_sampler=[[0, 1], [2]])) is None
