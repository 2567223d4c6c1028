"""What a training step holds for its backward pass, and that the levels change nothing else."""

import copy

import pytest
import torch
from torch import nn

from convnext_backbone import ConvNextBackbone
from convnext_backbone.kernels import use_kernels
from convnext_backbone.models.trunk import WITH_CP, Block

VERSIONS = pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
# One size below which blocks are trained by plain autograd, one above which they are tiled.
SIZES = pytest.mark.parametrize("side", [128, 640])


def build(use_grn=False, **fields):
    scale = 0.0 if use_grn else 0.5
    b = ConvNextBackbone(
        hidden_sizes=(24, 32), depths=(3, 3), use_grn=use_grn, layer_scale_init_value=scale,
        out_features=("stage1", "stage2"), **fields,
    ).train()  # fmt: skip
    for block in (m for m in b.modules() if isinstance(m, Block) and use_grn):
        nn.init.normal_(block.grn.gamma)
        nn.init.normal_(block.grn.beta)
    return b


def held_bytes(backbone, x):
    """Bytes of the distinct storages that autograd saves, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    held = {}

    def pack(t):
        held[t.untyped_storage().data_ptr()] = t  # kept alive, so that no address comes twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        maps = backbone(x)
    assert all(m.requires_grad for m in maps)
    return sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in own)


@VERSIONS
@SIZES
def test_the_levels_hold_little(use_grn, side):
    b, x = build(use_grn), torch.randn(1, 3, side, side)
    held = {}
    for level in WITH_CP:
        b.with_cp = level
        held[level] = held_bytes(b, x)
    assert held["selective"] <= 0.6 * held[False]
    assert held[True] <= 0.2 * held[False]


def step(backbone, x):
    """Maps, then the gradients of the image and of every parameter."""
    torch.manual_seed(5)  # the same paths drop
    x = x.clone().requires_grad_()
    maps = backbone(x)
    backbone.zero_grad()
    torch.autograd.backward(maps, [m.detach().cos() for m in maps])
    return [*(m.detach() for m in maps), x.grad, *(p.grad for p in backbone.parameters())]


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@VERSIONS
@SIZES
@pytest.mark.parametrize("level", ["selective", True])
def test_the_levels_change_no_output_and_no_gradient(level, use_grn, side):
    plain = build(use_grn, drop_path_rate=0.4)
    x = torch.randn(3, 3, 64, 72) if side == 128 else torch.randn(1, 3, side, side)
    expected = step(plain, x)
    plain.with_cp = level
    for got, e in zip(step(plain, x), expected, strict=True):
        assert relative(got, e) <= 1e-6


@VERSIONS
@pytest.mark.parametrize("level", WITH_CP)
def test_the_quick_paths_have_the_gradients_of_the_definition_in_double(level, use_grn):
    b = build(use_grn, with_cp=level)
    exact = copy.deepcopy(b).double()
    exact.with_cp = False
    x = torch.randn(2, 3, 75, 64)
    with use_kernels(cpu=False):
        expected = step(exact, x.double())
    for got, e in zip(step(b, x), expected, strict=True):
        assert relative(got.double(), e) <= 1e-6


@VERSIONS
@pytest.mark.parametrize("level", WITH_CP)
def test_autocast_trains_near_full_precision(level, use_grn):
    b = build(use_grn, with_cp=level)
    x = torch.randn(2, 3, 64, 64)
    expected = step(b, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = step(b, x)
        with use_kernels(cpu=False):
            b.with_cp = False
            definition = step(b, x)
    for g, d, e in zip(got, definition, expected, strict=True):
        # sums that nearly cancel stray further, in the definition as well
        bound = max(8 * torch.finfo(torch.bfloat16).eps, 1.5 * relative(d.float(), e))
        assert relative(g.float(), e) <= bound


@pytest.mark.parametrize("level", WITH_CP)
def test_autocast_gives_the_dtype_of_the_definition(level):
    b, x = build(with_cp=level), torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = [m.dtype for m in b(x)]
        with use_kernels(cpu=False):
            b.with_cp = False
            assert got == [m.dtype for m in b(x)]


@VERSIONS
def test_a_second_gradient_passes_through_every_level(use_grn):
    b, x = build(use_grn).double(), torch.randn(1, 3, 32, 32).double()
    found = {}
    for level in WITH_CP:
        b.with_cp = level
        b.zero_grad()
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(b(leaf)[1].square().sum(), leaf, create_graph=True)
        first.square().sum().backward()
        found[level] = b.stages[0][0].pwconv1.weight.grad.clone()
    for level in ("selective", True):
        assert relative(found[level], found[False]) <= 1e-8


@pytest.mark.parametrize("level", WITH_CP)
def test_dynamo_traces_a_training_step_as_one_graph(level):
    b, x = build(with_cp=level), torch.randn(1, 3, 32, 32)
    expected = step(b, x)
    compiled = torch.compile(b, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    leaf = x.clone().requires_grad_()
    maps = compiled(leaf)
    torch.autograd.backward(maps, [m.detach().cos() for m in maps])
    assert relative(leaf.grad, expected[2]) <= 1e-5


@pytest.mark.parametrize("level", WITH_CP)
def test_hooks_on_the_parts_of_a_block_are_called(level):
    b, calls = build(with_cp=level), []
    b.stages[0][1].norm.register_forward_hook(lambda *_: calls.append("norm"))
    b(torch.randn(1, 3, 32, 32))
    with torch.no_grad():
        b.eval()(torch.randn(1, 3, 32, 32))
    assert len(calls) == 2


def test_hooked_outputs_are_not_overwritten_by_later_blocks():
    b, seen = build().eval(), []
    b.stages[0][0].register_forward_hook(lambda m, i, o: seen.append((o, o.clone())))
    with torch.no_grad():
        b(torch.randn(1, 3, 64, 64))
    kept, copied = seen[0]
    assert torch.equal(kept, copied)


@pytest.mark.parametrize("value", ["full", None, 1.5, ()])
def test_an_unknown_level_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"with_cp must be one of \(False, 'selective', True\)"):
        build(with_cp=value)
    with pytest.raises(ValueError, match="with_cp must be one of"):
        build().with_cp = value
