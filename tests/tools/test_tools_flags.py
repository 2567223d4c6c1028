"""The flags are OpenMMLab's: each command line means what mmdet's and mmseg's own tools make of it.

The other side are the parsers of the installed packages, run from their own source files.
"""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import argparse
import ast
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import DictAction

from convnext_backbone.openmmlab.tools.arguments import test_parser as build_test_parser
from convnext_backbone.openmmlab.tools.arguments import train_parser as build_train_parser

PARSERS = {"train": build_train_parser, "test": build_test_parser}
PACKAGES = ("mmdet", "mmseg")
# The one difference: mmseg's --resume takes no checkpoint.
NARROWER = {("mmseg", "train", "resume")}

SHARED = [
    [],
    ["--work-dir", "runs/a"],
    ["--cfg-options", "a.b=1", "c=[1,2]", 'd="[(a,b),(c,d)]"', "e=x,y"],
    ["--launcher", "pytorch", "--local_rank", "3"],
    ["--launcher", "slurm", "--local-rank", "1"],
    ["--launcher", "mpi"],
]
LINES = {
    "train": [["c.py", *line] for line in (*SHARED, ["--amp"])],
    "test": [
        ["c.py", "w.pth", *line]
        for line in (
            *SHARED,
            ["--out", "o.pkl"],
            ["--show", "--wait-time", "0.5"],
            ["--show-dir", "shown", "--tta"],
        )
    ],
}
DETECTOR_LINES = {
    "train": [["c.py", "--resume"], ["c.py", "--resume", "w.pth"], ["c.py", "--auto-scale-lr"]],
    "test": [],
}


def their_parse_args(package, command):
    """Take `parse_args` out of a package's tool, whose imports need compiled mmcv."""
    path = Path(find_spec(package).origin).parent / ".mim" / "tools" / f"{command}.py"
    if not path.is_file():
        pytest.skip(f"{package} is installed without its tools")
    functions = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "parse_args"
    ]
    names = {"argparse": argparse, "os": os, "DictAction": DictAction}
    exec(compile(ast.Module(functions, []), str(path), "exec"), names)
    return names["parse_args"]


def their_options(package, command, monkeypatch):
    """The option strings of a package's tool, seen by the parser as they are added."""
    seen = set()

    def spy(self, *names, **settings):
        seen.update(name for name in names if name.startswith("--"))
        return original(self, *names, **settings)

    original = argparse.ArgumentParser.add_argument
    monkeypatch.setattr(sys, "argv", ["tool", "c.py", "w.pth"][: 2 if command == "train" else 3])
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "add_argument", spy)
        their_parse_args(package, command)()
    return seen


@pytest.fixture(autouse=True)
def _restore_local_rank(monkeypatch):
    # Their parse_args sets it.
    monkeypatch.setenv("LOCAL_RANK", "0")


@pytest.mark.parametrize("command", PARSERS)
def test_the_flags_are_those_of_both_packages_together(command, monkeypatch):
    theirs = set.union(*(their_options(package, command, monkeypatch) for package in PACKAGES))
    ours = {
        option
        for action in PARSERS[command]()._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert ours == theirs | {"--help", "--no-check"}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("command", PARSERS)
def test_a_command_line_means_the_same(command, package, monkeypatch):
    parse_args = their_parse_args(package, command)
    lines = LINES[command] + (DETECTOR_LINES[command] if package == "mmdet" else [])
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["tool", *line])
        theirs, ours = vars(parse_args()), vars(PARSERS[command]().parse_args(line))
        for name, value in theirs.items():
            if (package, command, name) in NARROWER:
                assert bool(ours[name]) == value, (line, name)
            else:
                assert ours[name] == value, (line, name)


def test_mmsegs_resume_flag_works_without_a_value(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool", "c.py", "--resume"])
    assert their_parse_args("mmseg", "train")().resume is True
    assert build_train_parser().parse_args(["c.py", "--resume"]).resume == "auto"
