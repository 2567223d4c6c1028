"""Loading is strict: what does not fit is listed, what is left out is reported."""

import ast
import dataclasses
import json
import re
import warnings

import pytest
import timm
import torch
import torchvision
from helpers.originals import DEPTHS, DINOV3, ORIGINALS, V1, WIDTHS, randomise
from torch import nn

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    load_weights,
)
from convnext_backbone.weights import convert_weights, load, open_weights
from convnext_backbone.weights.layouts import UnknownLayoutError
from convnext_backbone.weights.load import adapt_input_channels
from convnext_backbone.weights.load_hook import convert_state_dict_
from convnext_backbone.weights.read import read_checkpoint

FIELDS = {"hidden_sizes": WIDTHS, "depths": (1, 2, 1, 1)}


@pytest.fixture
def saved(tmp_path):
    def save(state):
        path = tmp_path / "saved" / "weights.pth"  # never the file that `state` is mapped from
        path.parent.mkdir(exist_ok=True)
        torch.save(state, path)
        return path

    return save


def _tensors(name, tmp_path):
    return dict(read_checkpoint(ORIGINALS[name].write(tmp_path)).tensors)


LAYOUTS = ("facebook_v1", "facebook_v2", "facebook_detector", "facebook_fcmae_sparse", "timm_v1",
           "timm_v2_conv_mlp", "torchvision", "mmpretrain_v1", "huggingface_dinov3_in_memory",
           "timm_features")  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_renamed_key_is_named_whichever_it_is(name, tmp_path, saved):
    state = _tensors(name, tmp_path)
    inside = [k for k in state if "stages" in k or "features" in k]
    for key in inside[:: max(1, len(inside) // 12)]:
        renamed = {k + "x" * (k == key): v for k, v in state.items()}
        with pytest.raises(ValueError, match=rf"{key}x"):
            ConvNextBackbone.from_pretrained(saved(renamed))


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_missing_key_is_an_error(name, tmp_path, saved):
    state = _tensors(name, tmp_path)
    inside = [k for k in state if "stages" in k or "features" in k]
    for key in inside[:: max(1, len(inside) // 12)]:
        if key.endswith("norms.3.weight"):
            continue
        fewer = {k: v for k, v in state.items() if k != key}
        with pytest.raises(ValueError, match=r"weights\.pth"):
            ConvNextBackbone.from_pretrained(saved(fewer))


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_tensor_of_the_wrong_shape_is_named(name, tmp_path, saved):
    state = _tensors(name, tmp_path)
    inside = [k for k in state if "stages" in k and k.endswith("bias")]
    for key in inside[:: max(1, len(inside) // 6)]:
        with pytest.raises(ValueError, match=rf"{key}"):
            ConvNextBackbone.from_pretrained(saved({**state, key: torch.zeros(7)}))


def _last_map_is(module, expected):
    """The last map of a backbone is an expected one, up to the norm of outputs that it adds."""
    maps = module(IMAGE)[-1]
    normed = nn.functional.layer_norm(expected.movedim(1, -1), expected.shape[1:2], eps=1e-6)
    torch.testing.assert_close(maps, normed.movedim(-1, 1), rtol=1e-4, atol=1e-4)


IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
_NEW_HEADS = {
    "a sequence in the head": lambda net: setattr(
        net.head, "fc", nn.Sequential(nn.Dropout(), nn.Linear(32, 3))
    ),
    "a linear head": lambda net: setattr(net, "head", nn.Linear(32, 3)),
    "a normed weight": lambda net: nn.utils.parametrizations.weight_norm(net.head.fc),
    "another beside it": lambda net: net.add_module("aux_head", nn.Linear(32, 3)),
    "numbers beside it": lambda net: net.register_buffer("mean", torch.zeros(3)),
}


@pytest.mark.parametrize("what", _NEW_HEADS)
def test_a_backbone_loads_a_network_whose_head_was_replaced(what, saved):
    net = randomise(timm.models.convnext.ConvNeXt(num_classes=7, depths=DEPTHS, dims=WIDTHS))
    known = set(net.state_dict())
    _NEW_HEADS[what](net)
    path = saved(net.state_dict())
    with torch.no_grad():
        module = ConvNextBackbone.from_pretrained(path).eval()
        _last_map_is(module, net.forward_features(IMAGE))
    assert net.state_dict().keys() - known <= set(module.load_report.dropped)
    unknown = {**net.state_dict(), "stages.0.blocks.0.ls9.gamma": torch.ones(8)}
    with pytest.raises(ValueError, match=r"unexpected: stages\.0\.blocks\.0\.ls9\.gamma$"):
        ConvNextBackbone.from_pretrained(saved(unknown))


@pytest.mark.parametrize("origin", ["timm", "torchvision"])
def test_a_classifier_says_that_its_head_is_missing_where_it_was_replaced(origin, saved):
    head = nn.Sequential(nn.Dropout(), nn.Linear(32, 3))
    if origin == "timm":
        net = timm.models.convnext.ConvNeXt(num_classes=7, depths=DEPTHS, dims=WIDTHS)
        net.head.fc = head
    else:
        net = _torchvision()
        net.classifier[2] = head
    path = saved(randomise(net).state_dict())
    with pytest.raises(ValueError, match=r"(?s)missing: head\.weight, head\.bias.*fresh=\('head\."):
        ConvNextForImageClassification.from_pretrained(path, num_labels=3)
    module = ConvNextForImageClassification.from_pretrained(path, num_labels=3, fresh=("head.",))
    assert module.load_report.fresh == ("head.weight", "head.bias")
    with torch.no_grad():
        module.head.weight.copy_(head[1].weight)
        module.head.bias.copy_(head[1].bias)
        torch.testing.assert_close(module.eval()(IMAGE).logits, net(IMAGE), rtol=1e-4, atol=1e-4)


def test_an_unknown_layer_of_keras_is_refused_where_it_may_be_in_the_trunk(tmp_path, saved):
    state = _tensors("keras_h5", tmp_path)
    name = next(key for key in state if "_stem/" in key).partition("_stem/")[0]
    head = {"dense_2/kernel": torch.ones(32, 3), "dense_2/bias": torch.ones(3)}
    module = ConvNextBackbone.from_pretrained(saved({**state, **head}))
    assert set(head) <= set(module.load_report.dropped)
    unknown = f"{name}_stage_0_block_0_second_scale/gamma"
    with pytest.raises(ValueError, match=f"unexpected: {unknown}"):
        ConvNextBackbone.from_pretrained(saved({**state, unknown: torch.ones(8)}))


def _torchvision():
    blocks = zip(WIDTHS, [*WIDTHS[1:], None], DEPTHS, strict=True)
    blocks = [torchvision.models.convnext.CNBlockConfig(*block) for block in blocks]
    return randomise(torchvision.models.convnext.ConvNeXt(blocks))


@pytest.mark.parametrize("form", ["features", "with pooling", "all but the head", "in a detector"])
def test_the_features_of_torchvision_are_a_network_of_their_own(form, saved):
    net = _torchvision()
    part = {
        "features": net.features,
        "with pooling": nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1)),
        "all but the head": nn.Sequential(*list(net.children())[:-1]),
        "in a detector": nn.ModuleDict({"body": net.features, "fpn": nn.Conv2d(32, 8, 1)}),
    }[form]
    with torch.no_grad():
        module = ConvNextBackbone.from_pretrained(saved(part.state_dict())).eval()
        _last_map_is(module, net.features(IMAGE))
    assert module.load_report.layout.startswith("torchvision")
    again = ConvNextBackbone.from_pretrained(saved(net.state_dict()))
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])


def test_all_misfits_are_in_one_error(tmp_path, saved):
    state = V1.state_dict()
    state["stages.0.0.norm.bias"] = torch.zeros(3)
    state["stages.1.0.extra.weight"] = state.pop("stages.1.0.norm.weight")
    module = ConvNextBackbone(**FIELDS)
    with pytest.raises(ValueError, match=r"(?s)missing: stages\.1\.0\.norm\.weight") as caught:
        load_weights(module, saved(state))
    text = str(caught.value)
    assert "unexpected: stages.1.0.extra.weight" in text
    assert "stages.0.0.norm.bias is (3,), must be (8,)" in text


def test_nothing_is_loaded_when_something_does_not_fit(saved):
    state = V1.state_dict()
    state["stages.3.0.norm.bias"] = torch.zeros(3)
    module = ConvNextBackbone(**FIELDS)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ValueError, match="wrong shape"):
        load_weights(module, saved(state))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_another_architecture_does_not_fit(saved):
    with pytest.raises(ValueError, match=r"(?s)do not fit ConvNextBackbone.*must be"):
        load_weights(ConvNextBackbone(arch="convnext_atto"), saved(V1.state_dict()))


@pytest.mark.parametrize(
    "foreign",
    [
        lambda: torchvision.models.resnet18().state_dict(),
        lambda: torchvision.models.swin_t().state_dict(),
        lambda: torchvision.models.mobilenet_v2().state_dict(),
        lambda: {"weight": torch.ones(3)},
    ],
    ids=["resnet", "swin", "mobilenet", "one_tensor"],
)
def test_another_network_is_said_not_to_be_a_convnext(foreign, saved):
    with pytest.raises(UnknownLayoutError, match=r"weights\.pth: .*no known ConvNeXt layout"):
        ConvNextBackbone.from_pretrained(saved(foreign()))


def test_two_convnexts_in_one_file_need_a_prefix(tmp_path, saved):
    student = {f"student.{k}": v for k, v in V1.state_dict().items()}
    teacher = {f"teacher.{k}": v + 1 for k, v in V1.state_dict().items()}
    path = saved({**student, **teacher})
    with pytest.raises(ValueError, match=r"'student\.', 'teacher\.'"):
        ConvNextBackbone.from_pretrained(path)
    ours = ConvNextBackbone.from_pretrained(path, prefix="teacher.").state_dict()
    assert torch.equal(ours["stages.0.0.gamma"], V1.state_dict()["stages.0.0.gamma"] + 1)
    same = ConvNextBackbone.from_pretrained(path, prefix="teacher").state_dict()
    assert torch.equal(same["stages.0.0.gamma"], ours["stages.0.0.gamma"])
    with pytest.raises(UnknownLayoutError, match=r"prefix 'other\.'"):
        ConvNextBackbone.from_pretrained(path, prefix="other.")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_warn_and_are_noted(bad, saved):
    state = {k: v.clone() for k, v in V1.state_dict().items()}
    state["stages.1.1.dwconv.weight"].fill_(bad)
    with pytest.warns(UserWarning, match=r"NaN or infinity: stages\.1\.1\.dwconv\.weight"):
        module = ConvNextBackbone.from_pretrained(saved(state))
    assert "NaN" in module.load_report.notes[0]


# ------------------------------------------------------------------------------ the report


def test_report_accounts_for_every_tensor(tmp_path):
    path = ORIGINALS["facebook_detector"].write(tmp_path)
    module = ConvNextBackbone(**FIELDS, out_features=["stem", "stage2"])
    report = load_weights(module, path)
    theirs = read_checkpoint(path).tensors
    assert sorted(report.loaded + report.fresh) == sorted(module.state_dict())
    assert report.fresh == ("norms.stem.weight", "norms.stem.bias")
    assert len(report.loaded) + len(report.dropped) == len(theirs)
    assert {"neck.fpn_convs.0.conv.weight", "backbone.norm0.weight"} <= set(report.dropped)
    assert module.load_report is report


def test_report_prints_as_a_short_table(tmp_path):
    report = ConvNextBackbone.from_pretrained(ORIGINALS["timm_v1"].write(tmp_path)).load_report
    lines = str(report).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "source", "layout", "loaded", "newly initialized", "dropped", "reshaped",
        "assumed"]  # fmt: skip
    assert "head.fc.weight" in lines[4]
    assert all(len(line) < 300 for line in lines)


