"""The families and the named architectures, as data.

Papers: ConvNeXt (Liu et al. 2022, arXiv 2201.03545, section 2) for V1, ConvNeXt V2 (Woo et al.
2023, arXiv 2301.00808, appendix A.1) for V2. Names of architectures are timm's without the tag; the
V1 sizes below tiny and the variants are timm's, xxlarge is OpenCLIP's, the isotropic ones
(section 3.3) facebookresearch's. DINOv3's ConvNeXts are V1's tiny to large.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .utils.checks import did_you_mean

# What becomes of the final norm in a backbone: it is left out, or is the last stage's output norm.
NORM_DROPPED, NORM_OF_STAGE = "drop", "stage"
# timm's names of the norms, and whether each has a bias; `models.layers.NORMS` has their classes.
NORM_HAS_BIAS: Mapping[str, bool] = {"layernorm": True, "rmsnorm": False, "simplenorm": False}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of ConvNeXts, which is one `model_type` of transformers.

    Attributes:
        model_type: transformers' name of the family.
        class_prefix: The names of transformers' classes start with it.
        layout: The key layout of transformers' weights, a key of `LAYOUTS` in weights/layouts.py.
        use_grn: Whether blocks have Global Response Normalization.
        layer_scale_init_value: Start of the layer scale where none is given; 0 builds none.
        layer_norm_eps: Epsilon of the final norm where none is given (transformers' default).
        single_eps: Whether one epsilon is that of all norms, so that `layer_norm_eps` in a
            config.json is `norm_eps` as well.
        fixed: Fields of `ConvNextConfig` that transformers' class does not have, and the only value
            that it computes with.
        derived: Fields that transformers' config class derives and refuses to read.
        final_norm: What the published recipe makes of the norm after the last stage in a backbone,
            `NORM_DROPPED` or `NORM_OF_STAGE`.
        returns_tokens: Whether the last hidden state is the normed average and pixels of the map,
            and the first one the image.
        written_as: The family of the same network in whose classes backbones and classifiers are
            written, where transformers has neither in this one.
    """

    model_type: str
    class_prefix: str
    layout: str
    use_grn: bool = False
    layer_scale_init_value: float = 1e-6
    layer_norm_eps: float = 1e-12
    single_eps: bool = False
    fixed: Mapping[str, object] = field(default_factory=dict)
    derived: frozenset[str] = frozenset()
    final_norm: str = NORM_DROPPED
    returns_tokens: bool = False
    written_as: str = ""


_FAMILIES = (
    Family(
        model_type="convnext",
        class_prefix="ConvNext",
        layout="huggingface-v1",
        fixed={"kernel_size": 7, "norm_eps": 1e-6},
    ),
    Family(
        model_type="convnextv2",
        class_prefix="ConvNextV2",
        layout="huggingface-v2",
        use_grn=True,
        layer_scale_init_value=0.0,
        fixed={"kernel_size": 7, "norm_eps": 1e-6, "layer_scale_init_value": 0.0},
    ),
    Family(
        model_type="dinov3_convnext",
        class_prefix="DINOv3ConvNext",
        layout="huggingface-dinov3",
        layer_norm_eps=1e-6,
        single_eps=True,
        fixed={"kernel_size": 7, "patch_size": 4},
        derived=frozenset({"num_stages"}),
        final_norm=NORM_OF_STAGE,
        returns_tokens=True,
        written_as="convnext",
    ),
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _FAMILIES}

# Entry of a config.json: the `model_type` of a network that is written as one of another family,
# since transformers has no such class of its own.
ORIGINAL_MODEL_TYPE = "original_model_type"


def stated_model_type(config: Mapping[str, Any], default: Any = None) -> Any:
    """Return the `model_type` that the contents of a config.json state."""
    return config.get(ORIGINAL_MODEL_TYPE, config.get("model_type", default))


