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

packages=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
$python -m venv "$folder/env"
clean=$folder/env/bin/python
$clean -m pip install --disable-pip-version-check --quiet --no-deps "$dist"/*.whl
cd "$folder"
unset PYTHONPATH
echo '_base_ = "convnext_backbone::quickstart/mask-rcnn_convnext-atto_fpn_quickstart.py"' > mine.py
$clean - "$packages" <<'PYTHON'
import os
import sys

sys.path.append(sys.argv[1])
import convnext_backbone

folder = os.path.dirname(convnext_backbone.__file__)
assert folder.startswith(sys.prefix), folder
from mmengine.config import Config

config = Config.fromfile("mine.py")
assert convnext_backbone.ConvNextBackbone(config.model.backbone.arch).channels == (320,)
for name in ("train.py", "test.py"):
    assert os.path.isfile(os.path.join(folder, ".mim", "tools", name)), name
print("The wheel imports, a config inherits from it, and it brings its tools:", folder)
PYTHON
