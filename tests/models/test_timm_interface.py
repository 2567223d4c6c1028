"""timm's interface: what timm's own models answer, and what code written against them reads."""

import re

import pytest
import timm
import torch
from helpers.peers import DEPTHS, STAGES, WIDTHS, build_pair, randomise
from timm.optim import param_groups_layer_decay
from torch import nn

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification

SHAPE = {"hidden_sizes": WIDTHS, "depths": DEPTHS}


def classifier_pair(name="convnext_tiny", **fields):
    theirs = timm.create_model(name, depths=DEPTHS, dims=WIDTHS, num_classes=5)
    theirs = randomise(theirs).double().eval()
    ours = ConvNextForImageClassification(**SHAPE, num_labels=5, layer_norm_eps=1e-6, **fields)
    ours.double().eval().load_state_dict(theirs.state_dict())
    return ours, theirs


def test_feature_info_of_the_stages_is_that_of_timms_features_only():
    ours, theirs, _ = build_pair("timm_v1")
    mine, peer = ours.feature_info, theirs.feature_info
    assert mine.channels() == peer.channels()
    assert mine.reduction() == peer.reduction()
    assert mine.channels(-1) == peer.channels(-1)
    assert mine.get_dicts(["num_chs", "reduction"]) == peer.get_dicts(["num_chs", "reduction"])
    assert [entry["num_chs"] for entry in mine.get_dicts()] == list(WIDTHS)
    assert mine.get("reduction", [1, 2]) == peer.get("reduction", [0, 1])
    assert len(mine) == 5
    assert mine[0] == mine.info[0]


def test_feature_info_follows_the_outputs_and_the_dilation():
    backbone = ConvNextBackbone(**SHAPE, out_features=["stem", "stage4"], output_stride=8)
    assert backbone.feature_info.out_indices == (0, 4)
    assert backbone.feature_info.reduction() == [4, 8]
    backbone.out_features = ["stage2"]
    assert backbone.feature_info.channels() == [WIDTHS[1]]


def test_the_named_module_computes_the_feature():
    backbone = ConvNextBackbone(**SHAPE, out_features=["stem", *STAGES]).eval()
    seen = {}
    for index, name in enumerate(backbone.feature_info.module_name()):
        backbone.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, index=index: seen.update({index: output})
        )
    for index, output in enumerate(backbone(torch.randn(1, 3, 32, 64))):
        torch.testing.assert_close(seen[index], output, rtol=0, atol=0)