_TEST = {"norm_eps": 1e-5, "hidden_act": "gelu_pytorch_tanh"}
_ISOTROPIC = {"stem_type": "patch_no_norm", "patch_size": 16, "layer_scale_init_value": 0.0}
# The sizes. `conv_mlp` is timm's word for pointwise layers that are 1x1 convolutions.
_SIZES: Mapping[str, Mapping[str, object]] = {
    "zepto": {"depths": (2, 2, 4, 2), "hidden_sizes": (32, 64, 128, 256), "conv_mlp": True},
    "atto": {"depths": (2, 2, 6, 2), "hidden_sizes": (40, 80, 160, 320), "conv_mlp": True},
    "femto": {"depths": (2, 2, 6, 2), "hidden_sizes": (48, 96, 192, 384), "conv_mlp": True},
    "pico": {"depths": (2, 2, 6, 2), "hidden_sizes": (64, 128, 256, 512), "conv_mlp": True},
    "nano": {"depths": (2, 2, 8, 2), "hidden_sizes": (80, 160, 320, 640), "conv_mlp": True},
    "tiny": {"depths": (3, 3, 9, 3), "hidden_sizes": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "hidden_sizes": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "hidden_sizes": (128, 256, 512, 1024)},
    "large": {"depths": (3, 3, 27, 3), "hidden_sizes": (192, 384, 768, 1536)},
    "xlarge": {"depths": (3, 3, 27, 3), "hidden_sizes": (256, 512, 1024, 2048)},
    "huge": {"depths": (3, 3, 27, 3), "hidden_sizes": (352, 704, 1408, 2816)},
    "xxlarge": {"depths": (3, 4, 30, 3), "hidden_sizes": (384, 768, 1536, 3072), "norm_eps": 1e-5},
    "test": {"depths": (1, 2, 4, 2), "hidden_sizes": (24, 32, 48, 64), **_TEST},
    "test2": {"depths": (1, 1, 1, 1), "hidden_sizes": (32, 64, 96, 128), **_TEST},
    "iso_small": {"depths": (18,), "hidden_sizes": (384,), **_ISOTROPIC},
    "iso_base": {"depths": (18,), "hidden_sizes": (768,), **_ISOTROPIC},
    "iso_large": {"depths": (36,), "hidden_sizes": (1024,), **_ISOTROPIC},
}


def _row(size: str, family: str = "convnext", **others: object) -> Mapping[str, object]:
    """Return the fields of `ConvNextConfig` of an architecture, and `conv_mlp`."""
    model = FAMILIES[family]
    return {
        "norm_eps": 1e-6,
        "use_grn": model.use_grn,
        "layer_scale_init_value": model.layer_scale_init_value,
        **_SIZES[size],
        **others,
    }


_MOST_SIZES = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
_PLAIN = {
    **{f"convnext_{size}": _row(size) for size in (*_MOST_SIZES, "xlarge", "xxlarge")},
    **{f"convnextv2_{size}": _row(size, "convnextv2") for size in (*_MOST_SIZES, "huge")},
}
_ROWS = {
    **_PLAIN,
    "convnext_zepto_rms": _row("zepto", norm_layer="simplenorm"),
    "convnext_zepto_rms_ols": _row("zepto", norm_layer="simplenorm", stem_type="overlap_act"),
    "convnext_atto_ols": _row("atto", stem_type="overlap_tiered"),
    "convnext_atto_rms": _row("atto", norm_layer="rmsnorm"),
    "convnext_femto_ols": _row("femto", stem_type="overlap_tiered"),
    "convnext_pico_ols": _row("pico", stem_type="overlap_tiered"),
    "convnext_nano_ols": _row("nano", stem_type="overlap"),
    "convnext_tiny_hnf": _row("tiny", head_norm_first=True, conv_mlp=True),
    "convnext_large_mlp": _row("large", head_hidden_size=1536),
    "test_convnext": _row("test"),
    "test_convnext2": _row("test2"),
    "test_convnext3": _row("test2", hidden_act="silu", kernel_size=(7, 5, 5, 3)),
    **{f"convnext_{size}": _row(size) for size in ("iso_small", "iso_base", "iso_large")},
}
ARCHS: Mapping[str, Mapping[str, object]] = {
    arch: {name: value for name, value in row.items() if name != "conv_mlp"}
    for arch, row in _ROWS.items()
}
# The architectures whose pointwise layers are 1x1 convolutions in timm.
CONV_MLP = tuple(arch for arch, row in _ROWS.items() if row.get("conv_mlp"))
# Fields that the tensors of a file do not show, and their values in most architectures.
NOT_IN_TENSORS: Mapping[str, object] = {
    "norm_eps": 1e-6,
    "hidden_act": "gelu",
    "norm_layer": "layernorm",
}
# What most architectures have, and their rows leave out.
ARCH_DEFAULTS: Mapping[str, Any] = {
    **NOT_IN_TENSORS,
    "num_channels": 3,
    "use_grn": False,
    "patch_size": 4,
    "kernel_size": 7,
    "stem_type": "patch",
    "conv_bias": True,
    "head_norm_first": False,
    "head_hidden_size": 0,
}


