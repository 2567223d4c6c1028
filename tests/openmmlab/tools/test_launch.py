"""What building leaves behind when it fails, and which warnings are shown."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import warnings

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config

from convnext_backbone.openmmlab.tools import launch
from convnext_backbone.openmmlab.tools.errors import UsageError


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
