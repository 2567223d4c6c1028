"""The quick ways through a block, and which of them may be taken.

`Block.define` in trunk.py is the definition. What is here computes the same in less time or memory,
and is taken only where nobody could tell: eager mode, stock submodules, no hooks on them.

Axes: N batch, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from ..inference import pointwise
from ..models.layers import Conv2d, DropPath, GlobalResponseNorm
from . import depthwise, eager, training
from .switches import switches

if TYPE_CHECKING:
    from ..models.trunk import Block

Way = Callable[["Block", Tensor, str], Tensor]


def choose(block: "Block", x: Tensor, keep: str) -> Way:
    """Return the first of `WAYS` that suits, else the definition.

    Args:
        block: The block.
        x: Its input (N, C, H, W).
        keep: What to hold for the backward pass: "all", or "dear", what is dear to recompute.

    Returns:
        A function of the same three, which gives the block's output.
    """
    for suits, way in WAYS:
        if suits(block, x, keep):
            return way
    return _define


def _define(block: "Block", x: Tensor, keep: str) -> Tensor:
    return block.define(x)


def stage_workspace(x: Tensor, use_grn: bool) -> AbstractContextManager[None]:
    """Return the context in which a stage's blocks, given `x` (N, C, H, W), share a hidden map."""
    shared = use_grn and switches.cpu and eager(x)
    return pointwise.workspace() if shared else nullcontext()


# Triton, on a CUDA device


def _suits_triton(block: "Block", x: Tensor, keep: str) -> bool:
    if not switches.triton or keep != "all":
        return False
    from . import triton_ops

    return is_stock(block) and triton_ops.suits(x, block.dwconv.kernel_size)


def _run_triton(block: "Block", x: Tensor, keep: str) -> Tensor:
    from . import triton_ops

    kind = x.device.type
    amp = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if amp else x.dtype
    residual = _residual(block, x) if amp else x
    with torch.autocast(kind, enabled=False) if amp else nullcontext():
        p, gamma = _mlp(block, fold=False)
        drop = block.drop_path.mask(x)
        rows, residual = (_rows(t) for t in (x.to(dtype), residual))
        assert block.dwconv.bias is not None
        y = triton_ops.block(
            rows, residual, (block.dwconv.weight.to(dtype), block.dwconv.bias.to(dtype)),
            _cast(p, dtype), gamma, None if drop is None else drop.flatten(),
            _takes_gradients(block, x),
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


# The CPU


def _suits_cpu(block: "Block", x: Tensor) -> bool:
    # Measured on the CPU only, so elsewhere the definition runs.
    return switches.cpu and x.device.type == "cpu" and eager(x) and is_stock(block)


def _suits_training(block: "Block", x: Tensor, keep: str) -> bool:
    return _takes_gradients(block, x) and _suits_cpu(block, x)


def _run_training(block: "Block", x: Tensor, keep: str) -> Tensor:
    y = _depthwise(block, x).permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
    p, gamma = _mlp(block, _folds(block, y))
    if keep == "dear" or _pixels(y) * p.bias1.numel() * y.element_size() > pointwise.LARGE:
        with torch.autocast("cpu", enabled=False):
            y = training.mlp_tiled(y, _cast(p, y.dtype), keep_all=keep == "all")
    else:
        y = pointwise.mlp_train(y, p)
    if gamma is not None:
        y = y * gamma
    else:
        x = _residual(block, x)
    y = y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    mask = block.drop_path.mask(y)
    return x + y if mask is None else torch.addcmul(x, y, mask)


def _depthwise(block: "Block", x: Tensor) -> Tensor:
    weight, bias = block.dwconv.weight, block.dwconv.bias
    assert bias is not None
    if not torch.is_autocast_enabled("cpu"):
        return depthwise.depthwise_conv2d(x, weight, bias)
    dtype = torch.get_autocast_dtype("cpu")
    x, weight, bias = (t.to(dtype) for t in (x, weight, bias))
    with torch.autocast("cpu", enabled=False):
        return depthwise.depthwise_conv2d(x, weight, bias)


def _suits_inference(block: "Block", x: Tensor, keep: str) -> bool:
    return (
        not _takes_gradients(block, x)
        and x.dtype == block.dwconv.weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and not (block.drop_path.training and block.drop_path.rate > 0)
        and _suits_cpu(block, x)
    )


def _run_inference(block: "Block", x: Tensor, keep: str) -> Tensor:
    y, rows = _rows(block.dwconv(x)), _rows(x)
    p, gamma = _mlp(block, _folds(block, rows))
    return pointwise.mlp_add(y, rows, p, gamma).permute(0, 3, 1, 2)


# Anywhere: the definition, of which only the dear maps are kept


def _suits_selective(block: "Block", x: Tensor, keep: str) -> bool:
    return keep == "dear" and _takes_gradients(block, x)


def _run_selective(block: "Block", x: Tensor, keep: str) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, _keep_the_dear)
    return checkpoint(block.define, x, use_reentrant=False, context_fn=contexts)


