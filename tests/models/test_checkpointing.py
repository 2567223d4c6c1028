"""What a training step holds for its backward pass, and that the levels change nothing else."""

import copy

import pytest
import torch
from helpers import reference
from torch import nn
from torch.profiler import ProfilerActivity, profile

from convnext_backbone import ConvNextBackbone
from convnext_backbone.models.block import WITH_CP, Block

VERSIONS = pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])


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


def held_bytes(run):
    """Bytes that are allocated in `run` and still there after it: outputs, saved tensors, caches.

    Counted by torch's profiler, as hooks on saved tensors do not see what selective checkpointing
    keeps in its own cache.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = run()  # noqa: F841 - keeps the graph alive
    # What an operation allocates and frees is its own; what Python frees later is "[memory]".
    return sum(
        event.cpu_memory_usage if event.name == "[memory]" else event.self_cpu_memory_usage
        for event in profiler.events()
    )


def test_bytes_are_counted_as_by_hand():
    x = torch.randn(1000, 64, requires_grad=True)
    layers = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
    # the output of each layer; the first and the second are saved, the third is the output
    assert held_bytes(lambda: layers(x)) == 4 * 1000 * (64 + 64 + 32)
    with torch.no_grad():
        assert held_bytes(lambda: layers(x)) == 4 * 1000 * 32


@VERSIONS
def test_the_levels_hold_little(use_grn):
    b, x = build(use_grn), torch.randn(1, 3, 256, 256)
    held = {}
    for level in WITH_CP:
        b.with_cp = level
        held[level] = held_bytes(lambda: b(x))
    assert held["selective"] <= 0.65 * held[False]
    assert held[True] <= 0.25 * held[False]


def test_full_holds_the_inputs_of_blocks_and_downsampling_layers():
    b = ConvNextBackbone(hidden_sizes=(24, 32), depths=(2, 1), with_cp=True).train()
    x = torch.randn(1, 3, 256, 256)
    first, second = 24 * 64 * 64, 32 * 32 * 32  # numbers in a map of each stage
    stem = 2 * first + 2 * 64 * 64  # the input of its norm, the means and the deviations
    inputs = first + first + second  # of the second block, the downsampling layer, the third block
    output = 2 * second + 2 * 32 * 32  # and its norm
    expected = 4 * (stem + inputs + output)
    assert held_bytes(lambda: b(x)) == pytest.approx(expected, rel=0.02)  # random states beside


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
@pytest.mark.parametrize("level", ["selective", True])
def test_the_levels_change_no_output_and_no_gradient(level, use_grn):
    plain = build(use_grn, drop_path_rate=0.4)
    x = torch.randn(3, 3, 64, 72)
    expected = step(plain, x)
    plain.with_cp = level
    for got, e in zip(step(plain, x), expected, strict=True):
        assert relative(got, e) <= 1e-6


@VERSIONS
@pytest.mark.parametrize("level", WITH_CP)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_near_full_precision(dtype, level, use_grn):
    b = build(use_grn, with_cp=level)
    x = torch.randn(2, 3, 64, 64)
    expected = step(b, x)
    with torch.autocast("cpu", dtype=dtype):
        got = step(b, x)
        run_by_parts = copy.deepcopy(b)
        run_by_parts.forward = lambda x: tuple(reference.by_parts(run_by_parts, x))
        theirs = step(run_by_parts, x)
    for g, d, e in zip(got, theirs, expected, strict=True):
        assert g.dtype == d.dtype
        # sums that nearly cancel stray further, in torch's own layers as well
        bound = max(8 * torch.finfo(dtype).eps, 1.5 * relative(d.float(), e))
        assert relative(g.float(), e) <= bound


@VERSIONS
def test_a_second_gradient_passes_through_full_checkpointing(use_grn):
    b, x = build(use_grn).double(), torch.randn(1, 3, 32, 32).double()
    found = {}
    for level in (False, True):
        b.with_cp = level
        b.zero_grad()
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(b(leaf)[1].square().sum(), leaf, create_graph=True)
        first.square().sum().backward()
        found[level] = b.stages[0][0].pwconv1.weight.grad.clone()
    assert relative(found[True], found[False]) <= 1e-8


def test_a_second_backward_pass_through_selective_checkpointing_is_refused_by_name():
    """torch's selective checkpointing lets go of what it saved in the first one."""
    b, x = build(with_cp="selective"), torch.randn(1, 3, 32, 32, requires_grad=True)
    (first,) = torch.autograd.grad(b(x)[1].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="selective activation checkpoint"):
        first.square().sum().backward()


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
