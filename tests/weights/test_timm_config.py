"""The config.json that timm writes beside its weights: what `model_args` says is what is built."""

import json

import pytest
import timm
import torch
import transformers
from helpers.originals import randomise
from timm.models import save_for_hf

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextForImageClassification,
    ConvNextModel,
    load_weights,
)

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_classes": 5}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Of timm's ConvNeXt, each with a value that is not its default.
MODEL_ARGS = [
    {"act_layer": "silu"},
    {"act_layer": "ReLU"},
    {"act_layer": "gelu_tanh", "norm_eps": 1e-2},
    {"norm_eps": 1e-3},
    {"norm_eps": 0.0},
    {"norm_layer": "rmsnorm"},
    {"norm_layer": "rmsnorm2d", "norm_eps": 1e-2},
    {"norm_layer": "simplenorm", "head_norm_first": True},
    {"norm_layer": "simplenorm2d", "conv_mlp": False},
    {"norm_layer": "LayerNorm2d", "norm_eps": 1e-2},  # a spelling with which timm ignores norm_eps
    {"norm_layer": "rms_norm2d_fp32"},
    {"output_stride": 8},
    {"output_stride": 16, "act_layer": "swish", "norm_eps": 1e-4},
    {"output_stride": 8, "patch_size": 6},
    {"output_stride": 16, "patch_size": 8},
    {"patch_size": 3},
    {"patch_size": 8},  # timm's stages dilate from a stride of 32 on
    {"patch_size": 16},
    {"stem_type": "overlap_act", "act_layer": "silu", "output_stride": 8},
    {"stem_type": "overlap_tiered", "in_chans": 4},
    {"conv_bias": False, "kernel_sizes": (3, 5, 7, 9), "output_stride": 16},
    {"use_grn": True, "act_layer": "relu"},
    {"ls_init_value": 0.0, "head_hidden_size": 12, "norm_eps": 1e-2},
    {"drop_path_rate": 0.2, "drop_rate": 0.1, "global_pool": "fastavg"},
    {"num_classes": 0, "output_stride": 8},
]


def saved_by_timm(folder, arch="convnext_atto", **args):
    """Save a tiny network of timm and return what timm itself loads from the directory."""
    model = randomise(timm.create_model(arch, **{**TINY, **args}))
    save_for_hf(model, folder, model_args={**TINY, **args}, safe_serialization=True)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def assert_equal(got, expected, tolerance=1e-5):
    atol = tolerance * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got, expected, rtol=0.0, atol=atol)


def assert_computes(folder, theirs):
    x = torch.randn(2, theirs.in_chans, 75, 96)
    with torch.no_grad():
        ours = ConvNextForImageClassification.from_pretrained(folder)
        assert_equal(ours(x).logits, theirs(x))
        backbone = ConvNextBackbone.from_pretrained(folder, out_features=STAGES)
        maps = backbone(x, output_hidden_states=True).hidden_states[1:]
        for got, want in zip(maps, theirs.forward_intermediates(x)[1], strict=True):
            assert_equal(got, want)
    assert list(backbone.strides) == [info["reduction"] for info in theirs.feature_info]
    return ours


@pytest.mark.parametrize("args", MODEL_ARGS, ids=str)
def test_a_network_is_built_as_timm_builds_it(args, tmp_path):
    ours = assert_computes(tmp_path, saved_by_timm(tmp_path, **args))
    assert ours.config.drop_path_rate == args.get("drop_path_rate", 0.0)
    assert "of config.json" in ours.load_report.assumed
    assert ours.config.hidden_act in transformers.activations.ACT2FN
    ours.save_pretrained(tmp_path / "ours")
    again = ConvNextForImageClassification.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config


test_a_network_is_built_as_timm_builds_it = pytest.mark.filterwarnings(
    "ignore:transformers will not compute"
)(test_a_network_is_built_as_timm_builds_it)


@pytest.mark.parametrize(
    ("arch", "args"),
    [
        ("convnext_xxlarge", {"norm_eps": 1e-2}),
        ("convnext_atto_rms", {"norm_layer": "layernorm"}),
        ("convnext_zepto_rms", {"norm_layer": "rmsnorm2d"}),
        ("test_convnext3", {"act_layer": "gelu"}),
        ("convnextv2_atto", {"norm_layer": "rmsnorm", "act_layer": "silu", "output_stride": 16}),
    ],
    ids=str,
)
def test_arguments_come_before_what_the_architecture_has(arch, args, tmp_path):
    assert_computes(tmp_path, saved_by_timm(tmp_path, arch, **args))


