"""Mistakes of a user: one line on stderr that names them, exit code 2, nothing written."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tool_process import ROOT, run_tool

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")


class Planted:
    """Creates a file when unsafe pickle loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, detector, segmentor, digits):
    """Files to make mistakes with, by name."""
    root = tmp_path_factory.mktemp("inputs")
    configs = {
        "syntax": "model = dict(",
        "name": "model = undefined_name",
        "base": "_base_ = ['./gone.py']",
        "empty": "",
        "text.txt": "model = dict()",
        "scopeless": f"_base_ = ['{detector}']\ndefault_scope = None\nmodel = dict(type='Odd')\n"
        "for loader in ('train_dataloader', 'val_dataloader'): pass\n"
        "train_dataloader = dict(dataset=dict(type='Odd'))\n"
        "val_dataloader = dict(dataset=dict(type='Odd'))\n"
        "test_dataloader = dict(dataset=dict(type='Odd'))\n",
        "wrapper": f"_base_ = ['{detector}']\noptim_wrapper = dict(type='ApexOptimWrapper')",
        "no_scale": f"_base_ = ['{detector}']\nauto_scale_lr = dict(_delete_=True)",
    }
    paths = {"detector": detector, "segmentor": segmentor, "digits": digits, "root": root}
    for name, text in configs.items():
        paths[name] = root / (name if "." in name else f"{name}.py")
        paths[name].write_text(text)
    paths["weights"] = root / "weights.pth"
    torch.save({"state_dict": {"w": torch.ones(8)}}, paths["weights"])
    paths["truncated"] = root / "truncated.pth"
    paths["truncated"].write_bytes(paths["weights"].read_bytes()[:400])
    paths["noise"] = root / "noise.pth"
    paths["noise"].write_bytes(bytes(range(256)) * 20)
    paths["zero"] = root / "zero.pth"
    paths["zero"].touch()
    paths["list"] = root / "list.pth"
    torch.save([1, 2], paths["list"])
    paths["planted"] = root / "planted.pth"
    torch.save({"state_dict": {}, "meta": Planted(root / "executed")}, paths["planted"])
    paths["planted_pickle"] = root / "planted.pkl"
    with open(paths["planted_pickle"], "wb") as stream:
        pickle.dump(Planted(root / "executed"), stream)
    return paths


