"""The variants of the family: timm's stems, norms and heads, and facebookresearch's isotropic ones.

Every entry point of timm is built by timm with random weights and few blocks.
"""

import json

import pytest
import timm
import torch
from helpers.originals import V1, _Block, _norm
from torch import nn
from torch.utils._pytree import tree_leaves

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    load_weights,
)
from convnext_backbone.deploy.graph_export import export_onnx
from convnext_backbone.models.layers import NORMS
from convnext_backbone.weights import convert_weights, open_weights
from convnext_backbone.weights.layouts import convert, recognise
from convnext_backbone.weights.native import NativeWeights
from convnext_backbone.weights.source import LocalSource

ENTRY_POINTS = timm.list_models(module="convnext")
# Those whose widths or kernels alone tell what the tensors do not.
KNOWN_BY_SIZE = ("convnext_zepto_rms", "convnext_zepto_rms_ols", "test_convnext", "test_convnext2",
                 "test_convnext3")  # fmt: skip
# Variants of this package's networks, each as small as can be.
TINY = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
VARIANTS = {
    "overlap": {"stem_type": "overlap"},
    "overlap_tiered": {"stem_type": "overlap_tiered", "hidden_sizes": (40, 16, 24, 32)},
    "overlap_act": {"stem_type": "overlap_act", "hidden_act": "silu"},
    "rmsnorm": {"norm_layer": "rmsnorm"},
    "simplenorm": {"norm_layer": "simplenorm"},
    "kernels": {"kernel_size": (7, 5, 5, 3)},
    "conv_bias": {"conv_bias": False},
    "v2": {"use_grn": True, "stem_type": "overlap", "norm_layer": "rmsnorm"},
    "hnf": {"head_norm_first": True},
    "mlp": {"head_hidden_size": 12},
    "isotropic": {
        "stem_type": "patch_no_norm", "patch_size": 16, "hidden_sizes": (16,), "depths": (2,),
    },
}  # fmt: skip


def randomise(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.2, generator=generator).add_(0.5 * (p.ndim == 1))
    return module.eval()


def of_timm(name, **options):
    """timm's network with few blocks, and narrow where its widths tell nothing."""
    widths = {} if name in KNOWN_BY_SIZE else {"dims": (16, 24, 32, 40)}
    shape = {"depths": (1, 1, 2, 1), "num_classes": 7, **widths, **options}
    return randomise(timm.create_model(name, **shape))


def build(cls, name):
    shape = {**TINY, **VARIANTS[name]}
    return randomise(cls(**shape, num_labels=5))


def assert_equal(got, expected, tolerance=1e-5):
    """Per unit of scale: maps of random weights may be large."""
    atol = tolerance * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got, expected, rtol=0.0, atol=atol)


def bare_maps(backbone, x):
    """The maps of all stages before the norms of the outputs."""
    return backbone(x, output_hidden_states=True).hidden_states[1:]


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "directory"])
@pytest.mark.parametrize("name", ENTRY_POINTS)
@torch.no_grad()
def test_every_entry_point_of_timm_loads(name, as_file, tmp_path):
    theirs, x = of_timm(name), torch.randn(2, 3, 75, 101)
    source = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), source)
    if not as_file:  # as timm writes it to the hub
        source = tmp_path
        (tmp_path / "weights.pth").rename(tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    elif name == "convnext_xxlarge":
        source = tmp_path / "xxlarge.pth"
        theirs = of_timm(name, dims=(384, 768, 16, 3072))  # too narrow to be taken for it
        torch.save(theirs.state_dict(), source)
    model = ConvNextForImageClassification.from_pretrained(source)
    backbone = ConvNextBackbone.from_pretrained(source)
    if as_file and name == "convnext_xxlarge":
        assert "defaults: no published model" in model.load_report.assumed
        model = ConvNextForImageClassification.from_pretrained(
            source, norm_eps=1e-5, layer_norm_eps=1e-5
        )
        backbone = ConvNextBackbone.from_pretrained(source, norm_eps=1e-5)
    assert_equal(model(x).logits, theirs(x))
    expected = theirs.forward_intermediates(x, intermediates_only=True)
    for got, want in zip(bare_maps(backbone, x), expected, strict=True):
        assert_equal(got, want)
    origin = model.load_report.assumed
    if not as_file:
        assert "of config.json" in origin
    elif name in KNOWN_BY_SIZE:
        assert f"of {name}, the published model of these" in origin


@pytest.mark.parametrize("name", ["convnext_xxlarge", "convnext_zepto_rms", "test_convnext"])
def test_published_sizes_tell_what_tensors_do_not(name, tmp_path):
    """Full sizes, as tensors without memory."""
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    match = recognise({k: tuple(v.shape) for k, v in state.items()})
    source = LocalSource("w.pth", None, tmp_path / "w.pth")
    weights = NativeWeights(source, match, convert(state, match), {}, ())
    theirs = timm.create_model(name, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)).stages[0].blocks[0]
    assert weights.fields()["norm_eps"] == theirs.norm.eps
    assert f"of {name}, the published model of these sizes" in str(weights.assumed())


