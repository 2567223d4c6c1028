"""What we write, its home reads: without a warning, and with equal outputs."""

import json
import logging
import warnings

import pytest
import timm
import torch
import torchvision
import transformers
from helpers.originals import CLASSES, DEPTHS, ORIGINALS, TORCHVISION, WIDTHS, randomise
from safetensors import safe_open

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification, ConvNextModel
from convnext_backbone.weights import convert_weights, open_weights
from convnext_backbone.weights.export import TARGETS
from convnext_backbone.weights.read import read_checkpoint

FIELDS = {"hidden_sizes": WIDTHS, "depths": DEPTHS}
V2 = {"use_grn": True, "layer_scale_init_value": 0.0}
TOLERANCE = 1e-5


def _gap(a, b):
    return (a - b).abs().max().item() / max(1.0, b.abs().max().item())


def _load_silently(cls, path, caplog):
    """Load with transformers and fail on any warning, by logging or by `warnings`."""
    transformers.utils.logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        model, told = cls.from_pretrained(path, output_loading_info=True)
    transformers.utils.logging.disable_propagation()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("fields", [{}, V2, {"layer_scale_init_value": 0.0}],
                         ids=["v1", "v2", "v1_no_layer_scale"])  # fmt: skip
@pytest.mark.parametrize("features", [["stage4"], ["stem", "stage2", "stage4"]], ids=len)
def test_saved_backbone_is_transformers_backbone(fields, features, tmp_path, caplog, images):
    ours = randomise(ConvNextBackbone(**FIELDS, **fields, out_features=features))
    ours.save_pretrained(tmp_path)
    name = "ConvNextV2Backbone" if fields is V2 else "ConvNextBackbone"
    theirs = _load_silently(getattr(transformers, name), tmp_path, caplog)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    with torch.no_grad():
        got, expected = theirs(images).feature_maps, ours(images)
    assert len(got) == len(features)
    assert max(map(_gap, got, expected)) <= TOLERANCE


@pytest.mark.parametrize("fields", [{}, V2], ids=["v1", "v2"])
def test_saved_classifier_is_transformers_classifier(fields, tmp_path, caplog, images):
    names = {0: "cat", 1: "dog", 2: "owl"}
    ours = randomise(ConvNextForImageClassification(**FIELDS, **fields, id2label=names))
    ours.save_pretrained(tmp_path)
    family = "ConvNextV2" if fields else "ConvNext"
    theirs = _load_silently(
        getattr(transformers, f"{family}ForImageClassification"), tmp_path, caplog
    )
    assert theirs.config.id2label == names
    with torch.no_grad():
        assert _gap(theirs(images).logits, ours(images).logits) <= TOLERANCE


@pytest.mark.parametrize("model_type", ["convnext", "dinov3_convnext"])
def test_saved_model_is_transformers_model(model_type, tmp_path, caplog, images):
    eps = 1e-6 if model_type == "dinov3_convnext" else 1e-12
    ours = randomise(ConvNextModel(**FIELDS, model_type=model_type, layer_norm_eps=eps))
    ours.save_pretrained(tmp_path)
    theirs = _load_silently(transformers.AutoModel, tmp_path, caplog)
    assert theirs.config.model_type == model_type
    with torch.no_grad():
        got, expected = theirs(images), ours(images)
    assert _gap(got.pooler_output, expected.pooler_output) <= TOLERANCE
    assert _gap(got.last_hidden_state, expected.last_hidden_state) <= TOLERANCE


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConvNextBackbone(**FIELDS, out_features=["stem", "stage3"]),
        lambda: ConvNextBackbone(**FIELDS, **V2),
        lambda: ConvNextModel(**FIELDS),
        lambda: ConvNextModel(**FIELDS, model_type="dinov3_convnext", layer_norm_eps=1e-6),
        lambda: ConvNextForImageClassification(**FIELDS, num_labels=3),
    ],
)
def test_saved_and_loaded_twice_is_the_same_module(build, tmp_path):
    first = randomise(build())
    for folder in ("a", "b"):
        first.save_pretrained(tmp_path / folder)
        second = type(first).from_pretrained(tmp_path / folder)
        assert second.state_dict().keys() == first.state_dict().keys()
        for key, tensor in first.state_dict().items():
            assert torch.equal(second.state_dict()[key], tensor), key
        assert second.config == first.config
        assert second.load_report.fresh == second.load_report.dropped == ()
        first = second