@pytest.mark.parametrize(
    ("name", "choice", "expected"),
    [
        ("facebook_v1", None, "drop"),
        ("facebook_v1", "stage", "stage"),
        ("facebook_dinov3", None, "stage"),
        ("facebook_dinov3", "drop", "drop"),
        ("huggingface_dinov3", None, "stage"),
        ("timm_v1", None, "drop"),
        ("mmpretrain_v1", None, "drop"),
        ("keras_h5", "stage", "stage"),
    ],
)
def test_final_norm_goes_where_the_recipe_or_the_caller_says(name, choice, expected, tmp_path):
    path = ORIGINALS[name].write(tmp_path)
    module = ConvNextBackbone.from_pretrained(path, final_norm=choice)
    is_fresh = "norms.stage4.weight" in module.load_report.fresh
    assert is_fresh == (expected == "drop")
    assert torch.equal(module.norms["stage4"].weight, torch.ones(32)) == is_fresh
    assert any("final norm" in note for note in module.load_report.notes) != is_fresh


def test_lone_norm_of_an_mmpretrain_backbone_is_the_last_stages(tmp_path, saved):
    state = _tensors("mmpretrain_v1", tmp_path)
    bare = {k: v for k, v in state.items() if not k.startswith("head.")}
    module = ConvNextBackbone.from_pretrained(saved({"state_dict": bare}))
    assert torch.equal(module.norms["stage4"].weight, V1.norm.weight)


