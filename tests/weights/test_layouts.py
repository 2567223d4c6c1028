"""The layout tables against timm and transformers at full size, by names and shapes only."""

import pytest
import timm
import torch
import transformers

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification
from convnext_backbone.archs import ARCHS
from convnext_backbone.weights.layouts import LAYOUTS, convert, recognise, restore
from convnext_backbone.weights.patterns import STORAGES, Pattern


def _shapes(state):
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _on_meta(build):
    with torch.device("meta"):
        return build().state_dict()


@pytest.mark.parametrize("arch", timm.list_models(module="convnext"))
def test_full_size_timm_model_has_our_names_and_shapes(arch):
    ours = _on_meta(lambda: ConvNextForImageClassification(arch=arch, num_labels=1000))
    theirs = _on_meta(lambda: timm.create_model(arch))
    match = recognise(_shapes(theirs))
    converted = convert(theirs, match)
    assert match.layout.name == "timm"
    assert _shapes(converted.tensors) == _shapes(ours)
    assert converted.dropped == converted.unexpected == ()
    back = restore(ours, match.layout, storage=converted.storage)
    assert _shapes(back) == _shapes(theirs)


_HF = {False: ("ConvNext", "huggingface-v1"), True: ("ConvNextV2", "huggingface-v2")}


@pytest.mark.parametrize("arch", ["convnext_large", "convnextv2_huge"])
@pytest.mark.parametrize("kind", ["ForImageClassification", "Backbone"])
def test_full_size_transformers_model_has_our_names_and_shapes(arch, kind):
    family, layout = _HF["v2" in arch]
    fields = {"hidden_sizes": list(ARCHS[arch]["hidden_sizes"]), "depths": [*ARCHS[arch]["depths"]]}
    features = ["stem", "stage2", "stage4"]
    config = getattr(transformers, f"{family}Config")(**fields, out_features=features, num_labels=9)
    theirs = _on_meta(lambda: getattr(transformers, family + kind)(config))
    if kind == "Backbone":
        ours = _on_meta(lambda: ConvNextBackbone(arch=arch, out_features=features))
    else:
        ours = _on_meta(lambda: ConvNextForImageClassification(arch=arch, num_labels=9))
    match = recognise(_shapes(theirs))
    converted = convert(theirs, match)
    assert match.layout.name == layout
    assert _shapes(converted.tensors) == _shapes(ours)
    prefix = "" if kind == "Backbone" else None
    assert _shapes(restore(ours, match.layout, prefix=prefix)) == _shapes(theirs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_two_rows_of_a_layout_write_the_same_native_key(name):
    """Else a tensor would be lost on the way back."""
    natives = [native for native in LAYOUTS[name].rows.values() if native is not None]
    if name.startswith("keras"):  # the final norm has two names, with a head and without
        natives = [native for native in natives if not native.startswith("norm.")]
    assert len(natives) == len(set(natives))


@pytest.mark.parametrize(
    ("pattern", "key", "values"),
    [
        ("features.{2s+1}.{b}.gamma", "features.5.7.gamma", {"s": "2", "b": "7"}),
        ("features.{2s+1}.{b}.gamma", "features.4.7.gamma", None),
        ("features.{2t}.{i}.{p}", "features.2.0.bias", {"t": "1", "i": "0", "p": "bias"}),
        ("features.{2t}.{i}.{p}", "features.0.0.bias", None),
        ("down_{t-1}.x", "down_0.x", {"t": "1"}),
        ("norms.stage{s+1}.{p}", "norms.stage1.weight", {"s": "0", "p": "weight"}),
        ("norms.stage{s+1}.{p}", "norms.stage0.weight", None),
        ("{n}_stem/{n}_conv", "net_a_stem/net_a_conv", {"n": "net_a"}),
        ("{n}_stem/{n}_conv", "net_a_stem/net_b_conv", None),
        ("a.{s}.b", "a.1xb", None),
        ("a.{p}", "a.weights", None),
    ],
)
def test_pattern_reads_and_writes_keys(pattern, key, values):
    assert Pattern(pattern).read(key) == values
    if values is not None:
        assert Pattern(pattern).write(values) == key


_SAMPLES = {
    "same": (3, 4, 2, 2), "flat": (6,), "squeeze_scale": (6, 1, 1), "flatten_row": (1, 6),
    "flatten_grn": (1, 1, 1, 6), "flatten_grn_nchw": (1, 6, 1, 1), "linear": (4, 6),
    "conv1x1_to_linear": (4, 6, 1, 1), "transpose": (4, 6), "hwio_to_oihw": (2, 3, 4, 5),
    "dense_conv": (4, 3, 5), "dense_depthwise": (49, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", STORAGES)
def test_every_storage_is_inverted_bit_for_bit(name):
    storage, tensor = STORAGES[name], torch.randn(_SAMPLES[name])
    assert storage.fits(tuple(tensor.shape))
    assert torch.equal(storage.from_native(storage.to_native(tensor)), tensor)


def test_sparse_kernel_becomes_the_convolution_that_minkowski_engine_computes():
    """Tap t of a kernel of size k meets the input k's column t // k and row t % k."""
    kernel = torch.arange(4.0).view(4, 1, 1)
    weight = STORAGES["dense_conv"].to_native(kernel)
    assert weight.squeeze().tolist() == [[0.0, 2.0], [1.0, 3.0]]


def test_unknown_place_in_a_target_layout_is_named():
    tensors = {"norms.stem.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"torchvision cannot represent norms\.stem\.weight"):
        restore(tensors, LAYOUTS["torchvision"])
