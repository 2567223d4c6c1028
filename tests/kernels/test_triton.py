"""The Triton kernels in Triton's interpreter against the definition in double precision.

The interpreter is chosen when Triton is imported, so the checks run in a process of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# The interpreter cuts bf16 numbers off where a GPU rounds them: twice the error.
TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}


@pytest.fixture(scope="module")
def errors():
    """{case: {tensor: relative error}} of all cases, from one process."""
    program = Path(__file__).with_name("run_triton.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [*(("2x5x3x8", dtype) for dtype in TOLERANCE), ("1x6x9x24", "float32")]
)
def test_a_fused_block_equals_the_definition(errors, version, shape, dtype):
    found = errors[f"{version} {shape} {dtype}"]
    assert {"training", "inference", "x", "dwconv.weight", "pwconv2.bias"} <= found.keys()
    assert {name: e for name, e in found.items() if not e <= TOLERANCE[dtype]} == {}


@pytest.mark.parametrize(
    "case", ["drop path", "strided input", "empty batch", "tanh", "silent channel", "wide map"]
)
def test_a_fused_block_equals_the_definition_in_corner_cases(errors, case):
    assert errors[case]
    assert {name: e for name, e in errors[case].items() if not e <= 1e-6} == {}


def test_the_operations_pass_torchs_own_checks(errors):
    assert errors["opcheck"] == {
        "depthwise_norm": 0.0,
        "pointwise_gelu": 0.0,
        "pointwise_residual": 0.0,
        "whole_mlp": 0.0,
    }


def test_dynamo_and_export_trace_through_the_operations(errors):
    found = errors["traced"]
    assert found.keys() == {"compile", "export", "autocast"}
    assert found["compile"] <= 1e-6
    assert found["export"] <= 1e-6
    assert found["autocast"] <= TOLERANCE["bfloat16"]
