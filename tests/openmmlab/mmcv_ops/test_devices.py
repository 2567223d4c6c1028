"""No operation leaves the device of its inputs.

Meta tensors stand for a GPU's: they have a device of their own, and torch refuses to mix it with
the CPU's. They hold no values, so the operations that read values (the suppressions, and grids
that adapt to each region) have no place here.
"""

from functools import partial

import pytest
import torch

import convnext_backbone  # noqa: F401  # isort: skip  (serves mmcv._ext)
from mmcv import ops
from mmcv._ext import masked_col2im_forward, masked_im2col_forward
from mmcv.ops.carafe import carafe
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

from convnext_backbone.openmmlab.mmcv_ops import table as own

pytestmark = pytest.mark.openmmlab

READS_VALUES = {"nms", "nms_match", "softnms", "line_nms_forward"}
HAS_NO_TENSORS = {"get_compiler_version", "get_compiling_cuda_version"}


def empty(*shape, dtype=torch.float32, grad=False):
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=grad)


graded = partial(empty, grad=True)
ROIS = empty(3, 5)
LABELS = empty(4, dtype=torch.long)
INDEX = empty(2, dtype=torch.long)


def attend():
    # mmcv keeps the shapes of the levels beside the values; they are read on the host.
    levels = torch.tensor([[2, 3]]), torch.tensor([0])
    value, places, weights = graded(1, 6, 2, 4), graded(1, 5, 2, 1, 2, 2), graded(1, 5, 2, 1, 2)
    return MultiScaleDeformableAttnFunction.apply(value, *levels, places, weights, 64)


def convolve_masked():
    columns, image = empty(36, 2), empty(1, 4, 6, 6)
    masked_im2col_forward(image, INDEX, INDEX, columns, 3, 3, 1, 1)
    masked_col2im_forward(empty(4, 2), INDEX, INDEX, image, 6, 6, 4)
    return image


def normalise():
    x, mean, var = empty(2, 4, 9), empty(4), empty(4)
    norm, out = empty(2, 4, 9), empty(2, 4, 9)
    own.OPS["sync_bn_forward_mean"](x, mean)
    own.OPS["sync_bn_forward_var"](x, mean, var)
    own.OPS["sync_bn_forward_output"](
        x, mean, var, mean, mean, empty(4), empty(4), norm, empty(4), out, 1e-5, 0.1, 1
    )
    own.OPS["sync_bn_backward_param"](out, norm, empty(4), empty(4))
    own.OPS["sync_bn_backward_data"](out, mean, mean, mean, norm, var, x)
    return out


CALLS = {
    "carafe": lambda: carafe(graded(1, 4, 6, 6), graded(1, 9, 12, 12), 3, 1, 2),
    "deform_conv": lambda: ops.deform_conv2d(
        graded(1, 4, 6, 6), graded(1, 18, 4, 4), graded(4, 4, 3, 3)
    ),
    "deform_roi_pool": lambda: ops.deform_roi_pool(
        graded(1, 4, 6, 6), ROIS, graded(3, 2, 2, 2), (2, 2), 0.5, 2, 0.1
    ),
    "masked": convolve_masked,
    "modulated_deform_conv": lambda: ops.modulated_deform_conv2d(
        graded(1, 4, 6, 6), graded(1, 18, 4, 4), graded(1, 9, 4, 4), graded(4, 4, 3, 3), graded(4)
    ),
    "ms_deform_attn": attend,
    "psamask": lambda: ops.PSAMask("distribute", (3, 3))(graded(1, 9, 4, 4)),
    "roi_align": lambda: ops.roi_align(graded(1, 4, 6, 6), ROIS, 2, 0.5, 0, "avg", True),
    "roi_pool": lambda: ops.roi_pool(graded(1, 4, 6, 6), ROIS, 2, 0.5),
    "sigmoid_focal_loss": lambda: ops.sigmoid_focal_loss(
        graded(4, 3), LABELS, 2.0, 0.25, empty(3), "sum"
    ),
    "sync_bn": normalise,
}


@pytest.mark.parametrize("name", CALLS)
def test_operation_stays_on_its_inputs_device(name):
    result = CALLS[name]()
    assert result.device.type == "meta"
    if result.requires_grad:
        result.sum().backward()


def test_every_operation_is_tried_or_reads_values():
    untried = [
        name
        for name in own.OPS.keys() - READS_VALUES - HAS_NO_TENSORS
        if not name.startswith(tuple(CALLS))
    ]
    assert untried == []
