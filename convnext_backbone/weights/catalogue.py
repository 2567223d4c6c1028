"""Every public ConvNeXt weight as `arch.tag`: its address, its licence and its preprocessing.

Tags follow timm where timm has the weight. Others start with a publisher: `fb_` facebookresearch,
`hf_` transformers on the Hugging Face hub, `tv_` torchvision, `keras_`, `mm_` OpenMMLab.
Sources: the READMEs and licences of facebookresearch/ConvNeXt, ConvNeXt-V2 and dinov3, timm 1.0.31
`default_cfgs`, torchvision's and keras.applications' tables, the metafiles of mmpretrain 1.2.0,
mmdet 3.3.0 and mmsegmentation 1.2.2. The weights are not part of this package and keep their own
licences; those of V2 and of EUPE are for non-commercial use.
"""

import fnmatch
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

MIT, APACHE, BSD = "MIT", "Apache-2.0", "BSD-3-Clause"
CC_BY_NC, FAIR_NC, DINOV3 = "CC-BY-NC-4.0", "FAIR-Noncommercial-Research-License", "DINOv3-License"
UNSTATED = "see the model card"
NON_COMMERCIAL = (CC_BY_NC, FAIR_NC)

# Fields of a timm architecture that its tensors and keys do not show.
_EPS_1E5 = {"norm_eps": 1e-5, "layer_norm_eps": 1e-5}
TIMM_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "convnext_xxlarge": _EPS_1E5,
    **{f"test_convnext{n}": {**_EPS_1E5, "hidden_act": "gelu_pytorch_tanh"} for n in ("", 2, 3)},
}


@dataclass(frozen=True)
class WeightEntry:
    """One public weight.

    Attributes:
        name: `arch.tag`.
        licence: The licence of the weights.
        data: What they were trained on, in the order of training.
        url: The address of the file; "" where it is on the hub alone or has no public link.
        hub_id: The Hugging Face id, or "".
        input_size: Side of the images at evaluation, in pixels.
        mean: Mean of each channel of an image in 0..1.
        std: Standard deviation of each channel.
        interpolation: How images are resized.
        crop_pct: Side of the crop over the short side of the resized image; None: not published.
        crop_mode: "center", or "squash" to resize both sides without a crop.
        num_classes: Classes of the head; 0 without one.
        task: "classification", "features", "detection" or "segmentation".
        gated: The hub asks to accept a licence and to be logged in.
        unsupported: Why `ConvNextBackbone` cannot hold it, or "".
        fields: Fields of `ConvNextConfig` that the tensors do not show.
        file_name: The name of a file that has no link.
    """

    name: str
    licence: str
    data: str
    url: str = ""
    hub_id: str = ""
    input_size: int = 224
    mean: tuple[float, ...] = _IMAGENET[0]
    std: tuple[float, ...] = _IMAGENET[1]
    interpolation: str = "bicubic"
    crop_pct: float | None = 0.875
    crop_mode: str = "center"
    num_classes: int = 1000
    task: str = "classification"
    gated: bool = False
    unsupported: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    file_name: str = ""

    @property
    def arch(self) -> str:
        """The architecture, the part of the name before the first dot."""
        return self.name.partition(".")[0]

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return self.licence in NON_COMMERCIAL

    @property
    def sha256(self) -> str:
        """The first digits of the file's SHA-256 where its name has them, or ""."""
        return hash_in_name(self.url or self.file_name)

    def warn_once(self) -> None:
        """Warn once of a licence that asks for more than to be passed on."""
        if self.name in _WARNED or not (self.non_commercial or self.licence == DINOV3):
            return
        _WARNED.add(self.name)
        what = "non-commercial use only" if self.non_commercial else "conditions on use and sharing"
        message = f"{self.name}: these weights are under {self.licence}: {what}"
        warnings.warn(message, stacklevel=4)


_WARNED: set[str] = set()
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z0-9.]+$")


