"""A few seconds of fuzzing; `make fuzz MINUTES=10` goes on for longer and prints a table."""

import importlib
import random

import pytest
from fuzz.targets import TARGETS, Forbidden, run_one
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

NEEDS = {"Keras": "h5py", "mmengine": "mmdet", "tools/": "mmdet"}


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_read_or_refused_clearly(name):
    for start, package in NEEDS.items():
        if name.startswith(start):
            pytest.importorskip(package)

    @seed(0)
    @settings(
        max_examples=5 if name.startswith("tools/") else 15,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def run(number):
        assert run_one(name, random.Random(number)) in ("read", "clear error")

    run()


@pytest.mark.parametrize("call", ["os.system('true')", "subprocess.run(['true'])"])
def test_what_is_executed_is_noticed(call, monkeypatch):
    """The fuzzer can fail: a target that runs a program is caught."""
    module, code = importlib.import_module("subprocess"), {"os": importlib.import_module("os")}

    def target(chance, folder):
        exec(call, {"subprocess": module, **code})

    monkeypatch.setitem(TARGETS, "bad", target)
    with pytest.raises(Forbidden):
        run_one("bad", random.Random(0))
