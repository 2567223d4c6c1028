"""Convolutions and blocks with weights packed for oneDNN, on the CPU.

oneDNN packs a weight anew at every call; here it is packed once. The hidden map of a block is four
times as wide as the block. Written out whole it leaves the cache, so it exists one tile of pixels
at a time, with GELU and the residual in the passes of the two matrix products.

Axes: N batch, C channels, H height, W width, P pixels of one image or of a tile.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.block import Block
from ..models.layers import GlobalResponseNorm
from .unmodified import is_unmodified

# Bytes of the hidden map in one tile and for one thread. Measured for widths 96 to 768 in fp32 and
# bf16: an eighth of it loses a tenth of the speed, four times as much gains nothing.
_TILE = 6 << 20
_MIN_ROWS = 256
# Size hints for oneDNN's weight packing; other input sizes run at nearly the same speed.
_ROWS_HINT, _SIDE_HINT = 256, 56


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has matrix products with packed weights for its dtype and on its device."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    supported: Mapping[torch.dtype, Callable[[], bool]] = {
        torch.float32: lambda: True,
        torch.bfloat16: ops._is_mkldnn_bf16_supported,
        torch.float16: ops._is_mkldnn_fp16_supported,
    }
    return weight.dtype in supported and bool(supported[weight.dtype]())


class _PackedTensor:
    """A packed weight: opaque to state dicts and never written to, so copies share it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __deepcopy__(self, memo: Any) -> "_PackedTensor":
        return self


class PackedLinear(nn.Module):
    """A linear layer with a packed weight: (..., C_in) to (..., C_out).

    Args:
        weight: (C_out, C_in).
        bias: (C_out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features = weight.shape[0]
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)
        bias = weight.new_zeros(self.out_features) if bias is None else bias
        self._weight, self._bias = _PackedTensor(packed), _PackedTensor(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T + bias`."""
        return self._run(x, "none")

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """Return the GELU of the layer's output."""
        return self._run(x, "gelu", approximate)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the sum of the layer's output and `other`."""
        weight, bias = self._weight.tensor, self._bias.tensor
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")

    def _run(self, x: Tensor, activation: str, approximate: str = "") -> Tensor:
        if x.numel() == 0:  # oneDNN takes no empty batch
            return x.new_empty(*x.shape[:-1], self.out_features)
        weight, bias = self._weight.tensor, self._bias.tensor
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], approximate)


class PackedPatchConv(nn.Module):
    """A convolution whose stride is its kernel, as a matrix product over the patches.

    A convolution's weight packed for one image size can be a hundred times slower at another. A
    matrix's is not.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.stride = conv.in_channels, conv.stride
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (out, in, k, k) -> (out, k * k * in)
        self.linear = PackedLinear(weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (N, C, H, W) to (N, C_out, H // k, W // k)."""
        n, c, h, w = x.shape
        k = self.stride[0]
        h, w = h // k, w // k
        if 0 in (h, w):
            raise RuntimeError(f"a map {tuple(x.shape)} is smaller than the kernel, {k}x{k}")
        x = x.permute(0, 2, 3, 1)[:, : h * k, : w * k]  # (N, C, H, W) -> (N, H, W, C)
        patches = x.reshape(n, h, k, w, k, c).transpose(2, 3).reshape(n, h, w, k * k * c)
        return self.linear(patches).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class PackedDepthwiseConv(nn.Module):
    """A depthwise convolution with its weight packed, in a format that serves all image sizes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._options = (conv.padding, conv.stride, conv.dilation, conv.groups)
        size = (1, conv.in_channels, _SIDE_HINT, _SIDE_HINT)
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self._options, size
        )
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        self._weight, self._bias = _PackedTensor(packed), _PackedTensor(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` (N, C, H, W)."""
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._weight.tensor, self._bias.tensor, *self._options, "none", [], ""
        )


def can_pack_block(block: Block) -> bool:
    """Whether `PackedBlock` can hold an unmodified block: its activation must be GELU."""
    return is_unmodified(block.act, nn.GELU) and can_pack(block.pwconv1.weight)


