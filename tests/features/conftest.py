"""Weights and images for the tests of extraction."""

import pytest
import torch
from helpers.extraction import SHAPE, write_images
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone


@pytest.fixture(scope="package")
def weights_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(ConvNextBackbone(**SHAPE, out_indices=(2, 4)).state_dict(), path)
    return path


@pytest.fixture(scope="package")
def image_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_images(root)
    return root