def _keep_the_dear(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    aten = torch.ops.aten
    dear = (aten.convolution.default, aten.addmm.default, aten.mm.default, aten.linear.default)
    return CheckpointPolicy.MUST_SAVE if op in dear else CheckpointPolicy.PREFER_RECOMPUTE


# Whether a way may be taken, and the way.
WAYS: tuple[tuple[Callable[["Block", Tensor, str], bool], Way], ...] = (
    (_suits_triton, _run_triton),
    (_suits_training, _run_training),
    (_suits_inference, _run_inference),
    (_suits_selective, _run_selective),
)


# What they ask of a block


def is_stock(block: "Block") -> bool:
    """Whether the submodules are as the constructor makes them, with nobody listening to them."""
    parts = block._modules
    return all(
        _is_untouched(parts[name], is_as_built) for name, is_as_built in _STOCK.items()
    ) and not any(getattr(torch_module, name) for name in _GLOBAL_HOOKS)


def _is_untouched(module: Any, is_as_built: Callable[[Any], bool]) -> bool:
    return is_as_built(module) and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or any(type(p) not in _PLAIN for p in module._parameters.values())
    )


def _is_stock_depthwise(conv: Any) -> bool:
    return (
        type(conv) is Conv2d
        and conv.bias is not None
        and conv.groups == conv.in_channels
        and conv.padding == tuple(side // 2 for side in conv.kernel_size)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )


def _is_stock_norm(norm: Any) -> bool:
    return type(norm) is nn.LayerNorm and norm.weight is not None and norm.bias is not None


def _is_stock_linear(linear: Any) -> bool:
    return type(linear) is nn.Linear and linear.bias is not None


# torch's hooks on all modules, which run in each module's call.
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
# A weight of another type computes in a way of its own. FakeTensor: torch.export traces with it.
_PLAIN = (nn.Parameter, Tensor, FakeTensor, type(None))
# The parts of a block, and whether one is what the quick ways know by heart.
_STOCK: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "dwconv": _is_stock_depthwise,
        "norm": _is_stock_norm,
        "pwconv1": _is_stock_linear,
        "act": lambda act: type(act) is nn.GELU,
        "grn": lambda grn: type(grn) in (nn.Identity, GlobalResponseNorm),
        "pwconv2": _is_stock_linear,
        "drop_path": lambda drop_path: type(drop_path) is DropPath,
    }
)


def _takes_gradients(block: "Block", x: Tensor) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for p in block.parameters())
    )


def _mlp(block: "Block", fold: bool) -> tuple[pointwise.Mlp, Tensor | None]:
    """Return the parameters behind the depthwise convolution, and a layer scale that stays."""
    grn = block.grn if isinstance(block.grn, GlobalResponseNorm) else None
    p = pointwise.Mlp(
        block.norm.weight, block.norm.bias, block.norm.eps,
        block.pwconv1.weight, block.pwconv1.bias, str(block.act.approximate),
        block.pwconv2.weight, block.pwconv2.bias,
        *(() if grn is None else (grn.gamma, grn.beta, grn.eps)),
    )  # fmt: skip
    if block.gamma is None or not fold:
        return p, block.gamma
    return pointwise.fold_scale(p, block.gamma), None


def _cast(p: pointwise.Mlp, dtype: torch.dtype) -> pointwise.Mlp:
    """Return `p` with its pointwise layers in `dtype`, as autocast would have them."""
    names = ("weight1", "bias1", "weight2", "bias2")
    return p._replace(**{name: getattr(p, name).to(dtype) for name in names})


def _folds(block: "Block", rows: Tensor) -> bool:
    # Scaling the (C, 4C) weight is less work than scaling the map (P, C) from here on.
    return _pixels(rows) > block.pwconv2.in_features


def _pixels(rows: Tensor) -> int:
    return rows.numel() // rows.shape[-1]


def _residual(block: "Block", x: Tensor) -> Tensor:
    # Autocast: the scale's fp32 widens the sum in the definition.
    return x if block.gamma is None else x.to(torch.promote_types(x.dtype, block.gamma.dtype))


def _rows(x: Tensor) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    return x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
