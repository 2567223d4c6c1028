"""tools/benchmark.py: its checks, its figures and its command line. No speed is asserted."""

import argparse
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"
sys.path.insert(0, str(TOOL.parent))

from benchmarking import contenders, memory, reports, roofline, targets, timing  # noqa: E402
from benchmarking.cell import BenchmarkError, Cell, Result  # noqa: E402

AVAILABLE = [name for name, c in contenders.CONTENDERS.items() if contenders.importable(c)]


@pytest.fixture
def cell():
    return Cell("convnext_atto", (64, 96), 2, "training", "float32", "eager", "cpu")


@pytest.fixture
def args():
    return argparse.Namespace(rounds=2, warmup=0, clock="wall", seed=0)


# Contenders


@pytest.mark.parametrize("arch", ["convnext_atto", "convnextv2_atto"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_all_contenders_of_equal_weights_agree(cell, args, arch, mode):
    results = timing.run_cell(replace(cell, arch=arch, mode=mode), AVAILABLE, args)
    found = {r.contender for r in results}
    assert {"ours", "timm", "transformers"} <= found
    assert {"ours selective", "ours full"} <= found or mode == "inference"
    for name in {"ours optimized", "onnxruntime", "openvino"} & set(AVAILABLE):
        assert (name in found) == (mode == "inference")
    assert ("torchvision" in found) == (arch == "convnext_atto")
    assert all(r.error <= 1e-5 and len(r.times) == 2 for r in results)


@pytest.mark.parametrize(
    ("mode", "dtype"), [("inference", "bfloat16"), ("training", "autocast-bfloat16")]
)
def test_contenders_agree_with_fp32_in_lower_precision(cell, args, mode, dtype):
    results = timing.run_cell(replace(cell, mode=mode, dtype=dtype), AVAILABLE, args)
    assert {"ours", "timm", "torchvision"} <= {r.contender for r in results}
    assert all(1e-4 < r.error < 5e-2 for r in results)  # computed in bf16, and right


def test_weights_stay_in_fp32_under_autocast(cell):
    master = contenders.CONTENDERS["ours"].build(cell.config)
    runner = timing.Runner("ours", master, replace(cell, dtype="autocast-bfloat16"))
    assert {p.dtype for p in runner.module.parameters()} == {torch.float32}
    seen = []
    runner.module.stages[0][0].pwconv1.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    runner.step(runner.image())
    assert seen == [torch.bfloat16]


def test_runtimes_compute_in_the_dtype_of_the_cell(cell):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a processor with bf16")
    bf16 = replace(cell, mode="inference", dtype="bfloat16")
    assert contenders.absence("openvino", bf16) is None
    master = contenders.CONTENDERS["ours"].build(cell.config)
    contenders.randomise(master)
    runner, ours = (timing.Runner(name, master, bf16) for name in ("openvino", "ours"))
    x = torch.randn(cell.shape).bfloat16()
    exact = ours.module.float()(x.float())  # of the same rounded weights
    assert 1e-4 < timing.relative_error(runner.step(runner.to_input(x)), exact) < 5e-2


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("torchvision", {"arch": "convnextv2_atto"}, "has no V2"),
        ("onnxruntime", {"mode": "training"}, "does inference only"),
        ("onnxruntime", {"dtype": "bfloat16"}, "does not compute in bfloat16"),
        ("onnxruntime", {"device": "cuda"}, "runs on cpu only"),
        ("onnxruntime", {"engine": "compile"}, "is not compiled by torch"),
        ("ours optimized", {"dtype": "autocast-bfloat16"}, "does not compute in autocast-"),
    ],
)
def test_contenders_that_take_no_part_are_named_with_the_reason(
    cell, name, changes, reason, capsys
):
    here = replace(cell, **{"mode": "inference", **changes})
    assert contenders.absence(name, here).startswith(reason)
    reports.print_absent(here, ["timm", name])
    printed = capsys.readouterr().out
    assert (f"{name} takes no part: it {reason}" in printed) != name.startswith("ours")
    assert "timm" not in printed


def test_a_contender_that_computes_something_else_is_refused(cell, args, monkeypatch):
    theirs = contenders.CONTENDERS["torchvision"]
    wrong = replace(theirs, run=lambda m, x: [f * 1.01 for f in theirs.run(m, x)])
    monkeypatch.setitem(contenders.CONTENDERS, "torchvision", wrong)
    with pytest.raises(BenchmarkError, match="torchvision differs from timm by 1"):
        timing.run_cell(cell, ("ours", "torchvision"), args)


def test_the_reference_is_an_implementation_by_others_that_is_installed(monkeypatch):
    missing = set()
    monkeypatch.setattr(contenders, "importable", lambda c: not missing.intersection(c.needs))
    assert contenders.reference_for(1) == contenders.reference_for(2) == "timm"
    missing.add("timm")
    assert contenders.reference_for(1) == "torchvision"
    assert contenders.reference_for(2) == "transformers"
    missing.add("transformers")
    with pytest.raises(BenchmarkError, match="nothing to compare with: pip install timm"):
        contenders.reference_for(2)


def test_nan_never_passes():
    bad = torch.tensor([1.0, float("nan")])
    assert timing.relative_error([bad], [torch.ones(2)]) == float("inf")


# Figures


def test_flops_are_those_that_torch_counts(cell):
    from torch.utils.flop_counter import FlopCounterMode

    backbone = contenders.CONTENDERS["ours"].build(cell.config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.randn(2, 3, 64, 96))
    inference = replace(cell, mode="inference")
    assert roofline.work_of(inference)["flops"] == counter.get_total_flops()
    assert roofline.work_of(cell)["flops"] == 3 * counter.get_total_flops()