class PackedBlock(nn.Module):
    """A folded block with packed weights: (N, C, H, W) to the same.

    GRN needs the response of the whole image before it can scale anything, so the hidden map of an
    image is held in V2, as tiles.

    Args:
        block: What `fold.fold_block` returned, if `can_pack_block`.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.dwconv = PackedDepthwiseConv(block.dwconv)
        self.pwconv1 = PackedLinear(block.pwconv1.weight, block.pwconv1.bias)
        self.pwconv2 = PackedLinear(block.pwconv2.weight, block.pwconv2.bias)
        assert isinstance(block.norm, nn.LayerNorm)
        self._norm_eps, self._approximate = block.norm.eps, str(block.act.approximate)
        row_bytes = block.pwconv1.out_features * block.pwconv1.weight.element_size()
        self._tile_rows = max(_MIN_ROWS, _TILE // row_bytes)
        grn = block.grn if isinstance(block.grn, GlobalResponseNorm) else None
        self._grn = None if grn is None else (_PackedTensor(grn.gamma.detach().float()), grn.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's residual branch to `x` (N, C, H, W)."""
        if x.numel() == 0:
            return x
        n, c, h, w = x.shape
        y = self.dwconv(x).contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        # (N, C, H, W) -> (N, H * W, C), views
        y, x = (t.permute(0, 2, 3, 1).view(n, h * w, c) for t in (y, x))
        rows = self._tile_rows * torch.get_num_threads()
        if self._grn is None:
            y = self._add_pixels(y.view(-1, c), x.view(-1, c), rows)
        elif h * w <= rows:
            images = rows // (h * w)
            parts = zip(y.split(images), x.split(images), strict=True)
            outs = [self._add_images(ys, xs) for ys, xs in parts]
            y = outs[0] if len(outs) == 1 else torch.cat(outs)
        else:
            for yi, xi in zip(y, x, strict=True):
                self._add_large_image(yi, xi, rows)
        return y.view(n, h, w, c).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)

    # Each of these may overwrite `y`, the output of the depthwise convolution, and does not write
    # to `x`, the input of the block.

    def _add_pixels(self, y: Tensor, x: Tensor, rows: int) -> Tensor:
        """Return the output of a block without GRN for pixels (P, C)."""
        if y.shape[0] <= rows:
            return self.pwconv2.add(self._hidden(y), x)
        for yt, xt in zip(y.split(rows), x.split(rows), strict=True):
            yt.copy_(self.pwconv2.add(self._hidden(yt), xt))
        return y

    def _add_images(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the output of a block with GRN for whole images (N, P, C), as (N * P, C)."""
        hidden = self._hidden(y)
        for image in hidden:
            image.mul_(self._scale([image]))
        return self.pwconv2.add(hidden.flatten(0, 1), x.flatten(0, 1))

    def _add_large_image(self, y: Tensor, x: Tensor, rows: int) -> None:
        """Write the output of a block with GRN for the pixels (P, C) of one image into `y`."""
        hidden = [self._hidden(tile) for tile in y.split(rows)]
        scale = self._scale(hidden)
        for yt, a, xt in zip(y.split(rows), hidden, x.split(rows), strict=True):
            yt.copy_(self.pwconv2.add(a.mul_(scale), xt))

    def _hidden(self, y: Tensor) -> Tensor:
        y = F.layer_norm(y, y.shape[-1:], eps=self._norm_eps)
        return self.pwconv1.gelu(y, self._approximate)

    def _scale(self, hidden: list[Tensor]) -> Tensor:
        """Return GRN's factor (4C,) for the hidden map of one image, given as tiles (P, 4C)."""
        assert self._grn is not None
        gamma, eps = self._grn[0].tensor, self._grn[1]
        total, *others = map(_sum_of_squares, hidden)
        for other in others:
            total.add_(other)
        norm = total.sqrt_()
        share = norm / norm.mean().add_(eps)
        return share.mul_(gamma).add_(1).to(hidden[0].dtype)


def _sum_of_squares(a: Tensor) -> Tensor:
    """Return the sum over the pixels of the squares of `a` (P, 4C), (4C,), in fp32.

    Batch norm's statistics read it once, as it is, and add up in fp32; a plain sum would first
    write the squares.
    """
    unused = a.new_empty(a.shape[-1], dtype=torch.float32)  # fp32 here makes fp32 statistics
    mean, var = torch.batch_norm_update_stats(a, unused, None, 0.0)
    return var.addcmul_(mean, mean).mul_(a.shape[0])
