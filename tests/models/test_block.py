"""The block and the stage: equal to an independent ConvNeXt, and every part of them is called."""

import copy
import math

import pytest
import torch
from helpers import reference
from helpers.process_group import one_process
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import prune

from convnext_backbone import ConvNextBackbone, ConvNextConfig, ConvNextForImageClassification
from convnext_backbone.models.block import Block, Stage

VERSIONS = pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
LEVELS = pytest.mark.parametrize("with_cp", [False, "selective", True])
LAYOUTS = {
    "nchw": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand_as(x),
    "strided": lambda x: torch.cat([x, x], dim=2)[:, :, ::2],
}


def build(use_grn=False, scale=0.5, **fields):
    fields = {"hidden_sizes": (8, 16), "depths": (2, 2), "out_indices": (1, 2), **fields}
    scale = 0.0 if use_grn else scale
    b = ConvNextBackbone(use_grn=use_grn, layer_scale_init_value=scale, **fields)
    for name, p in b.named_parameters():
        if not name.endswith("gamma") or "grn" in name:
            nn.init.normal_(p, std=0.3, mean=float(name.endswith("norm.weight")))
    return b


def relative(got, expected):
    return ((got.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def gradients(run, parameters, x):
    """The maps of `run(x)`, then the gradients of the image and of the parameters."""
    x = x.clone().requires_grad_()
    maps = run(x)
    grads = torch.autograd.grad(maps, (x, *parameters), [m.detach().cos() for m in maps])
    return [*(m.detach() for m in maps), *grads]


# Equality with an independent implementation


@VERSIONS
@LEVELS
@pytest.mark.parametrize("shape", [(2, 3, 64, 48), (1, 3, 31, 45), (3, 3, 112, 137)], ids=str)
def test_maps_and_gradients_equal_the_papers(shape, with_cp, use_grn):
    b, x = build(use_grn, with_cp=with_cp), torch.randn(shape)
    exact = {k: v.detach().double().requires_grad_() for k, v in b.named_parameters()}
    expected = gradients(
        lambda x: reference.maps(exact, x, b.config.depths), exact.values(), x.double()
    )
    for got, e in zip(gradients(b, b.parameters(), x), expected, strict=True):
        assert relative(got, e) <= 2e-6
    with torch.no_grad():
        for got, e in zip(b.eval()(x), expected, strict=False):
            assert relative(got, e) <= 2e-6


@VERSIONS
@LEVELS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_stage_alone_takes_maps_of_any_memory_layout(dtype, layout, with_cp, use_grn):
    b = build(use_grn, with_cp=with_cp).to(dtype)
    stage, x = b.stages[1], LAYOUTS[layout](torch.randn(3, 16, 12, 10).to(dtype))
    y = x.double()
    for block in copy.deepcopy(stage).double():
        y = reference.block(block.state_dict(), y)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    assert relative(stage(x), y) <= tolerance
    with torch.no_grad():
        assert relative(stage(x), y) <= tolerance


@VERSIONS
@LEVELS
def test_an_empty_batch_gives_empty_maps_and_zero_gradients(with_cp, use_grn):
    b = build(use_grn, with_cp=with_cp)
    maps = b(torch.randn(0, 3, 32, 32))
    assert [m.shape for m in maps] == [(0, 8, 8, 8), (0, 16, 4, 4)]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad.count_nonzero() == 0 for p in b.parameters())


# Mixed precision


@LEVELS
def test_a_layer_scale_of_1e6th_keeps_the_gradients_in_fp16(with_cp):
    b, x = build(scale=1e-6, with_cp=with_cp), torch.randn(2, 3, 64, 64)
    exact = {k: v.detach().double().requires_grad_() for k, v in b.named_parameters()}
    maps = reference.maps(exact, x.double(), b.config.depths)
    torch.autograd.backward(maps, [1e4 * m.detach().cos() for m in maps])
    with torch.autocast("cpu", dtype=torch.float16):
        got = b(x)
    torch.autograd.backward(got, [1e4 * m.detach().cos() for m in got])
    for name, p in b.named_parameters():
        if "stages" in name:
            assert relative(p.grad, exact[name].grad) <= 0.03, name


@LEVELS
def test_a_nearly_silent_channel_has_finite_gradients_in_fp16_under_a_large_loss_scale(with_cp):
    b, x = build(use_grn=True, with_cp=with_cp), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for block in (m for m in b.modules() if isinstance(m, Block)):
            block.pwconv1.weight[3] = 0.0
            block.pwconv1.bias[3] = 2e-7  # GELU makes 1e-7 of it, a subnormal number of fp16
            block.pwconv1.weight[4] = 0.0
            block.pwconv1.bias[4] = 0.0
    with torch.autocast("cpu", dtype=torch.float16):
        loss = sum(m.float().square().mean() for m in b(x))
    (loss * 2**10).backward()
    assert all(torch.isfinite(p.grad).all() for p in b.parameters())


def test_grn_kept_in_fp32_works_in_a_bf16_network():
    b, x = build(use_grn=True), torch.randn(1, 3, 32, 32)
    exact = {k: v.double() for k, v in b.state_dict().items()}
    expected = reference.maps(exact, x.double(), b.config.depths)
    b.bfloat16()
    for module in b.modules():
        if type(module).__name__ == "GlobalResponseNorm":
            module.float()
    for run in (b, b.eval().optimize_for_inference()):
        with torch.no_grad():
            for got, e in zip(run(x.bfloat16()), expected, strict=True):
                assert relative(got, e) <= 3e-2


# Transforms


@VERSIONS
def test_forward_mode_gradients_are_finite_differences(use_grn):
    b = build(use_grn).double()
    x, direction = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        step = 1e-6 * direction
        expected = (b(x + step)[-1] - b(x - step)[-1]) / 2e-6
    _, tangent = torch.func.jvp(lambda x: b(x)[-1], (x,), (direction,))
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-6)


