"""`mmcv.image.adjust_hue` for NumPy 2, which no longer wraps a negative number into uint8.

Goes with mmcv-lite 2.1.0; onedl-mmcv takes the number modulo 256 already.
"""

from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np
from PIL import Image

from .replace import replace_function


def repair(photometric: ModuleType) -> None:
    """Replace `adjust_hue` of `mmcv.image.photometric` where it overflows."""
    original = photometric.adjust_hue
    try:
        original(np.zeros((1, 1, 3), np.uint8), -0.25, backend="cv2")
    except OverflowError:
        replace_function(original, adjust_hue)


def adjust_hue(img: np.ndarray, hue_factor: float, backend: str | None = None) -> np.ndarray:
    """Turn the colours of an image about the colour circle.

    Args:
        img: `(H, W, 3)`, BGR, of any type with values 0..255; uint8 for `pillow`.
        hue_factor: Part of a full turn, -0.5..0.5.
        backend: `cv2` or `pillow`; None takes what `mmcv.use_backend` chose.

    Returns:
        An image of the same shape and type.

    Raises:
        ValueError: `hue_factor` or `backend` is out of its range.
        TypeError: `img` is no array of three dimensions.
    """
    from mmcv.image import io

    backend = io.imread_backend if backend is None else backend
    if backend not in _CONVERSIONS:
        raise ValueError(f"backend must be one of {tuple(_CONVERSIONS)}, got {backend!r}")
    if not -0.5 <= hue_factor <= 0.5:
        raise ValueError(f"hue_factor must lie in -0.5..0.5, got {hue_factor}")
    if not (isinstance(img, np.ndarray) and img.ndim == 3):
        raise TypeError(f"img must be an array (H, W, 3), got {type(img).__name__}")
    to_hsv, to_bgr = _CONVERSIONS[backend]
    hsv = to_hsv(img)
    hsv[..., 0] += np.uint8(int(hue_factor * 255) % 256)  # uint8 wraps, as the circle does
    return to_bgr(hsv).astype(img.dtype)


def _hsv_by_cv2(bgr: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(bgr.astype(np.uint8), cv2.COLOR_BGR2HSV_FULL)


def _bgr_by_cv2(hsv: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)


def _hsv_by_pillow(bgr: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(np.ascontiguousarray(bgr[..., ::-1])).convert("HSV"))


def _bgr_by_pillow(hsv: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(hsv, mode="HSV").convert("RGB"))[..., ::-1]


_Conversion = Callable[[np.ndarray], np.ndarray]
_CONVERSIONS: Mapping[str, tuple[_Conversion, _Conversion]] = {
    "cv2": (_hsv_by_cv2, _bgr_by_cv2),
    "pillow": (_hsv_by_pillow, _bgr_by_pillow),
}
