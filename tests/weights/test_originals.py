"""Files of every published layout load exactly: equal maps, equal norms, equal logits."""

import pytest
import torch
from helpers.originals import CLASSES, DEPTHS, DINOV3, ORIGINALS, WIDTHS
from torch import nn

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification, ConvNextModel
from convnext_backbone.weights.layouts import convert, recognise, restore
from convnext_backbone.weights.read import read_checkpoint

STAGES = ("stage1", "stage2", "stage3", "stage4")
TOLERANCE = 1e-5


def _gap(a, b):
    return (a - b).abs().max().item() / max(1.0, b.abs().max().item())


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96)


@pytest.mark.parametrize("name", ORIGINALS)
def test_maps_of_all_stages_equal_the_originals(name, tmp_path, images):
    original = ORIGINALS[name]
    ours = ConvNextBackbone.from_pretrained(original.write(tmp_path), out_features=STAGES).eval()
    ours.norms = nn.ModuleDict({stage: nn.Identity() for stage in STAGES})
    with torch.no_grad():
        got, expected = ours(images), original.maps(images)
    assert ours.load_report.layout.split(" ")[0] == original.layout
    assert [g.shape for g in got] == [e.shape for e in expected]
    assert max(map(_gap, got, expected)) <= TOLERANCE


@pytest.mark.parametrize("name", [n for n, o in ORIGINALS.items() if o.normed is not None])
def test_norms_of_outputs_come_along(name, tmp_path, images):
    original = ORIGINALS[name]
    ours = ConvNextBackbone.from_pretrained(original.write(tmp_path), out_features=STAGES).eval()
    with torch.no_grad():
        got, expected = ours(images), original.normed(images)
    assert ours.load_report.fresh == ()
    assert max(map(_gap, got, expected)) <= TOLERANCE


@pytest.mark.parametrize("name", [n for n, o in ORIGINALS.items() if o.logits is not None])
def test_logits_equal_the_originals(name, tmp_path, images):
    original = ORIGINALS[name]
    ours = ConvNextForImageClassification.from_pretrained(original.write(tmp_path)).eval()
    with torch.no_grad():
        got, expected = ours(images).logits, original.logits(images)
    assert got.shape == (2, CLASSES)
    assert _gap(got, expected) <= TOLERANCE


def test_final_norm_of_dinov3_is_the_norm_of_the_last_stage(tmp_path, images):
    path = ORIGINALS["facebook_dinov3"].write(tmp_path)
    ours = ConvNextBackbone.from_pretrained(path).eval()
    last = DINOV3.maps(images)[-1]
    expected = DINOV3.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert _gap(ours(images)[0], expected) <= TOLERANCE
    model = ConvNextModel.from_pretrained(path).eval()
    with torch.no_grad():
        assert _gap(model(images).pooler_output, DINOV3.pooled(images)) <= TOLERANCE


@pytest.mark.parametrize("name", ORIGINALS)
def test_architecture_is_read_from_the_tensors(name, tmp_path):
    path = ORIGINALS[name].write(tmp_path)
    config = ConvNextBackbone.from_pretrained(path).config
    assert (config.depths, config.hidden_sizes) == (DEPTHS, WIDTHS)
    assert (config.patch_size, config.num_channels, config.kernel_size) == (4, 3, 7)
    assert config.use_grn == ("v2" in name or "fcmae" in name or "segmentor" in name)
    unscaled = config.use_grn or "no_layer_scale" in name
    assert (config.layer_scale_init_value == 0) == unscaled


# Keras numbers its layer scales through the model, which a table cannot give back; the first
# conversion of UperNet differs from the present one by names that no model of today writes.
_ONE_WAY = {"keras_h5", "keras_2_h5", "keras_nested_h5", "huggingface_upernet_first_conversion"}


@pytest.mark.parametrize("name", sorted(ORIGINALS.keys() - _ONE_WAY))
def test_to_ours_and_back_is_the_original_bit_for_bit(name, tmp_path):
    before = read_checkpoint(ORIGINALS[name].write(tmp_path)).tensors
    match = recognise({key: tuple(tensor.shape) for key, tensor in before.items()})
    converted = convert(before, match)
    back = restore(
        converted.tensors,
        match.layout,
        prefix=match.prefix,
        model_name=match.model_name or "",
        storage=converted.storage,
    )
    back = _under_parent(back, before, match.prefix)
    kept = before.keys() - set(converted.dropped)
    assert back.keys() == kept
    for key in kept:
        assert back[key].dtype == before[key].dtype
        assert torch.equal(back[key], before[key]), key


def _under_parent(back, before, prefix):
    """Find the keys beside the trunk under the parent that they had."""
    parents = {prefix[: i + 1] for i, c in enumerate(prefix[:-1]) if c in "./"} | {""}
    out = {}
    for key, tensor in back.items():
        places = [parent + key for parent in parents if parent + key in before]
        out[key if key in before or not places else places[0]] = tensor
    return out
