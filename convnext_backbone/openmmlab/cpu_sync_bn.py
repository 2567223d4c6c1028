"""Synchronised batch norm on the CPU, where torch's refuses to work."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


class CpuSyncBN(_BatchNorm):
    """What `torch.nn.SyncBatchNorm` computes, for processes on the CPU.

    Mean and variance are those of all processes together, whose batches may differ in size, and
    float32 under autocast, as on a GPU. In evaluation and in one process it is plain batch norm. It
    is not a subclass of torch's, which `DistributedDataParallel` refuses without a GPU.

    Shape: `(N, C, *)` in, the same out, in the dtype of the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` by the statistics of all processes, and track them."""
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(input)
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [0, *range(2, x.ndim)]
        shape = (-1,) + (1,) * (x.ndim - 2)
        values = x.new_full((1,), x.numel() // x.shape[1])
        sums = _Sum.apply(torch.cat([x.sum(axes), values]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x - mean.view(shape)
        var = _Sum.apply(centred.square().sum(axes)) / count
        self._track(mean.detach(), (var * count / (count - 1).clamp(min=1)).detach())
        scale = torch.rsqrt(var + self.eps)
        if not self.affine:
            return (centred * scale.view(shape)).to(input.dtype)
        scale, bias = (self.weight * scale).view(shape), self.bias.view(shape)
        return torch.addcmul(bias, centred, scale).to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm takes (N, C, *), got {tuple(input.shape)}")

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of the batch, `var` without bias."""
        number = self.num_batches_tracked
        if number is None or self.running_mean is None or self.running_var is None:
            return
        number += 1
        share = 1 / number.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(var.to(self.running_var), share)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, and the sum of its gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)
