"""The ConvNeXt trunk: stem, blocks and stages, shared by the backbone and the classifier.

Papers: ConvNeXt (arXiv 2201.03545, section 2 and appendix A.4) and ConvNeXt V2 (arXiv 2301.00808,
section 3.3). Parameter names are those of facebookresearch/ConvNeXt (models/convnext.py), the names
that most published detectors and segmentors carry.

Axes: N batch, C channels, H height, W width. Maps are (N, C, H, W) in channels-last memory, so the
norm and the pointwise layers work on (N, H, W, C) views without a copy.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import block as ways
from ..kernels import to_channels_last
from ..weights import to_native_
from .config import ConvNextConfig
from .layers import ACTIVATIONS, Conv2d, DropPath, GlobalResponseNorm, LayerNorm2d

_MLP_RATIO = 4  # hidden width of the block over its width, in every published ConvNeXt
T = TypeVar("T", bound="ConvNextTrunk")
WITH_CP = (False, "selective", True)


class Block(nn.Module):
    """Depthwise convolution, norm, two pointwise layers, residual: (N, C, H, W) to the same.

    `define` says what it computes; `kernels/block.py` has quicker ways to the same.
    """

    def __init__(self, config: ConvNextConfig, channels: int, drop_path_rate: float) -> None:
        super().__init__()
        hidden = _MLP_RATIO * channels
        size = config.kernel_size
        self.dwconv = Conv2d(channels, channels, size, padding=size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=config.norm_eps)
        self.pwconv1 = nn.Linear(channels, hidden)
        self.act = ACTIVATIONS[config.hidden_act]()
        self.grn = GlobalResponseNorm(hidden) if config.use_grn else nn.Identity()
        self.pwconv2 = nn.Linear(hidden, channels)
        scale = config.layer_scale_init_value
        self.gamma = nn.Parameter(torch.full((channels,), float(scale))) if scale > 0 else None
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, keep: str = "all", way: ways.Way | None = None) -> Tensor:
        """Add the block's residual branch to `x` (N, C, H, W), in the quickest way that suits.

        Args:
            x: The input map.
            keep: What to hold for the backward pass: "all", or "dear", what is dear to recompute.
            way: The way to take, chosen before.
        """
        return (way or ways.choose(self, x, keep))(self, x, keep)

    def define(self, x: Tensor) -> Tensor:
        """Add the block's residual branch to `x` (N, C, H, W): what every quick way must equal."""
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        y = self.pwconv2(self.grn(self.act(self.pwconv1(self.norm(y)))))
        if self.gamma is not None:
            y = y * self.gamma
        y = y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        return x + self.drop_path(y)


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
        conv = Conv2d(c.num_channels, c.hidden_sizes[0], c.patch_size, stride=c.patch_size)
        return nn.Sequential(conv, LayerNorm2d(c.hidden_sizes[0], eps=c.norm_eps))

    def _downsample(self, before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            LayerNorm2d(before, eps=self.config.norm_eps), Conv2d(before, after, 2, stride=2)
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

        See `convnext_backbone.inference.optimize.optimize_for_inference`.
        """
        from ..inference.optimize import optimize_for_inference

        return optimize_for_inference(self, dtype=dtype, compile=compile)

    def iter_maps(self, pixel_values: Tensor, last: int) -> Iterator[Tensor]:
        """Yield the maps of the stem and of stages 1 to `last`, each (N, C, H, W).

        Raises:
            TypeError: `pixel_values` is not a floating-point tensor.
            ValueError: It is not (N, num_channels, H, W), or too small for stage `last`.
        """
        self._check_input(pixel_values, last)
        x = to_channels_last(pixel_values)
        x = self.downsample_layers[0](x)
        yield x
        for index in range(last):
            if index > 0:
                x = self.downsample_layers[index](x)
            x = self._run_stage(self.stages[index], x)
            yield x

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        with ways.stage_workspace(x, self.config.use_grn):
            for block in stage.children():
                x = self._run_block(block, x)
        return x

    def _run_block(self, block: Callable[..., Tensor], x: Tensor) -> Tensor:
        # Without a gradient to take, there is nothing to keep and so nothing to recompute.
        if not self.with_cp or not torch.is_grad_enabled():
            return block(x)
        if self.with_cp == "selective":
            return block(x, keep="dear")
        if isinstance(block, Block):
            # Chosen once: what suits now may not suit in the backward pass, which must do the same.
            block = partial(block, way=ways.choose(block, x, "all"))
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
