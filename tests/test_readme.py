"""The README tells the truth: its Python runs, its commands run, its table is the code's."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from convnext_backbone import ConvNextBackbone, list_archs
from convnext_backbone.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Run by tests of their own: the page in test_serve, the folder's check in test_doctor.
RUN_ELSEWHERE = ("--serve", "doctor")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory):
    """A folder with the files that the README's examples name, and what its Python leaves there."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in ("cat.jpg", "images/a.jpg", "images/b.png"):
        Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names: dict = {}
        for source in blocks("python"):
            exec(source, names)
        patch.undo()
    return folder, names


def test_the_python_of_the_readme_runs_and_gives_what_it_says(readme_folder):
    _, names = readme_folder
    assert names["backbone"].channels == (40, 80, 320)
    assert [tuple(m.shape) for m in names["maps"]] == [
        (1, 40, 56, 80),
        (1, 80, 28, 40),
        (1, 320, 7, 10),
    ]
    assert names["again"].load_report.fresh == ("norms.stage3.weight", "norms.stage3.bias")
    assert set(names["features"]) == {"stage4"}
    assert names["logits"].shape == (2, 3)


def _commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("convnext-backbone ")]
    return [line for line in lines if not any(word in line for word in RUN_ELSEWHERE)]


@pytest.mark.parametrize("line", _commands())
def test_every_command_of_the_readme_runs(line, readme_folder, monkeypatch):
    monkeypatch.chdir(readme_folder[0])
    assert main(shlex.split(line)[1:]) == 0


def test_every_make_target_and_path_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE)) <= targets
    paths = re.findall(r"\]\(([\w./-]+)\)", README)
    paths += re.findall(r"\b((?:configs|tools)/[\w./-]+\.(?:py|sh))", README)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_tables_of_models_are_what_the_code_builds():
    variants = (ROOT / "docs/reference/models.md").read_text(encoding="utf-8").partition("## V")[2]
    cells = r"^\| `(\w+)` \| ([\d, ]+) \| ([\d, ]+) \| ([\d.]+) \| ([\d.]+) \|"
    rows = re.findall(cells, README + variants, re.M)
    assert [row[0] for row in rows] == list(list_archs())
    for arch, depths, widths, millions, macs in rows:
        with torch.device("meta"):
            b = ConvNextBackbone(arch, out_indices=range(1, len(depths.split(", ")) + 1))
            with FlopCounterMode(display=False) as counter:
                b(torch.empty(1, 3, 224, 224))
        assert depths == ", ".join(map(str, b.config.depths))
        assert widths == ", ".join(map(str, b.config.hidden_sizes))
        assert float(millions) == round(b.num_parameters() / 1e6, 2)
        assert float(macs) == round(counter.get_total_flops() / 2e9, 2)
