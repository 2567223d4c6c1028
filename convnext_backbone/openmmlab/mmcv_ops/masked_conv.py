"""Convolution at chosen pixels only, as `mmcv/ops/masked_conv.py` calls it.

Semantics: `mmcv/ops/csrc/common/cuda/masked_conv2d_cuda_kernel.cuh`. One image; C channels,
H/W height and width, M chosen pixels. mmcv multiplies by the weight between the two calls and
has no gradient for them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,  # (1, C, H, W); reads 0 beyond its borders
    mask_h_idx: Tensor,  # (M,) rows of the chosen output pixels
    mask_w_idx: Tensor,  # (M,) their columns
    col: Tensor,  # (C * kernel_h * kernel_w, M)
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Lay the windows of the chosen pixels side by side into `col`."""
    # Padding by a whole kernel at the far sides keeps every window inside.
    padded = F.pad(im[0], [pad_w, pad_w + kernel_w, pad_h, pad_h + kernel_h])
    rows = mask_h_idx[:, None] + torch.arange(kernel_h, device=im.device)
    columns = mask_w_idx[:, None] + torch.arange(kernel_w, device=im.device)
    # (C, M, kernel_h, kernel_w) -> (C * kernel_h * kernel_w, M)
    windows = padded[:, rows[:, :, None], columns[:, None, :]]
    col.copy_(windows.permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(
    col: Tensor,  # (channels, M)
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,  # (1, channels, H, W)
    height: int,
    width: int,
    channels: int,
) -> None:
    """Put the columns back at their pixels of `im`."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im)
