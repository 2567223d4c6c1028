"""detectron2's contract of a backbone, on a stand-in: detectron2 has no wheel to test against.

The stand-in holds what its `FPN` reads of a backbone (modeling/backbone/fpn.py and backbone.py).
"""

import importlib
import sys
import types
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from helpers.peers import DEPTHS, STAGES, WIDTHS
from torch import nn

from convnext_backbone import ConvNextBackbone


@dataclass
class ShapeSpec:
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Backbone(nn.Module):
    @property
    def size_divisibility(self):
        return 0

    @property
    def padding_constraints(self):
        return {}


class FPN(Backbone):
    """A pyramid that takes channels and strides from `output_shape()` and adds from the top."""

    def __init__(self, bottom_up, in_features, out_channels):
        super().__init__()
        assert isinstance(bottom_up, Backbone)
        shapes = [bottom_up.output_shape()[name] for name in in_features]
        strides = [shape.stride for shape in shapes]
        assert all(later == 2 * former for former, later in pairwise(strides))
        self.bottom_up, self.in_features = bottom_up, in_features
        self.sides = nn.ModuleList(nn.Conv2d(s.channels, out_channels, 1) for s in shapes)
        self.size_divisibility_of_all = strides[-1]

    def forward(self, x):
        maps, out = self.bottom_up(x), []
        for name, side in [*zip(self.in_features, self.sides, strict=True)][::-1]:
            level = side(maps[name])
            if out:
                level = level + nn.functional.interpolate(out[0], scale_factor=2.0)
            out.insert(0, level)
        return out


@pytest.fixture
def adapter(monkeypatch):
    package, layers, modeling = (
        types.ModuleType(name)
        for name in ("detectron2", "detectron2.layers", "detectron2.modeling")
    )
    layers.ShapeSpec, modeling.Backbone = ShapeSpec, Backbone
    for module in (package, layers, modeling):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    name = "convnext_backbone.integrations.detectron2"
    yield importlib.import_module(name)
    del sys.modules[name]


def backbone(**fields):
    return ConvNextBackbone(hidden_sizes=WIDTHS, depths=DEPTHS, out_features=STAGES, **fields)


def test_a_pyramid_trains_the_stem(adapter):
    body = adapter.ConvNextDetectron2(backbone())
    levels = FPN(body, list(body.output_shape()), 8)(torch.randn(2, 3, 64, 96))
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sum(level.sum() for level in levels).backward()
    assert body.body.downsample_layers[0][0].weight.grad.abs().sum() > 0


def test_maps_are_the_backbones_by_name_and_shapes_describe_them(adapter):
    plain = backbone(output_stride=16).eval()
    body = adapter.ConvNextDetectron2(plain)
    x = torch.randn(1, 3, 64, 96)
    maps, shapes = body(x), body.output_shape()
    assert [*maps] == [*shapes] == [*STAGES]
    torch.testing.assert_close(tuple(maps.values()), tuple(plain(x)), rtol=0, atol=0)
    for name, shape in shapes.items():
        assert isinstance(shape, ShapeSpec)
        _, c, h, w = maps[name].shape
        assert (shape.channels, 64 // shape.stride, 96 // shape.stride) == (c, h, w)
    assert body.size_divisibility == 16
    assert body.padding_constraints == {"size_divisibility": 16}


def test_weights_of_a_directory_make_the_body(adapter, tmp_path):
    source = backbone()
    source.save_pretrained(tmp_path)
    body = adapter.ConvNextDetectron2(tmp_path, out_features=["stage3"], frozen_stages=1)
    assert list(body.output_shape()) == ["stage3"]
    assert body.body.frozen_stages == 1
    torch.testing.assert_close(body.body.stages.state_dict(), source.stages.state_dict())


def test_the_plain_backbone_describes_itself_in_detectron2s_words():
    shapes = backbone().output_shape()
    assert [s.channels for s in shapes.values()] == [*WIDTHS]
    assert [s.stride for s in shapes.values()] == [4, 8, 16, 32]
    assert all(s.height is None and s.width is None for s in shapes.values())
    assert backbone().size_divisibility == 32