def hash_in_name(name: str) -> str:
    """Return the SHA-256 digits that a file's name ends with, as torch.hub and OpenMMLab write it.

    Eight decimal digits are a date.
    """
    found = _HASH.search(name)
    return found[1] if found and not found[1].isdigit() else ""


# ------------------------------------------------------------------------------ presets

_AT_224: dict[str, Any] = {"crop_pct": 0.875}
_AT_384: dict[str, Any] = {"input_size": 384, "crop_pct": 1.0, "crop_mode": "squash"}
_AT_512: dict[str, Any] = {**_AT_384, "input_size": 512}
_AT: Mapping[int, dict[str, Any]] = {224: _AT_224, 384: _AT_384, 512: _AT_512}
_CROP_95: dict[str, Any] = {"crop_pct": 0.95}
_FEATURES: dict[str, Any] = {"task": "features", "num_classes": 0}
_DINO: dict[str, Any] = {
    **_FEATURES,
    "crop_pct": 1.0,
    "licence": DINOV3,
    "data": "LVD-1689M",
    "fields": {"model_type": "dinov3_convnext"},
}
_IN1K, _IN22K, _IN12K = "ImageNet-1k", "ImageNet-22k", "ImageNet-12k"

_FB = "https://dl.fbaipublicfiles.com/convnext"
_RSB = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-rsb-weights"
_MM = "https://download.openmmlab.com"
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/convnext"
_OVERLAP = "its stem is several overlapping convolutions"
_RMS = "its norms have no bias"
_ISOTROPIC = "it is isotropic: one stage at stride 16, no norm after the stem"
_V2_SIZES = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
_V2_22K = {
    **dict.fromkeys(("nano", "tiny", "base", "large"), (224, 384)),
    "huge": (384, 512),
}

Entries = Iterator[WeightEntry]


def _suffix(size: int) -> str:
    return "" if size == 224 else f"_{size}"


# One entry a statement reads better than one argument a line.
# fmt: off

# ------------------------------------------------------------------------------ facebookresearch


def _facebook_v1() -> Entries:
    for size in ("tiny", "small", "base", "large"):
        yield WeightEntry(f"convnext_{size}.fb_in1k", MIT, _IN1K,
                          f"{_FB}/convnext_{size}_1k_224_ema.pth")
    for size in ("tiny", "small", "base"):  # what all published detectors and segmentors start from
        yield WeightEntry(f"convnext_{size}.fb_in1k_noema", MIT, _IN1K,
                          f"{_FB}/convnext_{size}_1k_224.pth")
    for size in ("base", "large"):
        yield WeightEntry(f"convnext_{size}.fb_in1k_384", MIT, _IN1K,
                          f"{_FB}/convnext_{size}_1k_384.pth", **_AT_384)
    for size in ("tiny", "small", "base", "large", "xlarge"):
        ema = "_ema" if size == "xlarge" else ""
        yield WeightEntry(f"convnext_{size}.fb_in22k", MIT, _IN22K,
                          f"{_FB}/convnext_{size}_22k_224.pth", num_classes=21841)
        for pixels in (224, 384):
            yield WeightEntry(f"convnext_{size}.fb_in22k_ft_in1k{_suffix(pixels)}", MIT,
                              f"{_IN22K}, {_IN1K}",
                              f"{_FB}/convnext_{size}_22k_1k_{pixels}{ema}.pth", **_AT[pixels])
    for size in ("small", "base", "large"):
        yield WeightEntry(f"convnext_iso_{size}.fb_in1k", MIT, _IN1K,
                          f"{_FB}/convnext_iso_{size}_1k_224_ema.pth", unsupported=_ISOTROPIC)


