"""The CPU's fused operations against their plain twins in double precision, value and gradient."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from convnext_backbone.inference import pointwise
from convnext_backbone.kernels import depthwise, eager, training, use_kernels
from convnext_backbone.kernels.switches import switches

SHAPES = ((2, 5, 3, 8), (1, 33, 40, 24), (5, 7, 7, 32), (3, 20, 21, 16), (0, 4, 4, 8))
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of a few pixels, so that tiny maps have several, the last one cut."""
    monkeypatch.setattr(pointwise, "_TILE", 1 << 13)
    monkeypatch.setattr(pointwise, "_MIN_ROWS", 50)
    monkeypatch.setattr(depthwise, "_TILE", 1 << 12)


def relative(got, expected):
    if expected.numel() == 0:
        assert got.shape == expected.shape
        return 0.0
    return ((got.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def make(shape, use_grn, dtype):
    """An input and parameters in `dtype`, and the same numbers in fp64, all leaves."""
    c = shape[-1]
    sizes = [shape, (c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,)]
    sizes += [(4 * c,), (4 * c,)] if use_grn else []
    narrow = [(torch.randn(s) * (0.3 if len(s) < 4 else 1)).to(dtype) for s in sizes]
    return tuple([t.to(d).requires_grad_() for t in narrow] for d in (dtype, torch.float64))


def mlp(tensors, approximate="none"):
    nw, nb, w1, b1, w2, b2, *grn = tensors
    return pointwise.Mlp(nw, nb, 1e-6, w1, b1, approximate, w2, b2, *grn)


def bounds(dtype, plain, exact):
    """The tolerance; in bf16 the definition itself strays further where sums are short."""
    return [max(TOLERANCE[dtype], 1.5 * relative(p, e)) for p, e in zip(plain, exact, strict=True)]


PATHS = {
    "train": pointwise.mlp_train,
    "keep_all": lambda y, p: training.mlp_tiled(y, p, keep_all=True),
    "keep_dear": lambda y, p: training.mlp_tiled(y, p, keep_all=False),
}


@DTYPES
@pytest.mark.parametrize("use_grn", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_training_paths_equal_the_definition(path, shape, use_grn, dtype):
    mine, exact = make(shape, use_grn, dtype)
    expected = pointwise.mlp_plain(exact[0], mlp(exact[1:]))
    got = PATHS[path](mine[0], mlp(mine[1:]))
    assert relative(got.detach(), expected.detach()) <= TOLERANCE[dtype]
    grad = torch.randn(shape).to(dtype)
    expected = torch.autograd.grad(expected, exact, grad.double())
    plain = torch.autograd.grad(pointwise.mlp_plain(mine[0], mlp(mine[1:])), mine, grad)
    got = torch.autograd.grad(got, mine, grad)
    for g, e, bound in zip(got, expected, bounds(dtype, plain, expected), strict=True):
        assert relative(g, e) <= bound


@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_the_norm_in_bf16_stay_close_over_many_pixels(path):
    """torch's own add up in bf16: 5 % off here."""
    mine, exact = make((1, 56, 56, 24), False, torch.bfloat16)
    grad = torch.randn(1, 56, 56, 24).bfloat16()
    expected = torch.autograd.grad(
        pointwise.mlp_plain(exact[0], mlp(exact[1:])), exact, grad.double()
    )
    got = torch.autograd.grad(PATHS[path](mine[0], mlp(mine[1:])), mine, grad)
    assert max(relative(g, e) for g, e in zip(got[1:3], expected[1:3], strict=True)) <= 1e-2


@DTYPES
@pytest.mark.parametrize("scaled", [False, True], ids=["folded", "scaled"])
@pytest.mark.parametrize("use_grn", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inference_equals_the_definition(shape, use_grn, scaled, dtype):
    mine, exact = make(shape, use_grn, dtype)
    x, gamma = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    with torch.no_grad():
        expected = pointwise.mlp_plain(exact[0], mlp(exact[1:]))
        expected = x.double() + expected * (gamma.double() if scaled else 1)
        kept = x.clone()
        y = mine[0].detach().clone()
        got = pointwise.mlp_add(y, x, mlp(mine[1:]), gamma if scaled else None)
    assert relative(got, expected) <= TOLERANCE[dtype]
    assert torch.equal(x, kept)


@pytest.mark.parametrize("use_grn", [False, True])
def test_gradients_of_gradients_in_bf16_are_those_of_the_definition(use_grn):
    mine, exact = make((1, 6, 5, 8), use_grn, torch.bfloat16)

    def twice(run, tensors):
        out = run(tensors[0], mlp(tensors[1:])).square().sum()
        first = torch.autograd.grad(out, tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    expected = twice(pointwise.mlp_plain, exact)
    plain = twice(pointwise.mlp_plain, mine)
    for g, p, e in zip(twice(pointwise.mlp_train, mine), plain, expected, strict=True):
        assert relative(g, e) <= max(2e-2, 1.5 * relative(p, e))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("use_grn", [False, True])
def test_tiled_gradients_and_their_gradients_are_those_of_finite_differences(use_grn, approximate):
    _, exact = make((2, 2, 3, 3), use_grn, torch.float64)

    def run(y, *tensors):
        return training.mlp_tiled(y, mlp(tensors, approximate), keep_all=False)

    assert gradcheck(run, exact)
    assert gradgradcheck(run, exact)


def test_a_silent_channel_has_a_finite_gradient():
    mine, _ = make((1, 12, 12, 8), True, torch.float32)
    with torch.no_grad():
        mine[3][5], mine[4][5] = 0.0, 0.0  # hidden channel 5 is zero, and so is its GELU
    out = training.mlp_tiled(mine[0], mlp(mine[1:]), keep_all=False)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), mine))


def test_blocks_in_a_workspace_share_one_buffer_and_drop_it():
    like = torch.empty(0)
    with pointwise.workspace():
        first = pointwise._scratch((4, 8), like)
        assert pointwise._scratch((2, 3), like).data_ptr() == first.data_ptr()
    assert pointwise._scratch((4, 8), like).data_ptr() != first.data_ptr()


# The depthwise convolution


@DTYPES
@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("shape", [(2, 8, 5, 3), (1, 24, 33, 40), (5, 32, 7, 7), (0, 8, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_depthwise_equals_torch(shape, size, memory_format, dtype):
    numbers = [torch.randn(shape), torch.randn(shape[1], 1, size, size), torch.randn(shape[1])]
    numbers = [t.to(dtype) for t in numbers]
    exact = [t.double().requires_grad_() for t in numbers]
    numbers[0] = numbers[0].to(memory_format=memory_format)
    mine = [t.requires_grad_() for t in numbers]
    expected = depthwise.depthwise_conv2d_plain(*exact)
    got = depthwise.depthwise_conv2d(*mine)
    assert relative(got.detach(), expected.detach()) <= TOLERANCE[dtype]
    grad = torch.randn(shape).to(dtype)
    expected = torch.autograd.grad(expected, exact, grad.double())
    for g, e in zip(torch.autograd.grad(got, mine, grad), expected, strict=True):
        assert relative(g, e) <= TOLERANCE[dtype]


def test_depthwise_gradients_and_their_gradients_are_those_of_finite_differences():
    arguments = (torch.randn(2, 3, 4, 5), torch.randn(3, 1, 3, 3), torch.randn(3))
    arguments = tuple(t.double().requires_grad_() for t in arguments)
    assert gradcheck(depthwise.depthwise_conv2d, arguments)
    assert gradgradcheck(depthwise.depthwise_conv2d, arguments)


# The switch


def test_the_switch_holds_for_a_while_or_for_good():
    with use_kernels(cpu=False):
        assert not switches.cpu
        use_kernels(cpu=True)
        assert switches.cpu
    assert switches.cpu
    with pytest.raises(TypeError, match="cpu must be True, False or None, got 'off'"):
        use_kernels(cpu="off")


def test_unmeasured_kernels_are_off():
    assert not switches.triton


def test_watched_tensors_are_not_plain():
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1)
    assert eager(x)
    with FlopCounterMode(display=False):
        assert not eager(x)
    seen = []
    torch.func.vmap(lambda t: seen.append(eager(t)) or t)(x)
    assert seen == [False]
