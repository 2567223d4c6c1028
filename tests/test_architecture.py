"""Modules import each other as docs/architecture.md says, without circles, within their rings."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "convnext_backbone"
# What installing the core brings: torch brings filelock, huggingface_hub brings tqdm and
# typing_extensions.
CORE = {
    "torch", "torchvision", "numpy", "PIL", "safetensors", "huggingface_hub", "filelock", "tqdm",
    "typing_extensions",
}  # fmt: skip
# OpenCV comes with mmcv, yaml and matplotlib with mmengine, pycocotools with mmdet.
OPENMMLAB = {
    "mmengine", "mmcv", "mmdet", "mmseg", "cv2", "yaml", "matplotlib", "pycocotools"
}  # fmt: skip
# Imported inside a function, with an error that names the extra where it is missing.
OPTIONAL = {"h5py", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "pyarrow", "ray"}
# What a module of integrations imports, and nothing else of the package imports it.
LIBRARIES = {
    "segmentation_models": {"segmentation_models_pytorch"},
    "transformers": {"transformers"},
    "detectron2": {"detectron2"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))
EVERY_MODULE = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)


def name_of(path):
    """The dotted name of a module below the package; "" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports(path):
    """Yield (own module or None, foreign package or None, is it lazy): every import there is.

    Imports inside functions and under TYPE_CHECKING count as well.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(tree):
        lazy = node not in tree.body
        if isinstance(node, ast.Import):
            yield from ((None, alias.name.split(".")[0], lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield None, node.module.split(".")[0], lazy
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1]
            target = ".".join((*base, *(node.module.split(".") if node.module else ())))
            for alias in node.names:
                inner = f"{target}.{alias.name}".strip(".")
                yield inner if inner in NAMES else target, None, lazy


def places():
    """The line of the list of modules on which each module or package stands."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"## The code\n.*?```\n(.*?)```", page, re.S)[1]
    lines = [re.split(r"\s{2,}", line)[0] for line in block.splitlines()]
    return {
        name.strip(" /").replace("/", "."): place
        for place, line in enumerate(lines)
        for name in line.split(",")
    }


def place_of(module, known):
    """The place of the longest name that the module is or lies in."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((known[name] for name in names if name in known), None)


def test_the_list_names_every_module_or_its_package():
    known = places()
    for name in NAMES - {"", "__main__", "_version"}:
        if name != "models":  # their modules are listed one by one
            assert place_of(name, known) is not None, name
    listed = {name for name in known if name not in NAMES}
    assert not listed, f"the list names what is not there: {listed}"


@EVERY_MODULE
def test_a_module_imports_only_what_stands_above_or_beside_it(path):
    known, own = places(), name_of(path)
    if own in ("", "__main__"):
        return
    for target, _, _ in imports(path):
        place = None if target is None else place_of(target, known)
        assert place is None or place <= place_of(own, known), target


@EVERY_MODULE
def test_integrations_are_imported_by_their_users_only(path):
    within = name_of(path).startswith("integrations")
    for target, _, _ in imports(path):
        assert within or not (target or "").startswith("integrations"), target


def test_no_two_modules_import_each_other_by_whatever_way():
    graph = {
        name_of(path): {target for target, _, _ in imports(path) if target is not None}
        for path in MODULES
        if name_of(path)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@EVERY_MODULE
def test_foreign_packages_stay_within_their_ring(path):
    allowed = CORE | set(sys.stdlib_module_names)
    ring, _, module = name_of(path).partition(".")
    within_openmmlab = ring == "openmmlab"
    if ring == "integrations":
        allowed = allowed | LIBRARIES.get(module, set())
    for _, foreign, lazy in imports(path):
        if foreign is None or foreign in allowed or (lazy and foreign in OPTIONAL):
            continue
        if within_openmmlab:
            assert foreign in OPENMMLAB
        else:
            # Registration is the one place where the core looks for OpenMMLab.
            assert name_of(path) == "", foreign
