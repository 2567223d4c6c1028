"""FeatureExtractor from an OpenMMLab config and checkpoint: its own backbone and values."""

import numpy as np
import pytest
import torch

from convnext_backbone import ConvNextBackbone
from convnext_backbone.features.extractor import FeatureExtractor

pytestmark = pytest.mark.openmmlab

CONFIG = """
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb={bgr_to_rgb},
        pad_size_divisor=32),
    backbone=dict(
        type='{type}',
        hidden_sizes=(8, 16, 24, 32),
        depths=(1, 1, 2, 1),
        out_features=['stage2', 'stage4'],
        frozen_stages=1,
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='not/here.pth')))
"""


@pytest.fixture
def config(tmp_path):
    def write(bgr_to_rgb=True, type="ConvNextBackbone"):
        path = tmp_path / "config.py"
        path.write_text(CONFIG.format(bgr_to_rgb=bgr_to_rgb, type=type))
        return path

    return write


@pytest.fixture
def checkpoint(tmp_path):
    backbone = ConvNextBackbone(
        hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 2, 1), out_features=["stage2", "stage4"]
    )
    with torch.no_grad():
        for p in backbone.parameters():
            p.normal_(std=0.2)
    state = {f"backbone.{name}": p for name, p in backbone.state_dict().items()}
    state["roi_head.fc.weight"] = torch.zeros(3, 3)
    torch.save({"state_dict": state, "meta": {"epoch": 3}}, tmp_path / "epoch_3.pth")
    return tmp_path / "epoch_3.pth", backbone.eval()


def test_features_are_those_of_the_detectors_own_preprocessing_and_backbone(config, checkpoint):
    from mmdet.models import DetDataPreprocessor

    path, backbone = checkpoint
    fx = FeatureExtractor(config(), checkpoint=path)
    assert fx.names == ("stage2", "stage4")
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    preprocessor = DetDataPreprocessor(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    )
    bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    batch = preprocessor({"inputs": [bgr], "data_samples": None})["inputs"]
    with torch.no_grad():
        stage2, stage4 = backbone(batch)
    features = fx(image)
    torch.testing.assert_close(features["stage2"], stage2[0, :, :6, :9], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features["stage4"], stage4[0, :, :2, :3], atol=1e-4, rtol=1e-4)


def test_other_outputs_may_be_asked_for(config, checkpoint):
    fx = FeatureExtractor(config(), checkpoint=checkpoint[0], out_features="stages")
    assert fx.names == ("stage1", "stage2", "stage3", "stage4")


def test_configs_of_no_use_are_named(config, checkpoint, tmp_path):
    path = checkpoint[0]
    with pytest.raises(ValueError, match="no model with a backbone of type 'ConvNextBackbone'"):
        FeatureExtractor(config(type="ResNet"), checkpoint=path)
    with pytest.raises(ValueError, match="feeds its backbone BGR"):
        FeatureExtractor(config(bgr_to_rgb=False), checkpoint=path)
    with pytest.raises(FileNotFoundError):
        FeatureExtractor(tmp_path / "missing.py", checkpoint=path)
