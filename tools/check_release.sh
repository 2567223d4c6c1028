#!/bin/sh
# Build a wheel and an sdist into DIST and check them: check_release.sh DIST
# PYTHON has the dependencies, `build` and `twine`. The wheel is installed into an empty environment
# of its own, which sees the dependencies of PYTHON's behind what it has itself, and nothing of this
# checkout.
set -eu
dist=$(pwd)/$1
python=${PYTHON:-python3}

rm -rf "$dist" build
$python -m build --outdir "$dist" .
$python -m twine check --strict "$dist"/*

packages=$($python -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))')
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
$python -m venv "$folder/env"
clean=$folder/env/bin/python
$clean -m pip install --disable-pip-version-check --quiet --no-deps "$dist"/*.whl
cd "$folder"
unset PYTHONPATH
$clean - "$packages" <<'PYTHON'
import os
import runpy
import sys

sys.path.append(sys.argv[1])
import convnext_backbone

folder = os.path.dirname(convnext_backbone.__file__)
assert folder.startswith(sys.prefix), folder
from convnext_backbone.openmmlab.tools.config import build_model, load_config

name = "quickstart/mask-rcnn_convnext-atto_fpn_quickstart.py"
model = build_model(load_config(os.path.join(folder, ".mim", "configs", name), {}, ["model"]))
assert model.backbone.channels == (40, 80, 160, 320), model.backbone.channels
sys.argv = ["train.py", "--help"]
runpy.run_path(os.path.join(folder, ".mim", "tools", "train.py"), run_name="__main__")
PYTHON
echo "The wheel is whole: its package, configs and tools run without the repository."
