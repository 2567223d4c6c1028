"""The arithmetic of mmcv's synchronised batch norm (`MMSyncBN`), called by `mmcv/ops/sync_bn.py`.

mmcv averages mean, variance and the two parameter gradients over the processes between these
calls. Semantics: `mmcv/ops/csrc/common/cuda/sync_bn_cuda_kernel.cuh`. N batch, C channels,
L pixels; statistics are float32 whatever the input.
"""

import torch
from torch import Tensor

_BATCH_AND_PIXELS = (0, 2)


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Mean of each channel of `(N, C, L)`, into `mean` `(C,)`."""
    mean.copy_(input.to(mean).mean(dim=_BATCH_AND_PIXELS))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Biased variance of each channel about `mean`, into `var` `(C,)`."""
    var.copy_((input.to(mean) - mean[:, None]).square().mean(dim=_BATCH_AND_PIXELS))


def sync_bn_forward_output(
    input: Tensor,  # (N, C, L)
    mean: Tensor,  # (C,), of all processes
    var: Tensor,  # (C,), biased, of all processes
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,  # updated in place
    running_var: Tensor,  # updated in place with the unbiased variance
    norm: Tensor,  # (N, C, L), gets the normalised input
    std: Tensor,  # (C,), gets sqrt(var + eps)
    output: Tensor,  # (N, C, L), gets the scaled and shifted `norm`
    eps: float,
    momentum: Tensor | float,  # share of the new statistics in the running ones
    group_size: int,  # number of processes, each with as many values as this one
) -> None:
    """Normalise, scale and shift; update the running statistics."""
    std.copy_(torch.sqrt(var + eps))
    norm.copy_((input.to(mean) - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    for running, current in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(momentum * current + (1 - momentum) * running)


def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Gradients for weight and bias, `(C,)` each, filled in place."""
    grad = grad_output.to(norm)
    grad_weight.copy_((grad * norm).sum(dim=_BATCH_AND_PIXELS))
    grad_bias.copy_(grad.sum(dim=_BATCH_AND_PIXELS))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Gradient for the input `(N, C, L)`, filled in place.

    `grad_weight` and `grad_bias` are the averages over the processes of the sums that
    `sync_bn_backward_param` gave.
    """
    count = norm.shape[0] * norm.shape[2]
    through_statistics = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    scale = (weight / std)[:, None]
    grad_input.copy_(scale * (grad_output.to(norm) - through_statistics))
