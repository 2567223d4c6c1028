"""The block after its depthwise convolution, with a gradient that works tile by tile.

The backward pass of the definition writes three maps as wide as the ones it kept from the forward
pass. Here those exist one tile of pixels at a time. What is kept is a choice: everything, or only
the two maps that are dear to recompute, the outputs of the depthwise and the first pointwise layer;
norm and GELU are then recomputed tile by tile.

Axes: M images, Q pixels of an image, C channels. V1 sums over no image, so there all pixels of the
batch count as one image.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inference.pointwise import (
    Mlp,
    differentiable_gradients,
    grn_scale,
    join_norms,
    mlp_plain,
    norm_backward,
    pixel_norm,
    tile_rows,
    wide_dtype,
)

_NUM_TENSORS = 8  # parameters of an Mlp that are tensors, GRN's two included


def mlp_tiled(y: Tensor, p: Mlp, keep_all: bool) -> Tensor:
    """Return `mlp_plain(y, p)` of `y` (N, H, W, C).

    Autocast must be off, as it is inside a custom gradient; the pointwise layers must have the
    dtype of `y`, the norm and the GRN may be wider.

    Args:
        y: Output of the depthwise convolution.
        p: The parameters.
        keep_all: Keep the normed map and the one behind GELU too, and recompute nothing.
    """
    tensors = (p.norm_weight, p.norm_bias, p.weight1, p.bias1, p.weight2, p.bias2)
    numbers = (p.norm_eps, p.approximate, p.grn_eps)
    return _TiledMlp.apply(y, keep_all, *tensors, p.grn_gamma, p.grn_beta, *numbers)


def _mlp(tensors: tuple[Any, ...], numbers: tuple[Any, ...]) -> Mlp:
    norm_weight, norm_bias, weight1, bias1, weight2, bias2, grn_gamma, grn_beta = tensors
    eps, gelu, grn_eps = numbers
    return Mlp(
        norm_weight, norm_bias, eps, weight1, bias1, gelu, weight2, bias2, grn_gamma, grn_beta,
        grn_eps,
    )  # fmt: skip


class _Maps(NamedTuple):
    """The maps of some images, (M, Q, channels), and the norms behind GELU, (M, 1, 4C).

    `normed`, `active`, `mean` and `rstd` are None where they are recomputed; the last two are
    (M, Q, 1), in whatever dtype torch's norm gives them on the device.
    """

    y: Tensor
    hidden: Tensor
    norm: Tensor | None
    normed: Tensor | None
    active: Tensor | None
    mean: Tensor | None
    rstd: Tensor | None

    def images(self, group: slice) -> "_Maps":
        return self._cut(lambda m: m[group])

    def pixels(self, tile: slice) -> "_Maps":
        return self._cut(lambda m: m[:, tile])._replace(norm=self.norm)

    def _cut(self, part: Callable[[Tensor], Tensor]) -> "_Maps":
        y, hidden, *others = self
        cut = [None if m is None else part(m) for m in others]
        return _Maps(part(y), part(hidden), *cut)


class _TiledMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, keep_all: bool, *args: Any) -> Tensor:
        tensors, ctx.numbers = args[:_NUM_TENSORS], args[_NUM_TENSORS:]
        p = _mlp(tensors, ctx.numbers)
        maps = _allocate(_by_image(y, p), p, keep_all)
        out = torch.empty_like(maps.y)
        for group in _groups(maps.y, p):
            images = maps.images(group)
            active = _fill(images, p)
            scale = _scale(images, p)
            for tile in _tiles(maps.y, p):
                a = _active(images.pixels(tile), p) if active is None else active
                _linear(_scaled(a, scale, p), p.weight2, p.bias2, out=out[group, tile])
        ctx.save_for_backward(y, *maps[1:], *tensors)
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        y, *saved = ctx.saved_tensors
        kept = len(_Maps._fields) - 1
        tensors, nones = saved[kept:], (None for _ in ctx.numbers)
        p = _mlp(tuple(tensors), ctx.numbers)
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            out = mlp_plain(y, p)
            grad_y, *others = differentiable_gradients(out, (y, *tensors), grad)
            return grad_y, None, *others, *nones
        maps, grad = _Maps(_by_image(y, p), *saved[:kept]), _by_image(grad, p)
        groups = list(_groups(maps.y, p))
        sums = _Sums(lone=len(groups) == len(list(_tiles(maps.y, p))) == 1)
        grad_y = torch.empty_like(maps.y)
        for group in groups:
            step = _backward_v1 if maps.norm is None else _backward_v2
            step(maps.images(group), grad[group], grad_y[group], p, sums)
        return grad_y.view(y.shape), None, *sums.gradients(p), *nones


class _Sums:
    """The parameters' gradients, over all tiles; sums of several tiles are in fp32 at least.

    Where a lone tile holds everything, its sums are rounded once, as those of the definition are.
    """

    def __init__(self, lone: bool = False) -> None:
        self._totals: dict[str, Tensor] = {}
        self._lone = lone

    def __getitem__(self, name: str) -> Tensor:
        return self._totals[name]

    def add(self, name: str, value: Tensor) -> None:
        """Add `value` to the total of `name`."""
        total = self._totals.get(name)
        self._totals[name] = value if total is None else total.to(wide_dtype(value)).add_(value)

    def over_pixels(self, g: Tensor) -> Tensor:
        """Return the sum over all pixels of `g` (M, Q, channels)."""
        return g.sum(dim=(0, 1), dtype=_lone_dtype(g) if self._lone else wide_dtype(g))

    def add_outer(self, name: str, a: Tensor, b: Tensor) -> None:
        """Add `a.T @ b` over all pixels of `a` (M, Q, A) and `b` (M, Q, B)."""
        a, b = a.flatten(0, 1), b.flatten(0, 1)
        total = self._totals.get(name)
        if total is not None and total.dtype == a.dtype:
            total.addmm_(a.T, b)
        else:
            self.add(name, a.T @ b)

    def gradients(self, p: Mlp) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the function's arguments."""
        if "bias2" not in self._totals:  # an empty batch
            return tuple(None if t is None else torch.zeros_like(t) for t in _tensors(p))
        if p.grn_gamma is not None:
            # beta reaches the output through the second pointwise layer, at every pixel alike
            bias = self._totals["bias2"]
            self._totals["grn_beta"] = bias @ p.weight2.to(bias.dtype)
        names = [name for name in Mlp._fields if isinstance(getattr(p, name), Tensor)]
        found = tuple(self._totals[name].to(getattr(p, name).dtype) for name in names)
        return found if p.grn_gamma is not None else (*found, None, None)


