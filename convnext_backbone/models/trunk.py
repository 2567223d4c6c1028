"""The ConvNeXt trunk: stem, blocks and stages, shared by the backbone and the classifier.

Papers: ConvNeXt (arXiv 2201.03545, section 2 and appendix A.4) and ConvNeXt V2 (arXiv 2301.00808,
section 3.3). Parameter names are those of facebookresearch/ConvNeXt (models/convnext.py), the names
that most published detectors and segmentors carry.

Axes: N batch, C channels, H height, W width. Maps are (N, C, H, W); the stem's norm leaves them in
channels-last memory, so the norms and pointwise layers behind it work on (N, H, W, C) views without
a copy.
"""

import copy
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..archs import half_width
from ..inference import OptimizedModule, optimize_for_inference
from ..weights.load_hook import convert_state_dict_
from .block import WITH_CP, Block, Stage, checkpointed
from .config import ConvNextConfig
from .layers import ACTIVATIONS, Conv2d, GlobalResponseNorm, build_norm2d

# Parameters of a layer by their names, with the stage from 0 and the block: what timm's optimizers
# (`group_matcher`) and our layer decay go by.
STEM = r"^downsample_layers\.0\."
DOWNSAMPLING = r"^downsample_layers\.(\d+)\."
BLOCK = r"^stages\.(\d+)\.(\d+)\."
STAGE = r"^stages\.(\d+)\."  # after BLOCK: what a user has added to a stage


