"""The layers that torch lacks: channel LayerNorm on maps, Global Response Norm, DropPath.

Papers: ConvNeXt (arXiv 2201.03545), ConvNeXt V2 (arXiv 2301.00808, section 3.3 and algorithm 1),
stochastic depth (arXiv 1603.09382).

Axes: N batch, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_gelu_tanh = partial(nn.GELU, approximate="tanh")
# Hugging Face's names for `hidden_act`.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "gelu": nn.GELU,
        "gelu_new": _gelu_tanh,
        "gelu_pytorch_tanh": _gelu_tanh,
        "relu": nn.ReLU,
        "silu": nn.SiLU,
        "swish": nn.SiLU,
    }
)


class Conv2d(nn.Conv2d):
    """torch's, but where each kernel sees one channel, its gradient has the weight's strides.

    In channels-last memory, torch gives the gradient (C, 1, K, K) another stride along the axis of
    length one than the weight has: nothing to autograd, but DistributedDataParallel warns and
    copies.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.in_channels == self.groups:
            weight = weight.squeeze(1).unsqueeze(1)  # the gradient passes the same views back
        return super()._conv_forward(input, weight, bias)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of every pixel: (N, C, H, W) to (N, C, H, W).

    It normalises a channels-last view, so a channels-last map passes without a copy.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (N, C, H, W); the memory format is kept when it is channels-last."""
        x = input.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class GlobalResponseNorm(nn.Module):
    """Global Response Normalisation of a channels-last map: (N, H, W, C) to (N, H, W, C).

    `y = gamma * (x * n) + beta + x`, where `g = ||x||_2` over H and W and `n = g / (mean_C(g) +
    eps)`.
    The parameters are flat (C,), so optimizers that spare one-dimensional parameters from weight
    decay spare them too.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Rescale every channel of `x` (N, H, W, C) by its share of the image's response."""
        # A sum of squares over a large map leaves the range of fp16: reduce in fp32 at least.
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=wide)  # (N, 1, 1, C)
        share = norm / (norm.mean(dim=-1, keepdim=True) + self.eps)
        scale = torch.addcmul(torch.ones((), dtype=wide, device=x.device), self.gamma, share)
        return torch.addcmul(self.beta.to(x.dtype), x, scale.to(x.dtype))

    def extra_repr(self) -> str:
        """Show the width and the epsilon in `print(module)`."""
        return f"{self.gamma.numel()}, eps={self.eps}"


class DropPath(nn.Module):
    """Drop whole samples of a residual branch with probability `rate` and rescale the others."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (N, ...) unchanged in eval mode, else with samples dropped."""
        mask = self.mask(x)
        return x if mask is None else x * mask

    def mask(self, x: Tensor) -> Tensor | None:
        """Draw the factor (N, 1, ...) of every sample of `x` (N, ...); None where it is one."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        # rate 1 keeps nothing, and 0 / 0 must not become nan
        return mask.div_(keep) if keep > 0.0 else mask

    def extra_repr(self) -> str:
        """Show the rate in `print(module)`."""
        return f"rate={self.rate:.3g}"