def _tensors(p: Mlp) -> tuple[Tensor | None, ...]:
    layers = (p.norm_weight, p.norm_bias, p.weight1, p.bias1, p.weight2, p.bias2)
    return *layers, p.grn_gamma, p.grn_beta


def _backward_v1(maps: _Maps, grad: Tensor, out: Tensor, p: Mlp, s: _Sums) -> None:
    for tile in _tiles(maps.y, p):
        g, part = grad[:, tile], maps.pixels(tile)
        s.add_outer("weight2", g, _active(part, p))
        s.add("bias2", s.over_pixels(g))
        out[:, tile] = _through_hidden(part, g @ p.weight2, p, s)


def _backward_v2(maps: _Maps, grad: Tensor, out: Tensor, p: Mlp, s: _Sums) -> None:
    assert maps.norm is not None
    assert p.grn_gamma is not None
    with torch.enable_grad():
        norm, gamma = (t.detach().requires_grad_() for t in (maps.norm, p.grn_gamma))
        scale = grn_scale(norm, gamma, p.grn_eps)
    tiles = list(_tiles(maps.y, p))
    grad_bias = s.over_pixels(grad)
    whole = None  # the map behind GELU, and the gradient behind GRN, where one tile holds them
    if len(tiles) == 1:
        a = _active(maps, p)
        whole = a, grad @ p.weight2
        s.add_outer("weight2", grad, _scaled(a, scale.detach(), p))
        product = whole[1] * a
        grad_scale = product.sum(dim=1, keepdim=True, dtype=_lone_dtype(a)).to(scale.dtype)
    else:
        grad_scale = _grad_scale(maps, grad, grad_bias, scale.detach(), p, s)
    grad_norm, grad_gamma = torch.autograd.grad(scale, (norm, gamma), grad_scale)
    s.add("grn_gamma", grad_gamma)
    s.add("bias2", grad_bias)
    # d ||a|| / d a = a / ||a||; a silent channel has no direction, and takes none.
    pull = torch.where(maps.norm > 0, grad_norm / maps.norm, 0).to(grad.dtype)
    factor = scale.detach().to(grad.dtype)
    for tile in tiles:
        part = maps.pixels(tile)
        a, g = whole or (_active(part, p), grad[:, tile] @ p.weight2)
        out[:, tile] = _through_hidden(part, g.mul_(factor).addcmul_(a, pull), p, s)


def _grad_scale(
    maps: _Maps, grad: Tensor, grad_bias: Tensor, scale: Tensor, p: Mlp, s: _Sums
) -> Tensor:
    """Return the gradient of GRN's scale (1, 1, 4C), and add that of the second layer's weight.

    For one image of many tiles: the product of its gradient and its map behind GELU serves both,
    and neither is ever whole.
    """
    product = _Sums()
    for tile in _tiles(maps.y, p):
        product.add_outer("of", grad[:, tile], _active(maps.pixels(tile), p))
    found = product["of"].to(scale.dtype)
    assert p.grn_beta is not None
    beta = torch.outer(grad_bias.to(scale.dtype), p.grn_beta.to(scale.dtype))
    s.add("weight2", beta.addcmul_(found, scale.view(1, -1)))
    return (found * p.weight2).sum(dim=0).view(scale.shape)