def test_final_norm_of_dinov3_is_found_under_its_second_name(saved):
    """A file that may hold a shared tensor once, such as safetensors, may keep either name."""
    state = {k: v for k, v in DINOV3.state_dict().items() if not k.startswith("norm.")}
    module = ConvNextBackbone.from_pretrained(saved(state))
    assert torch.equal(module.norms["stage4"].weight, DINOV3.norm.weight)
    assert module.load_report.fresh == ()


def test_unknown_final_norm_names_the_choices(saved):
    with pytest.raises(ValueError, match=r"final_norm .*'stage', 'drop'.*'last'"):
        ConvNextBackbone.from_pretrained(saved(V1.state_dict()), final_norm="last")


def test_missing_head_is_an_error_unless_it_may_be_fresh(tmp_path):
    path = ORIGINALS["mmpretrain_downstream"].write(tmp_path)
    module = ConvNextForImageClassification(**FIELDS, num_labels=3)
    with pytest.raises(
        ValueError, match=r"missing: norm\.weight, norm\.bias, head\.weight"
    ) as error:
        load_weights(module, path)
    hint = re.search(r"hint: fresh=(\(.*?\))", str(error.value))
    report = load_weights(module, path, fresh=ast.literal_eval(hint[1]))
    assert set(report.fresh) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_head_of_another_size_may_be_fresh(saved):
    path = saved(V1.state_dict())
    module = ConvNextForImageClassification(**FIELDS, num_labels=3)
    with pytest.raises(ValueError, match=r"head\.weight is \(5, 32\), must be \(3, 32\)"):
        load_weights(module, path)
    report = load_weights(module, path, fresh=("head.",))
    assert set(report.fresh) == set(report.dropped) == {"head.weight", "head.bias"}
    assert torch.equal(module.norm.weight, V1.norm.weight)


