"""Curves of runs hold what mmengine logged, once for every iteration."""

import json
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmengine")

from convnext_backbone.openmmlab.tools import plot  # noqa: E402 - needs mmengine's matplotlib


def log(folder, name, lines):
    path = folder / name / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(json.dumps(line) for line in lines))


@pytest.fixture
def resumed(tmp_path):
    """A run of three epochs of ten iterations that was resumed after the second."""
    train = [{"lr": 0.1 / i, "loss": 50.0 - i, "iter": i, "step": i} for i in (10, 20, 30)]
    val = [{"coco/bbox_mAP": 0.1 * e, "coco/bbox_mAP_s": -1.0, "step": e} for e in (1, 2)]
    log(tmp_path / "run", "20260101_000000", [train[0], val[0], train[1], val[1], train[2]])
    log(tmp_path / "run", "20260102_000000", [{"lr": 0.5, "loss": 1.5, "iter": 30, "step": 30}])
    return str(tmp_path / "run")


def test_curves_are_by_iteration_and_the_later_log_wins(resumed):
    curves = plot.read_curves(resumed)
    assert curves["loss"] == {10: 40.0, 20: 30.0, 30: 1.5}
    assert curves["lr"][30] == 0.5
    # mmengine's step of a validation is the epoch: it belongs to the iteration before.
    assert curves["coco/bbox_mAP"] == {10: 0.1, 20: 0.2}


def test_runs_are_drawn_together_into_one_picture(resumed, tmp_path, capsys):
    log(tmp_path / "other", "20260101_000000", [{"loss": 2.0, "lr": 0.1, "iter": 5}])
    pictures = []
    for number, runs in enumerate(([resumed], [resumed, str(tmp_path / "other")])):
        out = tmp_path / "new" / f"{number}.png"
        assert plot.main([*runs, "--out", str(out)]) == 0
        with Image.open(out) as picture:
            assert picture.format == "PNG"
            pictures.append(picture.convert("RGB").tobytes())
    assert pictures[0] != pictures[1]
    assert "2 runs drawn" in capsys.readouterr().out


def test_metrics_are_drawn_by_the_ends_of_their_names(resumed, tmp_path):
    pictures = {}
    for metric in ("mAP", "bbox_mAP", "mAP_s", "none"):
        out = tmp_path / f"{metric}.png"
        assert plot.main([resumed, "--out", str(out), "--metrics", metric]) == 0
        pictures[metric] = out.read_bytes()
    assert pictures["mAP"] == pictures["bbox_mAP"] != pictures["none"]


@pytest.mark.parametrize(("name", "drawn"), [("loss", True), ("coco/bbox_mAP", False)])
def test_a_negative_loss_is_drawn_and_a_metric_without_objects_is_not(name, drawn, tmp_path):
    lines = [{name: 1.0, "iter": 1}, {name: -1.0, "iter": 2}, {name: 0.5, "iter": 3}]
    for folder, kept in (("with", lines), ("without", [lines[0], lines[2]])):
        log(tmp_path / folder / "run", "20260101_000000", kept)
        out = str(tmp_path / folder / "curves.png")
        assert plot.main([str(tmp_path / folder / "run"), "--out", out]) == 0
    pictures = [(tmp_path / folder / "curves.png").read_bytes() for folder in ("with", "without")]
    assert (pictures[0] != pictures[1]) == drawn


def test_curves_go_forwards_where_a_resumed_run_logged_other_iterations(resumed, tmp_path):
    log(tmp_path / "run", "20260103_000000", [{"loss": 2.0, "lr": 0.1, "iter": 15}])
    log(tmp_path / "whole" / "run", "20260101_000000", [
        {"loss": loss, "lr": lr, "iter": step}
        for step, loss, lr in ((10, 40.0, 0.01), (15, 2.0, 0.1), (20, 30.0, 0.005), (30, 1.5, 0.5))
    ])  # fmt: skip
    for folder in (tmp_path, tmp_path / "whole"):
        arguments = [str(folder / "run"), "--out", str(folder / "curves.png"), "--metrics", "none"]
        assert plot.main(arguments) == 0
    pictures = [(f / "curves.png").read_bytes() for f in (tmp_path, tmp_path / "whole")]
    assert pictures[0] == pictures[1]


def test_what_a_killed_run_wrote_last_is_left_out(resumed):
    before = plot.read_curves(resumed)
    scalars = Path(resumed) / "20260102_000000" / "vis_data" / "scalars.json"
    scalars.write_text(scalars.read_text() + '\n{"lr": 0.4, "lo')
    assert plot.read_curves(resumed) == before


def test_a_folder_without_a_run_and_a_damaged_log_are_named(tmp_path, capsys):
    assert plot.main([str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    assert "no log of a run" in capsys.readouterr().err
    log(tmp_path, "t", [{"loss": 1.0}])
    (tmp_path / "t" / "vis_data" / "scalars.json").write_text('{"loss": 1.0}\n{"lo\n')
    assert plot.main([str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    assert "scalars.json:2" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
