"""Sigmoid focal loss as `mmcv/ops/focal_loss.py` calls it.

Paper: Focal Loss, https://arxiv.org/abs/1708.02002, equation 5. Semantics:
`mmcv/ops/csrc/common/cuda/sigmoid_focal_loss_cuda_kernel.cuh`. R rows, C classes;
`weight` is `(C,)`, a factor of a row by its target class, or empty.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the binary focal loss of the logits `input` into `output`, both `(R, C)`.

    A `target` `(R,)` outside the classes is background. The logarithms are taken of the logits, so
    a loss stays exact beyond the -87.3 at which compiled mmcv clips them. `alpha` weighs the
    positive class, `1 - alpha` the negative one.
    """
    logits = at_least_float32(input)
    positive = alpha * (-logits).sigmoid().pow(gamma) * -F.logsigmoid(logits)
    negative = (1 - alpha) * logits.sigmoid().pow(gamma) * -F.logsigmoid(-logits)
    loss = torch.where(_one_hot(target, logits), positive, negative)
    output.copy_(loss * _row_weight(weight, target, logits)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of `sigmoid_focal_loss_forward` for each logit, written into `grad_input`."""
    logits = at_least_float32(input)
    p, q = logits.sigmoid(), (-logits).sigmoid()
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = alpha * q.pow(gamma) * (gamma * p * log_p - q)
    negative = (1 - alpha) * p.pow(gamma) * (p - gamma * q * log_q)
    grad = torch.where(_one_hot(target, logits), positive, negative)
    grad_input.copy_(grad * _row_weight(weight, target, logits)[:, None])


def _one_hot(target: Tensor, rows: Tensor) -> Tensor:
    # A target outside the classes gives a row without a True.
    return target[:, None] == torch.arange(rows.shape[1], device=rows.device)


def _row_weight(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """`(R,)`: the weight of each row's class; 1 for background or where `weight` is empty."""
    if weight.numel() == 0:
        return torch.ones_like(target, dtype=like.dtype)
    known = (target >= 0) & (target < len(weight))  # compiled mmcv reads past the end
    return torch.where(known, weight.to(like)[target.clamp(0, len(weight) - 1)], 1)