def test_half_precision_file_loads_into_a_module_of_full_precision(saved):
    half = {k: v.half() for k, v in V1.state_dict().items()}
    module = ConvNextBackbone.from_pretrained(saved(half))
    assert module.stages[0][0].gamma.dtype == torch.float32
    assert torch.equal(module.stages[0][0].gamma, half["stages.0.0.gamma"].float())


def test_quantized_weights_are_refused_by_name(saved):
    state = V1.state_dict()
    state["stages.1.0.pwconv1.weight"] = state["stages.1.0.pwconv1.weight"].to(torch.int8)
    with pytest.raises(ValueError, match=r"stages\.1\.0\.pwconv1\.weight is torch\.int8"):
        ConvNextBackbone.from_pretrained(saved(state))


def test_module_on_the_meta_device_takes_the_tensors(saved):
    with torch.device("meta"):
        module = ConvNextForImageClassification(**FIELDS, num_labels=5)
    load_weights(module, saved(V1.state_dict()))
    assert torch.equal(module.head.weight, V1.head.weight)


def test_module_that_is_no_convnext_is_refused(saved):
    with pytest.raises(ValueError, match="module must be a ConvNeXt of this package, got Linear"):
        load_weights(nn.Linear(2, 2), saved(V1.state_dict()))


def test_loaded_weights_do_not_share_memory_with_the_file(saved):
    path = saved(V1.state_dict())
    module = ConvNextBackbone.from_pretrained(path)
    content = path.read_bytes()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert path.read_bytes() == content