def _facebook_dense() -> Entries:
    detectors = {
        "mask_rcnn": ("tiny_1k",),
        "cascade_mask_rcnn": ("tiny_1k", "small_1k", "base_1k", "base_22k", "large_22k",
                              "xlarge_22k"),
    }
    for method, models in detectors.items():
        for model in models:
            size, data = model.split("_")
            yield WeightEntry(f"convnext_{size}.fb_in{data}_coco_{method}", MIT,
                              f"ImageNet-{data}, COCO",
                              f"{_FB}/coco/{method}_convnext_{model}_3x.pth",
                              input_size=800, crop_pct=None, num_classes=80, task="detection")
    for model in ("tiny_1k_512", "small_1k_512", "base_1k_512", "base_22k_640", "large_22k_640",
                  "xlarge_22k_640"):
        size, data, pixels = model.split("_")
        yield WeightEntry(f"convnext_{size}.fb_in{data}_ade20k_upernet", MIT,
                          f"ImageNet-{data}, ADE20K",
                          f"{_FB}/ade20k/upernet_convnext_{model}x{pixels}.pth",
                          input_size=int(pixels), crop_pct=None, num_classes=150,
                          task="segmentation")


def _facebook_v2() -> Entries:
    base = f"{_FB}/convnextv2"
    for size in _V2_SIZES:
        yield WeightEntry(f"convnextv2_{size}.fcmae", CC_BY_NC, f"{_IN1K} without labels",
                          f"{base}/pt_only/convnextv2_{size}_1k_224_fcmae.pt", **_FEATURES)
        yield WeightEntry(f"convnextv2_{size}.fcmae_ft_in1k", CC_BY_NC, _IN1K,
                          f"{base}/im1k/convnextv2_{size}_1k_224_ema.pt")
    for size, all_pixels in _V2_22K.items():
        for pixels in all_pixels:
            yield WeightEntry(f"convnextv2_{size}.fcmae_ft_in22k_in1k{_suffix(pixels)}", CC_BY_NC,
                              f"{_IN1K} without labels, {_IN22K}, {_IN1K}",
                              f"{base}/im22k/convnextv2_{size}_22k_{pixels}_ema.pt", **_AT[pixels])


def _facebook_dinov3() -> Entries:
    hashes = {"tiny": "21b726bb", "small": "296db49d", "base": "801f2ba9", "large": "61fa432d"}
    for size, digits in hashes.items():
        # Links come by mail after a form: ai.meta.com/resources/models-and-libraries.
        yield WeightEntry(f"convnext_{size}.fb_dinov3_lvd1689m", gated=True,
                          file_name=f"dinov3_convnext_{size}_pretrain_lvd1689m-{digits}.pth",
                          **_DINO)
        yield WeightEntry(f"convnext_{size}.hf_dinov3_lvd1689m", gated=True,
                          hub_id=f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m",
                          **{**_DINO, "interpolation": "bilinear"})


# ------------------------------------------------------------------------------ Hugging Face


def _huggingface() -> Entries:
    for size in ("tiny", "small", "base", "large"):
        yield WeightEntry(f"convnext_{size}.hf_in1k", APACHE, _IN1K,
                          hub_id=f"facebook/convnext-{size}-224")
    for size in ("base", "large"):
        yield WeightEntry(f"convnext_{size}.hf_in1k_384", APACHE, _IN1K,
                          hub_id=f"facebook/convnext-{size}-384", **_AT_384)
    for size in ("base", "large", "xlarge"):
        yield WeightEntry(f"convnext_{size}.hf_in22k", APACHE, _IN22K,
                          hub_id=f"facebook/convnext-{size}-224-22k", num_classes=21841)
        for pixels in (224, 384):
            yield WeightEntry(f"convnext_{size}.hf_in22k_ft_in1k{_suffix(pixels)}", APACHE,
                              f"{_IN22K}, {_IN1K}",
                              hub_id=f"facebook/convnext-{size}-{pixels}-22k-1k", **_AT[pixels])
    for size in _V2_SIZES:
        yield WeightEntry(f"convnextv2_{size}.hf_fcmae_ft_in1k", CC_BY_NC, _IN1K,
                          hub_id=f"facebook/convnextv2-{size}-1k-224")
    for size, all_pixels in _V2_22K.items():
        for pixels in all_pixels:
            yield WeightEntry(f"convnextv2_{size}.hf_fcmae_ft_in22k_in1k{_suffix(pixels)}",
                              CC_BY_NC, f"{_IN1K} without labels, {_IN22K}, {_IN1K}",
                              hub_id=f"facebook/convnextv2-{size}-22k-{pixels}", **_AT[pixels])
    for size in ("tiny", "small", "base", "large", "xlarge"):
        yield WeightEntry(f"convnext_{size}.hf_ade20k_upernet", UNSTATED, "ADE20K",
                          hub_id=f"openmmlab/upernet-convnext-{size}", input_size=512,
                          crop_pct=None, num_classes=150, task="segmentation")


