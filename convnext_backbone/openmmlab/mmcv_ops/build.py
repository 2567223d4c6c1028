"""What `mmcv.utils.collect_env` prints about the extension."""

import torch
import torchvision


def get_compiler_version() -> str:
    """In place of the compiler: what the operations run on."""
    return f"none (operations by convnext_backbone on torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    """The CUDA version of torch itself, which torchvision's kernels are built for."""
    return torch.version.cuda or "not available"
