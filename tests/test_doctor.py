"""The doctor finds what is broken and says what to type."""

import pytest
import torch

from convnext_backbone import ConvNextBackbone, cli, doctor
from convnext_backbone.doctor import NOTE, OK, PROBLEM, Finding

CORE = dict.fromkeys(
    ("torch", "torchvision", "numpy", "Pillow", "safetensors", "huggingface_hub"), "1.0"
)


def _problems(findings):
    return [finding for finding in findings if finding.state == PROBLEM]


@pytest.mark.parametrize(
    ("versions", "told", "fix"),
    [
        (
            {"mmengine": "0.10.7", "onedl-mmengine": "0.10.12"},
            "two families",
            "pip uninstall -y mmengine onedl-mmengine && pip install",
        ),
        (
            {"mmcv": "2.2.0", "mmdet": "3.3.0"},
            "mmdet 3.3.0 refuses mmcv 2.2.0: it wants < 2.2",
            "pip install 'mmcv>=2.1,<2.2'",
        ),
        (
            {"mmcv-lite": "2.2.0", "mmsegmentation": "1.2.2"},
            "mmsegmentation 1.2.2 refuses mmcv-lite 2.2.0",
            "pip install 'mmcv-lite>=2.1,<2.2'",
        ),
        (
            {"mmcv": "2.1.0", "mmcv-lite": "2.1.0"},
            "both installed and overwrite each other",
            "pip uninstall -y mmcv mmcv-lite",
        ),
    ],
)
def test_packages_that_do_not_fit_are_a_problem_with_a_line_to_type(versions, told, fix):
    (problem,) = _problems(doctor.check_families(versions))
    assert told in problem.told
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
    (finding,) = doctor.check_families(versions)
    assert finding.state == state


def test_missing_packages_are_a_problem():
    assert not _problems(doctor.check_core(CORE))
    without = {name: version for name, version in CORE.items() if name != "safetensors"}
    (problem,) = _problems(doctor.check_core(without))
    assert (problem.what, problem.fix) == ("safetensors", "pip install safetensors")


@pytest.mark.openmmlab
def test_an_import_that_fails_is_told_with_its_reason(monkeypatch):
    def fail(name):
        raise AssertionError(f"{name}: MMCV==9 is used but incompatible.\nPlease install ...")

    monkeypatch.setattr(doctor, "import_module", fail)
    versions = {"mmengine": "0.10.7", "mmdet": "3.3.0"}
    (problem,) = _problems(doctor.check_openmmlab_imports(versions))
    assert problem.told == "import mmdet.models: mmdet.models: MMCV==9 is used but incompatible."
    assert problem.fix.endswith("mmdet")


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch" / "hub"))
    assert not _problems(doctor.check_caches())
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != tmp_path)
    (problem,) = _problems(doctor.check_caches())
    assert problem.fix.startswith("export TORCH_HOME=")


def test_missing_extras_are_notes():
    findings = list(doctor.check_extras({"h5py": "3.0", "onnx": "1.17"}))
    assert [finding.state for finding in findings] == [OK, NOTE]
    assert "without onnxruntime, onnxscript" in findings[1].told


def test_the_self_test_passes_here_and_catches_wrong_arithmetic(monkeypatch):
    cpu = torch.device("cpu")
    assert doctor.self_test(cpu).state == OK
    forward = ConvNextBackbone.forward

    def wrong(self, x):
        maps = forward(self, x)
        return maps if x.dtype == torch.float64 else tuple(m + 0.01 for m in maps)

    monkeypatch.setattr(ConvNextBackbone, "forward", wrong)
    assert "off by 0.01" in doctor.self_test(cpu).told

    def crash(self, x):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(ConvNextBackbone, "forward", crash)
    finding = doctor.self_test(cpu)
    assert (finding.state, finding.told) == (PROBLEM, "no kernel image is available")


def test_the_self_test_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    doctor.self_test(torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_the_report_ends_with_the_lines_to_type_once_each():
    findings = [
        Finding("a", OK, "fine"),
        Finding("b", PROBLEM, "broken", "pip install b"),
        Finding("c", PROBLEM, "broken too", "pip install b"),
    ]
    text = doctor.report(findings)
    assert text.endswith("2 problems. To mend, type:\n  pip install b")
    assert doctor.report(findings[:1]).endswith("No problems.")


def test_command_line_leaves_with_status_1_where_something_is_broken(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("a", OK, "fine")])
    assert cli.main(["doctor"]) == 0
    assert "No problems." in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("b", PROBLEM, "broken", "type this")])
    with pytest.raises(SystemExit) as info:
        cli.main(["doctor"])
    assert info.value.code == 1
    assert capsys.readouterr().out.endswith("type this\n")


def test_everything_is_looked_at_here():
    findings = doctor.examine()
    assert {"torch", "torchvision's operations", "OpenMMLab", "self-test on cpu"} <= {
        finding.what for finding in findings
    }
    core = [f for f in findings if f.what.startswith(("torch", "self-test", "numpy"))]
    assert not _problems(core)