TRAIN = [
    # what is wrong, the command line, what the line must name
    ("no config", ("{root}/gone.py",), "gone.py"),
    ("a folder as config", ("{root}",), "config"),
    ("not Python", ("{syntax}",), "SyntaxError"),
    ("an undefined name", ("{name}",), "undefined_name"),
    ("a missing base", ("{base}",), "gone.py"),
    ("an empty config", ("{empty}",), "'model'"),
    ("not a config file", ("{text.txt}",), "text.txt"),
    ("no scope", ("{scopeless}",), "default_scope"),
    ("an unknown flag", ("{detector}", "--fast"), "--fast"),
    ("no value for a setting", ("{detector}", "--cfg-options", "lr"), "--cfg-options"),
    ("a setting inside a number", ("{detector}", "--cfg-options", "max_epochs.x=1"), "max_epochs"),
    ("an unknown launcher", ("{detector}", "--launcher", "ssh"), "--launcher"),
    (
        "a launcher that did not launch",
        ("{detector}", "--launcher", "pytorch"),
        "tools/dist_train.sh",
    ),
    (
        "no annotation file",
        ("{detector}", "--cfg-options", "train_dataloader.dataset.ann_file=gone.json"),
        "train_dataloader.dataset.ann_file",
    ),
    (
        "no annotation file for the metric",
        ("{detector}", "--cfg-options", "val_evaluator.ann_file=gone.json"),
        "val_evaluator.ann_file",
    ),
    (
        "no image folder",
        ("{detector}", "--cfg-options", "val_dataloader.dataset.data_prefix.img=gone/"),
        "val_dataloader.dataset.data_prefix.img",
    ),
    (
        "no label map folder",
        (
            "{segmentor}",
            "--cfg-options",
            "train_dataloader.dataset.data_prefix.seg_map_path=gone",
        ),
        "train_dataloader.dataset.data_prefix.seg_map_path",
    ),
    (
        "an unknown architecture",
        ("{detector}", "--cfg-options", "model.backbone.arch=convnext_tinny"),
        "convnext_tinny",
    ),
    (
        "features out of order",
        ("{detector}", "--cfg-options", "model.backbone.out_features=stage2,stage1"),
        "stage1",
    ),
    (
        "an unknown model",
        ("{detector}", "--cfg-options", "model.type=MaskRCNNN"),
        "MaskRCNNN",
    ),
    (
        "an unknown data set",
        ("{detector}", "--cfg-options", "train_dataloader.dataset.type=CocoDatasett"),
        "CocoDatasett",
    ),
    (
        "an unknown optimizer",
        ("{segmentor}", "--cfg-options", "optim_wrapper.optimizer.type=AdamX"),
        "AdamX",
    ),
    (
        "an unknown transform",
        ("{segmentor}", "--cfg-options", "train_dataloader.dataset.pipeline.0.type=LoadImage"),
        "train_dataloader.dataset.pipeline.0.type",
    ),
    ("nothing to resume", ("{detector}", "--resume", "{root}/gone.pth"), "--resume"),
    ("a folder to resume", ("{detector}", "--resume", "{root}"), "--resume"),
    ("weights to resume", ("{detector}", "--resume", "{weights}"), "load_from"),
    ("a truncated checkpoint", ("{detector}", "--resume", "{truncated}"), "truncated.pth"),
    ("a checkpoint of noise", ("{detector}", "--resume", "{noise}"), "noise.pth"),
    ("a planted command", ("{detector}", "--resume", "{planted}"), "system"),
    ("planted weights", ("{detector}", "--cfg-options", "load_from={planted}"), "load_from"),
    ("mixed precision twice", ("{wrapper}", "--amp"), "ApexOptimWrapper"),
    ("no batch size to scale from", ("{no_scale}", "--auto-scale-lr"), "base_batch_size"),
]
TEST = [
    ("no config", ("{root}/gone.py", "{weights}"), "gone.py"),
    ("no checkpoint given", ("{detector}",), "checkpoint"),
    ("no checkpoint", ("{detector}", "{root}/gone.pth"), "gone.pth"),
    ("a folder as checkpoint", ("{detector}", "{root}"), "checkpoint"),
    ("an empty checkpoint", ("{detector}", "{zero}"), "zero.pth"),
    ("a list as checkpoint", ("{detector}", "{list}"), "list.pth"),
    ("a planted command", ("{segmentor}", "{planted}"), "system"),
    ("a planted pickle", ("{segmentor}", "{planted_pickle}"), "planted.pkl"),
    ("a dump that is no pickle", ("{detector}", "{weights}", "--out", "x.json"), "--out"),
    ("augmentation of masks", ("{detector}", "{weights}", "--tta"), "masks"),
    ("augmentation not described", ("{segmentor}", "{weights}", "--tta"), "tta_pipeline"),
    (
        "no annotation file",
        ("{detector}", "{weights}", "--cfg-options", "test_dataloader.dataset.ann_file=gone.json"),
        "test_dataloader.dataset.ann_file",
    ),
    (
        "nothing that draws",
        (
            "{detector}",
            "{weights}",
            "--show-dir",
            "shown",
            "--cfg-options",
            "default_hooks.visualization=None",
        ),
        "--show-dir",
    ),
]
DRAW = [
    ("no picture named", ("{detector}", "{weights}"), "--out"),
    ("no images", ("{detector}", "{weights}", "--out", "a.png", "--num", "0"), "--num"),
    ("no picture format", ("{detector}", "{weights}", "--out", "a.txt"), "--out"),
    ("no checkpoint", ("{detector}", "{root}/gone.pth", "--out", "a.png"), "gone.pth"),
]
DECAY = [
    ("no config", ("{root}/gone.py",), "gone.py"),
    ("not Python", ("{syntax}",), "SyntaxError"),
    ("no layer decay", ("{detector}",), "no layer decay"),
    ("a setting that nothing reads", ("{detector}", "--cfg-options", "lr=1"), "lr"),
]
TABLES = {
    "train.py": TRAIN,
    "test.py": TEST,
    "draw_quickstart.py": DRAW,
    "print_layer_decay.py": DECAY,
}
CASES = [
    pytest.param(tool, arguments, named, id=f"{tool}: {what}")
    for tool, table in TABLES.items()
    for what, arguments, named in table
]


def filled(arguments, inputs):
    for name, path in inputs.items():
        arguments = [argument.replace(f"{{{name}}}", str(path)) for argument in arguments]
    return arguments


@pytest.mark.parametrize(("tool", "arguments", "named"), CASES)
def test_a_mistake_is_one_line_that_names_it(tool, arguments, named, inputs, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    result = run_tool(tool, *filled(arguments, inputs), cwd=work)
    assert result.code == 2, result.err
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith(f"{tool}: error: ")
    assert named in result.err
    assert "Traceback" not in result.out + result.err
    assert list(work.rglob("*")) == []
    assert not (inputs["root"] / "executed").exists()


def test_a_planted_command_does_run_when_unsafe_pickle_loads_it(inputs, tmp_path):
    # Without this the cases above would pass with a plant that never worked.
    marker = tmp_path / "executed"
    torch.save(Planted(marker), tmp_path / "planted.pth")
    torch.load(tmp_path / "planted.pth", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("tool", ["train.py", "test.py"])
def test_the_scripts_themselves_start_from_any_directory(tool, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / tool), "gone.py", "gone.pth"]
    result = subprocess.run(
        command[: 3 if tool == "train.py" else 4],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"{tool}: error: config 'gone.py' not found\n"


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh"])
def test_the_shell_scripts_ask_for_what_they_need(script, tmp_path):
    result = subprocess.run(
        ["bash", str(ROOT / "tools" / script), "config.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"usage: {script} CONFIG")
    assert list(Path(tmp_path).iterdir()) == []
