"""The architectures that have a name, as data.

Names are timm's without the tag. Papers: ConvNeXt (Liu et al. 2022, arXiv 2201.03545, section 2)
for V1, ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808, appendix A.1) for V2; the V1 sizes below
tiny are timm's, xxlarge is OpenCLIP's. DINOv3's ConvNeXts are V1's tiny to large.
"""

from collections.abc import Mapping
from types import MappingProxyType

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
# family: (what sets it apart, its sizes)
_FAMILIES = {
    "convnext": (
        {"use_grn": False, "layer_scale_init_value": 1e-6},
        ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge", "xxlarge"),
    ),
    "convnextv2": (
        {"use_grn": True, "layer_scale_init_value": 0.0},
        ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "huge"),
    ),
}
_NORM_EPS = {"xxlarge": 1e-5}  # the only size trained with another epsilon

ARCHS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        f"{family}_{size}": MappingProxyType(
            {
                "depths": _SIZES[size][0],
                "hidden_sizes": _SIZES[size][1],
                "norm_eps": _NORM_EPS.get(size, 1e-6),
                **settings,
            }
        )
        for family, (settings, sizes) in _FAMILIES.items()
        for size in sizes
    }
)


def list_archs() -> tuple[str, ...]:
    """Name every architecture that `arch=` accepts, smallest first within a family."""
    return tuple(ARCHS)


def arch_fields(arch: str) -> dict[str, object]:
    """Return the `ConvNextConfig` fields of a named architecture.

    Raises:
        ValueError: `arch` is not in `list_archs()`.
    """
    if not isinstance(arch, str) or arch not in ARCHS:
        raise ValueError(f"arch must be one of {list_archs()}, got {arch!r}")
    return dict(ARCHS[arch])
