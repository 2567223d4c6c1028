"""The command line: its surface, its answers, and one line and exit code 2 for bad input."""

import subprocess
import sys
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextForImageClassification,
    FeatureExtractor,
)
from convnext_backbone.cli.main import COMMANDS, main

FIELDS = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 2, 1, 1)}


@pytest.fixture
def source(tmp_path):
    model = timm.models.convnext.ConvNeXt(dims=(8, 16, 24, 32), depths=(1, 2, 1, 1), num_classes=5)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_given_for_every_command(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert "usage: convnext-backbone" in capsys.readouterr().out


def test_help_of_the_program_says_what_a_command_does(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "info print the layout, architecture, size and licence of weights" in text
    assert "visualize draw the features of images, to a file or on a local page" in text


def test_the_help_names_the_features_that_are_taken_by_default(tmp_path, capsys):
    backbone = ConvNextBackbone(**FIELDS, out_features=["stem", "stage2"])
    backbone.save_pretrained(tmp_path)
    defaults = {
        "extract": ("the last stage", FeatureExtractor(tmp_path).names == ("stage4",)),
        "export": (
            "as in the weights' config.json, else the last stage",
            ConvNextBackbone.from_pretrained(tmp_path).out_features == ("stem", "stage2"),
        ),
        "visualize": ("every stage", True),  # test_pictures draws them
    }
    for command, (text, is_true) in defaults.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"(default: {text})" in " ".join(capsys.readouterr().out.split())
        assert is_true


def test_the_help_names_the_size_that_is_taken_by_default(capsys):
    for command, size in {"extract": "as the weights were trained", "visualize": "native"}.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert f"native, a side, or HEIGHTxWIDTH (default: {size})" in text


def test_program_runs_as_it_is_installed():
    command = [sys.executable, "-m", "convnext_backbone", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("convnext-backbone ")


KEY = "\x1b[2J\x07evil\r\nlicence       MIT\x9b\u2028\u202e"


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_keys_cannot_command_the_terminal(name, source, tmp_path, capsys):
    extra = {"norm_head.weight": torch.ones(1), KEY: torch.ones(1), KEY + "2": torch.ones(1)}
    state = {**torch.load(source), **extra}
    path = tmp_path / name
    torch.save(state, path) if name == "model.pth" else save_file(state, path)
    main(["info", str(path)])
    main(["convert", str(path), str(tmp_path / "out.safetensors"), "--to", "native"])
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert all(c == "\n" or c.isprintable() for c in text)
        assert not any(line.startswith("licence       MIT") for line in text.split("\n"))
    assert "\\x1b[2J\\x07evil\\r\\nlicence" in shown.out + shown.err


def test_a_warning_is_one_line(source, capsys, monkeypatch):
    def warn(args):
        warnings.warn("first\nsecond", stacklevel=1)

    monkeypatch.setattr(COMMANDS["info"], "run", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        assert main(["info", str(source)]) == 0
        assert warnings.showwarning is before
    assert capsys.readouterr().err == "convnext-backbone info: warning: first; second\n"


def test_info_describes_the_weights(source, capsys):
    assert main(["info", str(source)]) == 0
    said = capsys.readouterr().out
    model = ConvNextForImageClassification(**FIELDS, num_labels=5)
    count = sum(p.numel() for p in model.parameters())
    for part in ("timm", "1-2-1-1", "8-16-24-32", "V1, layer scale", "head of 5 classes",
                 f"{count:,}", "licence       unknown"):  # fmt: skip
        assert part in said


def test_info_names_a_known_architecture(tmp_path, capsys):
    ConvNextForImageClassification(arch="convnextv2_atto", num_labels=2).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "convnextv2_atto" in said
    assert "V2 (GRN), no layer scale" in said


def test_convert_writes_what_it_says(source, tmp_path, capsys):
    out = tmp_path / "folder" / "out.pth"
    assert main(["convert", str(source), str(out), "--to", "facebook"]) == 0
    assert f"written to {out}" in capsys.readouterr().out
    before = ConvNextForImageClassification.from_pretrained(source).state_dict()
    after = ConvNextForImageClassification.from_pretrained(out).state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_convert_onto_its_own_source_works(source):
    before = ConvNextForImageClassification.from_pretrained(source).state_dict()
    assert main(["convert", str(source), str(source), "--to", "torchvision"]) == 0
    after = ConvNextForImageClassification.from_pretrained(source)
    assert after.load_report.layout == "torchvision (prefix 'features.')"
    assert all(torch.equal(after.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "nothing_here.pth"],
        ["info", "convnext_tiny.no_such_tag"],
        ["info", "{empty}"],
        ["info", "{resnet}"],
        ["convert", "{source}", "{tmp}/out.xyz", "--to", "timm"],
        ["convert", "{source}", "{tmp}/out.pth", "--to", "torchvision", "--pointwise", "conv"],
        ["convert", "{source}", "{tmp}/model.pth/out.pth", "--to", "timm"],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, source, tmp_path, capsys):
    (tmp_path / "empty.pth").touch()
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    names = {"source": source, "tmp": tmp_path, "empty": tmp_path / "empty.pth"}
    names["resnet"] = tmp_path / "resnet.pth"
    assert main([a.format(**names) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"convnext-backbone {arguments[0]}: ")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["fly"], ["convert", "a", "b"], ["info"]])
def test_bad_usage_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convnext-backbone")
