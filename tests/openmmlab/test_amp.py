"""Mixed precision on the CPU, against torch's own autocast and a step by hand; a change of type."""
# ruff: noqa: E402 - imports follow the check that mmengine is there

import functools

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmengine")

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper

from convnext_backbone import ConvNextBackbone
from convnext_backbone.openmmlab.amp import CpuAmpOptimWrapper
from convnext_backbone.openmmlab.optim import auto_amp_optim_wrapper

LR = 0.5


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=LR)


def test_a_step_is_that_of_autocast_with_float32_weights():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected_loss = model(x).float().square().mean()
    gradients = torch.autograd.grad(expected_loss, model.parameters())
    expected = [p.detach() - LR * g for p, g in zip(model.parameters(), gradients, strict=True)]

    wrapper = auto_amp_optim_wrapper(dtype="bfloat16", optimizer=sgd(model))
    with wrapper.optim_context(model):
        y = model(x)
    assert y.dtype == torch.bfloat16
    wrapper.update_params(y.float().square().mean())
    for parameter, value in zip(model.parameters(), expected, strict=True):
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=0)


def test_outside_of_the_context_nothing_is_cast():
    model = nn.Linear(3, 2)
    wrapper = CpuAmpOptimWrapper(optimizer=sgd(model))
    with wrapper.optim_context(model):
        pass
    assert model(torch.randn(1, 3)).dtype == torch.float32


def test_gradients_accumulate_as_in_float32():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    start = model.weight.detach().clone()
    wrapper = auto_amp_optim_wrapper(dtype="bfloat16", optimizer=sgd(model), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    for step in range(2):
        with wrapper.optim_context(model):
            loss = model(torch.ones(1, 3)).float().sum()
        wrapper.update_params(loss)
        moved = not torch.equal(model.weight, start)
        assert moved == (step == 1)
    torch.testing.assert_close(model.weight.detach(), start - LR)  # the mean of two gradients of 1


def test_a_backbone_learns_the_same_to_the_precision_of_bfloat16():
    torch.manual_seed(0)
    backbone = ConvNextBackbone(
        hidden_sizes=(8, 16), depths=(1, 1), use_grn=True, out_features=["stage2"]
    )
    x = torch.randn(2, 3, 32, 32)
    weight = backbone.stages[1][0].pwconv1.weight
    gradients = []
    for wrapper in (
        OptimWrapper(optimizer=sgd(backbone)),
        auto_amp_optim_wrapper(dtype="bfloat16", optimizer=sgd(backbone)),
    ):
        with wrapper.optim_context(backbone):
            loss = (backbone(x)[0].float() * torch.linspace(-1, 1, 4)).square().mean()
        wrapper.backward(loss)
        gradients.append(weight.grad.clone())
        wrapper.zero_grad()
    exact, rounded = gradients
    assert float((rounded - exact).norm() / exact.norm()) < 0.02
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("dtype", ["float16", "half", torch.bfloat16])
def test_what_a_cpu_cannot_do_is_refused(dtype):
    with pytest.raises(ValueError, match=r"optim_wrapper.dtype: on a CPU one of \('bfloat16',\)"):
        auto_amp_optim_wrapper(dtype=dtype, optimizer=sgd(nn.Linear(1, 1)))


@pytest.mark.parametrize("before", ["bfloat16", "float16"])
@pytest.mark.parametrize("after", ["bfloat16", "float16"])
def test_a_run_goes_on_in_the_other_type(before, after, monkeypatch):
    MMLogger.get_current_instance()  # asks for the GPUs' names when it is made
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    scaler = functools.partial(torch.amp.GradScaler, "cpu")
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", scaler)
    model = nn.Linear(1, 1)
    first, second = (
        auto_amp_optim_wrapper(dtype=dtype, optimizer=sgd(model)) for dtype in (before, after)
    )
    first.optimizer.param_groups[0]["lr"] = 0.25
    second.load_state_dict(first.state_dict())
    assert second.optimizer.param_groups[0]["lr"] == 0.25
    assert second.loss_scaler.is_enabled() == (after == "float16")