def test_what_transformers_cannot_hold_warns_and_still_comes_back(tmp_path, images):
    ours = randomise(ConvNextBackbone(**FIELDS, norm_eps=1e-5, kernel_size=5)).eval()
    with pytest.warns(UserWarning, match=r"kernel_size must be 7.*norm_eps must be 1e-06"):
        ours.save_pretrained(tmp_path)
    again = ConvNextBackbone.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(images)[0], ours(images)[0])


def test_saving_replaces_files_in_one_step(tmp_path, monkeypatch):
    ConvNextBackbone(**FIELDS).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("convnext_backbone.weights.export.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        ConvNextBackbone(**FIELDS).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# ------------------------------------------------------------------------------ conversion


def _homes(to, use_grn):
    """The original network of a target, of the same architecture, to load the file strictly."""
    if to == "timm":
        v2 = {"use_grn": True, "ls_init_value": None} if use_grn else {}
        return timm.models.convnext.ConvNeXt(depths=DEPTHS, dims=WIDTHS, num_classes=CLASSES, **v2)
    if to == "torchvision":
        setting = torchvision.models.convnext.CNBlockConfig
        pairs = zip(WIDTHS, (*WIDTHS[1:], None), DEPTHS, strict=True)
        return torchvision.models.convnext.ConvNeXt(
            [setting(*p) for p in pairs], num_classes=CLASSES
        )
    raise KeyError(to)


@pytest.mark.parametrize(
    "source",
    [
        "facebook_v1",
        "facebook_v2",
        "huggingface-v1_classifier",
        "keras_archive",
        "torchvision",
        "mmpretrain_v2",
        "tf_v2",
    ],
)
@pytest.mark.parametrize("to", ["timm", "torchvision"])
def test_converted_file_loads_strictly_in_its_home(source, to, tmp_path, images):  # fmt: skip
    original = ORIGINALS[source]
    weights = open_weights(original.write(tmp_path))
    use_grn = weights.fields()["use_grn"]
    if to == "torchvision" and use_grn:
        with pytest.raises(ValueError, match=r"torchvision cannot represent .*grn"):
            convert_weights(weights, tmp_path / "out.pth", to)
        return
    path = convert_weights(weights, tmp_path / "out.pth", to)
    home = _homes(to, use_grn).eval()
    home.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        assert _gap(home(images), original.logits(images)) <= TOLERANCE


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("to", [t for t in TARGETS if t != "huggingface"])
@pytest.mark.parametrize(
    "source", ["facebook_v1", "facebook_v2", "facebook_detector", "facebook_dinov3"]
)
def test_every_target_is_read_back_bit_for_bit(source, to, suffix, tmp_path):
    weights = open_weights(ORIGINALS[source].write(tmp_path))
    out = tmp_path / f"out{suffix}"
    homeless = {("facebook_v2", "torchvision"), ("facebook_detector", "torchvision"),
                ("facebook_detector", "timm")}  # fmt: skip
    if (source, to) in homeless:
        with pytest.raises(ValueError, match="cannot represent"):
            convert_weights(weights, out, to)
        assert not out.exists()
        return
    convert_weights(weights, out, to)
    back = open_weights(out).tensors
    assert back.keys() == weights.tensors.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in weights.tensors.items())