def test_an_argument_of_none_is_that_of_timms_class(tmp_path):
    saved_by_timm(tmp_path, "convnext_atto_rms", norm_layer="layernorm")
    values = json.loads((tmp_path / "config.json").read_text())
    values["model_args"]["norm_layer"] = None
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert_computes(tmp_path, timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval())


def test_absent_biases_tell_the_norm_where_the_arguments_do_not(tmp_path):
    theirs = saved_by_timm(tmp_path, norm_layer="rmsnorm")
    values = json.loads((tmp_path / "config.json").read_text())
    del values["model_args"]  # as releases of timm before model_args left them out
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert_computes(tmp_path, theirs)


@pytest.mark.parametrize("patch_size", [8, 16])
def test_a_file_without_config_json_is_of_timms_default_output_stride(patch_size, tmp_path):
    theirs = saved_by_timm(tmp_path, patch_size=patch_size)
    (tmp_path / "config.json").unlink()
    assert_computes(tmp_path / "model.safetensors", theirs)
    chosen = ConvNextBackbone.from_pretrained(tmp_path, output_stride=8 * patch_size)
    assert chosen.strides == (8 * patch_size,)


def test_arguments_that_transformers_writes_for_timm_are_read(tmp_path):
    config = transformers.TimmWrapperConfig(
        architecture="convnext_atto", num_labels=5,
        model_args={"dims": TINY["dims"], "depths": TINY["depths"], "act_layer": "silu",
                    "output_stride": 8},
    )  # fmt: skip
    theirs = randomise(transformers.TimmWrapperForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    ours, x = ConvNextForImageClassification.from_pretrained(tmp_path), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_equal(ours(x).logits, theirs(x).logits)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"act_layer": "mish"}, "hidden_act must be one of .*got 'mish'"),
        ({"norm_layer": "batchnorm2d"}, "norm_layer must be one of .*got 'batchnorm'"),
        ({"patch_size": 32}, r"patch_size 32 and output_stride 32 .*\(1, 2, 4, 8\)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [ConvNextBackbone, ConvNextForImageClassification])
def test_what_is_not_built_here_is_refused_by_name(cls, args, message, tmp_path):
    saved_by_timm(tmp_path, **args)
    with pytest.raises(ValueError, match=rf"{tmp_path}: .*{message}"):
        cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", ["8", 12, [8]])
def test_a_bad_output_stride_is_refused_by_name(value, tmp_path):
    saved_by_timm(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["model_args"]["output_stride"] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"{tmp_path}: output_stride must be one of \(8, 16, 32"):
        ConvNextBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize("pool", ["max", "avgmax", "fastmax"])
def test_another_pooling_is_refused_where_maps_are_pooled(pool, tmp_path):
    theirs, x = saved_by_timm(tmp_path, global_pool=pool), torch.randn(1, 3, 64, 64)
    for cls in (ConvNextForImageClassification, ConvNextModel):
        with pytest.raises(ValueError, match=rf"{tmp_path}: .*global_pool .*'{pool}'"):
            cls.from_pretrained(tmp_path)
    backbone = ConvNextBackbone.from_pretrained(tmp_path)
    with torch.no_grad():
        got = backbone(x, output_hidden_states=True).hidden_states[-1]
        assert_equal(got, theirs.forward_features(x))
    module = ConvNextForImageClassification(
        hidden_sizes=TINY["dims"], depths=TINY["depths"], num_labels=5
    )
    with pytest.warns(UserWarning, match=f"global_pool '{pool}'"):
        load_weights(module, tmp_path)


def test_logits_of_every_pixel_are_refused_and_a_model_reads_the_trunk(tmp_path):
    theirs, x = saved_by_timm(tmp_path, global_pool=""), torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="global_pool ''"):
        ConvNextForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        got = ConvNextModel.from_pretrained(tmp_path)(x).last_hidden_state
        assert_equal(got, theirs.forward_features(x))