def _through_hidden(maps: _Maps, grad_a: Tensor, p: Mlp, s: _Sums) -> Tensor:
    """Take the gradient from behind GELU to `y`, through the first pointwise layer and the norm."""
    grad_h = torch.ops.aten.gelu_backward(grad_a, maps.hidden, approximate=p.approximate)
    normed, mean, rstd = _normed(maps, p)
    s.add_outer("weight1", grad_h, normed)
    s.add("bias1", s.over_pixels(grad_h))
    assert p.norm_weight is not None
    wide = maps.y.to(p.norm_weight.dtype)
    grad_y, grad_weight, grad_bias = norm_backward(
        (grad_h @ p.weight1).to(wide.dtype), wide, mean, rstd, p.norm_weight, p.norm_bias
    )
    s.add("norm_weight", grad_weight)
    s.add("norm_bias", grad_bias)
    return grad_y


def _allocate(y: Tensor, p: Mlp, keep_all: bool) -> _Maps:
    hidden = y.new_empty((*y.shape[:2], p.weight1.shape[0]))
    norm = None
    if p.grn_gamma is not None:
        norm = y.new_empty((y.shape[0], 1, hidden.shape[2]), dtype=wide_dtype(y))
    if not keep_all:
        return _Maps(y, hidden, norm, None, None, None, None)
    none = _Maps(y[:, :0], hidden, None, None, None, None, None)
    normed, mean, rstd = (t.new_empty((*y.shape[:2], t.shape[2])) for t in _normed(none, p))
    return _Maps(y, hidden, norm, normed, torch.empty_like(hidden), mean, rstd)


def _fill(maps: _Maps, p: Mlp) -> Tensor | None:
    """Write the first pointwise layer's output, what is kept, and the norms behind GELU.

    Returns the map behind GELU if it was computed and there is no more than one tile of it.
    """
    norms = []
    a = None
    for tile in _tiles(maps.y, p):
        part = maps.pixels(tile)
        normed, mean, rstd = _normed(part._replace(normed=None), p)
        h = part.hidden
        _linear(normed, p.weight1, p.bias1, out=h)
        if part.active is None and part.norm is None:
            continue
        a = F.gelu(h, approximate=p.approximate)
        if part.norm is not None:
            norms.append(pixel_norm(a))
        if part.active is not None:
            kept = (part.normed, part.active, part.mean, part.rstd)
            for target, source in zip(kept, (normed, a, mean, rstd), strict=True):
                assert target is not None
                target.copy_(source)
    if maps.norm is not None:
        maps.norm.copy_(join_norms(norms))
    return a if a is not None and a.shape[1] == maps.y.shape[1] else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    torch.addmm(bias, x.flatten(0, 1), weight.t(), out=out.flatten(0, 1))


def _normed(maps: _Maps, p: Mlp) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normed pixels in the pointwise layers' dtype, with mean and 1 / deviation."""
    if maps.normed is not None and maps.mean is not None and maps.rstd is not None:
        return maps.normed, maps.mean, maps.rstd
    assert p.norm_weight is not None
    t, mean, rstd = torch.native_layer_norm(
        maps.y.to(p.norm_weight.dtype), p.norm_weight.shape, p.norm_weight, p.norm_bias, p.norm_eps
    )
    return t.to(p.weight1.dtype), mean, rstd


def _active(maps: _Maps, p: Mlp) -> Tensor:
    return F.gelu(maps.hidden, approximate=p.approximate) if maps.active is None else maps.active


def _scale(maps: _Maps, p: Mlp) -> Tensor | None:
    if maps.norm is None or p.grn_gamma is None:
        return None
    return grn_scale(maps.norm, p.grn_gamma, p.grn_eps)


def _scaled(a: Tensor, scale: Tensor | None, p: Mlp) -> Tensor:
    if scale is None:
        return a
    assert p.grn_beta is not None
    return torch.addcmul(p.grn_beta.to(a.dtype), a, scale.to(a.dtype))


def _lone_dtype(g: Tensor) -> torch.dtype:
    """Return the dtype to ask for when `g` holds all there is to add up."""
    # bf16 has fp32's range, and torch adds it up in fp32 anyway; asked for an fp32 sum, it first
    # writes the whole map in fp32.
    return g.dtype if g.dtype == torch.bfloat16 else wide_dtype(g)


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
