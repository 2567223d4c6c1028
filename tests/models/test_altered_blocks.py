"""What a user changes inside a block has its effect, whatever way through the block is quick."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_backbone import ConvNextBackbone
from convnext_backbone.kernels import use_kernels


class Doubling(Tensor):
    """A weight that computes in a way of its own, as quantized ones do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * out.as_subclass(Tensor) if func is F.linear else out


def _dilate(block):
    block.dwconv.dilation, block.dwconv.padding = (2, 2), (6, 6)


def _replace_forward(block):
    original = block.pwconv1.forward
    block.pwconv1.forward = lambda x: original(x) * 0.5


def _subclass_weight(block):
    block.pwconv2.weight = nn.Parameter(block.pwconv2.weight.data.as_subclass(Doubling))


ALTERATIONS = {
    "dilation": _dilate,
    "no depthwise bias": lambda block: setattr(block.dwconv, "bias", None),
    "no first bias": lambda block: setattr(block.pwconv1, "bias", None),
    "no second bias": lambda block: setattr(block.pwconv2, "bias", None),
    "no norm shift": lambda block: setattr(block.norm, "bias", None),
    "another activation": lambda block: setattr(block, "act", nn.ReLU()),
    "another norm": lambda block: setattr(block, "norm", nn.Identity()),
    "a forward of its own": _replace_forward,
    "a hook": lambda block: block.pwconv1.register_forward_hook(lambda m, i, o: o * 0.5),
    "a weight of another kind": _subclass_weight,
}


# A copy's own forward would still call the first module, and torch copies no such weight.
NOT_COPYABLE = ("a forward of its own", "a weight of another kind")


def build(use_grn):
    scale = 0.0 if use_grn else 0.5
    b = ConvNextBackbone(
        hidden_sizes=(8, 16), depths=(1, 2), use_grn=use_grn, layer_scale_init_value=scale,
        out_indices=(1, 2),
    )  # fmt: skip
    for name, p in b.named_parameters():
        nn.init.normal_(p, std=0.3, mean=float(name.endswith("norm.weight")))
    return b


def gradients(backbone, x):
    x = x.clone().requires_grad_()
    backbone.zero_grad()
    maps = backbone(x)
    torch.autograd.backward(maps, [m.detach().cos() for m in maps])
    return [*(m.detach() for m in maps), x.grad, *(p.grad for p in backbone.parameters())]


@pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_block_computes_what_its_definition_computes(name, use_grn):
    b, x = build(use_grn), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        before = b(x)[-1]
    ALTERATIONS[name](b.stages[1][0])
    with use_kernels(cpu=False):
        expected = gradients(b, x)
    assert (expected[1] - before).norm() > 1e-3 * before.norm()  # it has an effect at all
    for got, e in zip(gradients(b, x), expected, strict=True):
        torch.testing.assert_close(got, e, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(b(x)[-1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("name", [n for n in ALTERATIONS if n not in NOT_COPYABLE])
def test_an_altered_block_survives_optimizing(name, use_grn):
    b, x = build(use_grn).eval(), torch.randn(2, 3, 64, 48)
    ALTERATIONS[name](b.stages[1][0])
    with torch.no_grad(), use_kernels(cpu=False):
        expected = b(x)[-1]
    torch.testing.assert_close(b.optimize_for_inference()(x)[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_cp", ["selective", True])
def test_a_switch_between_the_passes_does_not_disturb_checkpointing(with_cp):
    b, x = build(use_grn=False), torch.randn(1, 3, 32, 32)
    expected = gradients(b, x)
    b.with_cp = with_cp
    leaf = x.clone().requires_grad_()
    b.zero_grad()
    with use_kernels(cpu=False):
        maps = b(leaf)
    torch.autograd.backward(maps, [m.detach().cos() for m in maps])
    got = [*(m.detach() for m in maps), leaf.grad, *(p.grad for p in b.parameters())]
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
def test_forward_mode_gradients_are_finite_differences(use_grn):
    b = build(use_grn).double()
    x, direction = (torch.randn(1, 3, 32, 32, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        step = 1e-6 * direction
        expected = (b(x + step)[-1] - b(x - step)[-1]) / 2e-6
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, direction)
            tangent = torch.autograd.forward_ad.unpack_dual(b(dual)[-1]).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_each_sample_are_those_of_the_sample_alone():
    b, x = build(use_grn=True).double(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    parameters = {k: v.detach() for k, v in b.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(b, parameters, (sample[None],))[-1].square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        twin = copy.deepcopy(b)
        twin(sample[None])[-1].square().mean().backward()
        for name, p in twin.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(each[name][i], p.grad, rtol=1e-8, atol=1e-10)
