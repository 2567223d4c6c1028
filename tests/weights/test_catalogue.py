"""The catalogue agrees with timm and names every weight once."""

import copy
import json
import pickle
import warnings

import pytest
import timm
import torch
from timm.models import convnext as timm_convnext

from convnext_backbone import list_archs, list_weights
from convnext_backbone.archs import ARCHS, fields_not_in_tensors
from convnext_backbone.models.layers import ACTIVATIONS
from convnext_backbone.weights.catalogue import WEIGHTS, get_weight, hash_in_name

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
    assert entry.url == theirs.get("url", "")
    assert entry.hub_id == f"timm/{name}"
    assert (3, entry.input_size, entry.input_size) == theirs["input_size"]
    second = entry.test_input_size
    assert (second and (3, second, second)) == theirs.get("test_input_size")
    assert entry.test_crop_pct == theirs.get("test_crop_pct")
    assert (entry.mean, entry.std) == (theirs["mean"], theirs["std"])
    assert entry.interpolation == theirs["interpolation"]
    assert entry.crop_pct == theirs["crop_pct"]
    assert entry.crop_mode == theirs["crop_mode"]
    assert entry.num_classes == theirs["num_classes"]
    assert (entry.hub_licence or entry.licence).lower() == theirs["license"]


@pytest.mark.parametrize("arch", timm.list_models(module="convnext"))
def test_architectures_are_timms(arch):
    """Depths, widths and shapes are compared in test_layouts, by the tensors of both."""
    with torch.device("meta"):
        theirs = timm.create_model(arch)
    ours, block = fields_not_in_tensors(arch), theirs.stages[0].blocks[0]
    assert block.norm.eps == theirs.stem[-1].eps == theirs.stages[1].downsample[0].eps
    assert ours["norm_eps"] == block.norm.eps
    names = {"LayerNorm": "layernorm", "RmsNorm": "rmsnorm", "SimpleNorm": "simplenorm"}
    assert ours["norm_layer"] == names[type(block.norm).__name__.removesuffix("2d")]
    x = torch.linspace(-3, 3, 50)
    assert torch.allclose(ACTIVATIONS[ours["hidden_act"]]()(x), block.mlp.act(x), atol=1e-6)
    with torch.device("meta"):
        trunk = sum(p.numel() for part in (theirs.stem, theirs.stages) for p in part.parameters())
    parameters = {w.parameters for w in list_weights(f"{arch}.*")}
    assert parameters <= {trunk}


@pytest.mark.parametrize("entry", WEIGHTS.values(), ids=str)
def test_every_weight_can_be_had_has_a_licence_and_a_known_architecture(entry):
    assert entry.licence in LICENCES
    assert entry.hub_licence in {"", *LICENCES} - {entry.licence}
    assert entry.data
    assert entry.url.startswith("https://") or not entry.url
    assert entry.url or entry.hub_id or (entry.gated and entry.file_name)
    assert entry.task in ("classification", "features", "detection", "segmentation")
    assert entry.arch in ARCHS
    assert entry.top1 is None or 60 < entry.top1 < 90 or "test_" in entry


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


def test_entries_are_the_names_with_attributes():
    (entry,) = list_weights("convnext_tiny.fb_in1k_coco_m*")
    assert entry == "convnext_tiny.fb_in1k_coco_mask_rcnn"
    assert {entry: 1}["convnext_tiny.fb_in1k_coco_mask_rcnn"] == 1
    assert (entry.arch, entry.task, entry.licence, entry.gated) == (
        "convnext_tiny", "detection", "MIT", False,
    )  # fmt: skip
    assert not entry.is_classifier
    for copied in (copy.deepcopy(entry), pickle.loads(pickle.dumps(entry))):
        assert copied == entry
        assert copied.to_dict() == entry.to_dict()
    assert json.loads(json.dumps(entry.to_dict()))["tag"] == entry
    assert repr(entry) == repr(str(entry))
    best = max((w for w in list_weights() if w.top1), key=lambda w: w.top1)
    assert best == "convnextv2_huge.fcmae_ft_in22k_in1k_512"


def test_both_licences_are_named_where_the_copy_has_another():
    entry = get_weight("convnext_tiny.fb_in1k")
    assert (entry.licence, entry.hub_licence) == ("MIT", "Apache-2.0")
    assert entry.licences == "MIT (timm/convnext_tiny.fb_in1k: Apache-2.0)"
    assert "MIT (timm/convnext_tiny.fb_in1k: Apache-2.0)" in entry.describe()


def test_an_architecture_leads_to_its_weights():
    with pytest.raises(ValueError, match=r"is an architecture, whose weights are convnext_atto\."):
        get_weight("convnext_atto")
    assert {w.arch for w in list_weights()} | {"convnext_atto_rms", "convnextv2_small"} == set(
        list_archs(variants=True)
    )
