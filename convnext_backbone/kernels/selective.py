"""The block after its depthwise convolution, trained with little memory.

For the backward pass it keeps the two maps that are dear to recompute, the depthwise convolution's
output and the first pointwise layer's. Norm, GELU and GRN are recomputed tile by tile, so that no
other map of their size exists at any time, not even in the backward pass.

Axes: M images, Q pixels of an image, C channels. V1 sums over no image, so there all pixels of the
batch count as one image.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pointwise import Mlp, grn_scale, tile_rows, wide_dtype

_NUM_TENSORS = 8  # parameters of an Mlp that are tensors, GRN's two included


def mlp_selective(y: Tensor, p: Mlp) -> Tensor:
    """Return `mlp_plain(y, p)` of `y` (N, H, W, C), keeping only `y` and the hidden map.

    It has first derivatives only. Autocast must be off, as it is inside a custom gradient; the
    pointwise layers must have the dtype of `y`, the norm and the GRN may be wider.
    """
    tensors = (p.norm_weight, p.norm_bias, p.weight1, p.bias1, p.weight2, p.bias2)
    numbers = (p.norm_eps, p.approximate, p.grn_eps)
    return _SelectiveMlp.apply(y, *tensors, p.grn_gamma, p.grn_beta, *numbers)


def _mlp(tensors: tuple[Any, ...], numbers: tuple[Any, ...]) -> Mlp:
    norm_weight, norm_bias, weight1, bias1, weight2, bias2, grn_gamma, grn_beta = tensors
    eps, gelu, grn_eps = numbers
    return Mlp(
        norm_weight, norm_bias, eps, weight1, bias1, gelu, weight2, bias2, grn_gamma, grn_beta,
        grn_eps,
    )  # fmt: skip


class _SelectiveMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, *args: Any) -> Tensor:  # type: ignore[override]
        tensors, ctx.numbers = args[:_NUM_TENSORS], args[_NUM_TENSORS:]
        p = _mlp(tensors, ctx.numbers)
        pixels = _by_image(y, p)
        hidden = pixels.new_empty((*pixels.shape[:2], p.weight1.shape[0]))
        out = torch.empty_like(pixels)
        norm = None if p.grn_gamma is None else hidden.new_empty(
            (pixels.shape[0], 1, hidden.shape[2]), dtype=wide_dtype(hidden)
        )
        for group in _groups(pixels, p):
            _fill_hidden(pixels[group], hidden[group], None if norm is None else norm[group], p)
            scale = None if norm is None else grn_scale(norm[group], p.grn_gamma, p.grn_eps)
            for tile in _tiles(pixels, p):
                a = _scaled(_gelu(hidden[group][:, tile], p), scale, p)
                out[group][:, tile] = F.linear(a, p.weight2, p.bias2)
        ctx.save_for_backward(y, hidden, norm, *tensors)
        return out.view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        y, hidden, norm, *tensors = ctx.saved_tensors
        p = _mlp(tensors, ctx.numbers)
        pixels, grad = _by_image(y, p), _by_image(grad, p)
        sums = _Sums(p)
        grad_y = torch.empty_like(pixels)
        for group in _groups(pixels, p):
            views = (pixels[group], hidden[group], grad[group], grad_y[group])
            if norm is None:
                _backward_v1(*views, p, sums)
            else:
                _backward_v2(*views, norm[group], p, sums)
        return grad_y.view(y.shape), *sums.gradients(p), *(None for _ in ctx.numbers)


class _Sums:
    """The parameters' gradients while the tiles come in, in fp32 at least."""

    def __init__(self, p: Mlp) -> None:
        def zeros(parameter: Tensor) -> Tensor:
            return torch.zeros_like(parameter, dtype=wide_dtype(parameter))

        self.norm_weight, self.norm_bias = zeros(p.norm_weight), zeros(p.norm_bias)
        self.weight1, self.bias1 = zeros(p.weight1), zeros(p.bias1)
        self.weight2, self.bias2 = zeros(p.weight2), zeros(p.bias2)
        self.grn_gamma = None if p.grn_gamma is None else zeros(p.grn_gamma)

    def gradients(self, p: Mlp) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the function's arguments."""
        pairs = (
            (self.norm_weight, p.norm_weight),
            (self.norm_bias, p.norm_bias),
            (self.weight1, p.weight1),
            (self.bias1, p.bias1),
            (self.weight2, p.weight2),
            (self.bias2, p.bias2),
        )
        mine = tuple(total.to(parameter.dtype) for total, parameter in pairs)
        if p.grn_gamma is None or p.grn_beta is None:
            return *mine, None, None
        assert self.grn_gamma is not None
        # beta reaches the output through the second pointwise layer, at every pixel alike
        beta = self.bias2 @ p.weight2.to(self.bias2.dtype)
        return *mine, self.grn_gamma.to(p.grn_gamma.dtype), beta.to(p.grn_beta.dtype)


def _backward_v1(y: Tensor, hidden: Tensor, grad: Tensor, out: Tensor, p: Mlp, s: _Sums) -> None:
    for tile in _tiles(y, p):
        g, h = grad[:, tile], hidden[:, tile]
        _add_outer(s.weight2, g, _gelu(h, p))
        s.bias2 += g.sum(dim=(0, 1), dtype=s.bias2.dtype)
        out[:, tile] = _through_hidden(y[:, tile], h, g @ p.weight2, p, s)


