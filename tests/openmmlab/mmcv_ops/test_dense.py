"""CARAFE, masked convolution and synchronised batch norm of mmcv.ops."""

import pytest
import torch
import torch.nn.functional as F

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmcv import _ext as ext
from mmcv import ops
from mmcv.ops.carafe import carafe
from mmcv.ops.sync_bn import SyncBatchNormFunction

pytestmark = pytest.mark.openmmlab


def reassemble(features, masks, kernel, groups, scale):
    """CARAFE written out pixel by pixel (arXiv 1905.02188, equation 4)."""
    batch, channels, height, width = features.shape
    out = torch.zeros(batch, channels, height * scale, width * scale, dtype=features.dtype)
    half = kernel // 2
    for n in range(batch):
        for c in range(channels):
            group = c // (channels // groups)
            for y in range(height * scale):
                for x in range(width * scale):
                    for i in range(kernel):
                        for j in range(kernel):
                            row, column = y // scale + i - half, x // scale + j - half
                            if 0 <= row < height and 0 <= column < width:
                                cell = (group * kernel + i) * kernel + j
                                out[n, c, y, x] += (
                                    features[n, c, row, column] * masks[n, cell, y, x]
                                )
    return out


@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 1), (1, 2, 3)])
def test_carafe_reassembles_the_neighbourhood_of_each_pixel(kernel, groups, scale):
    features = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 4 * scale, dtype=torch.float64)
    expected = reassemble(features, masks, kernel, groups, scale)
    result = carafe(features, masks, kernel, groups, scale)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 1)])
def test_carafe_has_the_gradients_of_its_forward_pass(kernel, groups, scale):
    features = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(1, groups * kernel**2, 3 * scale, 2 * scale, dtype=torch.float64)
    masks.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, m: carafe(f, m, kernel, groups, scale), (features, masks)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_carafe_in_reduced_precision_sums_in_float32(dtype):
    features = torch.randn(1, 4, 3, 3).to(dtype).requires_grad_()
    masks = torch.rand(1, 25, 6, 6).to(dtype).requires_grad_()
    out = carafe(features, masks, 5, 1, 2)
    out.sum().backward()
    exact = reassemble(features.detach().double(), masks.detach().double(), 5, 1, 2)
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert features.grad.dtype == masks.grad.dtype == dtype


def test_the_carafe_module_trains():
    module = ops.CARAFEPack(4, scale_factor=2, compressed_channels=4)
    out = module(torch.randn(1, 4, 5, 6))
    assert out.shape == (1, 4, 10, 12)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3), (1, 1)), ((1, 3), (0, 1)), ((5, 3), (2, 1))]
)
def test_masked_conv_is_convolution_at_the_masked_pixels_and_0_elsewhere(kernel, padding):
    x, weight, bias = torch.randn(1, 3, 6, 7), torch.randn(4, 3, *kernel), torch.randn(4)
    mask = (torch.rand(1, 6, 7) > 0.5).float()
    result = ops.masked_conv2d(x, mask, weight, bias, padding)
    expected = F.conv2d(x, weight, bias, padding=padding) * mask
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    nothing = ops.masked_conv2d(x, torch.zeros(1, 6, 7), weight, bias, padding)
    assert nothing.abs().max() == 0


def normalise(x, weight, bias, running_mean, running_var):
    """mmcv's function on one process; its type check knows no float64."""
    return SyncBatchNormFunction.apply(
        x, running_mean, running_var, weight, bias, 0.1, 1e-5, None, 1, "default"
    )


def test_sync_bn_on_one_process_is_batch_norm():
    x = (torch.randn(3, 4, 5, 2) * 2 + 1).requires_grad_()
    weight, bias = torch.rand(4).requires_grad_(), torch.rand(4).requires_grad_()
    mean, var = torch.zeros(4), torch.ones(4)
    own_mean, own_var = mean.clone(), var.clone()
    out = normalise(x, weight, bias, own_mean, own_var)
    expected = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=0.1, eps=1e-5)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(own_mean, mean, **close)
    torch.testing.assert_close(own_var, var, **close)
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, (x, weight, bias), grad)
    theirs = torch.autograd.grad(expected, (x, weight, bias), grad)
    torch.testing.assert_close(ours, theirs, **close)


def test_sync_bn_of_two_processes_is_batch_norm_of_both_batches():
    x = torch.randn(4, 3, 10).requires_grad_()
    weight, bias = torch.rand(3).requires_grad_(), torch.rand(3).requires_grad_()
    running_mean, running_var = torch.zeros(3), torch.ones(3)
    expected = F.batch_norm(
        x, running_mean, running_var, weight, bias, training=True, momentum=0.1, eps=1e-5
    )
    grad = torch.randn_like(x)
    grads = torch.autograd.grad(expected, (x, weight, bias), grad)

    # What mmcv does on each of two processes, with the averages between them taken by hand.
    halves, grad_halves = x.detach().chunk(2), grad.chunk(2)
    with torch.no_grad():
        means, variances = torch.zeros(2, 3), torch.zeros(2, 3)
        for half, mean in zip(halves, means, strict=True):
            ext.sync_bn_forward_mean(half, mean)
        mean = means.mean(0)
        for half, var in zip(halves, variances, strict=True):
            ext.sync_bn_forward_var(half, mean, var)
        var, std = variances.mean(0), torch.zeros(3)
        own_mean, own_var = torch.zeros(3), torch.ones(3)
        statistics = (mean, var, weight, bias, own_mean, own_var)
        norms, outs = torch.zeros(2, 2, 3, 10), torch.zeros(2, 2, 3, 10)
        ext.sync_bn_forward_output(halves[0], *statistics, norms[0], std, outs[0], 1e-5, 0.1, 2)
        ext.sync_bn_forward_output(
            halves[1], mean, var, weight, bias, mean.clone(), var.clone(), norms[1], std, outs[1],
            1e-5, 0.1, 2,
        )  # fmt: skip
        sums, inputs = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3, 10)
        for part in range(2):
            ext.sync_bn_backward_param(grad_halves[part], norms[part], *sums[part])
        average = sums.mean(0)
        for part in range(2):
            ext.sync_bn_backward_data(
                grad_halves[part], weight, *average, norms[part], std, inputs[part]
            )
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(outs.flatten(0, 1), expected.detach(), **close)
    torch.testing.assert_close((own_mean, own_var), (running_mean, running_var), **close)
    torch.testing.assert_close(inputs.flatten(0, 1), grads[0], **close)
    torch.testing.assert_close((sums.sum(0)[0], sums.sum(0)[1]), grads[1:], **close)


def test_sync_bn_takes_half_precision_and_an_empty_batch():
    weight, bias = torch.ones(4), torch.zeros(4)
    x = torch.randn(2, 4, 3, 3).half().requires_grad_()
    out = normalise(x, weight, bias, torch.zeros(4), torch.ones(4))
    expected = F.batch_norm(x.float(), None, None, training=True)
    torch.testing.assert_close(out.float(), expected, rtol=2e-3, atol=2e-3)
    running_mean = torch.full((4,), 3.0)
    empty = normalise(torch.zeros(0, 4, 3, 3), weight, bias, running_mean, torch.ones(4))
    assert empty.shape == (0, 4, 3, 3)
    assert running_mean.tolist() == [3.0] * 4  # nothing came, so nothing changes
