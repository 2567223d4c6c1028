"""Repairs of the published OpenMMLab packages, each seen from the user's side."""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnext_backbone.openmmlab.patches.apply import REPAIRS, apply_compat

apply_compat()

import mmcv  # noqa: E402
import mmengine.config.config  # noqa: E402
from mmengine.config import Config  # noqa: E402

from convnext_backbone.openmmlab.patches import mmcv_photometric as photometric  # noqa: E402
from convnext_backbone.openmmlab.patches import mmengine_packages as packages  # noqa: E402

pytestmark = pytest.mark.openmmlab


def test_applying_the_repairs_again_changes_nothing():
    from mmengine.runner.checkpoint import CheckpointLoader

    before = dict(CheckpointLoader._schemes), mmcv.adjust_hue, mmengine.utils.is_installed
    apply_compat()
    assert before == (dict(CheckpointLoader._schemes), mmcv.adjust_hue, mmengine.utils.is_installed)


# What the repairs of these concern is read only where a data set's own evaluation is installed.
OPTIONAL = {"lvis", "cityscapesscripts"}


def test_every_repair_concerns_a_module_that_there_is():
    for name in REPAIRS:
        package = name.partition(".")[0]
        is_installed = importlib.util.find_spec(package) is not None
        assert is_installed or package in OPTIONAL
        assert not is_installed or importlib.util.find_spec(name) is not None


# ---------------------------------------------------------------- packages, without pkg_resources


def test_a_config_inherits_from_an_installed_package(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n")
    assert Config.fromfile(path).model.type == "RetinaNet"
    path.write_text("_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'\n")
    assert Config.fromfile(path).model.decode_head.type == "FCNHead"


def test_a_config_that_inherits_from_a_missing_package_says_so(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("_base_ = 'mmocr::textdet/some.py'\n")
    with pytest.raises(ModuleNotFoundError, match="mmocr"):
        Config.fromfile(path)


def test_all_of_mmengine_asks_the_repaired_functions():
    for module in (mmengine.utils, mmengine.utils.package_utils, mmengine.config.config):
        assert module.is_installed is packages.is_installed
        assert module.get_installed_path is packages.get_installed_path


@pytest.mark.parametrize("name", ["PIL", "Pillow", "mmseg", "mmsegmentation", "mmdet"])
def test_a_package_is_found_by_its_module_or_its_distribution(name):
    assert packages.is_installed(name)


def test_the_path_of_a_package_is_that_of_its_module(tmp_path, monkeypatch):

    assert packages.get_installed_path("torch") == torch.__path__[0]
    (tmp_path / "odd_module").mkdir()
    (tmp_path / "odd_module" / "__init__.py").touch()
    (tmp_path / "odd_name-1.0.dist-info").mkdir()
    (tmp_path / "odd_name-1.0.dist-info" / "METADATA").write_text("Name: odd-name\nVersion: 1.0\n")
    (tmp_path / "odd_name-1.0.dist-info" / "top_level.txt").write_text("odd_module\n")
    (tmp_path / "namespace_only").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.is_installed("odd-name")
    assert packages.package2module("odd-name") == "odd_module"
    assert packages.get_installed_path("odd-name") == str(tmp_path / "odd_module")
    assert packages.get_installed_path("odd_module") == str(tmp_path / "odd_module")
    with pytest.raises(RuntimeError, match="namespace_only"):
        packages.get_installed_path("namespace_only")


def test_a_package_is_found_whatever_the_distribution_of_its_module_is_called(monkeypatch):
    # As onedl-mmsegmentation provides mmseg, which mmengine knows as mmsegmentation.
    from mmengine.config.utils import MODULE2PACKAGE

    monkeypatch.setitem(MODULE2PACKAGE, "json", "no-such-distribution")
    assert packages.is_installed("no-such-distribution")
    assert packages.get_installed_path("no-such-distribution") == str(Path(json.__file__).parent)


def test_a_package_that_is_not_there_is_not_installed():
    assert not packages.is_installed("no_such_package")
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="no_such_package"):
        packages.get_installed_path("no_such_package")


# ---------------------------------------------------------------- adjust_hue


@pytest.mark.parametrize("backend", ["cv2", "pillow"])
def test_hue_shifts_both_ways_and_back(backend):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for turn in (-0.5, -0.3, 0.2, 0.5):
        shifted = mmcv.adjust_hue(image, turn, backend=backend)
        assert shifted.dtype == np.uint8
        back = mmcv.adjust_hue(shifted, -turn, backend=backend)
        # HSV in 8 bits is coarse; a wrong direction is off by dozens.
        assert np.abs(back.astype(int) - image).mean() < 3


def test_hue_equals_torchvisions_turn_of_the_colour_circle():
    from torchvision.transforms.functional import adjust_hue

    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for turn in (-0.4, -0.1, 0.25):
        expected = np.array(adjust_hue(Image.fromarray(image[..., ::-1].copy()), turn))[..., ::-1]
        shifted = photometric.adjust_hue(image, turn, backend="pillow")
        np.testing.assert_array_equal(shifted, expected)


def test_hue_turns_red_into_the_colours_of_the_circle():
    red = np.zeros((1, 1, 3), np.float32)
    red[..., 2] = 255  # BGR
    cyan = photometric.adjust_hue(red, 0.5)
    assert cyan.dtype == np.float32
    np.testing.assert_allclose(cyan[0, 0], [255, 255, 0], atol=10)
    np.testing.assert_allclose(photometric.adjust_hue(red, -0.5)[0, 0], [255, 255, 0], atol=10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((2, 2, 3), np.uint8), 0.6), ValueError, "hue_factor .* got 0.6"),
        ((np.zeros((2, 2, 3), np.uint8), 0.1, "pil"), ValueError, "backend .* got 'pil'"),
        (([[0]], 0.1), TypeError, "img .* got list"),
    ],
)
def test_hue_refuses_what_it_cannot_turn(arguments, error, message):
    with pytest.raises(error, match=message):
        photometric.adjust_hue(*arguments)
