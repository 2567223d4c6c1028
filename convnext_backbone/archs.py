"""The families and the named architectures, as data.

Papers: ConvNeXt (Liu et al. 2022, arXiv 2201.03545, section 2) for V1, ConvNeXt V2 (Woo et al.
2023, arXiv 2301.00808, appendix A.1) for V2. Names of architectures are timm's without the tag; the
V1 sizes below tiny are timm's, xxlarge is OpenCLIP's. DINOv3's ConvNeXts are V1's tiny to large.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Where the norm after the last stage goes in a backbone, by the published recipe.
DROP, STAGE = "drop", "stage"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of ConvNeXts, which is one `model_type` of transformers.

    Attributes:
        model_type: transformers' name of the family.
        class_prefix: The names of transformers' classes start with it.
        layout: The key layout of transformers' weights, a key of `weights.LAYOUTS`.
        use_grn: Whether blocks have Global Response Normalization.
        layer_scale_init_value: Start of the layer scale where none is given; 0 builds none.
        layer_norm_eps: Epsilon of the final norm where none is given (transformers' default).
        single_eps: Whether one epsilon is that of all norms, so that `layer_norm_eps` in a
            config.json is `norm_eps` as well.
        fixed: Fields of `ConvNextConfig` that transformers' class does not have, and the only value
            that it computes with.
        derived: Fields that transformers' config class derives and refuses to read.
        final_norm: `STAGE` where the norm after the last stage is the norm of that stage's output
            in a backbone, `DROP` where the published recipe leaves it out.
        model_only: Whether transformers has neither a backbone with norms of outputs nor a
            classifier of the family; both are written as "convnext", which is the same network.
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
    final_norm: str = DROP
    model_only: bool = False


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
        final_norm=STAGE,
        model_only=True,
    ),
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _FAMILIES}

# size: (depths, hidden_sizes)
_SIZES = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "huge": ((3, 3, 27, 3), (352, 704, 1408, 2816)),
    "xxlarge": ((3, 4, 30, 3), (384, 768, 1536, 3072)),
}
_MOST_SIZES = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
_SIZES_OF = {
    "convnext": (*_MOST_SIZES, "xlarge", "xxlarge"),
    "convnextv2": (*_MOST_SIZES, "huge"),
}
_NORM_EPS = {"xxlarge": 1e-5}  # the only size trained with another epsilon

ARCHS: Mapping[str, Mapping[str, object]] = {
    f"{model_type}_{size}": {
        "depths": _SIZES[size][0],
        "hidden_sizes": _SIZES[size][1],
        "norm_eps": _NORM_EPS.get(size, 1e-6),
        "use_grn": FAMILIES[model_type].use_grn,
        "layer_scale_init_value": FAMILIES[model_type].layer_scale_init_value,
    }
    for model_type, sizes in _SIZES_OF.items()
    for size in sizes
}


def list_archs() -> tuple[str, ...]:
    """Name every architecture that `arch=` accepts, smallest first within a family.

    Example:
        >>> list_archs()[:2]
        ('convnext_atto', 'convnext_femto')
    """
    return tuple(ARCHS)


def arch_fields(arch: str) -> dict[str, object]:
    """Return the `ConvNextConfig` fields of a named architecture.

    Raises:
        ValueError: `arch` is not in `list_archs()`.
    """
    if not isinstance(arch, str) or arch not in ARCHS:
        raise ValueError(f"arch must be one of {list_archs()}, got {arch!r}")
    return dict(ARCHS[arch])
