"""The ConvNeXt trunk: stem, blocks and stages, shared by the backbone and the classifier.

Papers: ConvNeXt (arXiv 2201.03545, section 2 and appendix A.4) and ConvNeXt V2 (arXiv 2301.00808,
section 3.3). Parameter names are those of facebookresearch/ConvNeXt (models/convnext.py), the names
that most published detectors and segmentors carry.

Axes: N batch, C channels, H height, W width. Maps are (N, C, H, W) in channels-last memory, so the
norm and the pointwise layers work on (N, H, W, C) views without a copy.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from .config import ConvNextConfig
from .kernels import depthwise, eager, pointwise, training
from .kernels.switches import switches
from .layers import ACTIVATIONS, DropPath, GlobalResponseNorm, LayerNorm2d
from .weights import to_native_

_MLP_RATIO = 4  # hidden width of the block over its width, in every published ConvNeXt
T = TypeVar("T", bound="ConvNextTrunk")
WITH_CP = (False, "selective", True)


class Block(nn.Module):
    """Depthwise convolution, norm, two pointwise layers, residual: (N, C, H, W) to the same.

    `_forward_plain` is the definition. The other paths compute the same in less time or memory, and
    are taken where nobody could tell: eager mode, stock submodules, no hooks on them.
    """

    def __init__(self, config: ConvNextConfig, channels: int, drop_path_rate: float) -> None:
        super().__init__()
        hidden = _MLP_RATIO * channels
        size = config.kernel_size
        self.dwconv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=config.norm_eps)
        self.pwconv1 = nn.Linear(channels, hidden)
        self.act = ACTIVATIONS[config.hidden_act]()
        self.grn = GlobalResponseNorm(hidden) if config.use_grn else nn.Identity()
        self.pwconv2 = nn.Linear(hidden, channels)
        scale = config.layer_scale_init_value
        self.gamma = nn.Parameter(torch.full((channels,), float(scale))) if scale > 0 else None
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, keep: str = "all") -> Tensor:
        """Add the block's residual branch to `x` (N, C, H, W).

        Args:
            x: The input map.
            keep: What to hold for the backward pass: "all", or "dear", what is dear to recompute.
        """
        if switches.triton and keep == "all" and self._suits_triton(x):
            return self._forward_triton(x)
        # Measured on the CPU only, so elsewhere the definition runs.
        on_cpu = switches.cpu and x.device.type == "cpu"
        if not on_cpu or not eager(x) or not self._is_stock():
            return self._forward_generic(x, keep)
        if self._takes_gradients(x):
            return self._forward_training(x, keep)
        if self._is_plain_inference(x):
            return self._forward_inference(x)
        return self._forward_plain(x)

    def _forward_generic(self, x: Tensor, keep: str) -> Tensor:
        if keep == "all":
            return self._forward_plain(x)
        contexts = partial(create_selective_checkpoint_contexts, _keep_the_dear)
        return checkpoint(self._forward_plain, x, use_reentrant=False, context_fn=contexts)

    def _forward_plain(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        y = self.pwconv2(self.grn(self.act(self.pwconv1(self.norm(y)))))
        if self.gamma is not None:
            y = y * self.gamma
        y = y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        return x + self.drop_path(y)

    def _forward_inference(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        rows = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        p, gamma = self._mlp(self._folds(rows))
        return pointwise.mlp_add(y, rows, p, gamma).permute(0, 3, 1, 2)

    def _forward_training(self, x: Tensor, keep: str) -> Tensor:
        y = self._depthwise(x).permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        p, gamma = self._mlp(self._folds(y))
        hidden_bytes = _MLP_RATIO * y.numel() * y.element_size()
        if keep == "dear" or (x.device.type == "cpu" and hidden_bytes > pointwise.LARGE):
            with torch.autocast(x.device.type, enabled=False):
                y = training.mlp_tiled(y, _cast(p, y.dtype), keep_all=keep == "all")
        else:
            y = pointwise.mlp_train(y, p)
        if gamma is not None:
            y = y * gamma
        elif self.gamma is not None:
            # Autocast: the scale's fp32 would have widened the sum, as it does in the plain path.
            x = x.to(torch.promote_types(x.dtype, self.gamma.dtype))
        y = y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        mask = self.drop_path.mask(y)
        return x + y if mask is None else torch.addcmul(x, y, mask)

    def _forward_triton(self, x: Tensor) -> Tensor:
        from .kernels import triton_ops

        kind = x.device.type
        amp = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if amp else x.dtype
        residual = x
        if amp and self.gamma is not None:
            # the scale's fp32 widens the sum in the plain path
            residual = x.to(torch.promote_types(x.dtype, self.gamma.dtype))
        with torch.autocast(kind, enabled=False) if amp else nullcontext():
            p, gamma = self._mlp(fold=False)
            drop = self.drop_path.mask(x)
            rows, residual = (
                t.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
                for t in (x.to(dtype), residual)
            )
            assert self.dwconv.bias is not None
            y = triton_ops.block(
                rows, residual, (self.dwconv.weight.to(dtype), self.dwconv.bias.to(dtype)),
                _cast(p, dtype), gamma, None if drop is None else drop.flatten(),
                self._takes_gradients(x),
            )  # fmt: skip
        return y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)

    def _suits_triton(self, x: Tensor) -> bool:
        from .kernels import triton_ops

        return self._is_stock() and triton_ops.suits(x, self.dwconv.kernel_size)

    def _depthwise(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self.dwconv(x)
        weight, bias = self.dwconv.weight, self.dwconv.bias
        assert bias is not None
        if not torch.is_autocast_enabled("cpu"):
            return depthwise.depthwise_conv2d(x, weight, bias)
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = (t.to(dtype) for t in (x, weight, bias))
        with torch.autocast("cpu", enabled=False):
            return depthwise.depthwise_conv2d(x, weight, bias)

    def _mlp(self, fold: bool) -> tuple[pointwise.Mlp, Tensor | None]:
        """Return the parameters behind the depthwise convolution, and a layer scale that stays."""
        grn = self.grn if isinstance(self.grn, GlobalResponseNorm) else None
        p = pointwise.Mlp(
            self.norm.weight, self.norm.bias, self.norm.eps,
            self.pwconv1.weight, self.pwconv1.bias, str(self.act.approximate),
            self.pwconv2.weight, self.pwconv2.bias,
            *(() if grn is None else (grn.gamma, grn.beta, grn.eps)),
        )  # fmt: skip
        if self.gamma is None or not fold:
            return p, self.gamma
        return pointwise.fold_scale(p, self.gamma), None

    def _folds(self, y: Tensor) -> bool:
        # Scaling the (C, 4C) weight is less work than scaling the map (P, C) from here on.
        return y.numel() // y.shape[-1] > _MLP_RATIO * y.shape[-1]

    def _is_stock(self) -> bool:
        """Whether the submodules are the constructor's own, with nobody listening to them."""
        kinds = (nn.Conv2d, nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear, DropPath)
        parts = (self.dwconv, self.norm, self.pwconv1, self.act, self.pwconv2, self.drop_path)
        return (
            all(type(m) is kind for m, kind in zip(parts, kinds, strict=True))
            and type(self.grn) in (nn.Identity, GlobalResponseNorm)
            and not any(map(_is_heard, (*parts, self.grn)))
            and not _has_any_global_hook()
        )

    def _takes_gradients(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.parameters())
        )

    def _is_plain_inference(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.dwconv.weight.dtype
            and not torch.is_autocast_enabled("cpu")
            and not (self.drop_path.training and self.drop_path.rate > 0)
        )