@VERSIONS
def test_gradients_of_each_sample_are_those_of_the_sample_alone(use_grn):
    b, x = build(use_grn).double(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    parameters = {k: v.detach() for k, v in b.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(b, parameters, (sample[None],))[-1].square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        b.zero_grad()
        b(sample[None])[-1].square().mean().backward()
        for name, p in b.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(each[name][i], p.grad, rtol=1e-8, atol=1e-10)


@VERSIONS
def test_vectorized_jacobian_equals_the_loop(use_grn):
    b = build(use_grn, depths=(1, 1)).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    run = lambda x: b(x)[-1].mean(dim=(2, 3))  # noqa: E731
    expected = torch.autograd.functional.jacobian(run, x)
    got = torch.autograd.functional.jacobian(run, x, vectorize=True)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    hessian = torch.autograd.functional.hessian
    square = lambda x: b(x)[-1].square().sum()  # noqa: E731
    x = x[..., :8, :8]
    torch.testing.assert_close(
        hessian(square, x, vectorize=True), hessian(square, x), rtol=1e-8, atol=1e-10
    )


@VERSIONS
def test_batched_gradients_equal_one_after_the_other(use_grn):
    b = build(use_grn).double()
    y = b(torch.randn(2, 3, 32, 32).double())[-1]
    cotangents = torch.randn(3, *y.shape).double()
    parameters = list(b.stages.parameters())
    got = torch.autograd.grad(y, parameters, cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        expected = torch.autograd.grad(y, parameters, cotangent, retain_graph=True)
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g[i], e, rtol=1e-9, atol=1e-11)


def test_double_backward_with_a_dead_channel_is_finite():
    b = build(use_grn=True).double()
    with torch.no_grad():
        b.stages[0][0].pwconv1.weight[2], b.stages[0][0].pwconv1.bias[2] = 0.0, 0.0
    x = torch.randn(1, 3, 32, 32).double().requires_grad_()
    (first,) = torch.autograd.grad(b(x)[-1].square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in b.parameters() if p.grad is not None)


# Every stage is called as a module


@LEVELS
def test_hooks_of_a_stage_are_called_and_may_change_its_output(with_cp):
    b, x = build(with_cp=with_cp), torch.randn(1, 3, 32, 32)
    seen = []
    b.stages[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    b.stages[0].register_forward_hook(lambda m, i, o: o * 0)
    first, _ = b(x)
    assert seen == [(1, 8, 8, 8)]
    torch.testing.assert_close(first, b.norms["stage1"](torch.zeros(1, 8, 8, 8)))


@LEVELS
def test_backward_hooks_of_a_stage_see_the_gradient_of_its_output(with_cp):
    """What Grad-CAM with `target_layers=[backbone.stages[-1]]` needs."""
    b, x = build(with_cp=with_cp), torch.randn(1, 3, 32, 32)
    seen = {}
    b.stages[-1].register_full_backward_hook(lambda m, i, o: seen.update(grad=o[0]))
    b.stages[-1].register_forward_hook(lambda m, i, o: seen.update(map=o))
    b(x)[-1].square().mean().backward()
    norm = copy.deepcopy(b.norms["stage2"])
    leaf = seen["map"].detach().requires_grad_()
    (expected,) = torch.autograd.grad(norm(leaf).square().mean(), leaf)
    torch.testing.assert_close(seen["grad"], expected)


class Halved(nn.Sequential):
    """A stage with a forward method of its own."""

    def forward(self, x):
        return super().forward(x) * 0.5


@LEVELS
@pytest.mark.parametrize("optimized", [False, True])
def test_a_replaced_stage_runs_its_own_forward(optimized, with_cp):
    b, x = build(with_cp=with_cp), torch.randn(1, 3, 32, 32)
    y = reference.by_parts(b, x)[0]
    b.stages[0] = Halved(*b.stages[0])
    raw = next(m for i, m in enumerate(b.iter_maps(x, 1)) if i == 1)
    torch.testing.assert_close(b.norms["stage1"](2 * raw), y, rtol=1e-5, atol=1e-5)
    if optimized:
        expected = b.eval()(x)
        for got, e in zip(b.optimize_for_inference()(x), expected, strict=True):
            torch.testing.assert_close(got, e, rtol=1e-4, atol=1e-5)


WRAPPERS = {
    "sequential": nn.Sequential,
    "checkpoint_wrapper": checkpoint_wrapper,
    "compiled": lambda stage: torch.compile(stage, backend="aot_eager"),
}


@LEVELS
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_stages_give_the_same_maps_and_gradients(wrapper, with_cp):
    b, x = build(use_grn=True, with_cp=with_cp), torch.randn(1, 3, 32, 32)
    expected = gradients(b, b.parameters(), x)
    for index, stage in enumerate(b.stages):
        b.stages[index] = WRAPPERS[wrapper](stage)
    for got, e in zip(gradients(b, b.parameters(), x), expected, strict=True):
        torch.testing.assert_close(got, e, rtol=1e-4, atol=1e-5)


def test_a_checkpointed_stage_is_run_again_in_the_backward_pass():
    b, calls = build(), []
    b.stages[0][0].norm.register_forward_hook(lambda *_: calls.append(1))
    b.stages[0] = checkpoint_wrapper(b.stages[0])
    b(torch.randn(1, 3, 32, 32))[-1].sum().backward()
    assert len(calls) == 2


def test_stages_and_the_backbone_can_be_sharded():
    from torch.distributed.fsdp import FSDPModule, fully_shard

    with one_process():
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        b, x = build(), torch.randn(1, 3, 32, 32)
        expected = [m.detach() for m in b(x)]
        for stage in b.stages:
            fully_shard(stage, mesh=mesh)
        fully_shard(b, mesh=mesh)
        assert isinstance(b.stages[0], FSDPModule)
        maps = b(x)
        for got, e in zip(maps, expected, strict=True):
            torch.testing.assert_close(got, e)
        sum(m.sum() for m in maps).backward()
        assert all(p.grad is not None for p in b.parameters())


def test_a_sharded_classifier_returns_its_output_in_mixed_precision():
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    with one_process():
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
        model = ConvNextForImageClassification(hidden_sizes=(8, 16), depths=(1, 1), num_labels=3)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        output = model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1]))
        assert output.logits.shape == (2, 3)
        assert output.loss.dtype == output.logits.dtype == torch.float32