def _backward_v2(
    y: Tensor, hidden: Tensor, grad: Tensor, out: Tensor, norm: Tensor, p: Mlp, s: _Sums
) -> None:
    assert p.grn_gamma is not None
    s.bias2 += grad.sum(dim=(0, 1), dtype=s.bias2.dtype)
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (norm, p.grn_gamma)]
        scale = grn_scale(*leaves, p.grn_eps)
    grad_scale = _grad_scale(y, hidden, grad, scale.detach(), p, s)
    grad_norm, grad_gamma = torch.autograd.grad(scale, leaves, grad_scale)
    s.grn_gamma += grad_gamma
    # d ||a|| / d a = a / ||a||; a silent channel has no direction, and takes none.
    pull = torch.where(norm > 0, grad_norm / norm, 0).to(hidden.dtype)
    factor = scale.detach().to(hidden.dtype)
    for tile in _tiles(y, p):
        h = hidden[:, tile]
        grad_a = (grad[:, tile] @ p.weight2).mul_(factor).addcmul_(_gelu(h, p), pull)
        out[:, tile] = _through_hidden(y[:, tile], h, grad_a, p, s)


def _grad_scale(
    y: Tensor, hidden: Tensor, grad: Tensor, scale: Tensor, p: Mlp, s: _Sums
) -> Tensor:
    """Return the gradient of GRN's scale (M, 1, 4C), and add the second layer's weight gradient."""
    if y.shape[0] > 1:  # several small images: one tile, and a weight gradient each would be larger
        a = _gelu(hidden, p)
        _add_outer(s.weight2, grad, _scaled(a, scale, p))
        return ((grad @ p.weight2) * a).sum(dim=1, keepdim=True, dtype=scale.dtype)
    # One image: the product of its gradient and its hidden map serves both, with no map of its own.
    product = torch.zeros_like(s.weight2)
    for tile in _tiles(y, p):
        _add_outer(product, grad[:, tile], _gelu(hidden[:, tile], p))
    assert p.grn_beta is not None
    s.weight2.addcmul_(product, scale.view(1, -1))
    s.weight2.addr_(grad.sum(dim=(0, 1), dtype=scale.dtype), p.grn_beta.to(scale.dtype))
    return (product * p.weight2).sum(dim=0).view(scale.shape)


def _through_hidden(y: Tensor, hidden: Tensor, grad_a: Tensor, p: Mlp, s: _Sums) -> Tensor:
    """Take the gradient from behind GELU to `y`, through the first pointwise layer and the norm."""
    grad_h = torch.ops.aten.gelu_backward(grad_a, hidden, approximate=p.approximate)
    normed, mean, rstd = _norm(y, p)
    _add_outer(s.weight1, grad_h, normed)
    s.bias1 += grad_h.sum(dim=(0, 1), dtype=s.bias1.dtype)
    wide = y.to(p.norm_weight.dtype)
    grad_y, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        (grad_h @ p.weight1).to(wide.dtype), wide, p.norm_weight.shape, mean, rstd,
        p.norm_weight, p.norm_bias, [True, True, True],
    )  # fmt: skip
    s.norm_weight += grad_weight
    s.norm_bias += grad_bias
    return grad_y


def _fill_hidden(y: Tensor, hidden: Tensor, norm: Tensor | None, p: Mlp) -> None:
    """Write the first pointwise layer's output, and the norms (M, 1, 4C) behind its GELU."""
    norms = []
    for tile in _tiles(y, p):
        h = F.linear(_norm(y[:, tile], p)[0], p.weight1, p.bias1)
        hidden[:, tile] = h
        if norm is not None:
            a = _gelu(h, p)
            norms.append(torch.linalg.vector_norm(a, dim=1, keepdim=True, dtype=norm.dtype))
    if norm is not None:
        torch.linalg.vector_norm(torch.stack(norms), dim=0, out=norm)


def _norm(y: Tensor, p: Mlp) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normed pixels in the pointwise layers' dtype, with mean and 1 / deviation."""
    t, mean, rstd = torch.native_layer_norm(
        y.to(p.norm_weight.dtype), p.norm_weight.shape, p.norm_weight, p.norm_bias, p.norm_eps
    )
    return t.to(p.weight1.dtype), mean, rstd


def _gelu(h: Tensor, p: Mlp) -> Tensor:
    return F.gelu(h, approximate=p.approximate)


def _scaled(a: Tensor, scale: Tensor | None, p: Mlp) -> Tensor:
    if scale is None:
        return a
    assert p.grn_beta is not None
    return torch.addcmul(p.grn_beta.to(a.dtype), a, scale.to(a.dtype))


def _add_outer(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add `a.T @ b` over all pixels of `a` (M, Q, A) and `b` (M, Q, B) to `total` (A, B)."""
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    if a.dtype == total.dtype:
        total.addmm_(a.T, b)
    else:
        total += a.T @ b


def _by_image(y: Tensor, p: Mlp) -> Tensor:
    n, h, w, c = y.shape
    return y.reshape((1, n * h * w, c) if p.grn_gamma is None else (n, h * w, c))


def _groups(pixels: Tensor, p: Mlp) -> Iterator[slice]:
    """Yield slices of images: several that fit one tile together, or one at a time."""
    size = max(1, tile_rows(p) // max(1, pixels.shape[1]))
    yield from (slice(i, i + size) for i in range(0, pixels.shape[0], size))


def _tiles(pixels: Tensor, p: Mlp) -> Iterator[slice]:
    rows = tile_rows(p)
    yield from (slice(i, i + rows) for i in range(0, pixels.shape[1], rows))
