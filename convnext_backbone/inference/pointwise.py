"""The block between its depthwise convolution and its residual, tile by tile.

The hidden map of the inverted bottleneck is four times as wide as the block. Written out whole it
leaves the cache, and on the CPU a map of tens of megabytes is fresh memory that the system must
provide page by page at every call. Here the hidden map exists one tile of pixels at a time.

Global Response Norm needs the whole image's response before it can scale anything. Its scale then
moves into the second pointwise layer's weight, one weight per image, which is exact:
`(a * s + beta) @ W.T + b = a @ (W * s).T + (W @ beta + b)`.

Axes: N batch, C channels, H height, W width, P pixels of all images, Q pixels of one image.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of the hidden map in one tile and for one thread. Measured for widths 96 to 768 in fp32 and
# bf16: a fourth of it loses a tenth of the speed, twice as much gains nothing. In bf16, half of it
# loses 6 % at 224 pixels, where the weights are then packed once more per block.
_TILE = 3 << 20
_MIN_ROWS = 256
# Bytes of a hidden map that the C library's heap no longer serves from memory it has at hand.
LARGE = 8 << 20
_LOCAL = threading.local()


class Mlp(NamedTuple):
    """The parameters of norm, first pointwise layer, GELU, GRN and second pointwise layer.

    Attributes:
        norm_weight: (C,), or None where it is inside the first pointwise layer.
        norm_bias: (C,), or None likewise.
        norm_eps: Epsilon of the norm.
        weight1: (4C, C), for inference also packed by oneDNN, as is the other.
        bias1: (4C,).
        approximate: As in `torch.nn.functional.gelu`.
        weight2: (C, 4C).
        bias2: (C,).
        grn_gamma: (4C,), or None in V1.
        grn_beta: (4C,), or None in V1 and where it is inside the second pointwise layer.
        grn_eps: Epsilon of the GRN.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    norm_eps: float
    weight1: Tensor
    bias1: Tensor
    approximate: str
    weight2: Tensor
    bias2: Tensor
    grn_gamma: Tensor | None = None
    grn_beta: Tensor | None = None
    grn_eps: float = 1e-6


def mlp_plain(y: Tensor, p: Mlp) -> Tensor:
    """Return norm, pointwise layer, GELU, GRN and pointwise layer of `y` (N, H, W, C).

    The plain twin of `mlp_train`, `training.mlp_tiled` and, with the residual, of `mlp_add`.
    """
    y = F.layer_norm(y, y.shape[-1:], p.norm_weight, p.norm_bias, p.norm_eps)
    y = F.gelu(F.linear(y, p.weight1, p.bias1), approximate=p.approximate)
    if p.grn_gamma is not None:
        norm = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True, dtype=wide_dtype(y))
        scale = grn_scale(norm, p.grn_gamma, p.grn_eps)
        y = torch.addcmul(_beta(p, y), y, scale.to(y.dtype))
    return F.linear(y, p.weight2, p.bias2)


def mlp_train(y: Tensor, p: Mlp) -> Tensor:
    """Do what `mlp_plain` does, of differentiable operations, with fewer passes in V2.

    The scale of GRN goes into one weight per image, so neither it nor its gradient takes a pass
    over the hidden map.
    """
    if p.grn_gamma is None or p.grn_beta is None:
        y = F.linear(_layer_norm(y, p), p.weight1, p.bias1)
        return F.linear(F.gelu(y, approximate=p.approximate), p.weight2, p.bias2)
    n, h, w, c = y.shape
    y = _layer_norm(y, p)
    a = F.gelu(F.linear(y, p.weight1, p.bias1), approximate=p.approximate).flatten(1, 2)
    scale = grn_scale(_PixelNorm.apply(a), p.grn_gamma, p.grn_eps)  # (N, 1, 4C)
    if h * w < c:  # the map is smaller than a weight per image
        a = torch.addcmul(p.grn_beta.to(a.dtype), a, scale.to(a.dtype))
        return F.linear(a, p.weight2, p.bias2).view(n, h, w, c)
    weight = (p.weight2 * scale).to(a.dtype)  # (N, C, 4C)
    z = torch.bmm(a, weight.transpose(1, 2))
    bias = torch.addmv(p.bias2, p.weight2, p.grn_beta)
    return z.view(n, h, w, c) + bias.to(z.dtype)


