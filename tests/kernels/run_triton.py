"""Run the Triton kernels in the interpreter; print relative errors as JSON. See test_triton.py."""

import json
import sys

import torch
from torch import nn

from convnext_backbone import ConvNextBackbone, ConvNextConfig
from convnext_backbone.kernels import triton_ops, use_kernels
from convnext_backbone.trunk import Block

# Images, height, width, channels, side of the depthwise kernel; few pixels, as it is slow.
SHAPES = ((2, 5, 3, 8, 3), (1, 6, 9, 24, 7))


def relative(got, expected):
    got = got.double()
    if got.shape != expected.shape or not got.isfinite().all():
        return 1e30
    return ((got - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def build(c, use_grn, dtype, drop=0.0, kernel_size=3, **fields):
    """A block in `dtype` and one of the same numbers in fp64."""
    scale = 0.0 if use_grn else 0.5
    config = ConvNextConfig(
        hidden_sizes=(c,),
        depths=(1,),
        use_grn=use_grn,
        layer_scale_init_value=scale,
        kernel_size=kernel_size,
        **fields,
    )
    mine, exact = Block(config, c, drop), Block(config, c, drop)
    for parameter in mine.parameters():
        nn.init.normal_(parameter, std=0.3)
    mine = mine.to(dtype)
    exact.load_state_dict(mine.state_dict())
    return mine, exact.double()


def compare(mine, exact, x, infer=True):
    """Errors of the output, in training and inference, and of all gradients."""
    found = {}
    leaf, wide = x.detach().requires_grad_(), x.double().requires_grad_()
    torch.manual_seed(3)
    expected = exact.define(wide)
    torch.manual_seed(3)
    with use_kernels(triton=True):
        got = mine(leaf)
        if infer:
            with torch.no_grad():
                found["inference"] = relative(mine(x), expected)
    found["training"] = relative(got.detach(), expected.detach())
    grad = torch.randn_like(expected).to(x.dtype)
    names = ["x", *(name for name, _ in mine.named_parameters())]
    pairs = (
        torch.autograd.grad(out, [start, *block.parameters()], g)
        for out, start, block, g in (
            (got, leaf, mine, grad),
            (expected, wide, exact, grad.double()),
        )
    )
    return found | {n: relative(g, e) for n, g, e in zip(names, *pairs, strict=True)}


def corners():
    """Cases in fp32 that a kernel may get wrong at its edges."""
    mine, exact = build(8, True, torch.float32)
    with torch.no_grad():
        for block in (mine, exact):
            block.pwconv1.weight[3], block.pwconv1.bias[3] = 0.0, 0.0
    yield "silent channel", compare(mine, exact, torch.randn(2, 8, 3, 4))
    mine, exact = build(8, False, torch.float32, drop=0.5)
    yield "drop path", compare(mine, exact, torch.randn(5, 8, 3, 2), infer=False)
    mine, exact = build(8, False, torch.float32)
    strided = torch.randn(2, 8, 4, 8)[..., ::2]
    yield "strided input", compare(mine, exact, strided)
    mine, exact = build(8, False, torch.float32, hidden_act="gelu_new")
    yield "tanh", compare(mine, exact, torch.randn(1, 8, 3, 4))
    mine, exact = build(8, True, torch.float32)
    yield "empty batch", compare(mine, exact, torch.randn(0, 8, 3, 4))
    # More pixels than a tile of the matrix products, more channels than `whole_mlp` takes.
    mine, exact = build(136, True, torch.float32)
    yield "wide map", compare(mine, exact, torch.randn(1, 136, 9, 8))


def opcheck():
    """torch's checks of a custom operation: schema, fake tensors, autograd registration."""
    c, d, n, h, w = 8, 32, 2, 3, 4

    def leaf(*shape):
        return torch.randn(shape, requires_grad=True)

    cases = {
        "depthwise_norm": (
            leaf(n, h, w, c), leaf(c, 1, 3, 3), leaf(c), leaf(c), leaf(c), 1e-6, True,
        ),
        "pointwise_gelu": (leaf(n, h * w, c), leaf(d, c), leaf(d), False, True, True),
        "pointwise_residual": (
            leaf(n, h * w, d), leaf(n, d), leaf(c, d), leaf(c), leaf(c), torch.rand(n),
            leaf(n, h * w, c),
        ),
        "whole_mlp": (
            *(t.detach() for t in (leaf(9, c), leaf(d, c), leaf(d), leaf(c, d), leaf(c))),
            torch.randn(9, c), False,
        ),
    }  # fmt: skip
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    for name, arguments in cases.items():
        torch.library.opcheck(getattr(triton_ops, name), arguments, test_utils=tests)
    return dict.fromkeys(cases, 0.0)


def traced():
    """Errors of the whole backbone through torch.compile, torch.export and autocast."""
    backbone = ConvNextBackbone(
        hidden_sizes=(8, 16), depths=(1, 1), layer_scale_init_value=0.5, kernel_size=3
    ).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 3, 16, 8)
    with torch.no_grad(), use_kernels(triton=False, cpu=False):
        (expected,) = backbone.double()(x.double())
    backbone.float()
    with torch.no_grad(), use_kernels(triton=True):
        program = torch.export.export(backbone, (x,))
        assert "convnext_backbone.whole_mlp" in str(program.graph)
        exported = program.module()(x)[0]
        (compiled,) = torch.compile(backbone, backend="eager", fullgraph=True)(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (mixed,) = backbone(x)
    pairs = {"compile": compiled, "export": exported, "autocast": mixed}
    return {name: relative(got, expected) for name, got in pairs.items()}


def main():
    """Run all cases."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for use_grn in (False, True):
            for n, h, w, c, kernel in SHAPES if dtype == torch.float32 else SHAPES[:1]:
                mine, exact = build(c, use_grn, dtype, kernel_size=kernel)
                x = torch.randn(n, c, h, w).to(dtype)
                key = f"{'v2' if use_grn else 'v1'} {n}x{h}x{w}x{c} {str(dtype).split('.')[1]}"
                found[key] = compare(mine, exact, x)
    found |= dict(corners())
    found["opcheck"], found["traced"] = opcheck(), traced()
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
