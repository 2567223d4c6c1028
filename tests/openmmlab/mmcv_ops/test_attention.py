"""Multi-scale deformable attention, PSA masks and criss-cross attention of mmcv.ops."""

import math

import pytest
import torch

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

pytestmark = pytest.mark.openmmlab

SHAPES = ((4, 5), (2, 3), (1, 2))
BATCH, HEADS, CHANNELS, QUERIES, POINTS = 2, 2, 3, 4, 2


def operands(dtype=torch.float64):
    keys = sum(h * w for h, w in SHAPES)
    value = torch.randn(BATCH, keys, HEADS, CHANNELS, dtype=dtype)
    # Some places lie outside the maps.
    places = torch.rand(BATCH, QUERIES, HEADS, len(SHAPES), POINTS, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(BATCH, QUERIES, HEADS, len(SHAPES), POINTS, dtype=dtype)
    return value, places, weights


def levels():
    shapes = torch.tensor(SHAPES)
    return shapes, torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])


def attend(value, places, weights):
    return MultiScaleDeformableAttnFunction.apply(value, *levels(), places, weights, 64)


def read(plane, width, height, x, y):
    """Bilinear sampling of a flat map (H * W,), 0 outside; (0, 0) is its first corner."""
    u, v = x * width - 0.5, y * height - 0.5
    left, top = math.floor(u), math.floor(v)
    total = 0.0
    for row, row_weight in ((top, top + 1 - v), (top + 1, v - top)):
        for column, column_weight in ((left, left + 1 - u), (left + 1, u - left)):
            if 0 <= row < height and 0 <= column < width:
                total += float(plane[row * width + column]) * row_weight * column_weight
    return total


def test_attention_is_the_weighted_sum_of_samples_of_all_levels():
    value, places, weights = operands()
    expected = torch.zeros(BATCH, QUERIES, HEADS * CHANNELS, dtype=torch.float64)
    starts = levels()[1].tolist()
    for n in range(BATCH):
        for q in range(QUERIES):
            for m in range(HEADS):
                for c in range(CHANNELS):
                    for level, (height, width) in enumerate(SHAPES):
                        first = starts[level]
                        plane = value[n, first : first + height * width, m, c].tolist()
                        for p in range(POINTS):
                            x, y = places[n, q, m, level, p].tolist()
                            expected[n, q, m * CHANNELS + c] += float(
                                weights[n, q, m, level, p]
                            ) * read(plane, width, height, x, y)
    torch.testing.assert_close(attend(value, places, weights), expected, rtol=0, atol=1e-12)


def test_attention_equals_mmcvs_own_for_the_cpu():
    value, places, weights = operands()
    expected = multi_scale_deformable_attn_pytorch(value, levels()[0], places, weights)
    torch.testing.assert_close(attend(value, places, weights), expected, rtol=0, atol=1e-12)


def test_attention_has_the_gradients_of_its_forward_pass():
    assert torch.autograd.gradcheck(attend, [t.requires_grad_() for t in operands()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_in_reduced_precision_computes_in_float32(dtype):
    inputs = [t.to(dtype).requires_grad_() for t in operands()]
    result = attend(*inputs)
    result.sum().backward()
    assert result.dtype == dtype
    exact = attend(*(t.detach().double() for t in inputs))
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert all(t.grad.dtype == dtype for t in inputs)


def test_attention_without_queries_gives_nothing():
    value, places, weights = operands()
    result = attend(value, places[:, :0], weights[:, :0])
    assert result.shape == (BATCH, 0, HEADS * CHANNELS)


def test_the_attention_module_trains():
    module = ops.MultiScaleDeformableAttention(8, 2, 3, 2, batch_first=True, dropout=0.0)
    keys = sum(h * w for h, w in SHAPES)
    x = torch.randn(BATCH, keys, 8, requires_grad=True)
    reference = torch.rand(BATCH, keys, 3, 2)
    shapes, starts = levels()
    out = module(
        x, value=x, reference_points=reference, spatial_shapes=shapes, level_start_index=starts
    )
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", ["collect", "distribute"])
@pytest.mark.parametrize("size", [(3, 5), (4, 4), (7, 9)])
def test_psa_mask_puts_every_cell_of_a_pixels_mask_where_it_lies(kind, size):
    height, width = 4, 5
    x = torch.randn(2, size[0] * size[1], height, width, dtype=torch.float64)
    expected = torch.zeros(2, height * width, height, width, dtype=torch.float64)
    for n in range(2):
        for h in range(height):
            for w in range(width):
                for i in range(size[0]):
                    for j in range(size[1]):
                        y, z = h + i - (size[0] - 1) // 2, w + j - (size[1] - 1) // 2
                        if not (0 <= y < height and 0 <= z < width):
                            continue
                        cell = x[n, i * size[1] + j, h, w]
                        if kind == "collect":
                            expected[n, y * width + z, h, w] = cell
                        else:
                            expected[n, h * width + w, y, z] = cell
    torch.testing.assert_close(ops.PSAMask(kind, size)(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["collect", "distribute"])
def test_psa_mask_has_the_gradient_of_its_forward_pass(kind):
    x = torch.randn(2, 15, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.PSAMask(kind, (3, 5)), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_psa_mask_keeps_the_type(dtype):
    x = torch.randn(1, 9, 4, 4).to(dtype).requires_grad_()
    out = ops.PSAMask("collect", (3, 3))(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == dtype
    assert out.double().sum() == out.sum(dtype=torch.float64)


def test_criss_cross_attention_needs_no_compiled_operation():
    module = ops.CrissCrossAttention(8)
    torch.nn.init.ones_(module.gamma.scale)
    x = torch.randn(1, 8, 3, 4, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.isfinite().all()