def test_a_slice_of_a_stage_is_a_stage():
    stage = build().stages[0]
    assert isinstance(stage[:1], Stage)
    assert len(stage[:1]) == 1


# Overridden and replaced parts


class Adapted(Block):
    """A block with an adapter beside it."""

    def __init__(self, config, channels, rate):
        super().__init__(config, channels, rate)
        self.adapter = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return super().forward(x) + self.adapter(x)


@LEVELS
def test_a_subclass_that_overrides_forward_runs_and_trains(with_cp):
    config = ConvNextConfig(hidden_sizes=(8, 16), depths=(2, 2), layer_scale_init_value=0.5)
    b, x = build(with_cp=with_cp), torch.randn(1, 3, 32, 32)
    b.stages[1][0] = Adapted(config, 16, 0.0)
    b(x)[-1].sum().backward()
    assert b.stages[1][0].adapter.weight.grad is not None
    with torch.no_grad():
        expected = b.eval()(x)[-1]
        compiled = torch.compile(b, backend="eager")(x)[-1]
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.optimize_for_inference()(x)[-1], expected, rtol=1e-4, atol=1e-5)


@LEVELS
def test_an_instance_that_overrides_forward_is_honoured(with_cp):
    b, x = build(with_cp=with_cp), torch.randn(1, 3, 32, 32)
    block = b.stages[1][1]
    block.forward = lambda x: x * 3
    before = next(m for i, m in enumerate(b.iter_maps(x, 2)) if i == 2)
    torch.testing.assert_close(before, 3 * b.stages[1][0](b.downsample_layers[1](
        next(m for i, m in enumerate(b.iter_maps(x, 1)) if i == 1))))  # fmt: skip