# ------------------------------------------------------------------------------ timm

_TIMM_320: dict[str, Any] = {"input_size": 320, "crop_pct": 1.0}
_TIMM_384: dict[str, Any] = {"input_size": 384, "crop_pct": 1.0}
_TIMM_256: dict[str, Any] = {"input_size": 256, "crop_pct": 1.0}
# Weights that timm trained, by architecture and tag; a file name where it is not on the hub alone.
_TIMM_OWN: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"convnext_{size}.{tag}": (data, "", settings)
        for size in ("tiny", "small", "nano")
        for tag, data, settings in (
            ("in12k_ft_in1k", f"{_IN12K}, {_IN1K}", _CROP_95),
            ("in12k", _IN12K, {**_CROP_95, "num_classes": 11821}),
        )
    },
    **{
        f"convnext_{size}.in12k_ft_in1k_384": (f"{_IN12K}, {_IN1K}", "", _AT_384)
        for size in ("tiny", "small")
    },
    "convnext_nano.r384_in12k_ft_in1k": (f"{_IN12K}, {_IN1K}", "", _TIMM_384),
    "convnext_nano.r384_in12k": (_IN12K, "", {**_TIMM_384, "num_classes": 11821}),
    "convnext_nano.r384_ad_in12k": (_IN12K, "", {**_TIMM_384, "num_classes": 11821}),
    "convnext_nano.d1h_in1k": (_IN1K, "convnext_nano_d1h-7eb4bdea.pth", _CROP_95),
    "convnext_atto.d2_in1k": (_IN1K, "convnext_atto_d2-01bb0f51.pth", _AT_224),
    "convnext_femto.d1_in1k": (_IN1K, "convnext_femto_d1-d71d5b4c.pth", _AT_224),
    "convnext_pico.d1_in1k": (_IN1K, "convnext_pico_d1-10ad7f0d.pth", _AT_224),
    "convnext_tiny_hnf.a2h_in1k": (_IN1K, "convnext_tiny_hnf_a2h-ab7e9df2.pth", _CROP_95),
    "convnext_atto_ols.a2_in1k": (
        _IN1K, "convnext_atto_ols_a2-78d1c8f3.pth", {**_AT_224, "unsupported": _OVERLAP}),
    "convnext_femto_ols.d1_in1k": (
        _IN1K, "convnext_femto_ols_d1-246bf2ed.pth", {**_AT_224, "unsupported": _OVERLAP}),
    "convnext_pico_ols.d1_in1k": (
        _IN1K, "convnext_pico_ols_d1-611f0ca7.pth", {**_CROP_95, "unsupported": _OVERLAP}),
    "convnext_nano_ols.d1h_in1k": (
        _IN1K, "convnext_nano_ols_d1h-ae424a9a.pth", {**_CROP_95, "unsupported": _OVERLAP}),
}
# CLIP image towers: architecture -> tag -> settings beside those of CLIP.
_LAION = "LAION-2B"
_CLIP_TAGS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "convnext_base": {
        "clip_laion2b_augreg_ft_in12k_in1k": _TIMM_256,
        "clip_laion2b_augreg_ft_in12k_in1k_384": _AT_384,
        "clip_laion2b_augreg_ft_in1k": _TIMM_256,
        "clip_laiona_augreg_ft_in1k_384": _TIMM_384,
        "clip_laion2b_augreg_ft_in12k": {**_TIMM_256, "num_classes": 11821},
        "clip_laion2b": {**_TIMM_256, "num_classes": 640},
        "clip_laion2b_augreg": {**_TIMM_256, "num_classes": 640},
        "clip_laiona": {**_TIMM_256, "num_classes": 640},
        "clip_laiona_320": {**_TIMM_320, "num_classes": 640},
        "clip_laiona_augreg_320": {**_TIMM_320, "num_classes": 640},
    },
    "convnext_large_mlp": {
        "clip_laion2b_soup_ft_in12k_in1k_320": _TIMM_320,
        "clip_laion2b_soup_ft_in12k_in1k_384": _AT_384,
        "clip_laion2b_augreg_ft_in1k": _TIMM_256,
        "clip_laion2b_augreg_ft_in1k_384": _AT_384,
        "clip_laion2b_soup_ft_in12k_320": {**_TIMM_320, "num_classes": 11821},
        "clip_laion2b_augreg_ft_in12k_384": {**_AT_384, "num_classes": 11821},
        "clip_laion2b_soup_ft_in12k_384": {**_AT_384, "num_classes": 11821},
        "clip_laion2b_augreg": {**_TIMM_256, "num_classes": 768},
        "clip_laion2b_ft_320": {**_TIMM_320, "num_classes": 768},
        "clip_laion2b_ft_soup_320": {**_TIMM_320, "num_classes": 768},
    },
    "convnext_xxlarge": {
        "clip_laion2b_soup_ft_in1k": _TIMM_256,
        "clip_laion2b_soup_ft_in12k": {**_TIMM_256, "num_classes": 11821},
        "clip_laion2b_soup": {**_TIMM_256, "num_classes": 1024},
        "clip_laion2b_rewind": {**_TIMM_256, "num_classes": 1024},
    },
}


