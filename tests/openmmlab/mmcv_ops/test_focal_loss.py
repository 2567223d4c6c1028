"""mmcv.ops.sigmoid_focal_loss: equation 5 of arXiv 1708.02002, and the values of compiled mmcv."""

import math

import pytest
import torch

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmcv import ops

pytestmark = pytest.mark.openmmlab

# tests/test_ops/test_focal_loss.py of mmcv: logits, targets, loss, gradient
CASES = [
    (
        [[1.0, 0.0], [0.0, 1.0]],
        [0, 1],
        0.13562961,
        [[-0.00657264, 0.11185755], [0.11185755, -0.00657264]],
    ),
    (
        [[1.0, 0.0, -1.0], [0.0, 1.0, 2.0]],
        [2, 1],
        1.10251057,
        [[0.28808805, 0.11185755, -0.09602935], [0.11185755, -0.00657264, 0.40376765]],
    ),
]


def focal(p, gamma, alpha):
    return -alpha * (1 - p) ** gamma * math.log(p)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_sigmoid_focal_loss_is_the_papers_for_every_class_and_background(gamma):
    logits = torch.randn(6, 4, dtype=torch.float64) * 3
    target = torch.tensor([0, 1, 2, 3, 4, 0])  # 4 is background
    loss = ops.sigmoid_focal_loss(logits, target, gamma, 0.25, None, "none")
    for row in range(6):
        for c in range(4):
            p = 1 / (1 + math.exp(-float(logits[row, c])))
            positive = int(target[row]) == c
            expected = focal(p, gamma, 0.25) if positive else focal(1 - p, gamma, 0.75)
            assert float(loss[row, c]) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("logits", "target", "value", "grad"), CASES)
def test_loss_and_gradient_are_those_of_compiled_mmcv(logits, target, value, grad):
    x = torch.tensor(logits, requires_grad=True)
    loss = ops.sigmoid_focal_loss(x, torch.tensor(target), 2.0, 0.25, None, "mean")
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(value), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(x.grad, torch.tensor(grad), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_that_of_the_forward_pass(gamma, weighted):
    logits = (torch.randn(5, 4, dtype=torch.float64) * 2).requires_grad_()
    target = torch.tensor([0, 1, 3, 3, 2])
    weight = torch.rand(4, dtype=torch.float64) if weighted else None

    def loss(x):
        return ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, "sum")

    assert torch.autograd.gradcheck(loss, (logits,))


def test_class_weights_multiply_a_row_by_its_targets_weight():
    logits, target = torch.randn(4, 3), torch.tensor([0, 2, 1, 3])
    weight = torch.tensor([2.0, 3.0, 5.0])
    plain = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    weighted = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none")
    expected = plain * torch.tensor([2.0, 5.0, 3.0, 1.0])[:, None]  # background weighs 1
    torch.testing.assert_close(weighted, expected)


def test_loss_and_gradient_stay_finite_at_extreme_logits():
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), gamma, 0.25, None, "sum")
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), 2.0, 0.25, None, "none")
    assert float(loss[0, 0].detach()) == pytest.approx(0.25 * 200)  # -alpha log sigmoid(-200)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_is_close_to_float64(dtype):
    x = torch.randn(6, 4).to(dtype).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, "sum")
    loss.backward()
    assert x.grad.dtype == dtype
    exact = x.detach().double().requires_grad_()
    reference = ops.sigmoid_focal_loss(exact, target, 2.0, 0.25, None, "sum")
    reference.backward()
    # mmcv sums in the reduced type.
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), reference.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_no_rows_give_a_loss_of_0():
    x = torch.zeros(0, 4, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long)
    loss = ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, "sum")
    assert loss == 0
    assert torch.autograd.grad(loss, x)[0].shape == (0, 4)
