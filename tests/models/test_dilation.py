"""`output_stride`: the same weights on larger maps, as timm computes them."""

import pytest
import timm
import torch

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    load_weights,
)

SIZES = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
SHAPE = {"depths": (1, 1, 2, 1), "hidden_sizes": (8, 16, 24, 32)}


def pair(family, output_stride, tmp_path):
    """timm's network with random weights, and ours with the same, both with maps of all stages."""
    theirs = timm.create_model(
        f"{family}_atto", features_only=True, output_stride=output_stride, **SIZES
    ).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2, mean=0.5 * (p.ndim == 1))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    use_grn = family == "convnextv2"
    ours = ConvNextBackbone(
        **SHAPE, use_grn=use_grn, layer_scale_init_value=0.0 if use_grn else 1e-6,
        output_stride=output_stride, out_indices=(1, 2, 3, 4),
    ).eval()  # fmt: skip
    load_weights(ours, tmp_path / "timm.pth")
    ours.norms = torch.nn.ModuleDict({name: torch.nn.Identity() for name in ours.norms})
    return ours, theirs


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (75, 101)], ids=str)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("family", ["convnext", "convnextv2"])
def test_maps_equal_timms(family, output_stride, size, tmp_path):
    ours, theirs = pair(family, output_stride, tmp_path)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        for got, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        optimized = ours.optimize_for_inference()
        for got, expected in zip(optimized(x), theirs(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert ours.strides == tuple(theirs.feature_info.reduction())
    assert optimized.strides == ours.strides


@pytest.mark.parametrize("output_stride", [8, 16])
def test_gradients_equal_timms(output_stride, tmp_path):
    ours, theirs = pair("convnext", output_stride, tmp_path)
    x = torch.randn(1, 3, 64, 64)
    for module in (ours, theirs):
        sum(m.sin().sum() for m in module(x)).backward()
    expected = theirs.get_parameter("stages_3.blocks.0.conv_dw.weight").grad
    got = ours.get_parameter("stages.3.0.dwconv.weight").grad
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [
        (32, (4, 4, 8, 16, 32), (1, 1, 1, 1)),
        (16, (4, 4, 8, 16, 16), (1, 1, 1, 2)),
        (8, (4, 4, 8, 8, 8), (1, 1, 2, 4)),
    ],
)
def test_strides_and_dilations(output_stride, strides, dilations):
    config = ConvNextConfig(output_stride=output_stride)
    assert (config.strides, config.dilations) == (strides, dilations)
    config.output_stride = 32
    assert config.strides == (4, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("patch_size", "output_stride", "strides"),
    [(2, 8, (2, 2, 4, 8, 8)), (3, 6, (3, 3, 6, 6, 6)), (16, 16, (16, 16, 16, 16, 16))],
)
def test_stems_of_other_strides(patch_size, output_stride, strides):
    config = ConvNextConfig(**SHAPE, patch_size=patch_size, output_stride=output_stride)
    assert config.strides == strides
    b = ConvNextBackbone(config, out_features=config.stage_names).eval()
    side = 4 * max(strides)
    assert [side // m.shape[-1] for m in b(torch.randn(1, 3, side, side))] == list(b.strides)


@pytest.mark.parametrize("value", [64, 0, 12, "16", 7.5])
def test_other_output_strides_are_refused(value):
    with pytest.raises(ValueError, match=r"output_stride must be one of \(4, 8, 16, 32\)"):
        ConvNextConfig(output_stride=value)


def test_by_default_nothing_is_dilated_whatever_the_number_of_stages_and_the_stem():
    five = ConvNextConfig(depths=(1,) * 5, hidden_sizes=(8,) * 5)
    assert (five.output_stride, five.strides[-1]) == (64, 64)
    assert ConvNextConfig(patch_size=16).strides == (16, 16, 32, 64, 128)
    five.update({"depths": (1, 1), "hidden_sizes": (8, 8)})
    assert five.strides == (4, 4, 8)
    with pytest.raises(ValueError, match=r"output_stride must be one of \(4, 8\), got 16"):
        five.output_stride = 16


def test_weights_stay_the_same_and_the_field_is_kept(tmp_path):
    plain = ConvNextBackbone(**SHAPE)
    dilated = ConvNextBackbone(**SHAPE, output_stride=8)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in dilated.state_dict().items()
    }
    plain.save_pretrained(tmp_path)
    again = ConvNextBackbone.from_pretrained(tmp_path, output_stride=16)
    assert again.strides == (16,)
    assert "output_stride" not in plain.config.to_dict()
    assert ConvNextConfig.from_dict(dilated.config.to_dict()).output_stride == 8
    classifier = ConvNextForImageClassification(**SHAPE, output_stride=8, num_labels=3)
    assert classifier(torch.randn(1, 3, 32, 32)).logits.shape == (1, 3)


def test_a_dilated_network_is_exported_and_compiled():
    b = ConvNextBackbone(**SHAPE, output_stride=8).eval()
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(b, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], b(x)[0])
    program = torch.export.export(b, (x,))
    torch.testing.assert_close(program.module()(x)[0], b(x)[0], rtol=1e-5, atol=1e-5)