def _clip_data(tag: str) -> str:
    parts = ["LAION-Aesthetics" if "laiona" in tag else _LAION]
    parts += [name for word, name in (("_in12k", _IN12K), ("_in1k", _IN1K)) if word in tag]
    return ", ".join(parts)


def _timm() -> Entries:
    for name, (data, file, settings) in _TIMM_OWN.items():
        yield WeightEntry(name, APACHE, data, url=f"{_RSB}/{file}" if file else "",
                          hub_id=f"timm/{name}", **settings)
    for arch, tags in _CLIP_TAGS.items():
        for tag, settings in tags.items():
            name = f"{arch}.{tag}"
            yield WeightEntry(name, APACHE, _clip_data(tag), hub_id=f"timm/{name}",
                              mean=_CLIP[0], std=_CLIP[1], fields=TIMM_FIELDS.get(arch, {}),
                              **settings)
    for size in ("tiny", "small", "base", "large"):
        name = f"convnext_{size}.dinov3_lvd1689m"
        yield WeightEntry(name, hub_id=f"timm/{name}", **_DINO)
    for size in ("tiny", "small", "base"):
        name = f"convnext_{size}.eupe_lvd1689m"
        yield WeightEntry(name, FAIR_NC, "LVD-1689M", hub_id=f"timm/{name}", input_size=256,
                          **{**_FEATURES, "crop_pct": 1.0})
    half: dict[str, Any] = {"mean": _HALF[0], "std": _HALF[1]}
    for arch, crop in (("zepto_rms", 0.875), ("zepto_rms_ols", 0.9)):
        name = f"convnext_{arch}.ra4_e3600_r224_in1k"
        yield WeightEntry(name, APACHE, _IN1K, hub_id=f"timm/{name}", crop_pct=crop,
                          unsupported=_RMS, **half)
    for number in ("", "2", "3"):
        arch = f"test_convnext{number}"
        name = f"{arch}.r160_in1k"
        yield WeightEntry(name, APACHE, _IN1K, hub_id=f"timm/{name}", input_size=160, crop_pct=0.95,
                          fields=TIMM_FIELDS[arch], **half)


