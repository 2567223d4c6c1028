"""The Triton kernels compile for Hopper, with tensor cores where meant and nothing spilled.

Triton's compiler needs no GPU. What the code does is test_triton.py's business.
"""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from convnext_backbone.kernels import triton_kernels, triton_ops  # noqa: E402

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
pytestmark = [
    pytest.mark.skipif(not TOOL.exists(), reason="this Triton brings no NVIDIA disassembler"),
    pytest.mark.skipif(triton_ops.INTERPRETED, reason="the interpreter compiles nothing"),
]
WIDTHS = {"bf16": 2, "fp32": 4}


@pytest.fixture(autouse=True)
def _no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def build(tmp_path, name, signature, constants, launch):
    """Compile for compute capability 9.0; return its resources and its machine code."""
    kernel = getattr(triton_kernels, name)
    types = {n: "constexpr" if n in constants else signature[n] for n in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names)
        if types[n].startswith("*") or n in ("C", "D")
    }
    places = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
    source = ASTSource(fn=kernel, signature=types, constexprs=places, attrs=aligned)
    binary = tmp_path / "kernel.cubin"
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    binary.write_bytes(compiled.asm["cubin"])
    usage, code = (
        subprocess.run([TOOL, option, binary], capture_output=True, text=True, check=True).stdout
        for option in ("--dump-resource-usage", "--dump-sass")
    )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    return {"registers": int(found[1]), "stack": int(found[2])}, code


def pointers(p, *names, **others):
    return dict.fromkeys(names, f"*{p}") | others


@pytest.mark.parametrize("channels", [96, 192, 384, 768])
@pytest.mark.parametrize("p", WIDTHS)
def test_depthwise_norm_spills_nothing(tmp_path, p, channels):
    block = triton_ops._power(channels)
    launch = triton_ops._DEPTHWISE[block]
    names = ("x", "weight", "bias", "norm_weight", "norm_bias", "out", "y")
    counts = dict.fromkeys(("H", "W", "C"), "i32")
    signature = pointers(p, *names, mean="*fp32", rstd="*fp32", eps="fp32", **counts)
    constants = {
        "K": 7, "ROWS": launch.rows, "COLS": launch.cols, "BLOCK_C": block,
        "NORM": True, "KEEP": True,
    }  # fmt: skip
    usage, code = build(
        tmp_path, "depthwise_norm", signature, constants, {"num_warps": launch.warps}
    )
    assert usage["stack"] == 0
    assert "LDG.E.128" in code  # 16 bytes a load


CASES = {
    "pointwise_gelu": (
        triton_ops._FIRST, ("x", "weight", "bias", "out", "hidden"), {"squares": "*fp32"},
        ("BLOCK_P", "BLOCK_D", "BLOCK_C"), {"TANH": False, "KEEP": True, "SQUARES": True},
    ),
    "pointwise_residual": (
        triton_ops._SECOND, ("a", "weight", "bias", "gamma", "x", "out"), {"scale": "*fp32"},
        ("BLOCK_P", "BLOCK_C", "BLOCK_D"), {"drop": None},
    ),
    "whole_mlp": (
        triton_ops._WHOLE, ("t", "weight1", "bias1", "weight2", "bias2", "x", "out"), {},
        ("BLOCK_P", "BLOCK_C", "BLOCK_D"), {"TANH": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("p", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_products_run_on_the_right_units_and_spill_nothing(tmp_path, name, p):
    table, names, others, blocks, constants = CASES[name]
    tiles = table[WIDTHS[p]]
    # `whole_mlp` holds all channels, so its table names no outputs
    sides = (tiles.pixels, tiles.outputs or triton_ops.MAX_WHOLE_CHANNELS, tiles.inputs)
    constants = constants | dict(zip(blocks, sides, strict=True)) | {"WIDE": False}
    signature = pointers(p, *names, **others, **dict.fromkeys(("P", "C", "D"), "i32"))
    launch = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    usage, code = build(tmp_path, name, signature, constants, launch)
    assert usage["stack"] == 0
    assert ("HGMMA" in code) == (p == "bf16")  # the tensor cores, or IEEE fp32
