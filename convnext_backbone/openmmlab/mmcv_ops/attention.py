"""Multi-scale deformable attention and PSA masks as mmcv calls them.

Papers: Deformable DETR, https://arxiv.org/abs/2010.04159; PSANet, https://hszhao.github.io/papers/
eccv18_psanet.pdf. Called by `mmcv/ops/multi_scale_deform_attn.py` (on CUDA; on the CPU mmcv has
its own) and `psa_mask.py`. Semantics: `mmcv/ops/csrc/common/cuda/ms_deform_attn_cuda_kernel.cuh`
and `psamask_cuda_kernel.cuh`.

N batch, K keys (pixels of all levels in a row), Q queries, M heads, D channels of a head,
L levels, P points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .precision import at_least_float32, copy_gradients
from .sampling import sample_levels


def ms_deform_attn_forward(
    value: Tensor,  # (N, K, M, D)
    value_spatial_shapes: Tensor,  # (L, 2) heights and widths of the levels
    value_level_start_index: Tensor,  # (L,), which follows from the sizes
    sampling_locations: Tensor,  # (N, Q, M, L, P, 2) as (x, y), the map being 0..1; outside reads 0
    attention_weights: Tensor,  # (N, Q, M, L, P)
    im2col_step: int,  # images at a time in the compiled kernel, not used
) -> Tensor:
    """Weighted sum `(N, Q, M * D)` of bilinear samples of each level's map."""
    attend = _attention(value_spatial_shapes)
    operands = (value, sampling_locations, attention_weights)
    return attend(*map(at_least_float32, operands)).to(value).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of `ms_deform_attn_forward`, written into the three `grad_*` tensors."""
    attend = _attention(value_spatial_shapes)
    operands = (value, sampling_locations, attention_weights)
    targets = (grad_value, grad_sampling_loc, grad_attn_weight)
    copy_gradients(attend, operands, grad_output, targets)


def _attention(shapes: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The attention over given levels: a function of value, locations and weights."""
    return partial(sample_levels, [(height, width) for height, width in shapes.tolist()])


# --------------------------------------------------------------------------- PSA masks

_COLLECT = 0


@dataclass(frozen=True)
class _Spread:
    """Spreads each pixel's mask, which is centred on it, over the whole map.

    Its fields are the last arguments of both operations. The result `(N, H * W, H, W)` holds at
    `[n, q, p]` the mask of pixel p at pixel q when collecting, at `[n, p, q]` when distributing;
    0 where q lies outside p's mask.
    """

    psa_type: int  # 0 collect, 1 distribute
    num_: int  # N
    h_feature: int  # H
    w_feature: int  # W
    h_mask: int
    w_mask: int
    half_h_mask: int  # row of the mask that lies on the pixel itself
    half_w_mask: int  # its column

    def __call__(self, masks: Tensor) -> Tensor:
        size, mask_size = (self.h_feature, self.w_feature), (self.h_mask, self.w_mask)
        # Which cell of the mask of pixel p lies on pixel q, (H, W, H, W) as [q, p]: row and column.
        offsets = []
        for length, middle in zip(size, (self.half_h_mask, self.half_w_mask), strict=True):
            position = torch.arange(length, device=masks.device)
            offsets.append(position[:, None] - position[None, :] + middle)
        rows, columns = offsets[0][:, None, :, None], offsets[1][None, :, None, :]
        inside = (rows >= 0) & (rows < mask_size[0]) & (columns >= 0) & (columns < mask_size[1])
        cell = torch.where(inside, rows * mask_size[1] + columns, 0)
        area = size[0] * size[1]
        # [n, q, p] = masks[n, cell of q in the mask of p, p]
        spread = masks.flatten(2).gather(1, cell.view(1, area, area).expand(len(masks), -1, -1))
        spread = spread.masked_fill(~inside.view(area, area), 0)
        if self.psa_type != _COLLECT:
            spread = spread.transpose(1, 2)
        return spread.reshape(len(masks), area, *size)


def psamask_forward(input: Tensor, output: Tensor, *geometry: int, **named: int) -> None:
    """Write the spread masks of `input` `(N, h_mask * w_mask, H, W)` into `output`."""
    output.copy_(_Spread(*geometry, **named)(input))


def psamask_backward(grad_output: Tensor, grad_input: Tensor, *geometry: int, **named: int) -> None:
    """Gradient of `psamask_forward` for `input`, written into `grad_input`."""
    # The masks are only moved, so any values give the gradient.
    masks = torch.zeros_like(grad_input)
    copy_gradients(_Spread(*geometry, **named), [masks], grad_output, [grad_input])