# ------------------------------------------------------------------------------ the others


def _torchvision() -> Entries:
    files = {"tiny": ("983f1562", 236), "small": ("0c510722", 230), "base": ("6075fbad", 232),
             "large": ("ea097f82", 232)}
    for size, (digits, resize) in files.items():
        yield WeightEntry(f"convnext_{size}.tv_in1k", BSD, _IN1K,
                          f"https://download.pytorch.org/models/convnext_{size}-{digits}.pth",
                          interpolation="bilinear", crop_pct=224 / resize)


def _keras() -> Entries:
    for size in ("tiny", "small", "base", "large", "xlarge"):
        small = size in ("tiny", "small")
        tag, data = ("in1k", _IN1K) if small else ("in22k_ft_in1k", f"{_IN22K}, {_IN1K}")
        yield WeightEntry(f"convnext_{size}.keras_{tag}", APACHE, data,
                          f"{_KERAS}/convnext_{size}.h5", crop_pct=None)
        yield WeightEntry(f"convnext_{size}.keras_{tag}_notop", APACHE, data,
                          f"{_KERAS}/convnext_{size}_notop.h5", **{**_FEATURES, "crop_pct": None})


# tag -> data, settings
_MM_TAGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "in1k": (_IN1K, _AT_224),
    "in1k_noema": (_IN1K, _AT_224),
    "fb_in1k": (_IN1K, _AT_224),
    "fb_in1k_noema": (_IN1K, _AT_224),
    "fb_in1k_384": (_IN1K, _AT_384),
    "fb_in21k": ("ImageNet-21k", {"num_classes": 21841}),
    "fb_in21k_ft_in1k": (f"ImageNet-21k, {_IN1K}", _AT_224),
    "fb_in21k_ft_in1k_384": (f"ImageNet-21k, {_IN1K}", _AT_384),
    "fcmae": (f"{_IN1K} without labels", _FEATURES),
    "fcmae_ft_in1k": (_IN1K, _AT_224),
    "fcmae_ft_in21k_in1k": (f"{_IN1K} without labels, ImageNet-21k, {_IN1K}", _AT_224),
    "fcmae_ft_in21k_in1k_384": (f"{_IN1K} without labels, ImageNet-21k, {_IN1K}", _AT_384),
    "fcmae_ft_in21k_in1k_512": (f"{_IN1K} without labels, ImageNet-21k, {_IN1K}", _AT_512),
    "downstream_in1k": (_IN1K, _FEATURES),
    "downstream_in21k": ("ImageNet-21k", _FEATURES),
}
# architecture -> tag -> file below mmclassification/v0/, without the architecture and ".pth"
_MM_V1: Mapping[str, Mapping[str, str]] = {
    "tiny": {
        "in1k": "32xb128_in1k_20221207-998cf3e9",
        "in1k_noema": "32xb128-noema_in1k_20221208-5d4509c7",
        "fb_in21k_ft_in1k": "in21k-pre_3rdparty_in1k_20221219-7501e534",
        "fb_in21k_ft_in1k_384": "in21k-pre_3rdparty_in1k-384px_20221219-c1182362",
        "downstream_in1k": "3rdparty_32xb128-noema_in1k_20220301-795e9634",
    },
    "small": {
        "in1k": "32xb128_in1k_20221207-4ab7052c",
        "in1k_noema": "32xb128-noema_in1k_20221208-4a618995",
        "fb_in21k_ft_in1k": "in21k-pre_3rdparty_in1k_20221219-aeca4c93",
        "fb_in21k_ft_in1k_384": "in21k-pre_3rdparty_in1k-384px_20221219-96f0bb87",
        "downstream_in1k": "3rdparty_32xb128-noema_in1k_20220301-303e75e3",
    },
    "base": {
        "in1k": "32xb128_in1k_20221207-fbdb5eb9",
        "in1k_noema": "32xb128-noema_in1k_20221208-f8182678",
        "fb_in1k": "3rdparty_32xb128_in1k_20220124-d0915162",
        "fb_in1k_noema": "3rdparty_32xb128-noema_in1k_20220222-dba4f95f",
        "fb_in1k_384": "3rdparty_in1k-384px_20221219-c8f1dc2b",
        "fb_in21k": "3rdparty_in21k_20220124-13b83eec",
        "fb_in21k_ft_in1k": "in21k-pre-3rdparty_32xb128_in1k_20220124-eb2d6ada",
        "fb_in21k_ft_in1k_384": "in21k-pre-3rdparty_in1k-384px_20221219-4570f792",
        "downstream_in1k": "3rdparty_32xb128-noema_in1k_20220301-2a0ee547",
        "downstream_in21k": "3rdparty_in21k_20220301-262fd037",
    },
    "large": {
        "fb_in1k": "3rdparty_64xb64_in1k_20220124-f8a0ded0",
        "fb_in1k_384": "3rdparty_in1k-384px_20221219-6dd29d10",
        "fb_in21k": "3rdparty_in21k_20220124-41b5a79f",
        "fb_in21k_ft_in1k": "in21k-pre-3rdparty_64xb64_in1k_20220124-2412403d",
        "fb_in21k_ft_in1k_384": "in21k-pre-3rdparty_in1k-384px_20221219-6d38dd66",
        "downstream_in21k": "3rdparty_in21k_20220301-e6e0ea0a",
    },
    "xlarge": {
        "fb_in21k": "3rdparty_in21k_20220124-f909bad7",
        "fb_in21k_ft_in1k": "in21k-pre-3rdparty_64xb64_in1k_20220124-76b6863d",
        "fb_in21k_ft_in1k_384": "in21k-pre-3rdparty_in1k-384px_20221219-b161bc14",
        "downstream_in21k": "3rdparty_in21k_20220301-08aa5ddc",
    },
}
# tag -> the part of the file's name -> architecture -> hash
_MM_V2: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "fcmae": ("3rdparty-fcmae_in1k", {
        "atto": "07514db4", "femto": "adbe2082", "pico": "147b1b59", "nano": "3dd1f29e",
        "tiny": "80513adc", "base": "8a798eaf", "large": "bf38df92", "huge": "fe43ae6c"}),
    "fcmae_ft_in1k": ("fcmae-pre_3rdparty_in1k", {
        "atto": "23765f83", "femto": "92a75d75", "pico": "d20263ca", "nano": "fe1aaaf2",
        "tiny": "471a86de", "base": "00a70fa4", "large": "ef393013", "huge": "f795e5b8"}),
    "fcmae_ft_in21k_in1k": ("fcmae-in21k-pre_3rdparty_in1k", {
        "nano": "91fa8ae2", "tiny": "8cc8b8f2", "base": "c48d16a5", "large": "d9c4dc0c"}),
    "fcmae_ft_in21k_in1k_384": ("fcmae-in21k-pre_3rdparty_in1k-384px", {
        "nano": "f951ae87", "tiny": "d8579f84", "base": "379425cc", "large": "9139a1f3",
        "huge": "02a4eb35"}),
    "fcmae_ft_in21k_in1k_512": ("fcmae-in21k-pre_3rdparty_in1k-512px", {"huge": "ce32e63c"}),
}
_MM_COCO = {
    "convnext_tiny.mm_coco_mask_rcnn":
        ("mask_rcnn_convnext-t_p4_w7_fpn_fp16_ms-crop_3x_coco", "20220426_154953-050731f4"),
    "convnext_tiny.mm_coco_cascade_mask_rcnn":
        ("cascade_mask_rcnn_convnext-t_p4_w7_fpn_giou_4conv1f_fp16_ms-crop_3x_coco",
         "20220509_204200-8f07c40b"),
    "convnext_small.mm_coco_cascade_mask_rcnn":
        ("cascade_mask_rcnn_convnext-s_p4_w7_fpn_giou_4conv1f_fp16_ms-crop_3x_coco",
         "20220510_201004-3d24f5a4"),
}
_MM_ADE = {
    "tiny_512": "20220227_124553-cad485de",
    "small_512": "20220227_131208-1b1e394f",
    "base_512": "20220227_181227-02a24fc6",
    "base_640": "20220227_182859-9280e39b",
    "large_640": "20220226_040532-e57aa54d",
    "xlarge_640": "20220226_080344-95fc38c2",
}