# A chain of 6 linear layers on 500 rows of 64 numbers in fp32: each map has `MAP` bytes.
MAP, LAYERS = 500 * 64 * 4, 6


@pytest.fixture
def chain():
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(LAYERS)))
    for p in layers.parameters():
        p.grad = torch.zeros_like(p)
    return layers


@pytest.fixture
def rows():
    return torch.randn(500, 64)


def test_held_bytes_are_the_saved_activations_and_the_output(chain, rows):
    # Each layer saves its input; the first input was there before.
    assert memory.held_bytes(lambda: chain(rows), "cpu") == LAYERS * MAP
    with torch.no_grad():
        assert memory.held_bytes(lambda: chain(rows), "cpu") == MAP
        assert memory.peak_bytes(lambda: chain(rows), "cpu") == 2 * MAP


def test_held_bytes_count_what_checkpointing_keeps(chain, rows):
    blocks = [chain[:2], chain[2:4], chain[4:]]

    def run(**options):
        options |= {"use_reentrant": False, "preserve_rng_state": False}
        x = rows
        for block in blocks:
            x = checkpoint(lambda x, b=block: b(x).sin(), x, **options)
        return x

    # The blocks' inputs but the first, and the output.
    assert memory.held_bytes(run, "cpu") == len(blocks) * MAP

    def save_products():
        return create_selective_checkpoint_contexts([torch.ops.aten.mm.default])

    # Also each product, in a cache that hooks on saved tensors do not see.
    held = memory.held_bytes(lambda: run(context_fn=save_products), "cpu")
    assert held == (len(blocks) + LAYERS) * MAP


def test_peak_bytes_are_reached_in_the_backward_pass(chain, rows):
    gradient = torch.ones_like(rows)
    peak = memory.peak_bytes(lambda: chain(rows).backward(gradient), "cpu")
    # All activations and the gradient of the last layer's input, beside one weight's gradient.
    weight = chain[0].weight.nbytes
    assert LAYERS * MAP <= peak <= (LAYERS + 1) * MAP + weight


def test_selective_and_full_checkpointing_hold_less(cell, args):
    names = ("ours", "ours selective", "ours full")
    plain, selective, full = timing.run_cell(cell, names, args)
    assert full.memory < selective.memory < plain.memory
    assert all(r.memory <= r.peak for r in (plain, selective, full))


def _spend_processor_time(seconds):
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


def test_the_processor_clock_counts_other_threads():
    now = timing.clock_of("cpu", "cpu")
    before = now()
    thread = threading.Thread(target=_spend_processor_time, args=(0.02,))
    thread.start()
    thread.join()
    assert now() - before >= 20


def test_spread_is_the_quartiles_distance(cell):
    r = Result(cell, "ours", times=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert r.median == 3.0
    assert r.spread == pytest.approx(1.0)


# Targets


def _results(cell, **times):
    return [
        Result(cell, name.replace("_", " "), times=[float(t)], memory=int(t) * 10)
        for name, t in times.items()
    ]


def test_targets_are_judged_by_the_figures(cell):
    cell = replace(cell, arch="convnext_tiny")
    other = replace(cell, mode="inference")
    results = _results(cell, ours=10, ours_selective=5, ours_full=30, timm=12, torchvision=11)
    results += _results(other, ours=20, ours_optimized=10, timm=18, onnxruntime=15, openvino=9)
    found = {(v["target"], v["cell"]): v for v in targets.judge(results)}
    training = found["training, speed over the best peer", str(cell)]
    assert training["measured"] == pytest.approx(1.1)
    assert training["met"]
    assert training["than"] == "torchvision"
    inference = found["inference, speed over the best peer", str(other)]
    assert inference["measured"] == 0.9
    assert not inference["met"]
    assert found["optimized, speed over the best runtime", str(other)]["measured"] == 0.9
    assert found["selective, memory over plain", str(cell)]["met"]
    assert not found["full, time over plain", str(cell)]["met"]


@pytest.mark.parametrize(("arch", "met"), [("convnext_tiny", True), ("convnextv2_tiny", False)])
def test_the_spread_excuses_only_the_targets_that_say_so(cell, arch, met):
    cell = replace(cell, arch=arch, mode="inference")
    ours = Result(cell, "ours", times=[95.0, 100.0, 105.0])  # quartiles at 95 and 105
    verdict = next(targets.judge([ours, Result(cell, "timm", times=[92.0])]))
    assert verdict["measured"] == 0.92
    assert verdict["met"] is met


# The command


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_writes_table_json_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    report, plot = tmp_path / "r.json", tmp_path / "r.png"
    done = run(
        "--arch", "convnext_atto", "--size", "32x64", "--rounds", "1", "--warmup", "0",
        "--contenders", "ours", "timm", "--threads", "1", "--mode", "training",
        "--json", str(report), "--plot", str(plot),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "convnext_atto 1x32x64 training float32 eager cpu" in done.stdout
    assert "errors are those to timm in fp32" in done.stdout
    rows = json.loads(report.read_text())["rows"]
    assert [row["contender"] for row in rows] == ["ours", "timm"]
    assert all(row["median_ms"] > 0 and row["of_matmul"] > 0 for row in rows)
    assert all(0 < row["memory"] <= row["peak"] for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "resnet"], "unknown --arch 'resnet'"),
        (["--size", "big"], "a size is 224 or 800x1216 (height x width), got big"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--contenders", "mmpretrain"], "mmpretrain needs mmpretrain"),
        (["--json", "no/such/folder.json"], "--json: there is no folder no/such"),
        (["--plot", "no/such/plot.png"], "--plot: there is no folder no/such"),
    ],
)
def test_a_wrong_command_ends_in_one_line_and_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
