"""DepthwiseConv2d against torch's own convolution, in every dtype, layout and transform."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from convnext_backbone.models import depthwise
from convnext_backbone.models.layers import DepthwiseConv2d

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
SHAPES = [(2, 8, 5, 3), (1, 24, 33, 40), (5, 32, 7, 7), (5, 8, 3, 3), (2, 8, 7, 1), (0, 8, 4, 4)]
LAYOUTS = {
    "nchw": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand_as(x),
    "strided": lambda x: torch.cat([x, x], dim=3)[..., ::2],
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of a few rows or images, so that tiny maps have several, the last one cut."""
    monkeypatch.setattr(depthwise, "_ROWS", 6)
    monkeypatch.setattr(depthwise, "_NUMBERS", 2 * 8 * 5 * 3)


def relative(got, expected):
    assert got.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return ((got.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def torchs(layer):
    """torch's own layer with the same tensors and options."""
    twin = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
        layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode,
    )  # fmt: skip
    twin.load_state_dict(layer.state_dict())
    return twin.to(layer.weight.dtype)


def gradients(layer, x, grad):
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), grad)]


@DTYPES
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_and_gradients_equal_torchs(shape, size, layout, dtype):
    layer = DepthwiseConv2d(shape[1], size).to(dtype)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype)) if shape[0] else torch.randn(shape).to(dtype)
    grad = torch.randn(shape).to(dtype)
    expected = gradients(torchs(layer).double(), x.double(), grad.double())
    for got, e in zip(gradients(layer, x, grad), expected, strict=True):
        assert got.dtype == dtype
        assert relative(got, e) <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    "changes",
    [
        {"dilation": (2, 2), "padding": (6, 6)},
        {"dilation": (1, 3), "padding": (3, 9)},
        {"dilation": (2, 2)},
        {"padding": (0, 0)},
        {"padding": "same"},
        {"stride": (2, 2)},
        {"dilation": 2, "padding": 6},
        {"stride": 1, "padding": 3},
    ],
    ids=str,
)
def test_changed_options_are_honoured_in_training_and_evaluation(changes):
    layer, x = DepthwiseConv2d(4, 7).double(), torch.randn(2, 4, 15, 16).double()
    for name, value in changes.items():
        setattr(layer, name, value)
    theirs = torchs(layer)
    grad = torch.randn_like(theirs(x))
    for got, e in zip(gradients(layer, x, grad), gradients(theirs, x, grad), strict=True):
        assert relative(got, e) <= 1e-12
    with torch.no_grad():
        assert relative(layer.eval()(x), theirs(x)) <= 1e-12


@pytest.mark.parametrize("kernel", [(3, 7), (1, 5), (7, 1)], ids=str)
def test_rectangular_kernels(kernel):
    layer = DepthwiseConv2d(6, 7)
    layer.weight = nn.Parameter(torch.randn(6, 1, *kernel))
    layer.kernel_size, layer.padding = kernel, (kernel[0] // 2, kernel[1] // 2)
    x, grad = torch.randn(2, 6, 9, 11), torch.randn(2, 6, 9, 11)
    expected = gradients(torchs(layer).double(), x.double(), grad.double())
    for got, e in zip(gradients(layer, x, grad), expected, strict=True):
        assert relative(got, e) <= 1e-6


def test_gradients_in_bf16_are_summed_in_full_precision_over_many_tiles():
    layer = DepthwiseConv2d(8, 7).bfloat16()
    x, grad = (torch.rand(1, 8, 96, 96).bfloat16() for _ in range(2))
    exact = gradients(torchs(layer).double(), x.double(), grad.double())[2]
    # One rounding of the result to bf16 is 0.2 % at most.
    assert relative(gradients(layer, x, grad)[2], exact) <= 2.5e-3


def test_no_bias():
    layer, x = DepthwiseConv2d(4, 5), torch.randn(2, 4, 6, 5)
    layer.bias = None
    grad = torch.randn(2, 4, 6, 5)
    for got, e in zip(gradients(layer, x, grad), gradients(torchs(layer), x, grad), strict=True):
        torch.testing.assert_close(got, e, rtol=1e-5, atol=1e-5)


def test_first_and_second_gradients_in_both_modes_are_those_of_finite_differences():
    arguments = (torch.randn(2, 3, 4, 5), torch.randn(3, 1, 3, 3), torch.randn(3))
    arguments = tuple(t.double().requires_grad_() for t in arguments)

    def run(x, weight, bias):
        return depthwise.depthwise_conv2d(x, weight, bias, (1, 1))

    assert gradcheck(run, arguments, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(run, arguments)


def run(layer, parameters, x):
    return torch.func.functional_call(layer, parameters, (x,))


def both(make):
    """What `make(layer)` gives for our layer and for torch's own."""
    layer = DepthwiseConv2d(3, 5).double()
    return make(layer), make(torchs(layer))


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_per_sample_gradients_by_vmap():
    x = torch.randn(4, 3, 6, 7).double()

    def make(layer):
        p = {k: v.detach() for k, v in layer.named_parameters()}
        grad = torch.func.grad(lambda p, s: run(layer, p, s[None]).sin().sum())
        return torch.func.vmap(grad, in_dims=(None, 0))(p, x)

    close(*both(make))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 1), (0, 1)], ids=str)
