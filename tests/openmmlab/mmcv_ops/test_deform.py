"""mmcv.ops deformable convolutions on torchvision.

References: the sum of the papers (arXiv 1703.06211 equation 2, 1811.11168 equation 1) written out
tap by tap, plain convolution for offsets of 0, and the values that mmcv's own tests expect.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmcv import ops

pytestmark = pytest.mark.openmmlab


def bilinear(plane, y, x):
    """Bilinear sampling of a map that is 0 outside."""
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += float(plane[row, column]) * row_weight * column_weight
    return total


def convolve(x, offset, weight, stride, padding, dilation, groups, deform_groups, mask=None):
    batch, channels = x.shape[:2]
    out_channels, per_group, kernel_h, kernel_w = weight.shape
    height, width = offset.shape[2:]
    result = torch.zeros(batch, out_channels, height, width, dtype=x.dtype)
    for n in range(batch):
        for d in range(out_channels):
            group = d // (out_channels // groups)
            for p in range(height):
                for q in range(width):
                    for c in range(per_group):
                        channel = group * per_group + c
                        sharing = channel // (channels // deform_groups)
                        for i in range(kernel_h):
                            for j in range(kernel_w):
                                tap = (sharing * kernel_h + i) * kernel_w + j
                                dy, dx = offset[n, 2 * tap : 2 * tap + 2, p, q].tolist()
                                y = p * stride[0] - padding[0] + i * dilation[0] + dy
                                column = q * stride[1] - padding[1] + j * dilation[1] + dx
                                value = bilinear(x[n, channel], y, column)
                                if mask is not None:
                                    value *= float(mask[n, tap, p, q].detach())
                                result[n, d, p, q] += float(weight[d, c, i, j]) * value
    return result


GEOMETRIES = {
    "plain": {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)},
    "uneven": {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
}


def operands(geometry, groups, deform_groups, size=(5, 6), batch=2):
    x = torch.randn(batch, 4, *size, dtype=torch.float64)
    weight = torch.randn(2, 4 // groups, 3, 2, dtype=torch.float64)
    out = [
        (size[a] + 2 * geometry["padding"][a] - geometry["dilation"][a] * (k - 1) - 1)
        // geometry["stride"][a]
        + 1
        for a, k in enumerate((3, 2))
    ]
    offset = torch.randn(batch, deform_groups * 12, *out, dtype=torch.float64) * 2
    mask = torch.rand(batch, deform_groups * 6, *out, dtype=torch.float64)
    return x, offset, weight, mask


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_deform_conv2d_is_the_sum_over_shifted_taps(geometry, groups, deform_groups):
    x, offset, weight, _ = operands(geometry, groups, deform_groups)
    result = ops.deform_conv2d(x, offset, weight, *geometry.values(), groups, deform_groups)
    expected = convolve(x, offset, weight, *geometry.values(), groups, deform_groups)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 2)])
def test_modulated_deform_conv2d_multiplies_each_tap(geometry, groups, deform_groups):
    x, offset, weight, mask = operands(geometry, groups, deform_groups)
    bias = torch.randn(2, dtype=torch.float64)
    result = ops.modulated_deform_conv2d(
        x, offset, mask, weight, bias, *geometry.values(), groups, deform_groups
    )
    expected = convolve(x, offset, weight, *geometry.values(), groups, deform_groups, mask)
    torch.testing.assert_close(result, expected + bias[:, None, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("im2col_step", [1, 2, 4])
def test_offsets_of_0_give_plain_convolution_whatever_the_step(im2col_step):
    x, weight = torch.randn(4, 3, 8, 8).double(), torch.randn(5, 3, 3, 3).double()
    offset = torch.zeros(4, 18, 8, 8).double()
    result = ops.deform_conv2d(x, offset, weight, 1, 1, 1, 1, 1, False, im2col_step)
    torch.testing.assert_close(result, F.conv2d(x, weight, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 2)])
def test_deform_conv2d_has_the_gradients_of_its_forward_pass(groups, deform_groups):
    geometry = GEOMETRIES["uneven"]
    inputs = operands(geometry, groups, deform_groups, size=(4, 4), batch=1)[:3]

    def convolution(*tensors):
        return ops.deform_conv2d(*tensors, *geometry.values(), groups, deform_groups)

    assert torch.autograd.gradcheck(convolution, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv2d_has_the_gradients_of_its_forward_pass(with_bias):
    geometry = GEOMETRIES["uneven"]
    x, offset, weight, mask = operands(geometry, 2, 2, size=(4, 4), batch=1)
    inputs = [x, offset, mask, weight]
    if with_bias:
        inputs.append(torch.randn(2, dtype=torch.float64))

    def convolution(x, offset, mask, weight, bias=None):
        return ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry.values(), 2, 2)

    assert torch.autograd.gradcheck(convolution, [t.requires_grad_() for t in inputs])


def test_a_frozen_weight_or_offset_is_left_without_gradient():
    x, offset, weight, _ = operands(GEOMETRIES["plain"], 1, 1)
    weight.requires_grad_()
    ops.deform_conv2d(x, offset, weight).sum().backward()
    assert weight.grad.abs().sum() > 0
    assert x.grad is None
    assert offset.grad is None


def test_deform_conv_gives_the_values_of_compiled_mmcv():
    # tests/test_ops/test_deform_conv.py of mmcv
    module = ops.DeformConv2dPack(1, 1, kernel_size=2, im2col_step=2).double()
    offset_weight = [
        [0.1, 0.4, 0.6, 0.1], [0.3, 0.2, 0.1, 0.3], [0.5, 0.5, 0.2, 0.8], [0.8, 0.3, 0.9, 0.1],
        [0.3, 0.1, 0.2, 0.5], [0.3, 0.7, 0.5, 0.3], [0.6, 0.2, 0.5, 0.3], [0.4, 0.1, 0.8, 0.4],
    ]  # fmt: skip
    with torch.no_grad():
        module.conv_offset.weight.copy_(torch.tensor(offset_weight).view(8, 1, 2, 2))
        module.conv_offset.bias.copy_(torch.tensor([0.7, 0.1, 0.8, 0.5, 0.6, 0.5, 0.4, 0.7]))
        module.weight.copy_(torch.tensor([0.4, 0.2, 0.1, 0.9]).view(1, 1, 2, 2))
    x = torch.tensor([[[[1.0, 2, 3], [0, 1, 2], [3, 5, 2]]]]).double().requires_grad_()
    out = module(x)
    out.sum().backward()
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(out[0, 0], torch.tensor([[1.65, 0], [0, 0]]).double(), **close)
    expected = [[-0.666, 0.204, 0.0], [0.030, -0.416, 0.012], [0.0, 0.252, 0.129]]
    torch.testing.assert_close(x.grad[0, 0], torch.tensor(expected).double(), **close)
    expected = torch.tensor([[3.62, 0], [0.40, 0.18]]).double()
    torch.testing.assert_close(module.weight.grad[0, 0], expected, **close)
    expected = torch.tensor([1.44, -0.72, 0, 0, -0.10, -0.08, -0.54, -0.54]).double()
    torch.testing.assert_close(module.conv_offset.bias.grad, expected, **close)


def test_modulated_deform_conv_gives_the_values_of_compiled_mmcv():
    # tests/test_ops/test_modulated_deform_conv.py of mmcv
    module = ops.ModulatedDeformConv2dPack(1, 1, kernel_size=2, padding=1, bias=False)
    torch.nn.init.ones_(module.weight)
    x = torch.tensor([[[[1.0, 2, 3]] * 3]]).requires_grad_()
    out = module(x)
    out.sum().backward()
    edge, inner = [0.5, 1.5, 2.5, 1.5], [1.0, 3.0, 5.0, 3.0]
    assert out[0, 0].tolist() == [edge, inner, inner, edge]
    assert x.grad[0, 0].tolist() == [[2.0] * 3] * 3
    assert module.weight.grad[0, 0].tolist() == [[9.0] * 2] * 2
    assert module.conv_offset.bias.grad.tolist() == [-3.0, -1.5] * 4 + [4.5] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_computes_in_float32(dtype):
    x, offset, weight, mask = (
        t.to(dtype).requires_grad_() for t in operands(GEOMETRIES["plain"], 1, 1)
    )
    plain = ops.deform_conv2d(x, offset, weight)
    modulated = ops.modulated_deform_conv2d(x, offset, mask, weight, None)
    (plain.sum() + modulated.sum()).backward()
    wide = [t.detach().double() for t in (x, offset, weight, mask)]
    for result, exact in (
        (plain, ops.deform_conv2d(*wide[:3])),
        (modulated, ops.modulated_deform_conv2d(wide[0], wide[1], wide[3], wide[2], None)),
    ):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert all(t.grad.dtype == dtype and t.grad.isfinite().all() for t in (x, offset, weight, mask))


@pytest.mark.parametrize("size", [(8, 9), (5, 5)])
def test_offsets_of_a_larger_map_are_read_flat_at_the_outputs_size(size):
    # compiled mmcv's kernel: `data_offset + channel * height_out * width_out + ...` of one image
    x, weight = torch.randn(2, 4, 6, 7).double(), torch.randn(3, 4, 3, 3).double()
    larger = torch.randn(2, 27, *size).double().requires_grad_()
    offset, mask = larger[:, :18], larger[:, 18:]
    result = ops.modulated_deform_conv2d(x, offset, mask, weight, None, 2, 1)
    assert result.shape == (2, 3, 3, 4)
    flat = [
        torch.stack([image.flatten()[: len(image) * 12].view(-1, 3, 4) for image in part])
        for part in (offset, mask)
    ]
    expected = convolve(x, flat[0], weight, (2, 2), (1, 1), (1, 1), 1, 1, flat[1])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    result.sum().backward()
    read = larger.grad[0, :18].flatten()
    assert (read[: 18 * 12] != 0).any()
    assert (read[18 * 12 :] == 0).all()


def test_offsets_of_a_smaller_map_are_refused():
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(3, 4, 3, 3)
    with pytest.raises(RuntimeError, match="offset"):
        ops.modulated_deform_conv2d(
            x, torch.zeros(1, 18, 3, 3), torch.ones(1, 9, 3, 3), weight, None, 1, 1
        )


@pytest.mark.parametrize("sizes", [(32, 16, 8), (25, 13, 7)])
def test_mmdets_dyhead_runs_forward_and_backward(sizes):
    from mmdet.models.necks import DyHead

    torch.manual_seed(0)
    maps = [torch.rand(2, 16, s, s, requires_grad=True) for s in sizes]
    outs = DyHead(16, 16, num_blocks=1)(maps)
    assert [tuple(out.shape) for out in outs] == [tuple(m.shape) for m in maps]
    sum(out.square().mean() for out in outs).backward()
    assert all(m.grad.isfinite().all() and m.grad.abs().sum() > 0 for m in maps)


@pytest.mark.filterwarnings("ignore:.nn.functional.upsample_bilinear. is deprecated:UserWarning")
def test_glips_head_runs_forward_and_backward():
    from mmdet.models.dense_heads.atss_vlfusion_head import Conv3x3Norm, DyConv

    torch.manual_seed(0)
    maps = [torch.rand(2, 16, s, s, requires_grad=True) for s in (16, 8, 4)]
    head = DyConv(
        lambda i, o, s: Conv3x3Norm(i, o, s, use_dcn=True, norm_type=["gn", 4]),
        16,
        16,
        use_dyrelu=True,
        use_dyfuse=True,
        use_dcn=True,
    )
    outs = head({"visual": maps, "lang": None})["visual"]
    assert [tuple(out.shape) for out in outs] == [tuple(m.shape) for m in maps]
    sum(out.square().mean() for out in outs).backward()
    assert all(m.grad.isfinite().all() and m.grad.abs().sum() > 0 for m in maps)
