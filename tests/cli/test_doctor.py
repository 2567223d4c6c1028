"""The doctor finds what is broken and says what to type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convnext_backbone import ConvNextBackbone, cli
from convnext_backbone.cli import doctor_checks
from convnext_backbone.cli.doctor_checks import NOTE, OK, PROBLEM, CheckResult, format_report

# A made-up package stands in for one of the family that is installed here.
ONEDL = "onedl-mmengine" in doctor_checks.installed_versions()
MMENGINE, MMCV = ("onedl-mmengine", "onedl-mmcv") if ONEDL else ("mmengine", "mmcv")
CORE = dict.fromkeys(
    ("torch", "torchvision", "numpy", "Pillow", "safetensors", "huggingface_hub"), "1.0"
)


def _problems(results):
    return [result for result in results if result.state == PROBLEM]


@pytest.mark.parametrize(
    ("versions", "told", "fix"),
    [
        (
            {"mmengine": "0.10.7", "onedl-mmengine": "0.10.12"},
            "two families",
            "pip uninstall -y mmengine onedl-mmengine && pip install",
        ),
        (
            {"mmcv": "2.1.0", "mmcv-lite": "2.1.0"},
            "both installed and overwrite each other",
            "pip uninstall -y mmcv mmcv-lite",
        ),
    ],
)
def test_packages_that_do_not_fit_are_a_problem_with_a_line_to_type(versions, told, fix):
    (problem,) = _problems(doctor_checks.check_families(versions))
    assert told in problem.detail
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("versions", "state"),
    [
        ({}, NOTE),
        ({"mmengine": "0.10.7", "mmcv-lite": "2.1.0", "mmdet": "3.3.0"}, OK),
        ({"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmdetection": "3.5.1"}, OK),
    ],
)
def test_packages_that_fit_are_none(versions, state):
    (result,) = doctor_checks.check_families(versions)
    assert result.state == state


def test_missing_packages_are_a_problem():
    assert not _problems(doctor_checks.check_core(CORE))
    without = {name: version for name, version in CORE.items() if name != "safetensors"}
    (problem,) = _problems(doctor_checks.check_core(without))
    assert (problem.what, problem.fix) == ("safetensors", "pip install safetensors")


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (
            AssertionError("MMCV==2.2.0 is used but incompatible. Please install mmcv<2.2.0."),
            "pip uninstall -y mmcv mmcv-lite && pip install 'mmcv-lite>=2.1,<2.2'",
        ),
        (ModuleNotFoundError("No module named 'ftfy'", name="ftfy"), "pip install ftfy"),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "pip install pyyaml"),
        (ModuleNotFoundError("No module named 'mmdet.core'", name="mmdet.core"), "mmdet"),
        (
            ModuleNotFoundError("No module named 'mmcv'", name="mmcv"),
            "pip install 'mmcv-lite>=2.1,<2.2'",
        ),
        (
            ImportError("libGL.so.1: cannot open shared object file"),
            "pip uninstall -y opencv-python && pip install opencv-python-headless",
        ),
    ],
)
def test_an_import_that_fails_is_told_with_what_brings_what_it_lacks(error, fix, monkeypatch):
    def fail(name):
        if name == "mmdet.models":
            raise error

    monkeypatch.setattr(doctor_checks, "import_module", fail)
    results = list(doctor_checks.check_openmmlab_imports({"mmengine": "0.10.7", "mmdet": "3.3.0"}))
    (problem,) = [result for result in _problems(results) if result.what == "mmdet"]
    assert problem.detail == f"import mmdet.models: {str(error).splitlines()[0]}"
    assert problem.fix.removeprefix("pip install --upgrade --force-reinstall ") == fix


def test_what_breaks_one_package_is_mended_by_one_line(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'rich'", name="rich")

    monkeypatch.setattr(doctor_checks, "import_module", fail)
    versions = {"mmengine": "0.10.7", "mmdet": "3.3.0", "mmsegmentation": "1.2.2"}
    problems = _problems(doctor_checks.check_openmmlab_imports(versions))
    assert {"mmengine", "mmdet", "mmsegmentation"} <= {problem.what for problem in problems}
    fixes = {problem.fix for problem in problems if problem.what != "mmcv's operations"}
    assert fixes == {"pip install rich"}


@pytest.mark.parametrize(
    ("family", "fix"),
    [
        ("mmengine", "pip install 'mmcv-lite>=2.1,<2.2'"),
        ("onedl-mmengine", "pip install onedl-mmcv"),
    ],
)
def test_a_missing_mmcv_is_a_problem_with_the_version_that_fits(family, fix, monkeypatch):
    monkeypatch.setattr(doctor_checks, "import_module", lambda name: None)
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    monkeypatch.setitem(sys.modules, "mmcv", None)
    (problem,) = _problems(doctor_checks.check_openmmlab_imports({family: "1.0"}))
    assert (problem.detail, problem.fix) == ("mmcv is not installed", fix)


# A package of OpenMMLab that cannot be imported is met by whoever imports this one, so these run in
# an interpreter of their own, with a folder of made-up packages before all others.


@pytest.fixture
def site(tmp_path):
    """Make a function that puts a made-up distribution and module in front of the real ones."""

    def add(distribution, module=None, code="", version="1.0"):
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(text)
        if module is not None:
            (tmp_path / module).mkdir()
            (tmp_path / module / "__init__.py").write_text(code)

    add.path = tmp_path
    return add


def _python(site, *arguments):
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site.path), root])}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_broken_mmengine_stops_neither_the_core_nor_the_doctor(site):
    site(MMENGINE, "mmengine", "raise AttributeError('no np.bool8\\nin NumPy 2')")
    script = (
        "import torch, convnext_backbone as c;"
        "b = c.ConvNextBackbone(hidden_sizes=(8, 16), depths=(1, 1));"
        "print(tuple(b(torch.zeros(1, 3, 32, 32))[0].shape))"
    )
    done = _python(site, "-c", script)
    assert done.stdout == "(1, 16, 4, 4)\n", done.stderr
    assert "mmengine is installed but cannot be imported" in done.stderr
    assert "(no np.bool8); `convnext-backbone doctor` prints how to repair it" in done.stderr
    done = _python(site, "-m", "convnext_backbone", "doctor")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "import mmengine.runner: no np.bool8" in done.stdout
    assert "self-test on cpu" in done.stdout
    fix = f"  pip install --upgrade --force-reinstall {MMENGINE}"
    assert fix in done.stdout.splitlines()


def test_two_families_over_each_other_are_mended_by_one_line(site):
    code = "from .missing import thing"
    site("mmengine", "mmengine", code)
    site("onedl-mmengine")
    site("mmcv", "mmcv", "raise SyntaxError('two versions of one file')")
    done = _python(site, "-m", "convnext_backbone", "doctor")
    assert done.returncode == 1
    assert "two families that overwrite each other" in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("  pip")]
    (fix,) = [line for line in told if "mm" in line]
    assert fix.startswith("  pip uninstall -y mmengine mmcv")
    assert "onedl-mmengine" in fix
    assert fix.endswith("&& pip install 'convnext_backbone[openmmlab]'")


def test_a_compiled_mmcv_that_does_not_load_is_told(site):
    site(MMENGINE, "mmengine", "")
    (site.path / "mmengine" / "registry.py").write_text("raise ImportError('half of it')")
    site(MMCV, "mmcv", "")
    (site.path / "mmcv" / "_ext.py").write_text("raise ImportError('undefined symbol: _ZN2at')")
    done = _python(site, "-m", "convnext_backbone", "doctor")
    assert "compiled, but do not load: undefined symbol: _ZN2at" in done.stdout
    plain = "onedl-mmcv" if ONEDL else "'mmcv-lite>=2.1,<2.2'"
    fix = f"  pip uninstall -y {MMCV} && pip install {plain}"
    assert fix in done.stdout.splitlines()


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch" / "hub"))
    assert not _problems(doctor_checks.check_caches({}))
    monkeypatch.setattr(doctor_checks.os, "access", lambda path, mode: path != tmp_path)
    (problem,) = _problems(doctor_checks.check_caches({}))
    assert problem.fix.startswith("export TORCH_HOME=")


def test_missing_extras_are_notes():
    results = list(doctor_checks.check_extras({"h5py": "3.0", "onnx": "1.17"}))
    assert [result.state for result in results] == [OK, NOTE]
    assert "without onnxruntime, onnxscript" in results[1].detail


def test_the_self_test_passes_here_and_catches_wrong_arithmetic(monkeypatch):
    cpu = torch.device("cpu")
    assert doctor_checks.self_test(cpu).state == OK
    forward = ConvNextBackbone.forward

    def wrong(self, x):
        maps = forward(self, x)
        return maps if x.dtype == torch.float64 else tuple(m + 0.01 for m in maps)

    monkeypatch.setattr(ConvNextBackbone, "forward", wrong)
    assert "off by 0.01" in doctor_checks.self_test(cpu).detail

    def crash(self, x):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(ConvNextBackbone, "forward", crash)
    result = doctor_checks.self_test(cpu)
    assert (result.state, result.detail) == (PROBLEM, "no kernel image is available")


def test_the_self_test_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    doctor_checks.self_test(torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_the_report_ends_with_the_lines_to_type_once_each():
    results = [
        CheckResult("a", OK, "fine"),
        CheckResult("b", PROBLEM, "broken", "pip install b"),
        CheckResult("c", PROBLEM, "broken too", "pip install b"),
    ]
    text = format_report(results)
    assert text.endswith("2 problems. To fix, type:\n  pip install b")
    assert format_report(results[:1]).endswith("No problems.")


def test_command_line_leaves_with_status_1_where_something_is_broken(monkeypatch, capsys):
    monkeypatch.setattr(doctor_checks, "run_checks", lambda: [CheckResult("a", OK, "fine")])
    assert cli.main(["doctor"]) == 0
    assert "No problems." in capsys.readouterr().out
    monkeypatch.setattr(
        doctor_checks, "run_checks", lambda: [CheckResult("b", PROBLEM, "broken", "type this")]
    )
    with pytest.raises(SystemExit) as info:
        cli.main(["doctor"])
    assert info.value.code == 1
    assert capsys.readouterr().out.endswith("type this\n")


def test_everything_is_looked_at_here():
    results = doctor_checks.run_checks()
    assert {"torch", "torchvision's operations", "OpenMMLab", "self-test on cpu"} <= {
        result.what for result in results
    }
    core = [f for f in results if f.what.startswith(("torch", "self-test", "numpy"))]
    assert not _problems(core)