# ------------------------------------------------------------------------------ input channels


def test_other_number_of_input_channels_is_refused_with_a_hint(saved):
    path = saved(V1.state_dict())
    with pytest.raises(ValueError, match=r"(?s)3 input channels.*adapt_in_channels=True"):
        load_weights(ConvNextBackbone(**FIELDS, num_channels=4), path)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_adapted_stem_answers_equal_channels_alike(channels, saved):
    """An image whose channels are all equal gives what the grey RGB image gives."""
    path = saved(V1.state_dict())
    plain = ConvNextBackbone.from_pretrained(path).eval()
    ours = ConvNextBackbone.from_pretrained(
        path, num_channels=channels, adapt_in_channels=True
    ).eval()
    grey = torch.rand(1, 1, 32, 32)
    weight = plain.downsample_layers[0][0].weight
    adapted = ours.downsample_layers[0][0].weight
    assert adapted.shape[1] == channels
    if channels in (1, 6):  # whole copies of the three channels: exactly the same answer
        assert torch.allclose(adapted.sum(1), weight.sum(1), atol=1e-6)
        with torch.no_grad():
            gap = ours(grey.expand(1, channels, -1, -1))[0] - plain(grey.expand(1, 3, -1, -1))[0]
        assert gap.abs().max() <= 1e-4
    assert f"from 3 to {channels}" in ours.load_report.notes[0]


def test_adapted_channels_are_timms():
    from timm.models import adapt_input_conv

    weight = torch.randn(8, 3, 4, 4)
    for channels in (1, 2, 4, 6):
        expected = adapt_input_conv(channels, weight)
        assert torch.allclose(adapt_input_channels(weight, channels), expected, atol=1e-6)


def test_same_number_of_channels_is_left_alone(saved):
    path = saved(V1.state_dict())
    module = ConvNextBackbone.from_pretrained(path, adapt_in_channels=True)
    assert torch.equal(module.downsample_layers[0][0].weight, V1.downsample_layers[0][0].weight)
    assert module.load_report.notes == ()


