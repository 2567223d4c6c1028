"""The catalogue agrees with timm and names every weight once."""

import warnings

import pytest
from timm.models import convnext as timm_convnext

from convnext_backbone import list_weights
from convnext_backbone.archs import ARCHS
from convnext_backbone.weights import WEIGHTS
from convnext_backbone.weights.catalogue import get_weight, hash_in_name

LICENCES = {
    "MIT",
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-NC-4.0",
    "DINOv3-License",
    "FAIR-Noncommercial-Research-License",
    "see the model card",
}
TIMM = {
    f"{arch}.{tag}": config
    for arch, default in timm_convnext.default_cfgs.items()
    for tag, config in default.cfgs.items()
    if config.url or config.hf_hub_id
}


@pytest.mark.parametrize("name", TIMM)
def test_weights_of_timm_are_as_timm_describes_them(name):
    entry, theirs = get_weight(name), TIMM[name].to_dict()
    assert entry.url == theirs.get("url", "") or entry.hub_id == f"timm/{name}"
    if theirs.get("url"):
        assert entry.url == theirs["url"]
    assert (3, entry.input_size, entry.input_size) == theirs["input_size"]
    assert (entry.mean, entry.std) == (theirs["mean"], theirs["std"])
    assert entry.interpolation == theirs["interpolation"]
    assert entry.crop_pct == theirs["crop_pct"]
    assert entry.crop_mode == theirs["crop_mode"]
    assert entry.num_classes == theirs["num_classes"]


@pytest.mark.parametrize("name", [n for n in TIMM if n not in ARCHS])
def test_licence_is_never_looser_than_timms(name):
    strict = {"cc-by-nc-4.0", "dinov3-license", "fair-noncommercial-research-license"}
    theirs = TIMM[name].license
    if theirs in strict:
        assert get_weight(name).licence.lower() == theirs
    else:
        assert get_weight(name).licence in ("MIT", "Apache-2.0")


@pytest.mark.parametrize("entry", WEIGHTS.values(), ids=lambda e: e.name)
def test_every_weight_has_one_source_and_a_licence(entry):
    assert entry.licence in LICENCES
    assert entry.data
    assert entry.url.startswith("https://") or not entry.url
    assert entry.url or entry.hub_id or (entry.gated and entry.file_name)
    assert entry.task in ("classification", "features", "detection", "segmentation")
    known = entry.arch in ARCHS or entry.unsupported
    derived = entry.arch in ("convnext_large_mlp", "convnext_tiny_hnf")
    assert known or derived or entry.arch.startswith("test_convnext")


def test_no_two_weights_share_an_address_or_a_cached_file():
    urls = [entry.url for entry in WEIGHTS.values() if entry.url]
    files = [url.rpartition("/")[2] for url in urls]
    assert len(set(urls)) == len(urls)
    assert len(set(files)) == len(files)


def test_families_are_complete():
    """Counts from the READMEs and metafiles that the tables were made from."""
    counts = {
        "https://dl.fbaipublicfiles.com/convnext/convnext_": 27,
        "https://dl.fbaipublicfiles.com/convnext/convnextv2/": 26,
        "https://dl.fbaipublicfiles.com/convnext/coco/": 7,
        "https://dl.fbaipublicfiles.com/convnext/ade20k/": 6,
        "https://download.openmmlab.com/mmclassification/v0/convnext/convnext-": 24,
        "https://download.openmmlab.com/mmclassification/v0/convnext/downstream/": 6,
        "https://download.openmmlab.com/mmclassification/v0/convnext-v2/": 26,
        "https://download.openmmlab.com/mmdetection/": 3,
        "https://download.openmmlab.com/mmsegmentation/": 6,
        "https://download.pytorch.org/models/": 4,
        "https://storage.googleapis.com/tensorflow/keras-applications/": 10,
    }
    urls = [entry.url for entry in WEIGHTS.values()]
    assert {s: sum(u.startswith(s) for u in urls) for s in counts} == counts
    clip = [name for name in WEIGHTS if ".clip_" in name]
    assert len(clip) == 24


def test_pattern_filters_by_wildcard_or_by_part():
    assert list_weights() == tuple(sorted(WEIGHTS))
    assert list_weights("convnextv2_atto.fcmae*") == (
        "convnextv2_atto.fcmae",
        "convnextv2_atto.fcmae_ft_in1k",
    )
    assert all("dinov3" in name for name in list_weights("dinov3"))
    assert len(list_weights("dinov3")) == 12
    assert list_weights("no such weight") == ()


def test_unknown_name_lists_the_weights_of_the_architecture():
    with pytest.raises(ValueError, match=r"'convnext_atto\.x'.*convnext_atto\.d2_in1k"):
        get_weight("convnext_atto.x")


def test_hash_is_read_from_names_that_carry_one():
    assert hash_in_name("convnext_tiny-983f1562.pth") == "983f1562"
    assert hash_in_name("convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth") == "998cf3e9"
    assert hash_in_name("upernet-20220227.pth") == ""
    assert hash_in_name("convnext_tiny_1k_224_ema.pth") == ""
    assert get_weight("convnext_tiny.fb_dinov3_lvd1689m").sha256 == "21b726bb"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("convnextv2_atto.fcmae", "CC-BY-NC-4.0: non-commercial"),
        ("convnext_tiny.eupe_lvd1689m", "FAIR-Noncommercial-Research-License: non-commercial"),
        ("convnext_tiny.dinov3_lvd1689m", "DINOv3-License: conditions"),
    ],
)
def test_licence_with_conditions_is_said_once(name, what, monkeypatch):
    monkeypatch.setattr("convnext_backbone.weights.catalogue._WARNED", set())
    with pytest.warns(UserWarning, match=f"{name}.*{what}"):
        get_weight(name).warn_once()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_weight(name).warn_once()


def test_free_licence_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_weight("convnext_tiny.fb_in1k").warn_once()