def test_a_pyramid_written_for_timm_runs_on_the_backbone():
    class Pyramid(nn.Module):
        def __init__(self, body):
            super().__init__()
            info = body.feature_info
            self.body = body
            self.sides = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in info.channels())
            self.up = [r // info.reduction()[0] for r in info.reduction()]

        def forward(self, x):
            maps = zip(self.sides, self.body(x), self.up, strict=True)
            return sum(nn.functional.interpolate(s(m), scale_factor=u) for s, m, u in maps)

    ours, theirs, _ = build_pair("timm_v2")
    pyramid, peer = Pyramid(ours), Pyramid(theirs)
    peer.sides.load_state_dict(pyramid.sides.state_dict())
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(pyramid(x), peer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("indices", [1, 3, [0, 2], [-1], (-3, -1)])
@pytest.mark.parametrize("stop_early", [False, True])
def test_intermediates_are_timms(indices, stop_early):
    ours, theirs = classifier_pair()
    x = torch.randn(2, 3, 64, 33).double()
    # timm's 0 is the first stage; here the stem is 0.
    mine = indices if isinstance(indices, int) else [i + 1 if i >= 0 else i for i in indices]
    last, maps = ours.forward_intermediates(x, mine, stop_early=stop_early)
    expected_last, expected = theirs.forward_intermediates(x, indices, stop_early=stop_early)
    torch.testing.assert_close(last, expected_last, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-9)
    only = ours.forward_intermediates(x, mine, intermediates_only=True)
    torch.testing.assert_close(only, expected, rtol=1e-9, atol=1e-9)
    assert all(m.is_contiguous() for m in (last, *maps))


def test_all_intermediates_of_a_backbone_with_norm_are_its_outputs():
    backbone = ConvNextBackbone(**SHAPE, out_features=["stem", *STAGES]).eval()
    x = torch.randn(1, 3, 64, 64)
    _, maps = backbone.forward_intermediates(x, norm=True)
    torch.testing.assert_close(tuple(maps), tuple(backbone(x)), rtol=0, atol=0)


def test_intermediates_after_the_last_output_take_gradients():
    backbone = ConvNextBackbone(**SHAPE, out_features=["stage2"])
    last, _ = backbone.forward_intermediates(torch.randn(1, 3, 32, 32), [1])
    last.sum().backward()
    assert backbone.stages[3][0].pwconv2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("indices", [0, 6, [5], [-6], []])
def test_indices_out_of_range_are_refused(indices):
    with pytest.raises(ValueError, match="indices must"):
        ConvNextBackbone(**SHAPE).forward_intermediates(torch.zeros(1, 3, 32, 32), indices)


def test_grad_checkpointing_is_switched_by_timms_name():
    backbone = ConvNextBackbone(**SHAPE)
    backbone.set_grad_checkpointing()
    assert backbone.with_cp is True
    backbone.set_grad_checkpointing(False)
    assert backbone.with_cp is False


@pytest.mark.parametrize("layer_decay", [0.5, 0.9])
def test_timms_layer_decay_gives_each_parameter_the_rate_of_timms_own_model(layer_decay):
    ours, theirs = classifier_pair()
    mine, peer = (
        {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        for groups in (
            param_groups_layer_decay(model, layer_decay=layer_decay) for model in (ours, theirs)
        )
    )
    named, rates = dict(theirs.named_parameters()), set()
    for name, parameter in ours.named_parameters():
        other = re.sub(r"^downsample_layers\.0\.", "stem.", name)
        other = re.sub(r"^downsample_layers\.(\d)", r"stages.\1.downsample", other)
        other = re.sub(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2.", other)
        other = other.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
        other = re.sub(r"^norm\.", "head.norm.", re.sub(r"^head\.", "head.fc.", other))
        assert mine[id(parameter)] == peer[id(named[other])], name
        rates.add(mine[id(parameter)])
    assert len(rates) == 2 + sum(DEPTHS)  # stem, blocks, head


def test_coarse_groups_are_the_stem_the_stages_and_the_rest():
    backbone = ConvNextBackbone(**SHAPE, out_features=STAGES)
    layers = timm.models.group_parameters(backbone, backbone.group_matcher(coarse=True))
    assert len(layers) == 6
    assert all(name.startswith("norms.") for name in layers[5])
    assert {name.split(".")[1] for name in layers[2]} == {"1"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("convnext_tiny", {}),
        ("convnextv2_tiny", {"model_type": "convnextv2"}),
        ("convnext_tiny_hnf", {"head_norm_first": True}),
        ("convnext_large_mlp", {"head_hidden_size": 1536}),
    ],
)
def test_the_parts_of_a_classifier_are_timms(name, fields):
    ours, theirs = classifier_pair(name, **fields)
    x = torch.randn(2, 3, 64, 64).double()
    features = ours.forward_features(x)
    torch.testing.assert_close(features, theirs.forward_features(x), rtol=1e-9, atol=1e-9)
    for pre_logits in (False, True):
        mine = ours.forward_head(features, pre_logits=pre_logits)
        peer = theirs.forward_head(features, pre_logits=pre_logits)
        torch.testing.assert_close(mine, peer, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.get_classifier().weight, theirs.get_classifier().weight)
    assert (ours.num_features, ours.num_classes) == (theirs.num_features, theirs.num_classes)


def test_a_classifier_is_reset_to_other_classes_and_to_none():
    model = ConvNextForImageClassification(**SHAPE, num_labels=5).double()
    model.reset_classifier(7)
    assert model.head.weight.abs().sum() > 0
    assert model(torch.randn(1, 3, 32, 32).double()).logits.shape == (1, 7)
    assert model.num_labels == model.config.num_labels == len(model.config.id2label) == 7
    model.reset_classifier(0, global_pool="avg")
    assert model(torch.randn(1, 3, 32, 32).double()).logits.shape == (1, WIDTHS[-1])
    with pytest.raises(ValueError, match=r"global_pool must be one of .*'avg'.*, got ''"):
        model.reset_classifier(3, "")