def _is_heard(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _cast(p: pointwise.Mlp, dtype: torch.dtype) -> pointwise.Mlp:
    """Return `p` with its pointwise layers in `dtype`, as autocast would have them."""
    names = ("weight1", "bias1", "weight2", "bias2")
    return p._replace(**{name: getattr(p, name).to(dtype) for name in names})


def _keep_the_dear(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    aten = torch.ops.aten
    dear = (aten.convolution.default, aten.addmm.default, aten.mm.default, aten.linear.default)
    return CheckpointPolicy.MUST_SAVE if op in dear else CheckpointPolicy.PREFER_RECOMPUTE


class ConvNextTrunk(nn.Module):
    """The stem and the stages of a ConvNeXt, without norms of their outputs.

    Args:
        config: The architecture; copied, so later changes of the caller's object do not reach in.
        with_cp: What the blocks hold for the backward pass: False, everything; "selective", the
            maps that are dear to recompute, the depthwise and pointwise layers' outputs; True, the
            blocks' inputs. Assignable.

    Raises:
        ValueError: `with_cp` is none of these.
    """

    def __init__(self, config: ConvNextConfig, *, with_cp: bool | str = False) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self.with_cp = with_cp
        self.load_report: Any = None
        # mmengine's BaseModule.init_weights passes over a child that says it is initialised.
        self.is_init = False
        widths = config.hidden_sizes
        # A list of floats, not a tensor: the constructor must work under a meta-device context.
        rates = iter(_linear_rates(config.drop_path_rate, sum(config.depths)))
        downsamples = map(self._downsample, widths, widths[1:])
        self.downsample_layers = nn.ModuleList([self._stem(), *downsamples])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(config, width, next(rates)) for _ in range(depth)))
            for width, depth in zip(widths, config.depths, strict=True)
        )

    @property
    def with_cp(self) -> bool | str:
        """What the blocks recompute in the backward pass, one of `WITH_CP`."""
        return self._with_cp

    @with_cp.setter
    def with_cp(self, value: bool | str) -> None:
        if not isinstance(value, bool | str) or value not in WITH_CP:
            raise ValueError(f"with_cp must be one of {WITH_CP}, got {value!r}")
        self._with_cp = value

    def _stem(self) -> nn.Sequential:
        c = self.config
        conv = nn.Conv2d(c.num_channels, c.hidden_sizes[0], c.patch_size, stride=c.patch_size)
        return nn.Sequential(conv, LayerNorm2d(c.hidden_sizes[0], eps=c.norm_eps))

    def _downsample(self, before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            LayerNorm2d(before, eps=self.config.norm_eps), nn.Conv2d(before, after, 2, stride=2)
        )

    def reset_parameters(self) -> None:
        """Fill every parameter afresh: truncated normal weights, zero biases, norms of identity.

        Source: `_init_weights` of facebookresearch/ConvNeXt, models/convnext.py.
        """
        for module in self.modules():
            self._reset(module)

    def _reset(self, module: nn.Module) -> None:
        """Fill a module's own parameters afresh, not those of its children."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, GlobalResponseNorm):
            nn.init.zeros_(module.gamma)
            nn.init.zeros_(module.beta)
        elif isinstance(module, Block) and module.gamma is not None:
            nn.init.constant_(module.gamma, self.config.layer_scale_init_value)

    def materialise_(self, keys: Collection[str], device: torch.device) -> None:
        """Give the modules that own these parameters memory and initial values.

        Args:
            keys: Keys of the state dict whose parameters are on the meta device.
            device: Where the memory is to be.
        """
        for name in dict.fromkeys(key.rpartition(".")[0] for key in keys):
            module = self.get_submodule(name)
            if any(p.is_meta for p in module.parameters(recurse=False)):
                module.to_empty(device=device, recurse=False)
                self._reset(module)

    def optimize_for_inference(
        self: T, *, dtype: torch.dtype | None = None, compile: bool = False
    ) -> T:
        """Return a module that computes the same in less time. This one stays as it is.

        See `convnext_backbone.optimize.optimize_for_inference`.
        """
        from .optimize import optimize_for_inference

        return optimize_for_inference(self, dtype=dtype, compile=compile)

    def iter_maps(self, pixel_values: Tensor, last: int) -> Iterator[Tensor]:
        """Yield the maps of the stem and of stages 1 to `last`, each (N, C, H, W).

        Raises:
            TypeError: `pixel_values` is not a floating-point tensor.
            ValueError: It is not (N, num_channels, H, W), or too small for stage `last`.
        """
        self._check_input(pixel_values, last)
        x = pixel_values.to(memory_format=torch.channels_last)
        x = self.downsample_layers[0](x)
        yield x
        for index in range(last):
            if index > 0:
                x = self.downsample_layers[index](x)
            x = self._run_stage(self.stages[index], x)
            yield x

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        shared = self.config.use_grn and switches.cpu and eager(x)
        with pointwise.workspace() if shared else nullcontext():
            for block in stage.children():
                x = self._run_block(block, x)
        return x

    def _run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        # Without a gradient to take, there is nothing to keep and so nothing to recompute.
        if not self.with_cp or not torch.is_grad_enabled():
            return block(x)
        if self.with_cp == "selective":
            return block(x, keep="dear")
        return checkpoint(block, x, use_reentrant=False)

    def _check_input(self, pixel_values: Tensor, last: int) -> None:
        if not isinstance(pixel_values, Tensor):
            raise TypeError(f"pixel_values must be a tensor, got {type(pixel_values).__name__}")
        if not pixel_values.is_floating_point():
            raise TypeError(f"pixel_values must be floating point, got {pixel_values.dtype}")
        shape = tuple(pixel_values.shape)
        channels = self.config.num_channels
        if len(shape) != 4 or shape[1] != channels:
            raise ValueError(f"pixel_values must have shape (N, {channels}, H, W), got {shape}")
        least = self.config.strides[last]
        if shape[2] < least or shape[3] < least:
            raise ValueError(
                f"pixel_values must be at least {least}x{least} pixels to reach "
                f"{self.config.stage_names[last]!r}, got {shape[2]}x{shape[3]}"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Renames in flight, whoever calls: torch's load_state_dict, mmengine's load_checkpoint, a
        # detector that holds this trunk. A native state dict passes untouched.
        to_native_(state_dict, prefix, self.state_dict().keys())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _linear_rates(last: float, num: int) -> list[float]:
    """Return `num` rates from 0 to `last`, evenly spaced; a lone block gets 0."""
    return [last * i / max(num - 1, 1) for i in range(num)]