def fields_not_in_tensors(arch: str | None) -> dict[str, Any]:
    """Return what the tensors of an architecture do not show of it; {} for an unknown one."""
    fields = ARCHS.get(arch or "")
    return {} if fields is None else {k: fields.get(k, v) for k, v in NOT_IN_TENSORS.items()}


def list_archs(*, variants: bool = False) -> tuple[str, ...]:
    """Name the architectures that `arch=` accepts, smallest first within a family.

    Args:
        variants: Name those of other stems, norms or heads, timm's models for tests and the
            isotropic networks as well.

    Example:
        >>> list_archs()[:2]
        ('convnext_atto', 'convnext_femto')
    """
    return tuple(ARCHS if variants else _PLAIN)


def arch_fields(arch: str) -> dict[str, object]:
    """Return the `ConvNextConfig` fields of a named architecture.

    Raises:
        ValueError: `arch` is not in `list_archs(variants=True)`.
    """
    if not isinstance(arch, str) or arch not in ARCHS:
        hint = did_you_mean(arch, ARCHS)
        if isinstance(arch, str) and re.search(r"[./]", arch):
            hint = f"; weights are loaded by from_pretrained({arch!r}), or by init_cfg in a config"
        choices = f"one of {list_archs()} or a variant of list_archs(variants=True)"
        raise ValueError(f"arch must be {choices}, got {arch!r}{hint}")
    return dict(ARCHS[arch])


# ------------------------------------------------------------------------------ shapes


def half_width(width: int) -> int:
    """Return half the width, as a multiple of 8 that is at least nine tenths of it, as timm does.

    Source: `make_divisible` of timm (layers/helpers.py).
    """
    half = width // 2
    rounded = max(8, (half + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * half else rounded


def _stem_shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every native weight of the stem of an architecture."""
    c, channels, stem_type = fields["hidden_sizes"][0], fields["num_channels"], fields["stem_type"]
    if stem_type.startswith("patch"):
        side = fields["patch_size"]
        shapes: list[tuple[int, ...]] = [(c, channels, side, side)]
    else:
        middle = half_width(c) if stem_type == "overlap_tiered" else c
        shapes = [(middle, channels, 3, 3), (c, middle, 3, 3)]
    shapes += [] if stem_type == "patch_no_norm" else [(c,)]
    places = (0, 2, 3) if stem_type == "overlap_act" else range(3)
    return {f"downsample_layers.0.{i}": shape for i, shape in zip(places, shapes, strict=False)}


def trunk_shapes(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every native tensor of the stem and the stages of an architecture."""
    widths, depths, kernels = fields["hidden_sizes"], fields["depths"], fields["kernel_size"]
    kernels = (kernels,) * len(depths) if isinstance(kernels, int) else kernels
    weights, shapes = _stem_shapes(fields), dict[str, tuple[int, ...]]()
    for stage, (c, depth, k) in enumerate(zip(widths, depths, kernels, strict=True)):
        if stage > 0:
            before = widths[stage - 1]
            weights[f"downsample_layers.{stage}.0"] = (before,)
            weights[f"downsample_layers.{stage}.1"] = (c, before, 2, 2)
        for block in (f"stages.{stage}.{index}" for index in range(depth)):
            weights |= {f"{block}.dwconv": (c, 1, k, k), f"{block}.norm": (c,)}
            weights |= {f"{block}.pwconv1": (4 * c, c), f"{block}.pwconv2": (c, 4 * c)}
            if fields["layer_scale_init_value"]:
                shapes[f"{block}.gamma"] = (c,)
            if fields["use_grn"]:
                shapes |= {f"{block}.grn.{name}": (4 * c,) for name in ("gamma", "beta")}
    has_bias = {1: NORM_HAS_BIAS[fields["norm_layer"]], 2: True, 4: fields["conv_bias"]}
    for layer, shape in weights.items():
        shapes[f"{layer}.weight"] = shape
        if has_bias[len(shape)]:
            shapes[f"{layer}.bias"] = shape[:1]
    return shapes