def _layer_norm(y: Tensor, p: Mlp) -> Tensor:
    if p.norm_weight is None or y.dtype != p.norm_weight.dtype or y.dtype == wide_dtype(y):
        return F.layer_norm(y, y.shape[-1:], p.norm_weight, p.norm_bias, p.norm_eps)
    return _NarrowLayerNorm.apply(y, p.norm_weight, p.norm_bias, p.norm_eps)


class _NarrowLayerNorm(torch.autograd.Function):
    """torch's layer norm in bf16 or fp16, with `norm_backward`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, rstd = torch.native_layer_norm(y, weight.shape, weight, bias, eps)
        ctx.save_for_backward(y, weight, bias, mean, rstd)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            out = F.layer_norm(y, weight.shape, weight, bias, ctx.eps)
            return *differentiable_gradients(out, (y, weight, bias), grad), None
        return *norm_backward(grad, y, mean, rstd, weight, bias), None


def norm_backward(
    grad: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return layer norm's gradients of `y` (..., C), of its weight and of its bias (C,).

    torch adds up the last two in the map's own dtype: in bf16 they are 6 % off after 3,136 pixels.
    Here they are added up in fp32, and 0.4 % off.

    Args:
        grad: The gradient of the normed map (..., C).
        y: The map.
        mean: Of each pixel (..., 1), as `torch.native_layer_norm` gives it.
        rstd: 1 / deviation of each pixel, likewise.
        weight: (C,).
        bias: (C,).
    """
    exact = y.dtype == wide_dtype(y)
    grad_y, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad, y, weight.shape, mean, rstd, weight, bias, [True, exact, exact]
    )
    if exact:
        return grad_y, grad_weight, grad_bias
    # A sum over pixels is in fp32 inside, whatever it is asked for.
    pixels = tuple(range(y.ndim - 1))
    grad_weight = (y - mean).mul_(rstd).mul_(grad).sum(dim=pixels)
    return grad_y, grad_weight, grad.sum(dim=pixels)


