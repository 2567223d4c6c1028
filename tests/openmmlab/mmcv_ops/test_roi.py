"""mmcv.ops.roi_align, roi_pool and deformable RoI pooling on torchvision.

References: bilinear sampling written out pixel by pixel, and the values that mmcv's own tests
expect of its compiled operations.
"""

import math

import pytest
import torch

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmcv import ops

pytestmark = pytest.mark.openmmlab

SQUARE = [[[[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0], [9.0, 10, 13, 14], [11.0, 12, 15, 16]]]]
# Inside the map, over its border, wider than high, smaller than a pixel, of the second image.
ROIS = [
    [0.0, 2.0, 3.0, 21.0, 17.0],
    [1.0, -9.0, 4.0, 11.0, 40.0],
    [0.0, 8.5, 9.25, 31.0, 13.0],
    [1.0, 10.0, 10.0, 10.5, 10.75],
    [1.0, 0.0, 0.0, 27.5, 19.0],
]
SCALE = 0.25


@pytest.fixture
def features():
    return torch.randn(2, 3, 7, 9, dtype=torch.float64)


@pytest.fixture
def rois():
    return torch.tensor(ROIS, dtype=torch.float64)


def bilinear(plane, y, x):
    height, width = len(plane), len(plane[0])
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    return (
        plane[top][left] * (1 - v) * (1 - u)
        + plane[top][right] * (1 - v) * u
        + plane[bottom][left] * v * (1 - u)
        + plane[bottom][right] * v * u
    )


def align(features, rois, size, scale, ratio, aligned, offset=None, gamma=0.1):
    """The mean of every sample of every bin."""
    shift = 0.5 if aligned else 0.0
    result = torch.zeros(len(rois), features.shape[1], *size, dtype=features.dtype)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (value * scale - shift for value in corners)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        step_y, step_x = height / size[0], width / size[1]
        grid_y, grid_x = ratio or math.ceil(step_y), ratio or math.ceil(step_x)
        for channel in range(features.shape[1]):
            plane = features[int(image), channel].tolist()
            for p in range(size[0]):
                for q in range(size[1]):
                    dx = gamma * width * float(offset[r, 0, p, q]) if offset is not None else 0.0
                    dy = gamma * height * float(offset[r, 1, p, q]) if offset is not None else 0.0
                    samples = [
                        bilinear(
                            plane,
                            y1 + dy + (p + (i + 0.5) / grid_y) * step_y,
                            x1 + dx + (q + (j + 0.5) / grid_x) * step_x,
                        )
                        for i in range(grid_y)
                        for j in range(grid_x)
                    ]
                    result[r, channel, p, q] = sum(samples) / len(samples)
    return result


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_roi_align_averages_bilinear_samples_of_each_bin(features, rois, aligned, ratio):
    pooled = ops.roi_align(features, rois, (2, 3), SCALE, ratio, "avg", aligned)
    expected = align(features, rois, (2, 3), SCALE, ratio, aligned)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)


