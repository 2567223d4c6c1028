"""Operations of torch made of the Triton kernels, with shapes for tracers and gradients.

Each is the fused form of a piece of `Block`, named beside it; `block` puts them together.

- `depthwise_norm`: `dwconv` and `norm`.
- `pointwise_gelu`: `pwconv1`, `act`, and the sums of squares that `grn` needs.
- `pointwise_residual`: GRN's scale, `pwconv2`, layer scale, drop path and residual.
- `whole_mlp`: all of it behind the norm, for inference with V1 blocks of few channels.

Matrix products of the backward pass are torch's own: those that a library does best.

Axes: N images, H height, W width, C channels, D = 4C hidden channels, P pixels of an image.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..inference.pointwise import Mlp, grn_scale
from . import triton_kernels as kernels

# Triton's interpreter runs the kernels on the CPU, to prove them where there is no GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One program normalises over all channels, which it holds in registers.
MAX_CHANNELS = 1024
# Up to here the two matrices' tiles of `whole_mlp` fit beside the accumulator.
MAX_WHOLE_CHANNELS = 128
_LIBRARY = "convnext_backbone"


@dataclass(frozen=True)
class _Launch:
    """Tile and launch of a kernel that holds all channels: rows, columns, warps."""

    rows: int
    cols: int
    warps: int


# Widest block of channels -> launch. A tile of fp32 accumulators is kept near 32 registers a
# thread. Chosen by count, not yet by measurement.
_DEPTHWISE = {
    64: _Launch(4, 8, 4), 128: _Launch(2, 8, 4), 256: _Launch(2, 8, 8), 512: _Launch(1, 8, 8),
    1024: _Launch(1, 4, 8),
}  # fmt: skip


@dataclass(frozen=True)
class _Tiles:
    """Tile of a matrix product: pixels, outputs, inputs of a step; warps and pipeline stages."""

    pixels: int
    outputs: int
    inputs: int
    warps: int
    stages: int


# Bytes of a number -> tile. Two bytes run on the tensor cores, over 8 warps with three stages in
# flight; four bytes run on the plain units, in IEEE fp32. The first layer's tile is half as large:
# GELU needs the registers, and the larger one spilled some, as the compiler reports.
_FIRST = {2: _Tiles(64, 128, 64, 8, 3), 4: _Tiles(64, 64, 32, 8, 2)}
_SECOND = {2: _Tiles(128, 128, 64, 8, 3), 4: _Tiles(64, 64, 32, 4, 2)}
_WHOLE = {2: _Tiles(64, 0, 64, 4, 2), 4: _Tiles(32, 0, 32, 4, 2)}


def _power(n: int) -> int:
    return max(16, triton.next_power_of_2(n))  # 16: the least side of a tensor-core product


def _device(x: Tensor) -> Any:
    # Triton launches on the current device, which need not be the tensor's.
    return torch.cuda.device_of(x)


def _fit(tiles: _Tiles, pixels: int, outputs: int, inputs: int) -> tuple[int, int, int]:
    return (
        min(tiles.pixels, _power(pixels)),
        min(tiles.outputs, _power(outputs)),
        min(tiles.inputs, _power(inputs)),
    )


def _define(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    return torch.library.custom_op(f"{_LIBRARY}::{name}", mutates_args=(), schema=schema)


# ------------------------------------------------------------------ depthwise and norm


def _launch_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: tuple[Tensor, Tensor, float] | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, h, w, c = x.shape
    x = x.contiguous()
    taps = weight.flatten(1).t().contiguous()  # (C, 1, K, K) -> (K * K, C)
    out = torch.empty_like(x)
    y = torch.empty_like(x) if keep else x.new_empty(0)
    mean, rstd = (x.new_empty((n, h, w) if keep else 0, dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return out, y, mean, rstd
    block = _power(c)
    launch = _DEPTHWISE[max(64, block)]
    norm_weight, norm_bias, eps = norm or (None, None, 0.0)
    grid = (n * triton.cdiv(h, launch.rows), triton.cdiv(w, launch.cols))
    with _device(x):
        kernels.depthwise_norm[grid](
            x, taps, bias, norm_weight, norm_bias, out, y, mean, rstd, h, w, c, eps,
            K=weight.shape[-1], ROWS=launch.rows, COLS=launch.cols, BLOCK_C=block,
            NORM=norm is not None, KEEP=keep, num_warps=launch.warps,
        )  # fmt: skip
    return out, y, mean, rstd


@_define(
    "depthwise_norm",
    "(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, float eps, "
    "bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
def depthwise_norm(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the norm of the depthwise convolution of `x` (N, H, W, C), and what backward needs.

    Those are the convolution and the mean and 1 / deviation of its pixels; empty without `keep`.
    """
    return _launch_depthwise(x, weight, bias, (norm_weight, norm_bias, eps), keep)


