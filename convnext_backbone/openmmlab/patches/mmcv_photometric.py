"""`mmcv.image.adjust_hue` for NumPy 2, which no longer wraps a negative number into uint8.

Goes with mmcv-lite 2.1.0; onedl-mmcv takes the number modulo 256 already.
"""

from types import ModuleType

import numpy as np
from PIL import Image

from ...utils.checks import check_choice
from .replace import replace_function


def repair(photometric: ModuleType) -> None:
    """Replace `adjust_hue` of `mmcv.image.photometric` where it overflows."""
    original = photometric.adjust_hue
    try:
        original(np.zeros((1, 1, 3), np.uint8), -0.25, backend="cv2")
    except OverflowError:
        replace_function(original, adjust_hue)


def adjust_hue(img: np.ndarray, hue_factor: float, backend: str | None = None) -> np.ndarray:
    """Turn the colours of a BGR image `(H, W, 3)`, 0..255, by part of a full turn, -0.5..0.5.

    The image is uint8 for the backend `pillow`, of any type for `cv2`; None takes what
    `mmcv.use_backend` chose.
    """
    import cv2
    from mmcv.image import io

    backend = io.imread_backend if backend is None else backend
    check_choice("backend", backend, ("cv2", "pillow"))
    if not -0.5 <= hue_factor <= 0.5:
        raise ValueError(f"hue_factor must lie in -0.5..0.5, got {hue_factor}")
    if not (isinstance(img, np.ndarray) and img.ndim == 3):
        raise TypeError(f"img must be an array (H, W, 3), got {type(img).__name__}")
    if backend == "pillow" and img.dtype != np.uint8:
        raise AssertionError(f"Pillow backend only support uint8 type, got {img.dtype}")  # mmcv's
    turn = np.uint8(int(hue_factor * 255) % 256)  # uint8 wraps, as the circle does
    if backend == "cv2":
        hsv = cv2.cvtColor(img.astype(np.uint8), cv2.COLOR_BGR2HSV_FULL)
        hsv[..., 0] += turn
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL).astype(img.dtype)
    hsv = np.array(Image.fromarray(np.ascontiguousarray(img[..., ::-1])).convert("HSV"))
    hsv[..., 0] += turn
    rgb = np.array(Image.fromarray(hsv, mode="HSV").convert("RGB"))
    return rgb[..., ::-1].astype(img.dtype)