def test_roi_align_gives_the_values_and_gradients_of_compiled_mmcv():
    x = torch.tensor(SQUARE, requires_grad=True)
    pooled = ops.roi_align(x, torch.tensor([[0.0, 0, 0, 3, 3]]), (2, 2), 1.0, 2, "avg", True)
    pooled.sum().backward()
    expected = torch.tensor([[1.9375, 4.75], [7.5625, 10.375]])
    torch.testing.assert_close(pooled[0, 0], expected, rtol=0, atol=1e-6)
    edge = torch.tensor([0.6875, 0.625, 0.625, 0.0625])
    torch.testing.assert_close(x.grad[0, 0], edge[:, None] * edge, rtol=0, atol=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_has_the_gradient_of_its_forward_pass(features, rois, aligned, ratio):
    features.requires_grad_()

    def pool(x):
        return ops.roi_align(x, rois, (2, 2), SCALE, ratio, "avg", aligned)

    assert torch.autograd.gradcheck(pool, (features,))


def test_roi_align_in_max_mode_is_named_as_missing(features, rois):
    with pytest.raises(RuntimeError, match=r"roi_align with pool_mode='max'.*compiled mmcv"):
        ops.roi_align(features, rois, 2, SCALE, 2, "max", True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_takes_reduced_precision_and_computes_in_float32(features, rois, dtype):
    x, regions = features.to(dtype).requires_grad_(), rois.to(dtype)
    pooled = ops.roi_align(x, regions, (2, 3), SCALE, 2, "avg", True)
    pooled.sum().backward()
    assert pooled.dtype == x.grad.dtype == dtype
    exact = ops.roi_align(x.detach().double(), regions.double(), (2, 3), SCALE, 2, "avg", True)
    torch.testing.assert_close(pooled.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_no_regions_give_no_features_and_no_gradient(features):
    features.requires_grad_()
    pooled = ops.roi_align(features, torch.zeros(0, 5).double(), 2, SCALE, 0, "avg", True)
    assert pooled.shape == (0, 3, 2, 2)
    pooled.sum().backward()
    assert features.grad.abs().max() == 0
    assert ops.roi_pool(features, torch.zeros(0, 5).double(), 2, SCALE).shape == (0, 3, 2, 2)


def pool_pixels(features, rois, size, scale):
    """The maximum over every pixel that a bin touches."""
    _, channels, height, width = features.shape
    result = torch.zeros(len(rois), channels, *size, dtype=features.dtype)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        top, left = y1 * scale, x1 * scale
        step_y, step_x = ((y2 + 1) * scale - top) / size[0], ((x2 + 1) * scale - left) / size[1]
        if step_y <= 0 or step_x <= 0:
            continue
        for p in range(size[0]):
            for q in range(size[1]):
                rows = range(
                    min(max(math.floor(top + p * step_y), 0), height),
                    min(max(math.ceil(top + (p + 1) * step_y), 0), height),
                )
                columns = range(
                    min(max(math.floor(left + q * step_x), 0), width),
                    min(max(math.ceil(left + (q + 1) * step_x), 0), width),
                )
                for channel in range(channels):
                    values = [
                        float(features[int(image), channel, i, j]) for i in rows for j in columns
                    ]
                    result[r, channel, p, q] = max(values, default=0.0)
    return result


def test_roi_pool_takes_the_maximum_over_all_pixels_that_a_bin_touches(features, rois):
    malformed = torch.tensor([[0.0, 20, 20, 10, 10], [1.0, 90, 90, 99, 99]]).double()
    rois = torch.cat([rois, malformed])
    features = features - 10  # all below 0, so that an empty bin's 0 is not a maximum by chance
    pooled = ops.roi_pool(features, rois, (2, 3), SCALE)
    torch.testing.assert_close(pooled, pool_pixels(features, rois, (2, 3), SCALE), rtol=0, atol=0)


def test_roi_pool_gives_the_values_and_gradients_of_compiled_mmcv():
    x = torch.tensor(SQUARE, requires_grad=True)
    pooled = ops.RoIPool(2, 1.0)(x, torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]]))
    pooled.sum().backward()
    assert pooled[0, 0].tolist() == [[4, 8], [12, 16]]
    assert x.grad[0, 0].nonzero().tolist() == [[1, 1], [1, 3], [3, 1], [3, 3]]
    assert x.grad.sum() == 4


def test_roi_pool_has_the_gradient_of_its_forward_pass(features, rois):
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.roi_pool(x, rois, (2, 3), SCALE), (features,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_pool_is_exact_in_reduced_precision(features, rois, dtype):
    x, regions = features.to(dtype).requires_grad_(), rois.to(dtype)
    pooled = ops.roi_pool(x, regions, (2, 3), SCALE)
    pooled.sum().backward()
    expected = pool_pixels(x.detach().double(), regions.double(), (2, 3), SCALE)
    torch.testing.assert_close(pooled.double(), expected, rtol=0, atol=0)
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("ratio", [0, 2])
def test_deform_roi_pool_is_roi_align_of_shifted_bins(features, rois, ratio):
    offset = torch.randn(len(rois), 2, 2, 3, dtype=torch.float64) * 3
    pooled = ops.deform_roi_pool(features, rois, offset, (2, 3), SCALE, ratio, 0.1)
    expected = align(features, rois, (2, 3), SCALE, ratio, True, offset, 0.1)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
    still = ops.deform_roi_pool(features, rois, None, (2, 3), SCALE, ratio, 0.1)
    expected = ops.roi_align(features, rois, (2, 3), SCALE, ratio, "avg", True)
    torch.testing.assert_close(still, expected, rtol=0, atol=1e-12)


def test_deform_roi_pool_has_the_gradients_of_its_forward_pass(features, rois):
    offset = torch.randn(len(rois), 2, 2, 2, dtype=torch.float64, requires_grad=True)
    features.requires_grad_()

    def pool(x, shift):
        return ops.deform_roi_pool(x, rois, shift, (2, 2), SCALE, 2, 0.1)

    assert torch.autograd.gradcheck(pool, (features, offset))
    assert torch.autograd.gradcheck(lambda x: pool(x, None), (features,))


def test_deform_roi_pool_packs_train(features, rois):
    for pack in (ops.DeformRoIPoolPack, ops.ModulatedDeformRoIPoolPack):
        module = pack((2, 2), 3, deform_fc_channels=8, spatial_scale=SCALE).double()
        module(features, rois).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("rois", [[], [[0.0, 3.0, 1.0, 3.0, 6.0]]], ids=["none", "of no width"])
def test_regions_without_a_sample_have_a_gradient_of_zero(rois, ratio):
    rois, features = torch.tensor(rois).reshape(-1, 5), torch.rand(1, 3, 8, 8, requires_grad=True)
    pooled = ops.DeformRoIPool((2, 2), 1.0, ratio)(features, rois)
    pooled.sum().backward()
    if ratio == 0 or not len(rois):
        assert not features.grad.any()