@torch.no_grad()
def test_depthwise_and_other_convolutions_without_bias_equal_timms(tmp_path):
    theirs, x = of_timm("convnext_tiny", conv_bias=False), torch.randn(1, 3, 64, 64)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = ConvNextForImageClassification.from_pretrained(tmp_path / "w.pth")
    assert not ours.config.conv_bias
    assert_equal(ours(x).logits, theirs(x))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["convnext_atto_ols", "convnext_zepto_rms_ols", "test_convnext3"])
@torch.no_grad()
def test_variants_dilate_as_timms(name, output_stride, tmp_path):
    theirs, x = of_timm(name, output_stride=output_stride), torch.randn(1, 3, 75, 101)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = ConvNextBackbone.from_pretrained(
        tmp_path / "w.pth", output_stride=output_stride, out_indices=(1, 2, 3, 4)
    )
    expected = theirs.forward_intermediates(x, intermediates_only=True)
    for got, want in zip(bare_maps(ours, x), expected, strict=True):
        assert_equal(got, want)
    assert list(ours.strides) == [info["reduction"] for info in theirs.feature_info]


class Isotropic(nn.Module):
    """facebookresearch's isotropic network, by its parameter names."""

    def __init__(self, depth=2, dim=16):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 16, 16)
        self.blocks = nn.Sequential(*(_Block(dim, 1, False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 5)

    def forward(self, x):
        return self.head(_norm(self.blocks(self.stem(x)).mean((2, 3)), self.norm, 1))


@torch.no_grad()
def test_isotropic_networks_are_one_stage_of_stride_16(tmp_path):
    theirs, x = randomise(Isotropic()), torch.randn(2, 3, 70, 64)
    torch.save({"model": theirs.state_dict()}, tmp_path / "w.pth")
    ours = ConvNextForImageClassification.from_pretrained(tmp_path / "w.pth")
    assert_equal(ours(x).logits, theirs(x))
    backbone = ConvNextBackbone.from_pretrained(tmp_path / "w.pth", out_features=["stem", "stage1"])
    assert (backbone.strides, backbone.channels) == ((16, 16), (16, 16))
    stem = theirs.stem(x)
    hidden = backbone(x, output_hidden_states=True).hidden_states
    assert_equal(hidden[0], stem)
    assert_equal(hidden[1], theirs.blocks(stem))
    weights = open_weights(tmp_path / "w.pth")
    back = convert_weights(weights, tmp_path / "back.pth", "facebook")
    state = torch.load(back)["model"]
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in theirs.state_dict().items())
    with pytest.raises(ValueError, match="'timm' cannot represent stem_type='patch_no_norm'"):
        convert_weights(weights, tmp_path / "timm.pth", "timm")


@pytest.mark.parametrize("hidden", [0, 12])
@torch.no_grad()
def test_the_projection_of_open_clip_is_the_head(hidden, tmp_path):
    """A linear layer without a bias, or two with GELU between them."""
    trunk, x = of_timm("convnext_tiny", num_classes=0), torch.randn(2, 3, 64, 64)
    state = {f"visual.trunk.{k}": v for k, v in trunk.state_dict().items()}
    state |= {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(4)}
    if hidden:
        layers = nn.Linear(40, hidden), nn.Linear(hidden, 6, bias=False)
        state |= {f"visual.head.mlp.fc1.{k}": v for k, v in layers[0].state_dict().items()}
        state["visual.head.mlp.fc2.weight"] = layers[1].weight
    else:
        layers = (nn.Linear(40, 6, bias=False),)
        state["visual.head.proj.weight"] = layers[0].weight
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    ours = ConvNextForImageClassification.from_pretrained(tmp_path)
    y = layers[0](trunk(x))
    assert_equal(ours(x).logits, layers[1](nn.functional.gelu(y)) if hidden else y)
    assert ours.config.head_hidden_size == hidden
    report = ours.load_report
    assert "zeros" in next(iter(report.reshaped.values()))
    assert "logit_scale" in report.dropped


def test_a_classifier_without_the_hidden_layer_refuses_its_weights(tmp_path):
    torch.save(of_timm("convnext_large_mlp", head_hidden_size=40).state_dict(), tmp_path / "w.pth")
    shape = {"hidden_sizes": (16, 24, 32, 40), "depths": (1, 1, 2, 1), "num_labels": 7}
    with pytest.raises(ValueError, match=r"unexpected: .*pre_logits\.fc\.weight"):
        load_weights(ConvNextForImageClassification(**shape), tmp_path / "w.pth")
    load_weights(ConvNextModel(**shape), tmp_path / "w.pth")


def test_weights_of_another_epsilon_than_the_modules_are_reported(tmp_path):
    torch.save(of_timm("test_convnext3").state_dict(), tmp_path / "w.pth")
    shape = ConvNextConfig.from_arch("test_convnext3", depths=(1, 1, 2, 1), num_labels=7)
    module = ConvNextForImageClassification(shape.replace(hidden_act="gelu", norm_eps=1e-6))
    report = load_weights(module, tmp_path / "w.pth")
    assert "norm_eps=1e-05 and the module has 1e-06" in report.notes[0]
    assert "hidden_act=silu and the module has gelu" in report.notes[0]


@torch.no_grad()
def test_the_backbone_of_an_lt_detr_detector_is_taken_out_of_it(tmp_path):
    """LightlyTrain writes the moving average alone, under the names of its wrappers."""
    prefix = "ema_model.model.backbone._model_wrapper._model."
    state = {prefix + k: v for k, v in V1.state_dict().items() if not k.startswith("head.")}
    norm = {f"{prefix}norms.3.{k}": v for k, v in V1.norm.state_dict().items()}
    other = {
        "ema_model.model.decoder.query.weight": torch.ones(3),
        "ema_model.decay": torch.ones(1),
    }
    file = {"model_class_path": "a.B", "model_init_args": {"model_name": "x"}}
    torch.save({**file, "train_model": {**state, **norm, **other}}, tmp_path / "w.pt")
    ours = ConvNextBackbone.from_pretrained(tmp_path / "w.pt", out_indices=(1, 2, 3, 4))
    x = torch.randn(1, 3, 64, 64)
    for got, want in zip(bare_maps(ours, x), V1.maps(x), strict=True):
        assert_equal(got, want)
    assert ours.config.model_type == "dinov3_convnext"
    assert_equal(ours(x)[3], _norm(V1.maps(x)[3], V1.norm, 1))


# ------------------------------------------------------------------------------ everything else


@pytest.mark.parametrize("cls", [ConvNextBackbone, ConvNextModel, ConvNextForImageClassification])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.filterwarnings("ignore:transformers will not compute")
@torch.no_grad()
def test_variants_are_saved_optimized_copied_and_loaded_in_place(cls, name, tmp_path):
    ours, x = build(cls, name), torch.randn(2, 3, 64, 48)
    expected = ours(x)
    ours.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert again.config == ours.config
    assert not again.load_report.fresh
    expected = tree_leaves(expected)
    for got, want in zip(tree_leaves(again(x)), expected, strict=True):
        assert_equal(got, want, 0.0)
    fast = ours.optimize_for_inference()
    for got, want in zip(tree_leaves(fast(x)), expected, strict=True):
        assert_equal(got, want, 1e-3)
    copied = cls(ours.config)
    copied.load_state_dict(ours.state_dict())
    for got, want in zip(tree_leaves(copied.eval()(x)), expected, strict=True):
        assert_equal(got, want, 0.0)


@pytest.mark.parametrize("name", ["convnext_nano_ols", "convnext_zepto_rms", "convnext_tiny_hnf",
                                  "convnext_large_mlp"])  # fmt: skip
def test_timms_state_dict_is_renamed_while_it_loads_and_converted_back(name, tmp_path):
    theirs = of_timm(name).state_dict()
    torch.save(theirs, tmp_path / "w.pth")
    ours = ConvNextForImageClassification.from_pretrained(tmp_path / "w.pth")
    blank = ConvNextForImageClassification(ours.config)
    detector = nn.ModuleDict({"backbone": blank})
    detector.load_state_dict({f"backbone.{k}": v for k, v in theirs.items()})
    for key, value in ours.state_dict().items():
        assert torch.equal(blank.state_dict()[key], value)
    weights = open_weights(tmp_path / "w.pth")
    is_conv = any(k.endswith("mlp.fc1.weight") and v.ndim == 4 for k, v in theirs.items())
    back = torch.load(
        convert_weights(
            weights, tmp_path / "back.pth", "timm", pointwise="conv" if is_conv else "linear"
        )
    )
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[k], v) for k, v in theirs.items())
    for to in ("facebook", "torchvision", "mmpretrain"):
        with pytest.raises(ValueError, match="cannot represent "):
            convert_weights(weights, tmp_path / "x.pth", to)
    with pytest.raises(ValueError, match="transformers has no such network: "):
        convert_weights(weights, tmp_path / "hf", "huggingface")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_train_freeze_and_decay_by_layer(name):
    from convnext_backbone.openmmlab.layer_decay import layer_groups

    backbone = build(ConvNextBackbone, name).train()
    backbone.frozen_stages = 0
    assert not any(p.requires_grad for p in backbone.downsample_layers[0].parameters())
    backbone(torch.randn(2, 3, 64, 48))[0].square().mean().backward()
    groups = layer_groups(backbone, decay_rate=0.9, weight_decay=0.05)
    for group in groups:
        for key, p in zip(group.param_names, group.params, strict=True):
            assert p.grad is not None
            assert (group.weight_decay > 0) == (p.ndim > 1), key