# ------------------------------------------------------------------------------ load_state_dict


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("place", ["", "backbone.", "detector.backbone."])
def test_load_state_dict_takes_every_layout_under_any_prefix(name, place, tmp_path):
    path = ORIGINALS[name].write(tmp_path)
    expected = ConvNextBackbone.from_pretrained(path, out_features=["stage1", "stage4"])
    module = ConvNextBackbone(
        **{**FIELDS, "use_grn": expected.config.use_grn},
        layer_scale_init_value=expected.config.layer_scale_init_value,
        out_features=["stage1", "stage4"],
    )
    outer = nn.Module()
    outer.backbone = module
    whole = nn.Module()
    whole.detector = outer
    target = {"": module, "backbone.": outer, "detector.backbone.": whole}[place]
    state = {place + k: v for k, v in read_checkpoint(path).tensors.items()}
    result = target.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) == {place + k for k in expected.load_report.fresh}
    for key, tensor in expected.state_dict().items():
        assert torch.equal(module.state_dict()[key], tensor), key


def test_load_state_dict_leaves_our_own_as_it_is():
    module = ConvNextBackbone(**FIELDS, out_features=["stem", "stage4"])
    other = ConvNextBackbone(**FIELDS, out_features=["stem", "stage4"])
    state = module.state_dict()
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    narrow = ConvNextBackbone(**FIELDS, out_features=["stage4"])
    with pytest.raises(RuntimeError, match=r"Unexpected key.*norms\.stem"):
        narrow.load_state_dict(state)


def test_load_state_dict_does_not_change_the_callers_dict(tmp_path):
    state = _tensors("timm_v1", tmp_path)
    keys = list(state)
    ConvNextBackbone(**FIELDS).load_state_dict(state, strict=False)
    assert list(state) == keys


def test_load_state_dict_of_another_network_reports_it_as_torch_does():
    result = ConvNextBackbone(**FIELDS).load_state_dict(
        torchvision.models.resnet18().state_dict(), strict=False
    )
    assert "conv1.weight" in result.unexpected_keys
    assert "downsample_layers.0.0.weight" in result.missing_keys


def test_head_beside_the_backbone_marks_the_final_norm_of_mmpretrain(tmp_path):
    """mmengine hands the whole state dict to every module, so the hook sees the head."""
    keys = ConvNextBackbone(**FIELDS).state_dict().keys()
    state = _tensors("mmpretrain_v1", tmp_path)
    convert_state_dict_(state, "backbone.", keys)
    assert {"head.fc.weight", "head.fc.bias"} == {k for k in state if not k.startswith("backbone")}
    assert {k[9:] for k in state if k.startswith("backbone")} == {
        k for k in keys if not k.startswith("norms.")
    }


def test_strict_load_state_dict_names_a_renamed_key(tmp_path):
    state = _tensors("facebook_detector", tmp_path)
    state = {k[9:]: v for k, v in state.items() if k.startswith("backbone.")}
    state["stages.0.0.dwconv.weightx"] = state.pop("stages.0.0.dwconv.weight")
    stages = ["stage1", "stage2", "stage3", "stage4"]
    with pytest.raises(RuntimeError, match=r"stages\.0\.0\.dwconv\.weightx"):
        ConvNextBackbone(**FIELDS, out_features=stages).load_state_dict(state)


# ------------------------------------------------------------------------------ config.json


def test_config_beside_the_weights_says_what_tensors_do_not(tmp_path):
    import transformers

    fields = {"hidden_act": "relu", "layer_norm_eps": 1e-3, "drop_path_rate": 0.2}
    config = transformers.ConvNextConfig(
        hidden_sizes=list(WIDTHS), depths=[1, 2, 1, 1], id2label={0: "cat", 1: "dog", 2: "owl"},
        out_features=["stage2", "stage4"], **fields,
    )  # fmt: skip
    model = transformers.ConvNextForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    ours = ConvNextForImageClassification.from_pretrained(tmp_path).eval()
    assert {name: getattr(ours.config, name) for name in fields} == fields
    assert ours.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert ConvNextBackbone.from_pretrained(tmp_path).out_features == ("stage2", "stage4")
    other = ConvNextBackbone.from_pretrained(tmp_path, out_indices=(1,), drop_path_rate=0.0)
    assert (other.out_features, other.config.drop_path_rate) == (("stage1",), 0.0)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(x).logits, model(x).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "eps"),
    [("facebook_v1", 1e-6), ("timm_v1", 1e-6), ("torchvision", 1e-6), ("tf_v1", 1e-12),
     ("huggingface-v1_classifier", 1e-12), ("huggingface_dinov3", 1e-6), ("keras_h5", 1e-6)],
)  # fmt: skip
def test_epsilon_of_the_final_norm_is_that_of_the_layouts_home(name, eps, tmp_path):
    config = ConvNextBackbone.from_pretrained(ORIGINALS[name].write(tmp_path)).config
    assert config.layer_norm_eps == eps
    assert config.norm_eps == 1e-6


