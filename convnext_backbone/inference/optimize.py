"""The one call before inference: fold, cast, pack, and compile if asked.

Every folding is exact in real numbers, and done in fp64: layer scale into the second pointwise
layer, GRN's shift into its bias, the affine part of a norm into the layer behind it (ConvNeXt pads
no pointwise and no downsampling layer, so a norm's shift reaches every pixel alike).

Axes: N batch, C channels, H height, W width.
"""

import copy
from collections.abc import Callable
from typing import Any, NoReturn, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from ..kernels.block import is_stock
from ..models.layers import Conv2d, GlobalResponseNorm, LayerNorm2d
from ..models.trunk import Block, ConvNextTrunk
from . import pointwise

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Sizes that oneDNN is told to expect; what is packed for them serves any others nearly as well.
_ROWS, _SIDE = 256, 56

T = TypeVar("T", bound=ConvNextTrunk)


def optimize_for_inference(
    module: T, *, dtype: torch.dtype | None = None, compile: bool = False
) -> T:
    """Return a module that computes the same in less time. The argument stays as it is.

    It has no gradients and refuses to train; its weights are folded, so save and load the original.
    It casts its input. On the CPU the weights are packed for oneDNN: no compiler is needed, and no
    image size is special.

    Args:
        module: A backbone, model or classifier; one optimized already is returned as it is.
        dtype: What to compute in, one of `DTYPES`; by default, the dtype of the weights.
        compile: Compile the module, and nothing around it, with torch.compile. Four graphs at most
            serve all sizes: square images or others, one image or several. On the CPU each needs a
            C++ compiler and a minute, and compiling replaces the packing.

    Raises:
        ValueError: `dtype` is not one of the choices, or the module is optimized already, for
            something else.
        TypeError: `compile` is not True or False.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    if not isinstance(compile, bool):
        raise TypeError(f"compile must be True or False, got {compile!r}")
    own = _stem_norm(module).weight.dtype
    wanted = (dtype or own, compile)
    if isinstance(module, _Frozen):
        if wanted != module._optimized_for:
            raise ValueError(
                f"this module is optimized for dtype and compile {module._optimized_for}, not "
                f"{wanted}; optimize the original anew"
            )
        return module
    optimized = copy.deepcopy(module).eval().requires_grad_(False)
    optimized.to(torch.promote_types(own, wanted[0]))  # nothing is rounded before it is folded
    _fold(optimized)
    optimized.to(wanted[0]).to(memory_format=torch.channels_last)
    object.__setattr__(optimized, "__class__", _frozen_class(module.__class__))
    assert isinstance(optimized, _Frozen)
    optimized._optimized_for = wanted
    if compile:
        optimized.compile(dynamic=True)
    else:
        _pack(optimized)
    return optimized


class _Frozen(nn.Module):
    """What an optimized module does not do."""

    _optimized_for: tuple[torch.dtype, bool]

    def train(self, mode: bool = True) -> Any:
        """Refuse training mode. Returns self.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise RuntimeError("an optimized module cannot train; train the original")
        return super().train(False)

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Do what the original does, without gradients.

        Raises:
            RuntimeError: A gradient of `pixel_values` is asked for.
        """
        # Anything but floating point is left to the original's own check.
        if isinstance(pixel_values, Tensor) and pixel_values.is_floating_point():
            if torch.is_grad_enabled() and pixel_values.requires_grad:
                raise RuntimeError("an optimized module has no gradients; take the original's")
            pixel_values = pixel_values.to(self._optimized_for[0])
        with torch.no_grad():
            return super().forward(pixel_values, *args, **kwargs)

    def save_pretrained(self, directory: Any) -> NoReturn:
        """Refuse: the weights are folded.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the weights of an optimized module are folded; save the original")

    def init_weights(self) -> NoReturn:
        """Refuse: the weights are folded.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the weights of an optimized module are folded; take the original's")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        assert isinstance(self, ConvNextTrunk)
        here = _stem_norm(self).weight
        there = fn(here)
        if (there.device, there.dtype) == (here.device, here.dtype):
            return self
        raise RuntimeError(
            "an optimized module stays on its device and in its dtype; move the original, or give "
            "dtype to optimize_for_inference"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RuntimeError("an optimized module cannot be pickled; save the original")


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _frozen_class(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Optimized{kind.__name__}", (_Frozen, kind), {})
    return _CLASSES[kind]


def _stem_norm(module: ConvNextTrunk) -> nn.LayerNorm:
    norm = module.downsample_layers.get_submodule("0.1")
    assert isinstance(norm, nn.LayerNorm)
    return norm


# Folding


def _fold(module: ConvNextTrunk) -> None:
    for downsample in module.downsample_layers[1:]:
        norm, conv = downsample.children()
        if type(norm) is LayerNorm2d and _is_patches(conv):
            _fold_norm(norm, conv)
    for block in _stock_blocks(module):
        _fold_norm(block.norm, block.pwconv1)
        if isinstance(block.grn, GlobalResponseNorm):
            shift = block.pwconv2.weight.double() @ block.grn.beta.double()
            block.pwconv2.bias.copy_(block.pwconv2.bias.double() + shift)
            block.grn.beta.zero_()
        if block.gamma is not None:
            p = block.gamma.double()
            block.pwconv2.weight.copy_(block.pwconv2.weight.double() * p.unsqueeze(1))
            block.pwconv2.bias.copy_(block.pwconv2.bias.double() * p)
            block.gamma = None


def _stock_blocks(module: ConvNextTrunk) -> list[Block]:
    """List the blocks that nobody has altered; the others run as they are."""
    return [b for b in module.modules() if type(b) is Block and is_stock(b)]


def _is_patches(conv: nn.Module) -> TypeGuard[Conv2d]:
    """Whether a convolution is as the constructor makes it, its stride its kernel."""
    return (
        type(conv) is Conv2d
        and conv.bias is not None
        and conv.stride == conv.kernel_size
        and (conv.padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)
    )


def _fold_norm(norm: nn.LayerNorm, layer: nn.Conv2d | nn.Linear) -> None:
    """Move the affine part of `norm` into the layer behind it, whose weight is (out, C, ...)."""
    weight = layer.weight.double()
    scale, shift = (
        p.double().view(-1, *(1 for _ in weight.shape[2:])) for p in (norm.weight, norm.bias)
    )
    assert layer.bias is not None
    layer.bias.copy_(layer.bias.double() + (weight * shift).flatten(1).sum(dim=1))
    layer.weight.copy_(weight * scale)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


# Packing for oneDNN


def _pack(module: ConvNextTrunk) -> None:
    """Replace convolutions and blocks on the CPU by packed ones, where oneDNN takes the dtype."""
    if not pointwise.onednn_takes(_stem_norm(module).weight):
        return
    for downsample in module.downsample_layers:
        assert isinstance(downsample, nn.Sequential)
        for index, layer in enumerate(downsample):
            if _is_patches(layer):
                downsample[index] = _PackedPatches(layer)
    stock = set(_stock_blocks(module))
    for stage in module.stages:
        assert isinstance(stage, nn.Sequential)
        for index, block in enumerate(stage):
            if block in stock:
                stage[index] = _PackedBlock(block)


class _Weight:
    """A packed weight: opaque and never written to, so copies of a module share it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __deepcopy__(self, memo: Any) -> "_Weight":
        return self


