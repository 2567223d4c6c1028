"""tools/benchmark.py: its checks, its figures and its command line. Nothing is said of speed."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from convnext_backbone import ConvNextConfig

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"
sys.path.insert(0, str(TOOL.parent))

from benchmarking import cells, contenders, targets  # noqa: E402


@pytest.fixture
def cell():
    return cells.Cell("convnext_atto", (64, 96), 2, "training", "float32", "eager", "cpu")


@pytest.fixture
def args():
    return argparse.Namespace(rounds=2, warmup=0, clock="wall", seed=0)


@pytest.mark.parametrize("arch", ["convnext_atto", "convnextv2_atto"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_all_contenders_of_equal_weights_agree(cell, args, arch, mode):
    names = ("ours", "ours selective", "ours full", "ours optimized")
    names += ("timm", "torchvision", "transformers", "onnxruntime")
    if contenders.importable(contenders.CONTENDERS["openvino"]):
        names += ("openvino",)
    results = cells.run_cell(replace(cell, arch=arch, mode=mode), names, args)
    found = {r.contender for r in results}
    assert {"ours", "timm", "transformers"} <= found
    for name in ("ours optimized", "onnxruntime"):
        assert (name in found) == (mode == "inference")
    assert ("torchvision" in found) == (arch == "convnext_atto")
    assert all(r.error <= 1e-5 and len(r.times) == 2 for r in results)


def test_a_contender_that_computes_something_else_is_refused(cell, args, monkeypatch):
    theirs = contenders.CONTENDERS["torchvision"]
    wrong = replace(theirs, run=lambda m, x: [f * 1.01 for f in theirs.run(m, x)])
    monkeypatch.setitem(contenders.CONTENDERS, "torchvision", wrong)
    with pytest.raises(contenders.BenchmarkError, match="torchvision differs from timm by 1"):
        cells.run_cell(cell, ("ours", "torchvision"), args)


def test_nan_never_passes():
    bad = torch.tensor([1.0, float("nan")])
    assert cells.relative_error([bad], [torch.ones(2)]) == float("inf")


def test_flops_are_those_that_torch_counts(cell):
    from torch.utils.flop_counter import FlopCounterMode

    config = ConvNextConfig.from_arch("convnext_atto")
    backbone = contenders.CONTENDERS["ours"].build(config)
    inference = replace(cell, mode="inference")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.randn(2, 3, 64, 96))
    assert cells.work_of(config, inference)["flops"] == counter.get_total_flops()
    assert cells.work_of(config, cell)["flops"] == 3 * counter.get_total_flops()


def test_held_bytes_count_what_is_there_after_the_forward_pass():
    layer = nn.Linear(4, 4)
    module = nn.Module()
    # y is saved for sine and cosine, and their sum is the output; x was there before
    module.forward = lambda x: [(y := layer(x)).sin() + y.cos()]
    x = torch.randn(8, 4, requires_grad=True)
    assert cells.held_bytes("ours", module, x, "cpu") == 2 * 8 * 4 * 4


def _results(cell, **times):
    return [
        cells.Result(cell, name.replace("_", " "), times=[float(t)], memory=int(t) * 10)
        for name, t in times.items()
    ]


def test_targets_are_judged_by_the_figures(cell):
    cell = replace(cell, arch="convnext_tiny")
    other = replace(cell, mode="inference")
    results = _results(cell, ours=10, ours_selective=5, ours_full=30, timm=12, torchvision=11)
    results += _results(other, ours=20, ours_optimized=10, timm=18, onnxruntime=15, openvino=9)
    found = {(v["target"], v["cell"]): v for v in targets.judge(results)}
    assert found["training over the best peer", str(cell)]["measured"] == pytest.approx(1.1)
    assert found["training over the best peer", str(cell)]["met"]
    assert found["plain over the best peer", str(other)]["measured"] == 0.9
    assert not found["plain over the best peer", str(other)]["met"]
    assert found["optimized over engines", str(other)]["measured"] == 0.9
    assert found["memory, selective", str(cell)]["met"]
    assert not found["time, full", str(cell)]["met"]


def test_spread_is_the_quartiles_distance(cell):
    r = cells.Result(cell, "ours", times=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert r.median == 3.0
    assert r.spread == pytest.approx(1.0)


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_writes_table_json_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    report, plot = tmp_path / "r.json", tmp_path / "r.png"
    done = run(
        "--arch", "convnext_atto", "--size", "32x64", "--rounds", "1", "--warmup", "0",
        "--contenders", "ours", "timm", "--threads", "1",
        "--json", str(report), "--plot", str(plot),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "convnext_atto 1x32x64 inference float32 eager cpu" in done.stdout
    rows = json.loads(report.read_text())["rows"]
    assert [row["contender"] for row in rows] == ["ours", "timm"]
    assert all(row["median_ms"] > 0 and row["of_matmul"] > 0 for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "resnet"], "unknown --arch 'resnet'"),
        (["--size", "big"], "a size is 224 or 800x1216 (height x width), got big"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--contenders", "mmpretrain"], "mmpretrain needs mmpretrain"),
        (["--size", "32", "--json", "no/such/folder.json", "--rounds", "1"], "no/such"),
    ],
)
def test_a_wrong_command_ends_in_one_line_and_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