@pytest.mark.parametrize("source", ["facebook_v1", "facebook_v2", "facebook_dinov3"])
def test_file_for_facebook_is_the_original_bit_for_bit(source, tmp_path):
    path = ORIGINALS[source].write(tmp_path)
    convert_weights(open_weights(path), tmp_path / "out.pth", "facebook")
    before, after = read_checkpoint(path).tensors, read_checkpoint(tmp_path / "out.pth").tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("source", ["facebook_v1", "facebook_v2", "timm_v1", "keras_h5"])
def test_directory_for_huggingface_loads_in_transformers(source, tmp_path, caplog, images):
    original = ORIGINALS[source]
    weights = open_weights(original.write(tmp_path))
    convert_weights(weights, tmp_path / "hf", "huggingface")
    cls = transformers.AutoModelForImageClassification
    theirs = _load_silently(cls, tmp_path / "hf", caplog)
    with torch.no_grad():
        assert _gap(theirs(images).logits, original.logits(images)) <= TOLERANCE


def test_pointwise_layers_are_convolutions_where_timms_model_has_them(tmp_path):
    atto = ConvNextForImageClassification(arch="convnext_atto", num_labels=7)
    atto.save_pretrained(tmp_path / "atto")
    convert_weights(open_weights(tmp_path / "atto"), tmp_path / "atto.pth", "timm")
    model = timm.create_model("convnext_atto", num_classes=7)
    model.load_state_dict(torch.load(tmp_path / "atto.pth", weights_only=True))
    weights = open_weights(ORIGINALS["facebook_v1"].write(tmp_path))
    for pointwise, rank in (("conv", 4), ("linear", 2), (None, 2)):
        convert_weights(weights, tmp_path / "v1.pth", "timm", pointwise=pointwise)
        state = torch.load(tmp_path / "v1.pth", weights_only=True)
        assert state["stages.0.blocks.0.mlp.fc1.weight"].dim() == rank


def test_files_are_wrapped_as_their_homes_wrap_them(tmp_path):
    weights = open_weights(ORIGINALS["facebook_v1"].write(tmp_path))
    for to, wrapper in (("facebook", "model"), ("mmpretrain", "state_dict")):
        convert_weights(weights, tmp_path / "out.pth", to)
        assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == [wrapper]
    convert_weights(weights, tmp_path / "out.safetensors", "timm")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("to", "name", "pointwise", "message"),
    [
        ("tensorflow", "out.pth", None, "to must be one of"),
        ("timm", "out.onnx", None, "must end in"),
        ("timm", "out.pth", "dense", "pointwise must be one of"),
        ("torchvision", "out.pth", "conv", "pointwise is for timm"),
        ("huggingface", "out.pth", None, "must be a directory"),
    ],
)
def test_bad_choice_of_target_is_named(to, name, pointwise, message, tmp_path):
    weights = open_weights(ORIGINALS["facebook_v1"].write(tmp_path))
    with pytest.raises(ValueError, match=message):
        convert_weights(weights, tmp_path / name, to, pointwise=pointwise)
    assert not (tmp_path / name).exists()


def test_tensor_of_unknown_meaning_is_not_converted(tmp_path):
    torch.save(
        {**TORCHVISION.state_dict(), "features.1.0.extra": torch.ones(1)}, tmp_path / "x.pth"
    )
    with pytest.raises(ValueError, match=r"does not know features\.1\.0\.extra"):
        convert_weights(open_weights(tmp_path / "x.pth"), tmp_path / "out.pth", "timm")


def test_two_norms_that_a_layout_gives_one_name_are_refused(tmp_path):
    """mmpretrain's norm3 is the final norm or that of the last map; one would be lost."""
    backbone = randomise(ConvNextBackbone(**FIELDS, out_features=["stage3", "stage4"]))
    extra = {f"norm.{part}": torch.ones(WIDTHS[-1]) for part in ("weight", "bias")}
    torch.save({**backbone.state_dict(), **extra}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"one name for .*norms\.stage4\.weight"):
        convert_weights(open_weights(tmp_path / "x.pth"), tmp_path / "out.pth", "mmpretrain")
    assert not (tmp_path / "out.pth").exists()