@LEVELS
@pytest.mark.parametrize("name", ["pwconv1", "pwconv2", "dwconv", "norm"])
def test_a_computed_weight_passes_its_gradient_on(name, with_cp):
    b = build(with_cp=with_cp)
    block = b.stages[1][0].requires_grad_(False)
    layer = getattr(block, name)
    base, z = layer.weight.detach().clone(), torch.zeros_like(layer.weight, requires_grad=True)
    del layer.weight
    layer.weight = base + z * 0.1
    x = torch.randn(1, 3, 32, 32)
    (got,) = torch.autograd.grad(b(x)[-1].square().sum(), z, retain_graph=True)
    layer.weight = base + z * 0.1
    (expected,) = torch.autograd.grad(reference.by_parts(b, x)[-1].square().sum(), z)
    assert expected.norm() > 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def _dilate(block):
    block.dwconv.dilation, block.dwconv.padding = (2, 2), (6, 6)


def _rectangular(block):
    block.dwconv.weight = nn.Parameter(torch.randn(16, 1, 3, 5))
    block.dwconv.kernel_size, block.dwconv.padding = (3, 5), (1, 2)


def _replace_forward(block):
    original = block.pwconv1.forward
    block.pwconv1.forward = lambda x: original(x) * 0.5


class Doubling(torch.Tensor):
    """A weight that computes in a way of its own, as quantized ones do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * out.as_subclass(torch.Tensor) if func is nn.functional.linear else out


def _subclass_weight(block):
    block.pwconv2.weight = nn.Parameter(block.pwconv2.weight.data.as_subclass(Doubling))


class Bent(nn.Module):
    def forward(self, x):
        return x.abs() + 0.1


def _bend(module, inputs, output):
    return output.abs() + 0.1  # not a factor, which a norm would undo


def _prune(name):
    def alter(block):
        prune.l1_unstructured(block.get_submodule(name), "weight", amount=0.5)

    return alter


def _parametrize(name, tensor):
    def alter(block):
        nn.utils.parametrize.register_parametrization(
            block.get_submodule(name) if name else block, tensor, Bent()
        )

    return alter


ALTERATIONS = {
    "dilation": _dilate,
    "rectangular kernel": _rectangular,
    "no depthwise bias": lambda block: setattr(block.dwconv, "bias", None),
    "no first bias": lambda block: setattr(block.pwconv1, "bias", None),
    "no second bias": lambda block: setattr(block.pwconv2, "bias", None),
    "no norm shift": lambda block: setattr(block.norm, "bias", None),
    "non-affine norm": lambda block: setattr(
        block, "norm", nn.LayerNorm(16, eps=1e-6, elementwise_affine=False)
    ),
    "another activation": lambda block: setattr(block, "act", nn.ReLU()),
    "another norm": lambda block: setattr(block, "norm", nn.Identity()),
    "another depthwise layer": lambda block: setattr(
        block, "dwconv", nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    ),
    "another drop path": lambda block: setattr(block, "drop_path", Bent()),
    "another GRN": lambda block: setattr(block, "grn", Bent()),
    "a forward of its own": _replace_forward,
    "a weight of another kind": _subclass_weight,
    "weight norm": lambda block: nn.utils.parametrizations.weight_norm(block.pwconv1),
    "parametrized layer scale": _parametrize("", "gamma"),
    "parametrized depthwise": _parametrize("dwconv", "weight"),
    "parametrized norm": _parametrize("norm", "bias"),
    **{f"pruned {n}": _prune(n) for n in ("dwconv", "norm", "pwconv1", "pwconv2")},
    **{
        f"hook on {n}": lambda block, n=n: block.get_submodule(n).register_forward_hook(_bend)
        for n in ("dwconv", "norm", "pwconv1", "act", "pwconv2", "drop_path")
    },
    "pre-hook": lambda block: block.pwconv2.register_forward_pre_hook(lambda m, a: (a[0] * 0.5,)),
}
# A copy's own forward would still call the first module, and torch copies no such weight.
NOT_COPYABLE = ("a forward of its own", "a weight of another kind")


def altered(name, use_grn):
    if "layer scale" in name and use_grn:
        pytest.skip("V2 has no layer scale")
    b, x = build(use_grn), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        before = b(x)[-1]
        ALTERATIONS[name](b.stages[1][0])
        expected = reference.by_parts(b, x)[-1]
        if name != "weight norm":  # the same weight, computed
            assert (expected - before).norm() > 1e-3 * before.norm()  # it has an effect at all
    return b, x


@VERSIONS
@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_block_computes_what_its_parts_do(name, use_grn):
    b, x = altered(name, use_grn)
    expected = gradients(lambda x: reference.by_parts(b, x), b.parameters(), x)
    for got, e in zip(gradients(b, b.parameters(), x), expected, strict=True):
        torch.testing.assert_close(got, e, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(b(x)[-1], expected[1], rtol=1e-4, atol=1e-4)


@VERSIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [n for n in ALTERATIONS if n not in NOT_COPYABLE])
def test_an_altered_block_survives_optimizing(name, dtype, use_grn):
    b, x = altered(name, use_grn)
    with torch.no_grad():
        expected = [m.double() for m in reference.by_parts(b.eval(), x)]
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for got, e in zip(b.optimize_for_inference(dtype=dtype)(x), expected, strict=True):
        assert relative(got, e) <= tolerance


def test_drop_path_drops_the_residual_branch_only():
    block = build(drop_path_rate=1.0, depths=(1, 1)).train().stages[1][0]
    assert math.isclose(block.drop_path.rate, 1.0)
    y = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(y), y)


@VERSIONS
@pytest.mark.parametrize("training", [False, True])
def test_a_stage_is_traced_symbolically(training, use_grn):
    stage = build(use_grn, drop_path_rate=0.5).stages[1].train(training)
    traced, x = torch.fx.symbolic_trace(stage), torch.randn(4, 16, 8, 8)
    results = []
    for run in (stage, traced):
        torch.manual_seed(2)
        results.append(run(x))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_tracing_by_example_gives_no_warning_and_serves_other_sizes(recwarn):
    b = build().eval()
    traced = torch.jit.trace(b, torch.randn(2, 3, 64, 64))
    x = torch.randn(1, 3, 96, 32)
    for got, e in zip(traced(x), b(x), strict=True):
        torch.testing.assert_close(got, e, rtol=1e-5, atol=1e-5)
    assert not [w for w in recwarn if issubclass(w.category, torch.jit.TracerWarning)]