def test_timms_config_names_the_architecture_that_has_another_epsilon(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "test_convnext2", "num_classes": 5}')
    ORIGINALS["timm_v1"].write(tmp_path).rename(tmp_path / "pytorch_model.bin")
    config = ConvNextBackbone.from_pretrained(tmp_path).config
    assert (config.norm_eps, config.layer_norm_eps) == (1e-5, 1e-5)
    assert config.hidden_act == "gelu_pytorch_tanh"


def test_config_beside_a_file_of_another_name_is_not_its_own(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "test_convnext2"}')
    config = ConvNextBackbone.from_pretrained(ORIGINALS["timm_v1"].write(tmp_path)).config
    assert (config.norm_eps, config.hidden_act) == (1e-6, "gelu")


def test_loading_a_sound_file_warns_of_nothing(tmp_path):
    path = ORIGINALS["facebook_v1"].write(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConvNextBackbone.from_pretrained(path)


# Another value of every field that tensors do not show, in a config.json.
_CARRIED = {
    "hidden_act": "relu", "initializer_range": 0.5, "layer_norm_eps": 1e-3, "norm_eps": 1e-4,
    "drop_path_rate": 0.25, "image_size": 96, "out_features": ["stage1", "stage3"],
    "out_indices": [1, 3], "problem_type": "regression", "output_hidden_states": True,
    "return_dict": False, "output_stride": 8, "dilations": (1, 1, 2, 4), "pad_to_stride": True,
    "norm_layer": "rmsnorm", "head_hidden_size": 12,
}  # fmt: skip
_SHOWN_BY_TENSORS = {
    "num_channels", "patch_size", "num_stages", "hidden_sizes", "depths", "kernel_size", "use_grn",
    "layer_scale_init_value", "model_type", "num_labels", "id2label", "label2id", "stem_type",
    "conv_bias", "head_norm_first",
}  # fmt: skip


def test_every_field_of_config_json_that_tensors_do_not_show_is_carried(tmp_path):
    """A new field of ConvNextConfig fails here until it is sorted into one of the two."""
    names = {field.name for field in dataclasses.fields(ConvNextConfig)}
    assert _CARRIED.keys() | _SHOWN_BY_TENSORS == names
    config = ConvNextConfig(hidden_sizes=WIDTHS, depths=DEPTHS, **_CARRIED)
    with pytest.warns(UserWarning, match="transformers will not compute .* norm_eps must be 1e-06"):
        ConvNextForImageClassification(config).save_pretrained(tmp_path)
    loaded = ConvNextForImageClassification.from_pretrained(tmp_path).config
    assert {name: getattr(loaded, name) for name in _CARRIED} == _CARRIED


def test_outputs_that_config_json_gives_by_index_alone_are_carried(tmp_path):
    ConvNextBackbone(hidden_sizes=WIDTHS, depths=DEPTHS).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["out_features"]
    (tmp_path / "config.json").write_text(json.dumps({**values, "out_indices": [1, 3]}))
    assert ConvNextBackbone.from_pretrained(tmp_path).out_features == ("stage1", "stage3")
    chosen = ConvNextBackbone.from_pretrained(tmp_path, out_features=["stage2"])
    assert chosen.out_features == ("stage2",)


def test_config_of_a_directory_is_its_own_whatever_its_only_file_is_called(tmp_path):
    import transformers

    config = transformers.ConvNextConfig(
        hidden_sizes=list(WIDTHS), depths=[1, 2, 1, 1], hidden_act="relu"
    )
    transformers.ConvNextForImageClassification(config).save_pretrained(tmp_path, variant="fp16")
    assert ConvNextForImageClassification.from_pretrained(tmp_path).config.hidden_act == "relu"


def test_config_of_the_backbone_within_a_transformers_segmentor_is_read(tmp_path):
    import transformers

    fields = {"hidden_act": "relu", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    backbone = transformers.ConvNextConfig(hidden_sizes=list(WIDTHS), depths=[1, 2, 1, 1], **fields)
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_in_channels=WIDTHS[2],
        auxiliary_channels=8, num_labels=3,
    )  # fmt: skip
    theirs = transformers.UperNetForSemanticSegmentation(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = ConvNextBackbone.from_pretrained(tmp_path)
    assert ours.config.hidden_act == "relu"
    assert ours.out_features == tuple(fields["out_features"])
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for got, expected in zip(ours(x), theirs.backbone(x).feature_maps, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_bad_value_in_config_json_names_the_source(tmp_path):
    ConvNextForImageClassification(**FIELDS).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "drop_path_rate": "much"}))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: drop_path_rate must be a number")):
        ConvNextForImageClassification.from_pretrained(tmp_path)


