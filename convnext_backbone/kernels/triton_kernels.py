"""Triton kernels of the block, for a CUDA device. `triton_ops` makes operations of torch of them.

Maps are (N, H, W, C) and contiguous. Every sum is in fp32, fp32 products are never rounded to tf32,
and sums over many programs go through partial results that torch adds up: no atomics, so the same
input gives the same bits.

Axes: N images, H height, W width, C channels, D = 4C hidden channels, P pixels of an image.
"""

# Triton compiles these functions: their arguments are pointers and numbers of the device, which
# Python's annotations cannot name, and its constants are in capitals.
# ruff: noqa: ANN001, ANN201, ANN202, N803
# mypy: disallow-untyped-defs=False, check-untyped-defs=False

import triton
import triton.language as tl


@triton.jit
def _erf_gelu(z):
    return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _erf_gelu_slope(z):
    density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density


@triton.jit
def _tanh_inner(z):
    # tanh(u) = 2 sigmoid(2u) - 1, and Triton's portable math has a sigmoid
    u = 0.7978845608028654 * (z + 0.044715 * z * z * z)
    return 2.0 * tl.sigmoid(2.0 * u) - 1.0


@triton.jit
def gelu(z, TANH: tl.constexpr):
    """GELU of fp32 numbers, by tanh or exact."""
    if TANH:
        return 0.5 * z * (1.0 + _tanh_inner(z))
    else:
        return _erf_gelu(z)


@triton.jit
def gelu_slope(z, TANH: tl.constexpr):
    """The derivative of `gelu`."""
    if TANH:
        t = _tanh_inner(z)
        inner = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * z * z)
        return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * inner
    else:
        return _erf_gelu_slope(z)