@depthwise_norm.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    pixels = x.shape[:3] if keep else (0,)
    mean, rstd = (x.new_empty(pixels, dtype=torch.float32) for _ in range(2))
    out = x.new_empty(x.shape)
    return out, x.new_empty(x.shape if keep else (0,)), mean, rstd


@_define(
    "depthwise_norm_backward",
    "(Tensor grad, Tensor x, Tensor y, Tensor mean, Tensor rstd, Tensor weight, "
    "Tensor norm_weight) -> (Tensor, Tensor, Tensor)",
)
def depthwise_norm_backward(
    grad: Tensor, x: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor,
    norm_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x and of the kernel, and three vectors (3, C) in fp32.

    Those are the gradients of the convolution's bias and of the norm's weight and bias.
    """
    n, h, w, c = x.shape
    if x.numel() == 0:
        zeros = x.new_zeros((3, c), dtype=torch.float32)
        return torch.zeros_like(x), torch.zeros_like(weight), zeros
    x, grad = x.contiguous(), grad.contiguous()
    pixels, rows = n * h * w, max(1, 4096 // _power(c))
    programs = min(triton.cdiv(pixels, rows), 512)
    steps = triton.cdiv(pixels, rows * programs)
    grad_y = torch.empty_like(y)
    partials = x.new_empty((2, programs, c), dtype=torch.float32)
    with _device(x):
        kernels.norm_backward[(programs,)](
            grad, y, mean, rstd, norm_weight, grad_y, partials[0], partials[1], pixels, c, steps,
            BLOCK_P=rows, BLOCK_C=_power(c),
        )  # fmt: skip
    # With padding K // 2 and odd K, the transpose of the convolution is itself, turned.
    turned = weight.flip(2, 3)
    grad_x = _launch_depthwise(grad_y, turned, None, None, keep=False)[0]
    bias = grad_y.sum(dim=(0, 1, 2), dtype=torch.float32)
    vectors = torch.cat([bias.unsqueeze(0), partials.sum(dim=1)])
    return grad_x, _weight_grad(x, grad_y, weight), vectors


def _weight_grad(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    n, h, w, c = x.shape
    size, block = weight.shape[-1], min(64, _power(c))
    rows = max(1, triton.cdiv(n * h, 64))
    programs = triton.cdiv(n * h, rows)
    partial = x.new_empty((programs, size, size, c), dtype=torch.float32)
    with _device(x):
        kernels.depthwise_weight_grad[(programs, triton.cdiv(c, block), size)](
            x, grad, partial, n, h, w, c, rows,
            K=size, KPAD=triton.next_power_of_2(size), COLS=16, BLOCK_C=block,
        )  # fmt: skip
    # (programs, K, K, C) -> (C, 1, K, K)
    return partial.sum(dim=0).permute(2, 0, 1).unsqueeze(1).to(weight.dtype).contiguous()


@depthwise_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor,
    norm_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    vectors = x.new_empty((3, x.shape[3]), dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), vectors


def _depthwise_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, norm_weight, _, _, keep = inputs
    ctx.mark_non_differentiable(*output[1:])
    if not keep:
        raise RuntimeError("depthwise_norm with keep=False has no gradient")
    ctx.save_for_backward(x, *output[1:], weight, norm_weight)


def _depthwise_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    weight, norm_weight = ctx.saved_tensors[-2:]
    grad_x, grad_weight, vectors = depthwise_norm_backward(grad, *ctx.saved_tensors)
    bias, norm_grads = vectors[0].to(weight.dtype), vectors[1:].to(norm_weight.dtype)
    return grad_x, grad_weight, bias, norm_grads[0], norm_grads[1], None, None


depthwise_norm.register_autograd(_depthwise_backward, setup_context=_depthwise_setup)


# ------------------------------------------------------------------ first pointwise layer


@_define(
    "pointwise_gelu",
    "(Tensor x, Tensor weight, Tensor bias, bool tanh, bool keep, bool squares) "
    "-> (Tensor, Tensor, Tensor)",
)
def pointwise_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, tanh: bool, keep: bool, squares: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `gelu(x @ weight.T + bias)` of `x` (N, P, C), what stood before GELU, and sums.

    The second is (N, P, D) with `keep`; the third, with `squares`, the sums over the pixels of the
    squares of the first, (N, D) in fp32. Without, they are empty.
    """
    n, p, c = x.shape
    d = weight.shape[0]
    x, weight = x.contiguous(), weight.contiguous()
    tiles = _FIRST[x.element_size()]
    rows, outputs, inputs = _fit(tiles, p, d, c)
    blocks = triton.cdiv(p, rows)
    out, hidden = x.new_empty((n, p, d)), x.new_empty((n, p, d) if keep else 0)
    partial = x.new_zeros((n, blocks, d) if squares else 0, dtype=torch.float32)
    if out.numel():
        with _device(x):
            kernels.pointwise_gelu[(triton.cdiv(d, outputs), blocks, n)](
                x, weight, bias, out, hidden, partial, p, c, d,
                BLOCK_P=rows, BLOCK_D=outputs, BLOCK_C=inputs, TANH=tanh, KEEP=keep,
                SQUARES=squares, WIDE=INTERPRETED, num_warps=tiles.warps, num_stages=tiles.stages,
            )  # fmt: skip
    return out, hidden, partial.sum(dim=1) if squares else partial


@pointwise_gelu.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, tanh: bool, keep: bool, squares: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], weight.shape[0])
    sums = (shape[0], shape[2]) if squares else (0,)
    hidden = x.new_empty(shape if keep else (0,))
    return x.new_empty(shape), hidden, x.new_empty(sums, dtype=torch.float32)


