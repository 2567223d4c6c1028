"""mmengine's own checkpoints are read, and its own loader works on published ones."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from convnext_backbone import ConvNextBackbone

pytestmark = pytest.mark.openmmlab

FIELDS = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
STAGES = ("stage1", "stage2", "stage3", "stage4")


def test_log_buffers_of_mmengine_are_read_where_mmengine_is_not_installed(tmp_path):
    from mmengine.logging import HistoryBuffer

    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    state = {"state_dict": {"w": torch.ones(2)}, "message_hub": {"log_scalars": {"loss": buffer}}}
    torch.save(state, tmp_path / "weights.pth")
    code = (
        "import sys; sys.modules['mmengine'] = None\n"
        "from convnext_backbone.weights.read import read_checkpoint\n"
        f"print(list(read_checkpoint({str(tmp_path / 'weights.pth')!r}).tensors))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['w']", done.stderr


@pytest.mark.parametrize("dialect", ["facebook", "openmmlab"])
def test_load_checkpoint_of_mmengine_takes_a_published_detector(dialect, tmp_path):
    from mmengine.runner import load_checkpoint

    source = ConvNextBackbone(**FIELDS, out_features=STAGES)
    state = {}
    for key, value in source.state_dict().items():
        value = torch.randn_like(value)
        source.state_dict()[key].copy_(value)
        if key.startswith("norms."):
            key = f"norm{int(key[11]) - 1}.{key.split('.')[-1]}"
        if dialect == "openmmlab":
            key = key.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv")
        state[f"backbone.{key}"] = value
    state["neck.weight"] = torch.ones(2, 2)
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "detector.pth")
    detector = nn.Module()
    detector.backbone = ConvNextBackbone(**FIELDS, out_features=STAGES)
    detector.neck = nn.Linear(2, 2, bias=False)
    load_checkpoint(detector, str(tmp_path / "detector.pth"), map_location="cpu")
    for key, value in detector.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    assert torch.equal(detector.neck.weight, torch.ones(2, 2))