@pytest.mark.parametrize("name", ["overlap_act", "simplenorm", "rmsnorm", "conv_bias", "isotropic"])
@torch.no_grad()
def test_variants_are_exported(name):
    backbone, x = build(ConvNextBackbone, name), torch.randn(1, 3, 64, 48)
    program = torch.export.export(backbone, (x,))
    assert_equal(program.module()(x)[0], backbone(x)[0])


@pytest.mark.parametrize(
    "fields",
    [{"pad_to_stride": True}, {"norm_layer": "simplenorm", "stem_type": "overlap_act"}],
    ids=["padded", "zepto"],
)
def test_variants_become_onnx_of_any_size(fields, tmp_path):
    """The exporter compares the file with the network, at sizes that no stride divides."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    backbone = randomise(ConvNextBackbone(**TINY, **fields, out_indices=(1, 4)))
    assert export_onnx(backbone, tmp_path / "b.onnx").error < 1e-3


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_maps_are_those_of_the_last_axis(name):
    flat, of_maps = (randomise(cls(6, eps=1e-5)) for cls in NORMS[name])
    x = torch.randn(2, 6, 5, 4)
    assert_equal(of_maps(x), flat(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 0.0)
    half = of_maps.bfloat16()(x.bfloat16())
    assert half.dtype is torch.bfloat16
    assert_equal(half.float(), of_maps.float()(x), 0.05)


# ------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("size", [(64, 64), (65, 63), (33, 1), (70, 129)], ids=str)
@pytest.mark.parametrize("output_stride", [8, 32])
@torch.no_grad()
def test_padding_to_the_stride_keeps_the_border(size, output_stride):
    """Maps are those of the image padded with zeros, cropped to what the image reaches."""
    plain = randomise(ConvNextBackbone(**TINY, output_stride=output_stride, out_indices=range(5)))
    padded = ConvNextBackbone(plain.config.replace(pad_to_stride=True)).eval()
    padded.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, *size)
    by_hand = nn.functional.pad(x, (0, -size[1] % output_stride, 0, -size[0] % output_stride))
    for got, want, stride in zip(padded(x), plain(by_hand), plain.strides, strict=True):
        sides = [-(-side // stride) for side in size]
        assert list(got.shape[2:]) == sides
        assert_equal(got, want[:, :, : sides[0], : sides[1]], 0.0)
        assert got.is_contiguous()
    fast = padded.optimize_for_inference()
    assert [m.shape for m in fast(x)] == [m.shape for m in padded(x)]


@torch.no_grad()
def test_dilations_are_the_output_stride_written_out():
    strided = randomise(ConvNextBackbone(**TINY, output_stride=8, out_indices=(1, 2, 3, 4)))
    dilated = ConvNextBackbone(**TINY, dilations=(1, 1, 2, 4), out_indices=(1, 2, 3, 4)).eval()
    dilated.load_state_dict(strided.state_dict())
    assert dilated.strides == strided.strides == (4, 8, 8, 8)
    x = torch.randn(1, 3, 75, 64)
    for got, want in zip(dilated(x), strided(x), strict=True):
        assert_equal(got, want, 0.0)
    with pytest.raises(ValueError, match=r"dilations=\(1, 1, 2, 4\) imply output_stride=8, got"):
        ConvNextConfig(dilations=(1, 1, 2, 4), output_stride=16)


@torch.no_grad()
def test_a_stage_may_downsample_after_a_dilated_one():
    """By definition: the map that is not downsampled holds the other as every second pixel."""
    dilations, shape = (1, 2, 2, 2), {**TINY, "kernel_size": 1}
    dense = randomise(ConvNextBackbone(**shape, dilations=dilations, out_indices=(2, 3, 4)))
    assert dense.strides == (4, 8, 16)
    usual = ConvNextBackbone(**shape, out_indices=(2, 3, 4)).eval()
    usual.load_state_dict(dense.state_dict())
    x = torch.randn(1, 3, 128, 128)
    for got, want in zip(dense(x), usual(x), strict=True):
        assert got.shape[2] == 2 * want.shape[2]
    assert_equal(dense(x)[0][:, :, ::2, ::2], usual(x)[0])