@triton.jit
def _product(left, right, total, WIDE: tl.constexpr):
    # WIDE serves Triton's interpreter, which multiplies the bits of bf16 numbers as integers.
    if WIDE:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def depthwise_norm(
    x, weight, bias, norm_weight, norm_bias, out, y, mean, rstd,
    H, W, C, eps,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK_C: tl.constexpr,
    NORM: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Depthwise convolution, then LayerNorm over the channels, of ROWS x COLS pixels.

    A loaded pixel serves all ROWS output rows that it reaches: K (ROWS + K - 1) / ROWS loads a
    pixel instead of K * K. `weight` is (K, K, C). With NORM off `out` takes the convolution; with
    KEEP on `y`, `mean` and `rstd` take what the backward pass needs.
    """
    blocks = tl.cdiv(H, ROWS)
    n = tl.program_id(0) // blocks
    top = (tl.program_id(0) % blocks) * ROWS
    left = tl.program_id(1) * COLS
    c = tl.arange(0, BLOCK_C)
    r = tl.arange(0, ROWS)
    j = tl.arange(0, COLS)
    inside = c < C
    image = x + n.to(tl.int64) * H * W * C
    total = tl.zeros([ROWS, COLS, BLOCK_C], dtype=tl.float32)
    for i in range(ROWS + K - 1):
        row = top + i - K // 2 + tl.zeros_like(j)  # Triton's interpreter splats no booleans
        ky = i - r
        for kx in range(K):
            col = left + j + kx - K // 2
            seen = (row >= 0) & (row < H) & (col >= 0) & (col < W)
            pixels = tl.load(
                image + (row * W + col)[:, None] * C + c[None, :],
                mask=seen[:, None] & inside[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            taps = tl.load(
                weight + (ky * K + kx)[:, None] * C + c[None, :],
                mask=((ky >= 0) & (ky < K))[:, None] & inside[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            total += pixels[None, :, :] * taps[:, None, :]
    if bias is not None:
        total += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, None, :]
    row = top + r
    col = left + j
    here = (row < H)[:, None] & (col < W)[None, :]
    pixel = n.to(tl.int64) * H * W + row[:, None] * W + col[None, :]
    at = pixel[:, :, None] * C + c[None, None, :]
    mask = here[:, :, None] & inside[None, None, :]
    if NORM:
        average = tl.sum(total, axis=2) / C
        gap = tl.where(inside[None, None, :], total - average[:, :, None], 0.0)
        scale = tl.rsqrt(tl.sum(gap * gap, axis=2) / C + eps)
        if KEEP:
            tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)
            tl.store(mean + pixel, average, mask=here)
            tl.store(rstd + pixel, scale, mask=here)
        factor = tl.load(norm_weight + c, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias + c, mask=inside, other=0.0).to(tl.float32)
        total = gap * scale[:, :, None] * factor[None, None, :] + shift[None, None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward(
    grad, y, mean, rstd, norm_weight, grad_y, partial_weight, partial_bias,
    P, C, STEPS,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """LayerNorm's backward pass for STEPS blocks of pixels, with partial sums of its parameters."""
    c = tl.arange(0, BLOCK_C)
    inside = c < C
    factor = tl.load(norm_weight + c, mask=inside, other=0.0).to(tl.float32)
    weight_sum = tl.zeros([BLOCK_C], dtype=tl.float32)
    bias_sum = tl.zeros([BLOCK_C], dtype=tl.float32)
    for s in range(STEPS):
        p = (tl.program_id(0) * STEPS + s) * BLOCK_P + tl.arange(0, BLOCK_P)
        here = p < P
        at = p.to(tl.int64)[:, None] * C + c[None, :]
        mask = here[:, None] & inside[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        average = tl.load(mean + p, mask=here, other=0.0)
        scale = tl.load(rstd + p, mask=here, other=0.0)
        unit = tl.where(mask, (v - average[:, None]) * scale[:, None], 0.0)
        weight_sum += tl.sum(g * unit, axis=0)
        bias_sum += tl.sum(g, axis=0)
        g = g * factor[None, :]
        flat = tl.sum(g, axis=1) / C
        along = tl.sum(g * unit, axis=1) / C
        g = (g - flat[:, None] - unit * along[:, None]) * scale[:, None]
        tl.store(grad_y + at, g.to(grad_y.dtype.element_ty), mask=mask)
    row = tl.program_id(0) * C + c
    tl.store(partial_weight + row, weight_sum, mask=inside)
    tl.store(partial_bias + row, bias_sum, mask=inside)


@triton.jit
def depthwise_weight_grad(
    x, grad, partial, N, H, W, C, ROWS,
    K: tl.constexpr, KPAD: tl.constexpr, COLS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One row of the depthwise kernel's gradient, over ROWS rows of all images laid end to end.

    `partial` is (programs over rows, K, K, C), fp32.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    ky = tl.program_id(2)
    inside = c < C
    j = tl.arange(0, COLS)
    which = tl.arange(0, KPAD)
    total = tl.zeros([KPAD, BLOCK_C], dtype=tl.float32)
    for s in range(ROWS):
        line = tl.program_id(0) * ROWS + s
        h = line % H
        row = h + ky - K // 2
        rows = row + tl.zeros_like(j)  # Triton's interpreter splats no booleans
        seen = (line + tl.zeros_like(j) < N * H) & (rows >= 0) & (rows < H)
        start = line.to(tl.int64) * W
        source = (line - h + row).to(tl.int64) * W
        for left in range(0, W, COLS):
            col = left + j
            g = tl.load(
                grad + (start + col)[:, None] * C + c[None, :],
                mask=(seen & (col < W))[:, None] & inside[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            for kx in range(K):
                other = col + kx - K // 2
                v = tl.load(
                    x + (source + other)[:, None] * C + c[None, :],
                    mask=(seen & (other >= 0) & (other < W))[:, None] & inside[None, :], other=0.0,
                ).to(tl.float32)  # fmt: skip
                total += tl.where(which[:, None] == kx, tl.sum(g * v, axis=0)[None, :], 0.0)
    at = ((tl.program_id(0) * K + ky) * K + which)[:, None] * C + c[None, :]
    tl.store(partial + at, total, mask=(which < K)[:, None] & inside[None, :])


@triton.jit
def pointwise_gelu(
    x, weight, bias, out, hidden, squares,
    P, C, D,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
    TANH: tl.constexpr, KEEP: tl.constexpr, SQUARES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """`gelu(x @ weight.T + bias)` of one image, and the column sums of its squares.

    `x` (N, P, C), `weight` (D, C), `out` (N, P, D). With KEEP, `hidden` takes the sum before GELU;
    with SQUARES, `squares` (N, blocks of pixels, D) takes partial sums, fp32.
    """
    n = tl.program_id(2).to(tl.int64)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    k = tl.arange(0, BLOCK_C)
    rows = n * P + p
    total = tl.zeros([BLOCK_P, BLOCK_D], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + k
        left = tl.load(
            x + rows[:, None] * C + c[None, :],
            mask=(p < P)[:, None] & (c < C)[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            weight + d[None, :] * C + c[:, None],
            mask=(d < D)[None, :] & (c < C)[:, None], other=0.0,
        )  # fmt: skip
        total = _product(left, right, total, WIDE)
    z = total + tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    at = rows[:, None] * D + d[None, :]
    mask = (p < P)[:, None] & (d < D)[None, :]
    if KEEP:
        z = z.to(hidden.dtype.element_ty)
        tl.store(hidden + at, z, mask=mask)
        z = z.to(tl.float32)  # the backward pass starts from what was kept
    a = gelu(z, TANH)
    tl.store(out + at, a.to(out.dtype.element_ty), mask=mask)
    if SQUARES:
        column = tl.sum(tl.where(mask, a * a, 0.0), axis=0)
        row = n * tl.num_programs(1) + tl.program_id(1)
        tl.store(squares + row * D + d, column, mask=d < D)


@triton.jit
def gelu_backward(
    grad, hidden, grad_squares, out, P, D, total,
    BLOCK: tl.constexpr, TANH: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """The gradient before GELU, from that behind it and that of the sums of squares (N, D)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < total
    z = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    if SQUARES:
        column = at // (P * D) * D + at % D
        g += 2.0 * gelu(z, TANH) * tl.load(grad_squares + column, mask=mask, other=0.0)
    tl.store(out + at, (g * gelu_slope(z, TANH)).to(out.dtype.element_ty), mask=mask)


@triton.jit
def pointwise_residual(
    a, scale, weight, bias, gamma, drop, x, out,
    P, D, C,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """`x + drop * gamma * ((a * scale) @ weight.T + bias)` of one image.

    `a` (N, P, D), `scale` (N, D), `weight` (C, D), `drop` (N,), `x` and `out` (N, P, C). `scale`,
    `gamma` and `drop` may be None.
    """
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    k = tl.arange(0, BLOCK_D)
    rows = n * P + p
    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + k
        left = tl.load(
            a + rows[:, None] * D + d[None, :],
            mask=(p < P)[:, None] & (d < D)[None, :], other=0.0,
        )  # fmt: skip
        if scale is not None:
            factor = tl.load(scale + n * D + d, mask=d < D, other=0.0).to(tl.float32)
            left = (left.to(tl.float32) * factor[None, :]).to(left.dtype)
        right = tl.load(
            weight + c[None, :] * D + d[:, None],
            mask=(c < C)[None, :] & (d < D)[:, None], other=0.0,
        )  # fmt: skip
        total = _product(left, right, total, WIDE)
    total += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if gamma is not None:
        total *= tl.load(gamma + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if drop is not None:
        total *= tl.load(drop + n).to(tl.float32)
    at = rows[:, None] * C + c[None, :]
    mask = (p < P)[:, None] & (c < C)[None, :]
    total += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def whole_mlp(
    t, weight1, bias1, weight2, bias2, x, out,
    P, C, D,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, TANH: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """`x + gelu(t @ weight1.T + bias1) @ weight2.T + bias2`: the hidden map never leaves the chip.

    `t`, `x` and `out` (P, C), BLOCK_C at least C, `weight1` (D, C), `weight2` (C, D).
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_D)
    at = p.to(tl.int64)[:, None] * C + c[None, :]
    mask = (p < P)[:, None] & (c < C)[None, :]
    pixels = tl.load(t + at, mask=mask, other=0.0)
    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + k
        first = tl.load(
            weight1 + d[None, :] * C + c[:, None],
            mask=(d < D)[None, :] & (c < C)[:, None], other=0.0,
        )  # fmt: skip
        z = _product(pixels, first, tl.zeros([BLOCK_P, BLOCK_D], dtype=tl.float32), WIDE)
        z += tl.load(bias1 + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        second = tl.load(
            weight2 + c[None, :] * D + d[:, None],
            mask=(c < C)[None, :] & (d < D)[:, None], other=0.0,
        )  # fmt: skip
        total = _product(gelu(z, TANH).to(second.dtype), second, total, WIDE)
    total += tl.load(bias2 + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    total += tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