def differentiable_gradients(
    out: Tensor, inputs: Sequence[Tensor | None], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `out` for those inputs that take one, with a graph of their own."""
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in inputs)


def pixel_norm(a: Tensor) -> Tensor:
    """Return the L2 norm over the pixels of `a` (..., P, 4C), (..., 1, 4C), in fp32 at least.

    torch's vector_norm over any dimension but the last is ten times slower on the CPU.
    """
    if a.dtype == wide_dtype(a) or a.numel() == 0:
        return (a * a).sum(dim=-2, keepdim=True, dtype=wide_dtype(a)).sqrt_()
    norms = [_narrow_norm(image) for image in a.reshape(-1, *a.shape[-2:])]
    return torch.stack(norms).view(*a.shape[:-2], 1, a.shape[-1])


def _narrow_norm(a: Tensor) -> Tensor:
    """Return `pixel_norm` of one image (P, 4C) in bf16 or fp16.

    Batch norm's statistics read it as it is and add up in fp32; a sum of squares in fp32 would
    first write the whole map in fp32, and takes up to 1.7 times as long.
    """
    unused = a.new_zeros((2, a.shape[-1]), dtype=torch.float32)  # fp32 here makes fp32 statistics
    mean, var = torch.batch_norm_update_stats(a, unused[0], unused[1], 0.0)
    return torch.addcmul(var, mean, mean).mul_(a.shape[0]).sqrt_()


def join_norms(norms: list[Tensor]) -> Tensor:
    """Return the L2 norm (..., 1, 4C) over the pixels of all tiles, of each tile's."""
    return norms[0] if len(norms) == 1 else pixel_norm(torch.cat(norms, dim=-2))


class _PixelNorm(torch.autograd.Function):
    """`pixel_norm` with a gradient in one pass, zero where a channel is silent."""

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return pixel_norm(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        a, norm = ctx.saved_tensors
        return a * torch.where(norm > 0, grad / norm, 0).to(a.dtype)


def grn_scale(norm: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """Return the factor of every hidden channel, `1 + gamma * norm / (mean(norm) + eps)`.

    Args:
        norm: L2 norms over the image's pixels (..., 4C), in fp32 at least.
        gamma: (4C,).
        eps: Keeps a silent image from dividing by zero.
    """
    share = norm / (norm.mean(dim=-1, keepdim=True) + eps)
    return torch.addcmul(norm.new_ones(()), gamma.to(norm.dtype), share)


def fold_scale(p: Mlp, gamma: Tensor) -> Mlp:
    """Return `p` with the layer scale `gamma` (C,) inside its second pointwise layer: exact."""
    dtype = p.weight2.dtype
    return p._replace(
        weight2=(p.weight2 * gamma.unsqueeze(1)).to(dtype), bias2=(p.bias2 * gamma).to(dtype)
    )


@contextlib.contextmanager
def workspace() -> Iterator[None]:
    """Let the blocks run inside share one hidden map instead of asking for fresh memory each."""
    outer, _LOCAL.buffers = getattr(_LOCAL, "buffers", None), {}
    try:
        yield
    finally:
        _LOCAL.buffers = outer


def _scratch(shape: tuple[int, int], like: Tensor) -> Tensor:
    buffers = getattr(_LOCAL, "buffers", None)
    if buffers is None:
        return like.new_empty(shape)
    key, size = (like.dtype, like.device), shape[0] * shape[1]
    if key not in buffers or buffers[key].numel() < size:
        buffers[key] = like.new_empty(size)
    return buffers[key][:size].view(shape)


# Inference: no gradients, so intermediate maps may be overwritten.


def mlp_add(y: Tensor, x: Tensor, p: Mlp, gamma: Tensor | None = None) -> Tensor:
    """Return `x + mlp_plain(y, p) * gamma`; without gradients, and `y` may be overwritten.

    Args:
        y: Output of the depthwise convolution (N, H, W, C), contiguous.
        x: Input of the block (N, H, W, C), contiguous.
        p: The parameters, in the dtype of `y`.
        gamma: The layer scale (C,), unless it is inside `p`.
    """
    _, h, w, c = y.shape
    flat_y, flat_x = y.view(-1, c), x.view(-1, c)
    if p.grn_gamma is None and flat_y.shape[0] <= tile_rows(p):
        return _v1_tile(flat_y, flat_x, p, gamma).view(y.shape)
    if p.grn_gamma is None:
        for yt, xt in _tiles(flat_y, flat_x, p):
            yt.copy_(_v1_tile(yt, xt, p, gamma))
    elif gamma is not None:
        return torch.addcmul(x, mlp_plain(y, p), gamma)
    elif h * w >= c:
        # Scaling a (C, 4C) weight per image is less work than scaling the hidden map (Q, 4C).
        bias = p.bias2 if p.grn_beta is None else torch.addmv(p.bias2, p.weight2, p.grn_beta)
        for yi, xi in zip(flat_y.split(h * w), flat_x.split(h * w), strict=True):
            _v2_add_image(yi, xi, p, bias)
    else:
        images = max(1, tile_rows(p) // (h * w))
        for yi, xi in zip(y.split(images), flat_x.split(images * h * w), strict=True):
            _v2_add_images(yi, xi, p)
    return y


def _v1_tile(y: Tensor, x: Tensor, p: Mlp, gamma: Tensor | None) -> Tensor:
    if gamma is None:
        return _linear_add(_hidden(y, p), p.weight2, p.bias2, x)
    return torch.addcmul(x, _linear(_hidden(y, p), p.weight2, p.bias2), gamma)


def _v2_add_image(y: Tensor, x: Tensor, p: Mlp, bias: Tensor) -> None:
    rows, width = tile_rows(p), p.weight1.shape[0]
    large = y.shape[0] * width * y.element_size() > LARGE
    slots = _scratch((y.shape[0], width), y).split(rows) if large else None
    hidden, norms = [], []
    for index, yt in enumerate(y.split(rows)):
        a = _hidden(yt, p)
        norms.append(pixel_norm(a))
        hidden.append(a if slots is None else slots[index].copy_(a))
    norm = join_norms(norms)
    assert p.grn_gamma is not None
    scale, weight = grn_scale(norm, p.grn_gamma, p.grn_eps).to(y.dtype), p.weight2
    if not weight.is_mkldnn:
        weight = weight * scale
    for yt, a, xt in zip(y.split(rows), hidden, x.split(rows), strict=True):
        a = a.mul_(scale) if weight.is_mkldnn else a
        yt.copy_(_linear_add(a, weight, bias, xt))


def _v2_add_images(y: Tensor, x: Tensor, p: Mlp) -> None:
    assert p.grn_gamma is not None
    a = _hidden(y, p)
    norm = pixel_norm(a.flatten(1, 2)).unsqueeze(1)  # (N, 1, 1, 4C)
    a = torch.addcmul(_beta(p, a), a, grn_scale(norm, p.grn_gamma, p.grn_eps).to(a.dtype))
    y.view(x.shape).copy_(_linear_add(a.flatten(0, 2), p.weight2, p.bias2, x))


def _beta(p: Mlp, a: Tensor) -> Tensor:
    return a.new_zeros(()) if p.grn_beta is None else p.grn_beta.to(a.dtype)


def _hidden(y: Tensor, p: Mlp) -> Tensor:
    y = F.layer_norm(y, y.shape[-1:], p.norm_weight, p.norm_bias, p.norm_eps)
    if onednn_takes(y):
        return torch.ops.mkldnn._linear_pointwise(y, p.weight1, p.bias1, "gelu", [], p.approximate)
    return torch.ops.aten.gelu_(F.linear(y, p.weight1, p.bias1), approximate=p.approximate)


def _linear(a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if onednn_takes(a):
        return torch.ops.mkldnn._linear_pointwise(a, weight, bias, "none", [], "")
    return F.linear(a, weight, bias)


def _linear_add(a: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    if onednn_takes(a):
        return torch.ops.mkldnn._linear_pointwise.binary(a, x, weight, bias, "add")
    return F.linear(a, weight, bias).add_(x)


def onednn_takes(x: Tensor) -> bool:
    """Whether oneDNN's pointwise layer, with GELU or a sum in the same pass, takes `x`."""
    if x.device.type != "cpu" or x.numel() == 0 or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    takes: dict[torch.dtype, Callable[[], bool]] = {
        torch.float32: lambda: True,
        torch.bfloat16: ops._is_mkldnn_bf16_supported,
        torch.float16: ops._is_mkldnn_fp16_supported,
    }
    return x.dtype in takes and bool(takes[x.dtype]())


def tile_rows(p: Mlp) -> int:
    """Return how many pixels a tile holds."""
    row = p.weight1.shape[0] * p.weight1.element_size()
    return max(_MIN_ROWS, _TILE // row) * torch.get_num_threads()


def _tiles(a: Tensor, b: Tensor, p: Mlp) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(a.split(tile_rows(p)), b.split(tile_rows(p)), strict=True)


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to reduce in."""
    # A sum of squares over a large map leaves the range of fp16: reduce in fp32 at least.
    return torch.promote_types(x.dtype, torch.float32)
