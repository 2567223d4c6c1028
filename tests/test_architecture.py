"""The rooms import each other as the README says, and others as the dependency rings allow."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "convnext_backbone"
# What installing the core brings: torch brings filelock, huggingface_hub brings tqdm.
CORE = {
    "torch", "torchvision", "numpy", "PIL", "safetensors", "huggingface_hub", "filelock", "tqdm",
}  # fmt: skip
# OpenCV comes with mmcv; pavi is a storage that mmengine can read from.
OPENMMLAB = {"mmengine", "mmcv", "mmdet", "mmseg", "cv2", "pavi"}
# Imported inside a function, with an error that names the extra where it is missing.
OPTIONAL = {"h5py", "onnx", "onnxruntime", "onnxscript", "triton"}


def room(path):
    """The first part of a module's place in the package: a folder or a module."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports(path):
    """Yield (module from the package's root or None, foreign package or None, is it lazy)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    branches = [n for n in tree.body if isinstance(n, ast.If)]
    typing = [n for n in branches if "TYPE_CHECKING" in ast.dump(n.test)]
    ignored = {id(n) for branch in typing for n in ast.walk(branch)}
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(tree):
        lazy = node not in tree.body
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            yield from ((None, alias.name.split(".")[0], lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield None, node.module.split(".")[0], lazy
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1]
            parts = (*base, *(node.module.split(".") if node.module else ()))
            yield from (((parts or (alias.name,))[0], None, lazy) for alias in node.names)


MODULES = sorted(PACKAGE.rglob("*.py"))
EVERY_MODULE = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)


def order():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## The code in a dozen lines\n\n```\n(.*?)```", readme, re.S)[1]
    lines = [re.split(r"\s{2,}", line)[0] for line in block.splitlines()]
    names = [re.findall(r"\w+", line) for line in lines]
    return {name: place for place, line in enumerate(names) for name in line}


def test_the_readme_names_every_room_once():
    rooms = {room(path) for path in MODULES} - {"__init__", "__main__", "_version"}
    assert set(order()) == rooms


@EVERY_MODULE
def test_a_room_imports_only_what_stands_above_or_beside_it(path):
    places = order()
    for target, _, lazy in imports(path):
        if target in places and not lazy and path != PACKAGE / "__init__.py":
            assert places[target] <= places[room(path)], target


@EVERY_MODULE
def test_foreign_packages_stay_within_their_ring(path):
    allowed = CORE | set(sys.stdlib_module_names)
    for _, foreign, lazy in imports(path):
        if foreign is None or foreign in allowed or (lazy and foreign in OPTIONAL):
            continue
        if room(path) == "openmmlab":
            assert foreign in OPENMMLAB
        else:
            assert room(path) == "kernels", foreign
            assert foreign == "triton"
