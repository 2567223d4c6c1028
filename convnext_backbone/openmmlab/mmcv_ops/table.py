"""mmcv's compiled operations on torchvision and plain torch.

`OPS` is all that the package serves as `mmcv._ext`: the public functions of `_MODULES`, and two
that describe the build. Names and arguments are those of `mmcv/ops/csrc/pytorch/pybind.cpp` (mmcv
2.1.0 and onedl-mmcv 2.3.6), output tensors are filled in place as there. The functions run on any
device that torchvision has kernels for; none loops over pixels.

To add an operation, write a function of its name and signature in the module of its kind here (or
in a new one), compute in `precision.at_least_float32`, and take gradients from
`precision.copy_gradients` where no formula is simpler. Its tests compare it with torchvision,
mmcv's own Python code or a plain loop, in every floating type.
"""

from collections.abc import Callable, Mapping
from inspect import isfunction
from typing import Any

import torch
import torchvision

from . import (
    attention,
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

_MODULES = (
    *(attention, deform, deform_roi, focal_loss),
    *(line_nms, masked_conv, nms, roi, sync_bn, upsample),
)


def get_compiler_version() -> str:
    """What `mmcv.utils.collect_env` prints in place of the compiler: what the operations run on."""
    return f"none (operations by convnext_backbone on torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    """The CUDA version of torch itself, which torchvision's kernels are built for."""
    return torch.version.cuda or "not available"


OPS: Mapping[str, Callable[..., Any]] = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
} | {function.__name__: function for function in (get_compiler_version, get_compiling_cuda_version)}