def _openmmlab() -> Entries:
    classification = f"{_MM}/mmclassification/v0"
    for size, files in _MM_V1.items():
        for tag, file in files.items():
            data, settings = _MM_TAGS[tag]
            folder = "convnext/downstream" if tag.startswith("downstream") else "convnext"
            yield WeightEntry(f"convnext_{size}.mm_{tag}", APACHE, data,
                              f"{classification}/{folder}/convnext-{size}_{file}.pth", **settings)
    for tag, (part, hashes) in _MM_V2.items():
        data, settings = _MM_TAGS[tag]
        for size, digits in hashes.items():
            file = f"convnext-v2-{size}_{part}_20230104-{digits}.pth"
            yield WeightEntry(f"convnextv2_{size}.mm_{tag}", CC_BY_NC, data,
                              f"{classification}/convnext-v2/{file}", **settings)
    for name, (folder, tail) in _MM_COCO.items():
        yield WeightEntry(name, APACHE, f"{_IN1K}, COCO",
                          f"{_MM}/mmdetection/v2.0/convnext/{folder}/{folder}_{tail}.pth",
                          input_size=800, crop_pct=None, num_classes=80, task="detection")
    for model, tail in _MM_ADE.items():
        size, pixels = model.split("_")
        folder = f"upernet_convnext_{size}_fp16_{pixels}x{pixels}_160k_ade20k"
        start = "ImageNet-22k" if pixels == "640" else _IN1K
        yield WeightEntry(f"convnext_{size}.mm_ade20k_upernet_{pixels}", APACHE, f"{start}, ADE20K",
                          f"{_MM}/mmsegmentation/v0.5/convnext/{folder}/{folder}_{tail}.pth",
                          input_size=int(pixels), crop_pct=None, num_classes=150,
                          task="segmentation")