def test_one_name_that_may_be_fresh_can_be_given_alone(saved):
    path = saved(V1.state_dict())
    module = ConvNextForImageClassification(**FIELDS, num_labels=3)
    assert set(load_weights(module, path, fresh="head.").fresh) == {"head.weight", "head.bias"}
    stem = ConvNextBackbone(**FIELDS, num_channels=4)
    with pytest.raises(ValueError, match=r"downsample_layers\.0\.0\.weight is"):
        load_weights(stem, path, fresh="head.")


def test_float8_tensors_are_cast(saved):
    state = V1.state_dict()
    state["stages.1.0.pwconv1.weight"] = small = state["stages.1.0.pwconv1.weight"].to(
        torch.float8_e4m3fn
    )
    module = ConvNextBackbone.from_pretrained(saved(state))
    assert torch.equal(module.stages[1][0].pwconv1.weight, small.float())


def test_dtype_of_the_source_is_read_with_the_weights(saved, monkeypatch):
    path, reads = saved({k: v.half() for k, v in V1.state_dict().items()}), []
    read = load.open_weights
    monkeypatch.setattr(load, "open_weights", lambda *a, **k: reads.append(a) or read(*a, **k))
    assert ConvNextBackbone.from_pretrained(path, dtype="auto").dtype == torch.float16
    assert len(reads) == 1
    quantized = {k: v.to(torch.int8) for k, v in V1.state_dict().items()}
    with pytest.raises(ValueError, match=r"is torch\.int8"):
        ConvNextBackbone.from_pretrained(saved(quantized), dtype="auto")


def test_tied_blocks_are_saved_and_loaded(tmp_path):
    model = ConvNextForImageClassification(**FIELDS, num_labels=3)
    model.stages[1][1] = model.stages[1][0]
    model.save_pretrained(tmp_path)
    again = ConvNextForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again.stages[1][1].dwconv.weight, model.stages[1][0].dwconv.weight)


def test_a_home_directory_is_expanded_when_weights_are_written_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = ConvNextForImageClassification(**FIELDS, num_labels=3)
    model.save_pretrained("~/saved")
    loaded = ConvNextForImageClassification.from_pretrained("~/saved")
    assert torch.equal(loaded.head.weight, model.head.weight)
    convert_weights(open_weights("~/saved"), "~/timm.safetensors", "timm")
    assert (tmp_path / "timm.safetensors").exists()