class ConvNextTrunk(nn.Module):
    """The stem and the stages of a ConvNeXt, without norms of their outputs.

    Args:
        config: The architecture; copied, so later changes of the caller's object do not reach in.
        with_cp: What the blocks hold for the backward pass: False, everything; "selective", the
            outputs of convolutions and linear layers, so norm and activation are recomputed; True,
            the inputs of blocks and downsampling layers. Assignable.

    Raises:
        ValueError: `with_cp` is none of these.
    """

    def __init__(self, config: ConvNextConfig, *, with_cp: bool | str = False) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self.load_report: Any = None
        # mmengine's BaseModule.init_weights passes over a child that says it is initialised.
        self.is_init = False
        widths = config.hidden_sizes
        # A list of floats, not a tensor: the constructor must work under a meta-device context.
        rates = iter(_linear_rates(config.drop_path_rate, sum(config.depths)))
        downsamples = map(
            self._downsample, widths, widths[1:], config.dilations, config.dilations[1:]
        )
        self.downsample_layers = nn.ModuleList([self._stem(), *downsamples])
        shapes = zip(widths, config.depths, config.kernel_sizes, config.dilations, strict=True)
        self.stages = nn.ModuleList(
            Stage(*(Block(config, width, next(rates), kernel, dilation) for _ in range(depth)))
            for width, depth, kernel, dilation in shapes
        )
        self.with_cp = with_cp

    @property
    def with_cp(self) -> bool | str:
        """What the blocks recompute in the backward pass, one of `WITH_CP`."""
        return self._with_cp

    @with_cp.setter
    def with_cp(self, value: bool | str) -> None:
        if not isinstance(value, bool | str) or value not in WITH_CP:
            raise ValueError(f"with_cp must be one of {WITH_CP}, got {value!r}")
        self._with_cp = value
        for module in self.stages.modules():  # also within what a user has put around a stage
            if isinstance(module, Stage):
                module.with_cp = value

    def _stem(self) -> nn.Sequential:
        c, width = self.config, self.config.hidden_sizes[0]
        conv = partial(Conv2d, bias=c.conv_bias)
        layers: list[nn.Module] = []
        if c.stem_type.startswith("patch"):
            layers.append(conv(c.num_channels, width, c.patch_size, stride=c.patch_size))
        else:
            middle = half_width(width) if c.stem_type == "overlap_tiered" else width
            layers.append(conv(c.num_channels, middle, 3, stride=2, padding=1))
            if c.stem_type == "overlap_act":
                layers.append(ACTIVATIONS[c.hidden_act]())
            layers.append(conv(middle, width, 3, stride=2, padding=1))
        if c.stem_type != "patch_no_norm":
            layers.append(build_norm2d(c.norm_layer, width, c.norm_eps))
        return nn.Sequential(*layers)

    def _downsample(self, before: int, after: int, previous: int, dilation: int) -> nn.Sequential:
        c = self.config
        norm = build_norm2d(c.norm_layer, before, c.norm_eps)
        conv = partial(Conv2d, before, after, 2, bias=c.conv_bias)
        if dilation == previous == 1:
            return nn.Sequential(norm, conv(stride=2))
        if dilation > previous:
            # The maps keep their size; the taps lie as far apart as pixels of the map before would
            # lie in the map that is not downsampled, which is how timm loads the same weights.
            return nn.Sequential(norm, conv(padding="same", dilation=previous))
        return nn.Sequential(norm, conv(stride=2, padding=previous // 2, dilation=previous))

    def reset_parameters(self) -> None:
        """Initialize every parameter: truncated normal weights, zero biases, norms of identity.

        Source: `_init_weights` of facebookresearch/ConvNeXt, models/convnext.py.
        """
        for module in self.modules():
            self._reset(module)

    def _reset(self, module: nn.Module) -> None:
        """Initialize a module's own parameters, not those of its children."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
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
        self, *, dtype: torch.dtype | None = None, compile: bool = False
    ) -> OptimizedModule:
        """Return a module that computes the same in less time. This one stays as it is.

        See `convnext_backbone.inference.optimize_for_inference`.
        """
        return optimize_for_inference(self, dtype=dtype, compile=compile)

    def iter_maps(self, pixel_values: Tensor, last: int) -> Iterator[Tensor]:
        """Yield the maps of the stem and of stages 1 to `last`, each (N, C, H, W).

        Raises:
            TypeError: `pixel_values` is not a floating-point tensor.
            ValueError: It is not (N, num_channels, H, W), or too small for stage `last`.
        """
        channels, least = self._limits(last)
        _check_images(pixel_values, channels, least, self.config.stage_names[last])
        is_padded = self.config.pad_to_stride
        x = _pad(pixel_values, self.config.strides[-1]) if is_padded else pixel_values
        x = self.downsample_layers[0](x)
        for index, stride in enumerate(self.config.strides[: last + 1]):
            if index > 1:
                # "selective" would gain nothing here: what it saves is most of what there is.
                x = checkpointed(self.downsample_layers[index - 1], x, self.with_cp is True)
            if index > 0:
                x = self.stages[index - 1](x)
            yield _crop(x, pixel_values, stride) if is_padded else x

    def _limits(self, last: int) -> tuple[int | None, int]:
        """Return the channels and the least side that the images for stage `last` have.

        A stem of the user's may take others: None and 1 where it does not say.
        """
        stem, config = self.downsample_layers[0], self.config
        is_chain = getattr(type(stem), "forward", None) is nn.Sequential.forward
        first = next(stem.children(), None) if is_chain else None
        step = config.patch_size if config.stem_type.startswith("patch") else 2
        is_as_built = getattr(first, "stride", None) == (step, step)
        least = config.strides[last] if is_as_built and not config.pad_to_stride else 1
        return getattr(first, "in_channels", None), least

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Foreign keys are renamed for every caller: torch's load_state_dict, mmengine's
        # load_checkpoint, a detector that holds this trunk. A native state dict stays as it is.
        convert_state_dict_(state_dict, prefix, self.state_dict().keys())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _linear_rates(last: float, num: int) -> list[float]:
    """Return `num` rates from 0 to `last`, evenly spaced; a lone block gets 0."""
    return [last * i / max(num - 1, 1) for i in range(num)]


@torch.fx.wrap  # a leaf of symbolic tracing, which has no shapes to compute with
def _pad(x: Tensor, stride: int) -> Tensor:
    """Pad `x` (N, C, H, W) with zeros, on the right and below, to multiples of the stride."""
    # No negative numbers: ONNX divides towards zero.
    bottom, right = ((stride - side % stride) % stride for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, bottom))


@torch.fx.wrap
def _crop(x: Tensor, images: Tensor, stride: int) -> Tensor:
    """Crop a map of padded images (N, C, H, W) to ceil(H / stride) and ceil(W / stride)."""
    height, width = ((side + stride - 1) // stride for side in images.shape[-2:])
    return x[..., :height, :width]


@torch.fx.wrap  # a leaf of symbolic tracing, which has no shapes to compare
def _check_images(pixel_values: Tensor, channels: int | None, least: int, stage_name: str) -> None:
    if not isinstance(pixel_values, Tensor):
        raise TypeError(f"pixel_values must be a tensor, got {type(pixel_values).__name__}")
    if not pixel_values.is_floating_point():
        raise TypeError(f"pixel_values must be floating point, got {pixel_values.dtype}")
    if torch.jit.is_tracing():  # sizes are tensors there, and comparing them warns
        return
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != (channels or shape[1]):
        raise ValueError(f"pixel_values must have shape (N, {channels or 'C'}, H, W), got {shape}")
    if shape[2] < least or shape[3] < least:
        raise ValueError(
            f"pixel_values must be at least {least}x{least} pixels to reach {stage_name!r}, got "
            f"{shape[2]}x{shape[3]}"
        )