@_define("gelu_backward", "(Tensor grad, Tensor hidden, Tensor? grad_squares, bool tanh) -> Tensor")
def gelu_backward(grad: Tensor, hidden: Tensor, grad_squares: Tensor | None, tanh: bool) -> Tensor:
    """Return the gradient before GELU, from those of its output and of the sums of squares."""
    out, block = torch.empty_like(hidden), 1024
    _, p, d = hidden.shape
    if hidden.numel():
        sums = None if grad_squares is None else grad_squares.contiguous()
        with _device(hidden):
            kernels.gelu_backward[(triton.cdiv(hidden.numel(), block),)](
                grad.contiguous(), hidden, sums, out, p, d, hidden.numel(),
                BLOCK=block, TANH=tanh, SQUARES=sums is not None,
            )  # fmt: skip
    return out


@gelu_backward.register_fake
def _(grad: Tensor, hidden: Tensor, grad_squares: Tensor | None, tanh: bool) -> Tensor:
    return torch.empty_like(hidden)


def _pointwise_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, tanh, keep, squares = inputs
    ctx.mark_non_differentiable(output[1])
    if not keep:
        raise RuntimeError("pointwise_gelu with keep=False has no gradient")
    ctx.tanh, ctx.squares = tanh, squares
    ctx.save_for_backward(x, weight, output[1])


