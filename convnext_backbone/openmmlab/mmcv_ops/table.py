"""mmcv's compiled operations on torchvision and plain torch.

`OPS` is all that the package serves as `mmcv._ext`: names and signatures are those of
`mmcv/ops/csrc/pytorch/pybind.cpp` (mmcv 2.1.0 and onedl-mmcv 2.3.6), output tensors are filled in
place as there. The functions run on any device that torchvision has kernels for; none loops over
pixels.

To add an operation, write a function of its name and signature in the module of its kind here (or
in a new one), compute in `precision.at_least_float32`, take gradients from `precision.gradients`
where no formula is simpler, and list it in `_FUNCTIONS`. Its tests compare it with torchvision,
mmcv's own Python code or a plain loop, in every floating type.
"""

from collections.abc import Callable, Mapping
from typing import Any

from . import (
    attention,
    boxes,
    build,
    deform,
    deform_roi,
    focal_loss,
    line_nms,
    masked_conv,
    nms,
    roi,
    sync_bn,
    upsample,
)

_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    attention.ms_deform_attn_backward,
    attention.ms_deform_attn_forward,
    attention.psamask_backward,
    attention.psamask_forward,
    boxes.bbox_overlaps,
    build.get_compiler_version,
    build.get_compiling_cuda_version,
    deform.deform_conv_backward_input,
    deform.deform_conv_backward_parameters,
    deform.deform_conv_forward,
    deform.modulated_deform_conv_backward,
    deform.modulated_deform_conv_forward,
    deform_roi.deform_roi_pool_backward,
    deform_roi.deform_roi_pool_forward,
    focal_loss.sigmoid_focal_loss_backward,
    focal_loss.sigmoid_focal_loss_forward,
    focal_loss.softmax_focal_loss_backward,
    focal_loss.softmax_focal_loss_forward,
    line_nms.line_nms_forward,
    masked_conv.masked_col2im_forward,
    masked_conv.masked_im2col_forward,
    nms.nms,
    nms.nms_match,
    nms.softnms,
    roi.roi_align_backward,
    roi.roi_align_forward,
    roi.roi_pool_backward,
    roi.roi_pool_forward,
    sync_bn.sync_bn_backward_data,
    sync_bn.sync_bn_backward_param,
    sync_bn.sync_bn_forward_mean,
    sync_bn.sync_bn_forward_output,
    sync_bn.sync_bn_forward_var,
    upsample.carafe_backward,
    upsample.carafe_forward,
    upsample.carafe_naive_backward,
    upsample.carafe_naive_forward,
)

OPS: Mapping[str, Callable[..., Any]] = {function.__name__: function for function in _FUNCTIONS}
