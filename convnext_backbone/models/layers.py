"""The layers that torch lacks: norms of the channels of maps, Global Response Norm, DropPath.

Papers: ConvNeXt (arXiv 2201.03545), ConvNeXt V2 (arXiv 2301.00808, section 3.3 and algorithm 1),
stochastic depth (arXiv 1603.09382).

Axes: N batch, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .depthwise import depthwise_conv2d

_gelu_tanh = partial(nn.GELU, approximate="tanh")
# Hugging Face's names for `hidden_act`.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
}


class Conv2d(nn.Conv2d):
    """torch's, but where each kernel sees one channel, its gradient has the weight's strides.

    In channels-last memory, torch gives the gradient (C, 1, K, K) another stride along the axis of
    length one than the weight has: nothing to autograd, but DistributedDataParallel warns and
    copies.
    """

    # `nn.Conv2d.forward` calls it, and reads weight and bias once: a parametrization computes them.
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve `input` (N, C_in, H, W) to (N, C_out, H_out, W_out)."""
        if self.in_channels == self.groups:
            weight = weight.squeeze(1).unsqueeze(1)  # the gradient passes the same views back
        return super()._conv_forward(input, weight, bias)


class DepthwiseConv2d(Conv2d):
    """A convolution of each channel with a kernel of its own: (N, C, H, W) to (N, C, H, W).

    The value is that of `torch.nn.Conv2d(groups=channels)`. In training on the CPU the gradient of
    the weight is computed by `depthwise.depthwise_conv2d`, which is several times as fast. What
    that does not cover (a small kernel, a stride, another padding, tensor subclasses, tracing) is
    torch's own.

    Args:
        channels: C.
        kernel_size: Side of the kernel, odd, in pixels.
        dilation: Distance of its taps, in pixels.
        bias: Whether there is one.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilation: int = 1, bias: bool = True
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=channels,
            bias=bias,
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve `input` (N, C, H, W)."""
        if not self._has_fast_gradient(input, weight):
            return super()._conv_forward(input, weight, bias)
        x, weight, bias = _autocast_to_common_dtype(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return depthwise_conv2d(x, weight, bias, self.dilation)

    def _has_fast_gradient(self, input: Tensor, weight: Tensor) -> bool:
        # A traced graph has no use for Python's loop over tiles, and a subclass (DTensor,
        # FakeTensor, a quantized weight) has operations of its own.
        return (
            type(input) is Tensor
            and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
            and torch.is_grad_enabled()
            and weight.requires_grad
            and input.device.type == "cpu"
            and type(weight) in (Tensor, nn.Parameter)
            and input.dim() == 4
            and self._keeps_size(weight)
            # oneDNN's own gradient is faster for kernels up to 3x3. Ours gives it the map as a
            # kernel, and it rejects a kernel of width 1.
            and weight.shape[2:].numel() > 9
            and input.shape[3] > 1
        )

    def _keeps_size(self, weight: Tensor) -> bool:
        steps = self.dilation if isinstance(self.dilation, tuple) else ()  # torch takes an integer
        spans = zip(steps, weight.shape[2:], strict=False)
        return (
            self.groups == self.in_channels == self.out_channels
            and self.stride == (1, 1)
            and self.padding_mode == "zeros"
            and self.padding == tuple(step * (side - 1) / 2 for step, side in spans)
        )


def _autocast_to_common_dtype(*tensors: Tensor | None) -> list[Any]:
    """Cast as autocast does for a convolution, fp64 excepted; otherwise return them unchanged."""
    if not torch.is_autocast_enabled("cpu"):
        return [*tensors]
    dtype = torch.get_autocast_dtype("cpu")
    return [t if t is None or t.dtype is torch.float64 else t.to(dtype) for t in tensors]


class _OverChannels(nn.Module):
    """A norm of the last axis, over the channels of every pixel: (N, C, H, W) to (N, C, H, W).

    It normalises a channels-last view, so a channels-last map passes without a copy.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (N, C, H, W); the memory format is kept when it is channels-last."""
        x = input.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        return super().forward(x).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class LayerNorm2d(_OverChannels, nn.LayerNorm):
    """torch's LayerNorm over the channels of every pixel: (N, C, H, W) to (N, C, H, W)."""


class RMSNorm2d(_OverChannels, nn.RMSNorm):
    """torch's RMSNorm over the channels of every pixel: (N, C, H, W) to (N, C, H, W)."""


class SimpleNorm(nn.RMSNorm):
    """Division by the standard deviation of the last axis, without centring: (..., C) to the same.

    `y = weight * x / sqrt(var(x) + eps)` with the unbiased variance. Source: timm
    (layers/norm.py), whose zepto models have it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., C)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        eps = torch.finfo(dtype).eps if self.eps is None else self.eps
        scale = torch.rsqrt(x.to(dtype).var(dim=-1, keepdim=True) + eps)
        x = (x * scale).to(x.dtype)
        return x if self.weight is None else x * self.weight


class SimpleNorm2d(_OverChannels, SimpleNorm):
    """SimpleNorm over the channels of every pixel: (N, C, H, W) to (N, C, H, W)."""


Norm = nn.LayerNorm | nn.RMSNorm
# timm's names -> the norm of the last axis, and that of the channels of a map.
NORMS: Mapping[str, tuple[type[Norm], type[Norm]]] = {
    "layernorm": (nn.LayerNorm, LayerNorm2d),
    "rmsnorm": (nn.RMSNorm, RMSNorm2d),
    "simplenorm": (SimpleNorm, SimpleNorm2d),
}


def build_norm(name: str, channels: int, eps: float) -> Norm:
    """Build the norm of the last axis."""
    return NORMS[name][0](channels, eps=eps)


def build_norm2d(name: str, channels: int, eps: float) -> Norm:
    """Build the norm of the channels of a map."""
    return NORMS[name][1](channels, eps=eps)


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
        norm = _norm_over_pixels(x)
        share = norm / (norm.mean(dim=-1, keepdim=True) + self.eps)
        scale = 1 + self.gamma * share
        return torch.addcmul(self.beta.to(x.dtype), x, scale.to(x.dtype))

    def extra_repr(self) -> str:
        """Show the width and the epsilon in `print(module)`."""
        return f"{self.gamma.numel()}, eps={self.eps}"


# A sum of squares that is negligible against GRN's epsilon, and whose inverse is finite.
_SMALLEST_SUM = 1e-30


@torch.fx.wrap  # a leaf of symbolic tracing, which knows no dtypes
def _norm_over_pixels(x: Tensor) -> Tensor:
    """Return the L2 norm of every channel of `x` (N, H, W, C) over H and W: (N, 1, 1, C).

    On the CPU `vector_norm` over any axes but the last is several times as slow as a sum. It is
    summed in fp32 at least. Squares leave the range of fp16, so there they are fp32 too.
    """
    sum_dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    squares = (x.to(sum_dtype) if x.dtype is torch.float16 else x).square()
    total = squares.sum(dim=(1, 2), keepdim=True, dtype=sum_dtype)
    # The root has no gradient at 0. Like vector_norm's, it must be 0 for a channel of zeros.
    return total.clamp_min(_SMALLEST_SUM).sqrt()


class DropPath(nn.Module):
    """Drop whole samples of a residual branch with probability `rate` and rescale the others."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (N, ...) unchanged in eval mode, else with samples dropped."""
        if not self.training or self.rate == 0.0:
            return x
        return x * _keep_mask(x, 1.0 - self.rate)

    def extra_repr(self) -> str:
        """Show the rate in `print(module)`."""
        return f"rate={self.rate:.3g}"


@torch.fx.wrap  # a leaf of symbolic tracing, which knows no shapes
def _keep_mask(x: Tensor, keep: float) -> Tensor:
    """Draw the factor (N, 1, ...) of every sample of `x` (N, ...): 0, or 1 / `keep`."""
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    # Nothing is kept at 0, and 0 / 0 must not become nan.
    return mask.div_(keep) if keep > 0.0 else mask