def _pointwise_backward(ctx: Any, grad: Tensor, _: Any, grad_squares: Any) -> tuple[Any, ...]:
    x, weight, hidden = ctx.saved_tensors
    squares = grad_squares if ctx.squares else None
    g = gelu_backward(grad, hidden, squares, ctx.tanh)
    flat = g.flatten(0, 1)
    bias = flat.sum(dim=0, dtype=torch.float32).to(weight.dtype)
    return g @ weight, flat.t() @ x.flatten(0, 1), bias, None, None, None


pointwise_gelu.register_autograd(_pointwise_backward, setup_context=_pointwise_setup)


# ------------------------------------------------------------------ second pointwise layer


@_define(
    "pointwise_residual",
    "(Tensor a, Tensor? scale, Tensor weight, Tensor bias, Tensor? gamma, Tensor? drop, Tensor x) "
    "-> Tensor",
)
def pointwise_residual(
    a: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, gamma: Tensor | None,
    drop: Tensor | None, x: Tensor,
) -> Tensor:  # fmt: skip
    """Return `x + drop * gamma * ((a * scale) @ weight.T + bias)`, (N, P, C).

    Args:
        a: (N, P, D).
        scale: (N, D), or None for one.
        weight: (C, D).
        bias: (C,).
        gamma: (C,), or None for one.
        drop: (N,), or None for one.
        x: (N, P, C).
    """
    n, p, d = a.shape
    c = weight.shape[0]
    tiles = _SECOND[a.element_size()]
    rows, outputs, inputs = _fit(tiles, p, c, d)
    x = x.contiguous()
    out = torch.empty_like(x)
    if out.numel():
        with _device(a):
            kernels.pointwise_residual[(triton.cdiv(c, outputs), triton.cdiv(p, rows), n)](
                a.contiguous(), None if scale is None else scale.contiguous(), weight.contiguous(),
                bias, gamma, drop, x, out, p, d, c,
                BLOCK_P=rows, BLOCK_C=outputs, BLOCK_D=inputs, WIDE=INTERPRETED,
                num_warps=tiles.warps, num_stages=tiles.stages,
            )  # fmt: skip
    return out


