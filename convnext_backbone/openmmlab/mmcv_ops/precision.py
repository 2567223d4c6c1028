"""The working precision of the operations, and gradients by recomputation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_REDUCED = (torch.float16, torch.bfloat16)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen float16 and bfloat16 to float32; float32, float64 and integers pass as they are.

    torchvision lacks bfloat16 everywhere and float16 for `nms` on the CPU, and coordinates of more
    than 2048 pixels do not survive float16. Copying into mmcv's output tensors narrows again.
    """
    return tensor.float() if tensor.dtype in _REDUCED else tensor


def copy_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad_output: Tensor,
    targets: Sequence[Tensor],
) -> None:
    """Write the gradient of `function(*inputs)` for each of `inputs` into its one of `targets`.

    mmcv keeps no graph between its forward and backward calls, so the forward pass runs once
    more. The backward kernels are many times as slow as the forward ones anyway.
    """
    leaves = [at_least_float32(tensor).detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = function(*leaves)
    if not output.requires_grad:  # it depends on none of them, as a mean over no sample
        return
    grads = torch.autograd.grad(output, leaves, at_least_float32(grad_output).to(output))
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)