def test_vmap_over_weights_and_images(in_dims):
    weights, x = torch.randn(2, 3, 1, 5, 5).double(), torch.randn(4, 2, 3, 6, 7).double()
    weights = weights if in_dims[0] == 0 else weights[0]
    x = x if in_dims[1] == 1 else x[:, 0]

    def make(layer):
        p = {k: v.detach() for k, v in layer.named_parameters()}

        def loss(weight, x):
            return run(layer, {**p, "weight": weight}, x).cos().sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=in_dims)(weights, x)

    close(*both(make))


def test_jvp_of_image_and_parameters():
    x, tangent = torch.randn(2, 2, 3, 6, 7).double()

    def make(layer):
        p = {k: v.detach() for k, v in layer.named_parameters()}
        torch.manual_seed(3)
        directions = {k: torch.randn_like(v) for k, v in p.items()}
        return torch.func.jvp(lambda p, x: run(layer, p, x), (p, x), (directions, tangent))

    close(*both(make))


@pytest.mark.parametrize("dual", ["x", "weight", "bias"])
def test_forward_mode_gradients_of_each_argument(dual):
    x = torch.randn(2, 3, 6, 7).double()

    def make(layer):
        torch.manual_seed(3)
        p = {"x": x, **dict(layer.named_parameters())}
        with forward_ad.dual_level():
            p[dual] = forward_ad.make_dual(p[dual], torch.randn_like(p[dual]))
            y = run(layer, {k: v for k, v in p.items() if k != "x"}, p["x"])
            return forward_ad.unpack_dual(y).tangent.detach()

    close(*both(make))


def test_vectorized_jacobian_and_hessian():
    x = torch.randn(1, 3, 4, 4).double()

    def make(layer):
        jacobian = torch.autograd.functional.jacobian(
            lambda w: run(layer, {"weight": w}, x), layer.weight, vectorize=True
        )
        hessian = torch.autograd.functional.hessian(
            lambda x: run(layer, {}, x).pow(3).sum(), x, vectorize=True
        )
        return jacobian, hessian

    close(*both(make))


def test_batched_gradients_of_one_graph():
    x, cotangents = torch.randn(2, 3, 6, 7).double(), torch.randn(5, 2, 3, 6, 7).double()

    def make(layer):
        y = layer(x.clone().requires_grad_())
        return torch.autograd.grad(y, [*layer.parameters()], cotangents, is_grads_batched=True)

    close(*both(make))


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_gives_torchs_dtypes_and_values(inside, dtype, amp):
    layer, x = DepthwiseConv2d(8, 7).to(dtype), torch.randn(2, 8, 12, 12, dtype=dtype)

    def step(layer):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=amp):
            y = layer(leaf)
            if inside:
                y.cos().sum().backward()
        if not inside:
            y.cos().sum().backward()
        return [y.detach(), leaf.grad, *(p.grad for p in layer.parameters())]

    exact = gradients(torchs(layer).double(), x.double(), torch.zeros(2, 8, 12, 12).double())[0]
    for got, theirs in zip(step(layer), step(torchs(layer)), strict=True):
        assert got.dtype == theirs.dtype
        assert relative(got, theirs.double()) <= 2e-2
    assert relative(step(layer)[0], exact) <= TOLERANCE[amp if dtype == torch.float32 else dtype]


def test_a_plain_tensor_weight_passes_its_gradient_on():
    layer = DepthwiseConv2d(4, 5).requires_grad_(False)
    base, z = layer.weight.detach().clone(), torch.zeros(4, 1, 5, 5, requires_grad=True)
    del layer.weight
    layer.weight = base + z * 0.1
    x = torch.randn(2, 4, 6, 6)
    layer(x).sum().backward()
    expected = torch.autograd.grad(
        F.conv2d(x, w := base.clone().requires_grad_(), layer.bias, padding=2, groups=4).sum(), w
    )[0]
    torch.testing.assert_close(z.grad, 0.1 * expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_has_the_strides_of_the_weight(memory_format):
    layer = DepthwiseConv2d(4, 5)
    layer(torch.randn(2, 4, 6, 6).to(memory_format=memory_format)).sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()


def test_dynamo_and_export_see_a_plain_convolution():
    layer, x = DepthwiseConv2d(4, 7), torch.randn(2, 4, 9, 9)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-6)
    compiled(x).sum().backward()
    program = torch.export.export(layer, (x,))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("conv2d" in target for target in targets)
    assert not any("unfold" in target or "Depthwise" in target for target in targets)


def test_wrong_shapes_raise_torchs_own_error():
    layer = DepthwiseConv2d(4, 5)
    for shape in ((2, 5, 6, 6), (4, 6)):
        with pytest.raises(RuntimeError):
            layer(torch.randn(shape))


class _Noise(nn.Module):
    """A parametrization that draws anew whenever it is read."""

    def forward(self, weight):
        return weight + torch.randn_like(weight)


def test_a_parametrized_weight_is_computed_once_a_call_as_torchs_is():
    layer, x = DepthwiseConv2d(4, 5), torch.randn(2, 4, 6, 6)
    theirs = torchs(layer)
    for part in (layer, theirs):
        nn.utils.parametrize.register_parametrization(part, "weight", _Noise())
    for train in (True, False):
        maps = []
        for part in (layer, theirs):
            torch.manual_seed(1)
            with torch.set_grad_enabled(train):
                maps.append(part.train(train)(x))
        torch.testing.assert_close(*maps, rtol=1e-5, atol=1e-5)
