"""The layers against their definitions, in double precision and under reduced precision."""

import math

import pytest
import torch
from timm.layers import GlobalResponseNormMlp
from torch.autograd import gradcheck

from convnext_backbone.models.layers import ACTIVATIONS, DropPath, GlobalResponseNorm, LayerNorm2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layer_norm_standardises_the_channels_of_each_pixel(memory_format):
    norm = LayerNorm2d(6, eps=1e-6).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64).to(memory_format=memory_format)
    mean = x.mean(dim=1, keepdim=True)
    expected = (x - mean) / torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + 1e-6)
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)


def test_layer_norm_makes_no_copy_of_a_channels_last_map():
    x = torch.randn(2, 6, 3, 5).to(memory_format=torch.channels_last)
    assert LayerNorm2d(6)(x).is_contiguous(memory_format=torch.channels_last)


def test_grn_follows_the_paper():
    grn = GlobalResponseNorm(4).double()
    torch.nn.init.normal_(grn.gamma)
    torch.nn.init.normal_(grn.beta)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    g = x.square().sum(dim=(1, 2), keepdim=True).sqrt()
    n = g / (g.mean(dim=-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(grn(x), grn.gamma * (x * n) + grn.beta + x, rtol=0, atol=1e-12)


def test_grn_equals_timm():
    ours, theirs = GlobalResponseNorm(4), GlobalResponseNormMlp(4, hidden_features=4).grn
    for parameter, name in ((ours.gamma, "weight"), (ours.beta, "bias")):
        torch.nn.init.normal_(parameter)
        getattr(theirs, name).data.copy_(parameter.data)
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def test_grn_parameters_are_flat():
    assert {p.shape for p in GlobalResponseNorm(4).parameters()} == {(4,)}


@pytest.mark.parametrize("layer", [LayerNorm2d(4), GlobalResponseNorm(3)], ids=["norm", "grn"])
def test_gradients_are_those_of_finite_differences(layer):
    layer = layer.double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        names = [n for n, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    parameters = [p.detach().requires_grad_() for p in layer.parameters()]
    assert gradcheck(run, (x, *parameters))


def test_grn_of_a_dead_channel_has_a_finite_gradient():
    grn = GlobalResponseNorm(3)
    torch.nn.init.ones_(grn.gamma)
    x = torch.randn(1, 4, 4, 3)
    x[..., 1] = 0
    x.requires_grad_()
    grn(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_grn_stays_finite_and_accurate_on_a_large_map_in_half_precision(dtype):
    # 256 x 256 squares of 4 sum to over a million, far above fp16's 65504.
    grn = GlobalResponseNorm(4).to(dtype)
    torch.nn.init.ones_(grn.gamma)
    x = (torch.randn(1, 256, 256, 4) * 4).to(dtype)
    wide = x.double()
    g = wide.square().sum(dim=(1, 2), keepdim=True).sqrt()
    expected = wide * g / g.mean(dim=-1, keepdim=True) + wide
    got = grn(x).double()
    assert torch.isfinite(got).all()
    error = (got - expected).norm() / expected.norm()
    assert error <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_layer_norm_reduces_in_wide_precision(dtype):
    # Under autocast the parameters stay in fp32 and the map arrives narrow; the mean is large
    # beside the spread, so a narrow reduction would lose it.
    norm = LayerNorm2d(512)
    x = (torch.randn(1, 512, 4, 4) + 100).to(dtype)
    wide = x.double()
    mean = wide.mean(dim=1, keepdim=True)
    expected = (wide - mean) / wide.var(dim=1, keepdim=True, unbiased=False).sqrt()
    with torch.autocast("cpu", dtype=dtype):
        got = norm(x).double()
    assert (got - expected).norm() / expected.norm() <= 2 * torch.finfo(dtype).eps


def test_drop_path_keeps_the_expectation_and_drops_whole_samples():
    layer = DropPath(0.3).train()
    x = torch.ones(20000, 2, 1)
    y = layer(x)
    assert torch.equal(y[:, 0], y[:, 1])
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    # The mean of n draws of variance (1 - p) / p lies within five standard errors of one.
    assert abs(y[:, 0].mean().item() - 1) < 5 * math.sqrt(0.3 / 0.7 / 20000)


@pytest.mark.parametrize(("rate", "factor"), [(0.0, 1.0), (1.0, 0.0)])
def test_drop_path_at_its_ends(rate, factor):
    x = torch.randn(4, 3)
    assert torch.equal(DropPath(rate).train()(x), x * factor)
    assert torch.equal(DropPath(rate).eval()(x), x)


def test_activation_names_are_those_of_transformers():
    from transformers.activations import ACT2FN

    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    for name, build in ACTIVATIONS.items():
        torch.testing.assert_close(build()(x), ACT2FN[name](x), rtol=0, atol=1e-12)
