"""How images are prepared for a deployed network, read from a config's test pipeline."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..openmmlab.config_walk import type_name
from .boxes import Size

_Rules = dict[str, Any]


def read_pipeline(steps: Sequence[Mapping[str, Any]]) -> _Rules:
    """Return the rules "resize" and "pad" of a test pipeline, as predict.py follows them.

    Raises:
        ValueError: A step does what predict.py does not; the message names it.
    """
    rules: _Rules = {"resize": None, "pad": None}
    for step in steps:
        kind = type_name(step)
        if kind not in STEPS:
            raise ValueError(
                f"test pipeline: step {kind!r} cannot be deployed, only {sorted(STEPS)}; a "
                "pipeline without it may be given by --cfg-options test_dataloader.dataset.pipeline"
            )
        STEPS[kind](rules, step)
    return rules


def fixed_size(
    rules: _Rules, size: Size, colour: Sequence[float], *, resize: bool = True
) -> _Rules:
    """Return rules that bring every image to a size (H, W).

    Args:
        rules: Of the pipeline.
        size: Height and width.
        colour: Of the padding, (R, G, B), where the pipeline has none.
        resize: Fit the image into the size; otherwise it is padded to it at least.
    """
    height, width = size
    resizing = rules["resize"]
    if resize:
        keep_ratio = resizing is None or resizing["keep_ratio"]
        resizing = {"scale": [width, height], "keep_ratio": keep_ratio, "fit": keep_ratio}
    value = list(colour) if rules["pad"] is None else rules["pad"]["value"]
    return {"resize": resizing, "pad": {"size": [height, width], "divisor": None, "value": value}}


def _nothing(rules: _Rules, step: Mapping[str, Any]) -> None:
    pass


def _load(rules: _Rules, step: Mapping[str, Any]) -> None:
    _only(step, {"color_type": ("color",), "imdecode_backend": ("cv2", "pillow", "turbojpeg")})


def _resize(rules: _Rules, step: Mapping[str, Any]) -> None:
    _only(step, {"interpolation": ("bilinear",), "backend": ("cv2",), "scale_factor": (None, 1.0)})
    if step.get("scale") is None:
        return  # a factor of 1
    if rules["resize"] is not None or rules["pad"] is not None:
        raise ValueError("test pipeline: Resize must come once, and before Pad, to be deployed")
    scale = step["scale"]
    scale = [scale, scale] if isinstance(scale, int) else list(scale)
    rules["resize"] = {"scale": scale, "keep_ratio": bool(step.get("keep_ratio", False))}


def _pad(rules: _Rules, step: Mapping[str, Any]) -> None:
    _only(step, {"pad_to_square": (False,), "padding_mode": ("constant",)})
    if rules["pad"] is not None:
        raise ValueError("test pipeline: Pad must come once to be deployed")
    value = step.get("pad_val", 0)
    value = value.get("img", 0) if isinstance(value, Mapping) else value
    # The config's colours are BGR, as OpenCV loads images.
    colour = [value] * 3 if isinstance(value, int | float) else list(value)[::-1]
    size = step.get("size")  # (width, height)
    size = None if size is None else list(size)[::-1]
    rules["pad"] = {"size": size, "divisor": step.get("size_divisor"), "value": colour}


def _only(step: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]]) -> None:
    for name, values in allowed.items():
        if name in step and step[name] not in values:
            raise ValueError(
                f"test pipeline: {step['type']}.{name} {step[name]!r} cannot be deployed, only "
                f"{list(values)}"
            )


# What each step adds to the rules; steps that read or pack add nothing.
STEPS: Mapping[str, Callable[[_Rules, Mapping[str, Any]], None]] = {
    "LoadImageFromFile": _load,
    "LoadAnnotations": _nothing,
    "PackDetInputs": _nothing,
    "PackSegInputs": _nothing,
    "Resize": _resize,
    "Pad": _pad,
}