def _pack_linear(weight: Tensor, bias: Tensor) -> tuple[_Weight, _Weight]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    return _Weight(packed), _Weight(bias.detach())


class _PackedPatches(nn.Module):
    """A convolution whose stride is its kernel, as a matrix product over the patches.

    A convolution's weight packed for one image size can be a hundred times slower at another. A
    matrix's is not.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        assert conv.stride == conv.kernel_size
        self._side = conv.stride[0]
        weight = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)  # (out, k, k, in) -> (out, -1)
        self._weight, self._bias = _pack_linear(weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (N, C, H, W) to (N, C_out, H // k, W // k)."""
        n, c, h, w = x.shape
        k = self._side
        h, w = h // k, w // k
        x = x.permute(0, 2, 3, 1)[:, : h * k, : w * k]  # (N, C, H, W) -> (N, H, W, C)
        patches = x.reshape(n, h, k, w, k, c).transpose(2, 3).reshape(n, h, w, k * k * c)
        if x.numel() == 0:  # oneDNN takes no empty batch
            return patches.new_empty(n, h, w, self._bias.tensor.shape[0]).permute(0, 3, 1, 2)
        y = torch.ops.mkldnn._linear_pointwise(
            patches, self._weight.tensor, self._bias.tensor, "none", [], ""
        )
        return y.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class _PackedDepthwise(nn.Module):
    """A depthwise convolution with its weight packed, a format that serves all image sizes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        padding = (int(conv.padding[0]), int(conv.padding[1]))
        self._options = (padding, conv.stride, conv.dilation, conv.groups)
        size = (1, conv.in_channels, _SIDE, _SIDE)
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self._options, size
        )
        self._weight, self._bias = _Weight(weight), _Weight(conv.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (N, C, H, W)."""
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._weight.tensor, self._bias.tensor, *self._options, "none", [], ""
        )


class _PackedBlock(nn.Module):
    """A folded block with packed weights: (N, C, H, W) to the same."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.dwconv = _PackedDepthwise(block.dwconv)
        self._eps, self._approximate = block.norm.eps, str(block.act.approximate)
        linears = (block.pwconv1, block.pwconv2)
        self._layers = tuple(w for m in linears for w in _pack_linear(m.weight, m.bias))
        grn = block.grn if isinstance(block.grn, GlobalResponseNorm) else None
        self._grn = None if grn is None else (_Weight(grn.gamma.detach()), grn.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's residual branch to `x` (N, C, H, W)."""
        if x.numel() == 0:
            return x
        y = self.dwconv(x).contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        weight1, bias1, weight2, bias2 = (w.tensor for w in self._layers)
        p = pointwise.Mlp(None, None, self._eps, weight1, bias1, self._approximate, weight2, bias2)
        if self._grn is not None:
            p = p._replace(grn_gamma=self._grn[0].tensor, grn_eps=self._grn[1])
        y, rows = y.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)  # -> (N, H, W, C)
        return pointwise.mlp_add(y, rows, p).permute(0, 3, 1, 2)