_PUBLISHERS = (
    _facebook_v1, _facebook_v2, _facebook_dinov3, _facebook_dense, _timm, _huggingface,
    _torchvision, _keras, _openmmlab,
)
WEIGHTS: Mapping[str, WeightEntry] = {
    entry.name: entry for entries in _PUBLISHERS for entry in entries()
}

# fmt: on


def list_weights(pattern: str | None = None) -> tuple[str, ...]:
    """List the name, `arch.tag`, of every public weight in alphabetical order.

    Example:
        >>> list_weights("convnext_small.fb_in1k*")
        ('convnext_small.fb_in1k', 'convnext_small.fb_in1k_coco_cascade_mask_rcnn', ...)

    Args:
        pattern: Keep the names that fit it: a shell pattern (`convnext_tiny.*`), or a part of the
            name when it has no wildcard. None keeps all.
    """
    if pattern is None:
        return tuple(sorted(WEIGHTS))
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return tuple(name for name in sorted(WEIGHTS) if fnmatch.fnmatchcase(name, wanted))


def get_weight(name: str) -> WeightEntry:
    """Return the entry of a weight.

    Raises:
        ValueError: There is no weight of that name.
    """
    if name not in WEIGHTS:
        arch = name.partition(".")[0]
        near = [n for n in list_weights() if n.startswith(f"{arch}.")] or list_weights(arch)
        hint = f"; of {arch!r} there are {', '.join(near)}" if near else ""
        raise ValueError(f"there is no weight named {name!r} in list_weights(){hint}")
    return WEIGHTS[name]
