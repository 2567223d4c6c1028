"""The README tells the truth: its Python runs, its commands run, its tables are the code's."""

import re
import shlex

import pytest
import torch
from helpers.documents import ROOT, blocks, commands, fill_folder, missing_paths, missing_targets
from mmengine.fileio import load
from torch.utils.flop_counter import FlopCounterMode

from convnext_backbone import ConvNextBackbone, list_archs
from convnext_backbone.archs import arch_fields
from convnext_backbone.cli.main import main
from convnext_backbone.openmmlab.mmcv_ops.table import OPS
from convnext_backbone.weights.catalogue import WEIGHTS

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHS = (ROOT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
# Run by tests of their own: the page in test_server, the check of the machine in test_doctor; what
# needs a trained model in tests/tools and tests/deploy.
RUN_ELSEWHERE = ("--serve", "doctor", "predict", "deploy")
# A size as the names of configs have it.
SIZES = {"tiny": "t", "small": "s", "base": "b", "large": "l", "xlarge": "xl", "huge": "h"}


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory):
    """A folder with the files that the README's examples name, and what its Python leaves there."""
    folder = tmp_path_factory.mktemp("readme")
    fill_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names: dict = {}
        for source in blocks(README, "python"):
            exec(source, names)
        patch.undo()
    return folder, names


def test_a_newcomer_reads_it_once():
    assert len(README.splitlines()) <= 200


def test_the_operations_of_mmcv_are_counted():
    assert f"the {len(OPS)} that shipped mmdet and mmseg models use" in README


def test_the_python_of_the_readme_runs_and_gives_what_it_says(readme_folder):
    folder, names = readme_folder
    features = names["fx"](folder / "cat.jpg")
    shown = re.search(r"^# (\{'stage3'.*\})$", README, re.M)[1]
    assert str({name: tuple(x.shape) for name, x in features.items()}) == shown
    backbone, maps = names["backbone"], [tuple(m.shape) for m in names["maps"]]
    assert f"print([tuple(m.shape) for m in maps])  # {maps}" in README
    assert f"backbone.strides)  # {backbone.channels} {backbone.strides}" in README
    assert f".logits  # {tuple(names['logits'].shape)}" in README


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in commands(README, "convnext-backbone")
        if not any(word in line for word in RUN_ELSEWHERE)
    ],
)
def test_every_command_of_the_readme_runs(line, readme_folder, monkeypatch):
    monkeypatch.chdir(readme_folder[0])
    assert main(shlex.split(line)[1:]) == 0


def test_every_make_target_and_path_of_the_readme_exists():
    assert missing_targets(README) == []
    assert missing_paths(README) == []
    links = re.findall(r"\]\((?!https?:)([\w./-]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def size_of(arch):
    """The parameters (M) of the backbone with four normed outputs and its MACs at 224 (G)."""
    with torch.device("meta"):
        stages = range(1, len(arch_fields(arch)["depths"]) + 1)
        backbone = ConvNextBackbone(arch, out_indices=stages)
        with FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, 224, 224))
    millions = round(backbone.num_parameters() / 1e6, 2)
    return backbone.config, millions, round(counter.get_total_flops() / 2e9, 2)


def test_the_tables_of_architectures_are_what_the_code_builds():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d, ]+) \| ([\d, ]+) \| ([\d.]+) \| ([\d.]+) \|", ARCHS, re.M
    )
    assert [row[0] for row in rows] == list(list_archs(variants=True))
    for arch, depths, widths, millions, macs in rows:
        config, *size = size_of(arch)
        assert depths == ", ".join(map(str, config.depths))
        assert widths == ", ".join(map(str, config.hidden_sizes))
        assert [float(millions), float(macs)] == size


# weights | parameters, MACs | ImageNet | COCO | ADE20K | ms in fp32 and bf16
MODELS = re.findall(
    r"^\| `([\w.]+)`([^|]*) \| ([\d.]+) / ([\d.]+) \| " + r" \| ".join(["([^|]+)"] * 4) + r" \|$",
    README,
    re.M,
)


def published(folders, name, metric):
    """The results that the metafiles give for the weights of this name."""
    arch, tag = name.split(".")
    family = "convnextv2" if arch.startswith("convnextv2") else "convnext"
    family = f"dinov3-{family}" if "dinov3" in tag else family
    size = SIZES[arch.rpartition("_")[2]]
    pattern = re.compile(rf"_{family}-{size}(-fcmae|-in22k)?_")
    return [
        result["Metrics"][metric]
        for folder in folders
        for model in load(ROOT / "configs" / folder / "metafile.yml")["Models"]
        if (found := pattern.search(model["Name"])) and ("22k" in tag) == (found[1] == "-in22k")
        for result in model.get("Results", ())
        if metric in result["Metrics"]
    ]


def test_the_table_of_models_is_there():
    assert len(MODELS) == len(re.findall(r"^\| `\w+\.\w+`", README, re.M)) > 10


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row[0])
def test_a_row_of_the_table_of_models_is_what_was_published_and_measured(row):
    name, mark, millions, macs, top1, coco, ade, ms = row
    entry = WEIGHTS[name]
    assert entry.non_commercial == ("*" in mark)
    assert size_of(entry.arch)[1:] == (float(millions), float(macs))
    assert top1 == ("-" if entry.top1 is None else f"{entry.top1:.1f}")
    if coco != "-":
        method = "mask_rcnn" if coco.endswith("M") else "cascade_rcnn"
        assert float(coco.rstrip(" CM")) in published([method], name, "box AP")
    if ade != "-":
        frozen = ade.endswith("F")
        folder, metric = ("linear", "mIoU") if frozen else ("upernet", "mIoU (ms+flip)")
        assert float(ade.rstrip(" F")) in published([folder], name, metric)
    measured = re.search(rf"^\| `{entry.arch}` \| ([\d.]+) \| ([\d.]+) \|$", PERFORMANCE, re.M)
    assert ms == ("-" if measured is None else f"{measured[1]} / {measured[2]}")