@pointwise_residual.register_fake
def _(
    a: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, gamma: Tensor | None,
    drop: Tensor | None, x: Tensor,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


def _residual_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, scale, weight, bias, gamma, drop, _ = inputs
    ctx.save_for_backward(a, scale, weight, bias, gamma, drop)


def _residual_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, scale, weight, bias, gamma, drop = ctx.saved_tensors
    g = (grad if drop is None else grad * drop.view(-1, 1, 1)).to(a.dtype)
    folded = weight if gamma is None else (weight * gamma.unsqueeze(1)).to(a.dtype)
    grad_a = g @ folded  # (N, P, D)
    grad_scale = None
    scaled = a
    if scale is not None:
        factor = scale.unsqueeze(1).to(a.dtype)
        grad_scale = (grad_a * a).sum(dim=1, dtype=torch.float32).to(scale.dtype)
        grad_a, scaled = grad_a * factor, a * factor
    # The product without gamma serves the weight and gamma both, and the map z is never needed.
    product = g.flatten(0, 1).t() @ scaled.flatten(0, 1)
    total = g.sum(dim=(0, 1), dtype=torch.float32)
    if gamma is None:
        return grad_a, grad_scale, product, total.to(bias.dtype), None, None, grad
    grad_gamma = (product * weight).sum(dim=1, dtype=torch.float32) + total * bias
    return (
        grad_a, grad_scale, product * gamma.unsqueeze(1), (total * gamma).to(bias.dtype),
        grad_gamma.to(gamma.dtype), None, grad,
    )  # fmt: skip


pointwise_residual.register_autograd(_residual_backward, setup_context=_residual_setup)


# ------------------------------------------------------------------ the whole of it


@_define(
    "whole_mlp",
    "(Tensor t, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor x, bool tanh) "
    "-> Tensor",
)
def whole_mlp(
    t: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, x: Tensor,
    tanh: bool,
) -> Tensor:  # fmt: skip
    """Return `x + gelu(t @ weight1.T + bias1) @ weight2.T + bias2` of `t` (P, C); no gradient."""
    p, c = t.shape
    d = weight1.shape[0]
    tiles = _WHOLE[t.element_size()]
    x = x.contiguous()
    out = torch.empty_like(x)
    if out.numel():
        rows = min(tiles.pixels, _power(p))
        with _device(t):
            kernels.whole_mlp[(triton.cdiv(p, rows),)](
                t.contiguous(), weight1.contiguous(), bias1, weight2.contiguous(), bias2, x, out,
                p, c, d,
                BLOCK_P=rows, BLOCK_C=_power(c), BLOCK_D=min(tiles.inputs, _power(d)), TANH=tanh,
                WIDE=INTERPRETED, num_warps=tiles.warps, num_stages=tiles.stages,
            )  # fmt: skip
    return out


@whole_mlp.register_fake
def _(
    t: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, x: Tensor,
    tanh: bool,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


# ------------------------------------------------------------------ the block


def suits(x: Tensor, kernel: tuple[int, ...]) -> bool:
    """Whether the kernels take a block's input `x` (N, C, H, W) and its depthwise kernel."""
    return (
        (x.device.type == "cuda" or INTERPRETED)
        and x.dtype in DTYPES
        and x.shape[1] <= MAX_CHANNELS
        and kernel[0] == kernel[1] <= 15
    )


def block(
    x: Tensor, residual: Tensor, depthwise: tuple[Tensor, Tensor], p: Mlp, gamma: Tensor | None,
    drop: Tensor | None, training: bool,
) -> Tensor:  # fmt: skip
    """Return a block's output, fused; its plain twin is `Block.define`.

    Args:
        x: The input (N, H, W, C).
        residual: The input again, in the dtype of the output.
        depthwise: Weight (C, 1, K, K) and bias (C,).
        p: The other parameters; those of the pointwise layers in the dtype of `x`.
        gamma: The layer scale (C,), or None.
        drop: The factor of every sample (N,), or None.
        training: Whether gradients are wanted.
    """
    n, h, w, c = x.shape
    tanh = p.approximate == "tanh"
    assert p.norm_weight is not None
    assert p.norm_bias is not None
    norm = (p.norm_weight, p.norm_bias, p.norm_eps)
    t = depthwise_norm(x, *depthwise, *norm, training)[0]
    if p.grn_gamma is None and not training and drop is None and c <= MAX_WHOLE_CHANNELS:
        weight2, bias2 = p.weight2, p.bias2
        if gamma is not None:
            weight2, bias2 = (weight2 * gamma.unsqueeze(1)).to(x.dtype), (bias2 * gamma).to(x.dtype)
        flat = (t.view(-1, c), p.weight1, p.bias1, weight2, bias2)
        whole = whole_mlp(*flat, residual.reshape(-1, c), tanh)
        return whole.view(x.shape)
    # Without GRN or drop path no image differs from another: all are one long image.
    rows = (1, n * h * w, c) if p.grn_gamma is None and drop is None else (n, h * w, c)
    grn = p.grn_gamma is not None
    a, _, squares = pointwise_gelu(t.view(rows), p.weight1, p.bias1, tanh, training, grn)
    scale, bias = None, p.bias2
    if p.grn_gamma is not None and p.grn_beta is not None:
        scale = grn_scale(_root(squares), p.grn_gamma, p.grn_eps)
        bias = torch.addmv(p.bias2, p.weight2, p.grn_beta.to(p.weight2.dtype))
    out = pointwise_residual(a, scale, p.weight2, bias, gamma, drop, residual.reshape(rows))
    return out.view(x.shape)


def _root(squares: Tensor) -> Tensor:
    """The square root, with a gradient of zero where a channel is silent instead of an infinite."""
    silent = squares == 0
    return torch.where(silent, 0.0, torch.where(silent, 1.0, squares).sqrt())
