"""The layers against their definitions, in double precision and under reduced precision."""

import math

import pytest
import torch
from timm.layers import GlobalResponseNormMlp
from torch import nn
from torch.autograd import gradcheck

from convnext_backbone.archs import NORM_HAS_BIAS
from convnext_backbone.models.layers import (
    ACTIVATIONS,
    NORMS,
    DropPath,
    GlobalResponseNorm,
    LayerNorm2d,
)


def test_every_norm_has_a_bias_or_none_as_the_table_says():
    built = {name: [norm(4) for norm in norms] for name, norms in NORMS.items()}
    has = {name: [hasattr(norm, "bias") for norm in norms] for name, norms in built.items()}
    assert has == {name: [has_bias] * 2 for name, has_bias in NORM_HAS_BIAS.items()}


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


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_names_are_those_of_transformers_or_timm(name):
    from timm.layers import create_act_layer
    from transformers.activations import ACT2FN

    theirs = ACT2FN[name] if name in ACT2FN else create_act_layer(name)
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name]()(x), theirs(x), rtol=0, atol=1e-12)


# The layers against torch's own operations, in every dtype, layout and transform


class PlainNorm(nn.LayerNorm):
    """LayerNorm2d of torch's own layer."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PlainGrn(nn.Module):
    """GlobalResponseNorm of torch's `vector_norm`."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.zeros(channels)) for _ in range(2))

    def forward(self, x):
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=wide)
        share = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return (self.gamma * (x * share) + self.beta + x).to(x.dtype)


LAYERS = {"norm": (LayerNorm2d, PlainNorm), "grn": (GlobalResponseNorm, PlainGrn)}
ON_LAYERS = pytest.mark.parametrize("name", LAYERS)
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand_as(x),
    "empty": lambda x: x[:0],
}
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float64: 1e-12}


def pair(name, dtype=torch.float64):
    """Our layer and torch's, of 6 channels, with equal parameters."""
    made = [cls(6).to(dtype) for cls in LAYERS[name]]
    for ours, theirs in zip(*(layer.parameters() for layer in made), strict=True):
        nn.init.normal_(ours)
        theirs.data.copy_(ours.data)
    return made


def maps(dtype=torch.float64, n=2):
    return torch.randn(n, 6, 6, 6).to(dtype)  # of 6 channels on either side


def close(results, tolerance=1e-9):
    ours, theirs = results
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@ON_LAYERS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients_equal_torchs(dtype, layout, name):
    ours, theirs = pair(name, dtype)
    x, grad = LAYOUTS[layout](maps(dtype)), LAYOUTS[layout](maps(dtype))
    results = []
    for layer, wide in ((ours, torch.Tensor.clone), (theirs.double(), torch.Tensor.double)):
        leaf = wide(x).requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, (leaf, *layer.parameters()), wide(grad))])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == dtype
        assert got.shape == expected.shape
        error = (got.double() - expected).norm() / expected.norm().clamp_min(1e-30)
        assert error <= TOLERANCE[dtype]


@ON_LAYERS
def test_transforms_equal_torchs(name):
    x, tangent = maps(), maps()

    def transforms(layer):
        p = {k: v.detach() for k, v in layer.named_parameters()}
        run = lambda p, x: torch.func.functional_call(layer, p, (x,))  # noqa: E731
        loss = lambda p, x: run(p, x[None]).sin().sum()  # noqa: E731
        torch.manual_seed(1)
        directions = {k: torch.randn_like(v) for k, v in p.items()}
        small = x[:1, :, :2] if name == "grn" else x[:1, :, :, :2]
        return [
            torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(p, x),
            torch.func.jvp(run, (p, x), (directions, tangent)),
            torch.autograd.functional.jacobian(lambda x: run(p, x), small, vectorize=True),
            torch.autograd.functional.hessian(
                lambda x: run(p, x).pow(3).sum(), small, vectorize=True
            ),
        ]

    close([transforms(layer) for layer in pair(name)])


@ON_LAYERS
def test_double_backward_equals_torchs(name):
    x = maps()

    def twice(layer):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(layer(leaf).pow(3).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (leaf, *layer.parameters())[:2])

    close([twice(layer) for layer in pair(name)])


@ON_LAYERS
@pytest.mark.parametrize("amp", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_gives_torchs_values(amp, name):
    x = maps(amp)
    with torch.autocast("cpu", dtype=amp):
        ours, theirs = (layer(x) for layer in pair(name, torch.float32))
    assert ours.dtype == theirs.dtype
    error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
    assert error <= TOLERANCE[amp]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_grn_of_a_nearly_silent_channel_has_torchs_gradients_in_half_precision(dtype):
    ours, theirs = pair("grn", dtype)
    x = maps(dtype)
    x[..., 2] = 1.2e-7  # subnormal in fp16, and its square is nothing there
    results = []
    for layer, wide in ((ours, torch.Tensor.clone), (theirs.double(), torch.Tensor.double)):
        leaf = wide(x).requires_grad_()
        y = layer(leaf)
        results.append(torch.autograd.grad(y, (leaf, *layer.parameters()), torch.ones_like(y)))
    for got, expected in zip(*results, strict=True):
        assert torch.isfinite(got).all()
        assert (got.double() - expected).norm() / expected.norm() <= TOLERANCE[dtype]


def test_grn_of_silent_channels_has_finite_gradients_of_all_orders():
    layer = pair("grn")[0]
    x = maps()
    x[..., :2] = 0
    x[1] = 0
    leaf = x.requires_grad_()
    (first,) = torch.autograd.grad(layer(leaf).pow(3).sum(), leaf, create_graph=True)
    second = torch.autograd.grad(first.square().sum(), (leaf, layer.gamma))
    assert torch.isfinite(first).all()
    assert all(torch.isfinite(g).all() for g in second)


def test_simple_norm_without_a_weight_divides_only():
    norm = NORMS["simplenorm"][0](6, eps=1e-6, elementwise_affine=False).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = x / torch.sqrt(x.var(dim=-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(norm(x), expected)
