"""transformers' detectors and segmentors on our backbone: trained a step, saved, reloaded."""

import pytest
import torch
import transformers
from helpers.peers import DEPTHS, STAGES, WIDTHS, build_pair
from safetensors.torch import save_file

from convnext_backbone import ConvNextBackbone
from convnext_backbone.integrations.transformers import (
    ConvNextAutoBackbone,
    ConvNextAutoBackboneConfig,
    load_backbone_weights,
    to_transformers,
)

SHAPE = {"hidden_sizes": WIDTHS, "depths": DEPTHS, "layer_scale_init_value": 0.5}
LAYERS = {
    "encoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 5,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "num_labels": 3,
}  # fmt: skip
REAL_TIME = {
    **LAYERS, "encoder_hidden_dim": 16, "decoder_layers": 2, "num_denoising": 3,
    "encoder_in_channels": list(WIDTHS[1:]), "decoder_in_channels": [16] * 3,
}  # fmt: skip
MASKS = {
    "hidden_dim": 32, "encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1,
    "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 5, "num_labels": 3,
    "train_num_points": 64,
}  # fmt: skip


def boxes():
    label = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3]])}
    return {"labels": [label, label]}


def masks():
    drawn = [torch.randint(2, (2, 64, 64)).float() for _ in range(2)]
    return {"mask_labels": drawn, "class_labels": [torch.tensor([0, 1])] * 2}


def upernet(four, three, last):
    config = transformers.UperNetConfig(
        backbone_config=four, hidden_size=16, pool_scales=[1, 2], num_labels=5,
        auxiliary_in_channels=WIDTHS[2], auxiliary_channels=8,
    )  # fmt: skip
    labels = {"labels": torch.randint(5, (2, 64, 64))}
    return transformers.UperNetForSemanticSegmentation(config), labels, {}


def detr(four, three, last):
    config = transformers.DetrConfig(backbone_config=last, decoder_layers=1, **LAYERS)
    return transformers.DetrForObjectDetection(config), boxes(), {}


def rt_detr(four, three, last):
    config = transformers.RTDetrConfig(backbone_config=three, **REAL_TIME)
    return transformers.RTDetrForObjectDetection(config), boxes(), {}


def rt_detr_v2(four, three, last):
    config = transformers.RTDetrV2Config(backbone_config=three, **REAL_TIME)
    return transformers.RTDetrV2ForObjectDetection(config), boxes(), {}


def d_fine(four, three, last):
    config = transformers.DFineConfig(
        backbone_config=three, decoder_n_points=[3, 6, 3], **REAL_TIME
    )
    return transformers.DFineForObjectDetection(config), boxes(), {}


def mask2former(four, three, last):
    config = transformers.Mask2FormerConfig(
        backbone_config=four, feature_size=32, mask_feature_size=32, **MASKS
    )
    return transformers.Mask2FormerForUniversalSegmentation(config), masks(), {}


def maskformer(four, three, last):
    decoder = transformers.DetrConfig(decoder_layers=1, **LAYERS)
    config = transformers.MaskFormerConfig(
        backbone_config=four, fpn_feature_size=32, mask_feature_size=32, decoder_config=decoder
    )
    return transformers.MaskFormerForInstanceSegmentation(config), masks(), {}


def oneformer(four, three, last):
    config = transformers.OneFormerConfig(
        backbone_config=four, mask_dim=64, conv_dim=64, text_encoder_width=64,
        text_encoder_num_layers=1, text_encoder_context_length=7, text_encoder_vocab_size=50,
        text_encoder_n_ctx=2, text_encoder_proj_layers=1, task_seq_len=7, query_dec_layers=1,
        is_training=True, **{**MASKS, "hidden_dim": 64},
    )  # fmt: skip
    tokens = {
        "task_inputs": torch.randint(50, (2, 7)),
        "text_inputs": torch.randint(50, (2, 3, 7)),
    }
    return transformers.OneFormerForUniversalSegmentation(config), masks(), tokens


MODELS = (upernet, detr, rt_detr, rt_detr_v2, d_fine, mask2former, maskformer, oneformer)


@pytest.fixture
def configs():
    outputs = (STAGES, STAGES[1:], STAGES[3:])
    return [
        to_transformers(ConvNextBackbone(**SHAPE, model_type="convnext", out_features=o)).config
        for o in outputs
    ]


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_a_model_trains_its_stem_and_reloads_from_its_own_directory(build, configs, tmp_path):
    model, labels, other = build(*configs)
    x = torch.randn(2, 3, 64, 64)
    model.train()(x, **labels, **other).loss.backward()
    (backbone,) = (m for m in model.modules() if isinstance(m, ConvNextAutoBackbone))
    stem = backbone.backbone.downsample_layers[0][0].weight
    assert stem.grad.abs().sum() > 0
    torch.optim.AdamW(model.parameters(), 1e-3).step()
    model.eval().save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    key = "logits" if build not in MODELS[-3:] else "masks_queries_logits"
    outputs = []
    for m in (again.eval(), model):
        torch.manual_seed(0)  # transformers' OneFormer draws in evaluation mode too
        with torch.no_grad():
            outputs.append(m(x, **other)[key])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["transformers_v1", "transformers_v2"])
def test_a_segmentor_is_equal_to_one_on_transformers_own_backbone(family):
    ours, theirs, _ = build_pair(family)
    wrapped = to_transformers(ours)
    options = {
        "hidden_size": 16, "pool_scales": [1, 2], "num_labels": 5, "use_auxiliary_head": False,
    }  # fmt: skip
    peer, mine = (
        transformers.UperNetForSemanticSegmentation(
            transformers.UperNetConfig(backbone_config=config, **options)
        ).eval()
        for config in (theirs.config, wrapped.config)
    )
    peer.backbone = theirs
    load_backbone_weights(mine, ours)
    mine.decode_head = peer.decode_head
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        got, expected = mine(x, output_hidden_states=True), peer(x, output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.hidden_states, expected.hidden_states, rtol=1e-5, atol=1e-5)


def test_the_wrapped_backbone_shares_its_parameters_and_keeps_what_was_chosen():
    backbone = ConvNextBackbone(
        **SHAPE, out_indices=(2, 4), output_stride=16, drop_path_rate=0.2, frozen_stages=1,
        with_cp="selective",
    )  # fmt: skip
    wrapped = to_transformers(backbone)
    assert wrapped.backbone is backbone
    built = transformers.AutoBackbone.from_config(wrapped.config)
    assert isinstance(built, ConvNextAutoBackbone)
    assert built.backbone.config == backbone.config
    assert (built.backbone.frozen_stages, built.backbone.with_cp) == (1, "selective")
    assert (built.channels, built.out_features) == ([16, 32], ["stage2", "stage4"])


def test_the_backbone_alone_saves_and_loads(tmp_path):
    backbone = ConvNextBackbone(**SHAPE, model_type="dinov3_convnext", out_features=STAGES).eval()
    to_transformers(backbone).save_pretrained(tmp_path)
    again = ConvNextAutoBackbone.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again(x).feature_maps, tuple(backbone(x)), rtol=0, atol=0)
    plain = again(x, return_dict=False)
    torch.testing.assert_close(plain, (tuple(backbone(x)),), rtol=0, atol=0)


def test_outputs_of_a_config_can_be_chosen_as_in_transformers():
    config = ConvNextAutoBackboneConfig(
        architecture=ConvNextBackbone(**SHAPE).config.to_dict(), out_indices=[1, 3]
    )
    assert config.out_features == ["stage1", "stage3"]
    config.out_features = ["stage2"]
    assert ConvNextAutoBackbone(config)(torch.zeros(1, 3, 32, 32)).feature_maps[0].shape[1] == 16


def choose_on_the_model(model, names):
    model.out_features = names


def choose_by_index(model, names):
    model.out_indices = [model.stage_names.index(name) for name in names]


def choose_on_the_backbone(model, names):
    model.backbone.out_features = names


CHOICES = (choose_on_the_model, choose_by_index, choose_on_the_backbone)


@pytest.mark.parametrize("choose", CHOICES, ids=lambda choose: choose.__name__)
def test_outputs_are_chosen_as_on_transformers_own_backbone(choose):
    ours, theirs, _ = build_pair("transformers_v1")
    wrapped, x = to_transformers(ours), torch.randn(1, 3, 64, 64)
    choose(wrapped, ["stage2", "stage3"])
    theirs.out_features = ["stage2", "stage3"]
    got, expected = wrapped(x).feature_maps, theirs(x).feature_maps
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for name in ("out_features", "out_indices", "channels", "num_features", "stage_names"):
        assert getattr(wrapped, name) == getattr(theirs, name), name
    for name in ("out_features", "out_indices"):
        assert getattr(wrapped.config, name) == getattr(theirs.config, name), name


def test_what_is_saved_is_what_runs(tmp_path):
    backbone = ConvNextBackbone(**SHAPE, out_features=STAGES).eval()
    wrapped, x = to_transformers(backbone), torch.randn(1, 3, 64, 64)
    backbone.frozen_stages, backbone.with_cp, backbone.out_features = 2, True, ["stage3"]
    wrapped.save_pretrained(tmp_path)
    again, info = ConvNextAutoBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert (again.backbone.frozen_stages, again.backbone.with_cp) == (2, True)
    assert again.backbone.config == backbone.config
    torch.testing.assert_close(again(x).feature_maps, tuple(backbone(x)), rtol=0, atol=0)
    built = transformers.AutoBackbone.from_config(wrapped.config)
    assert built.backbone.config == backbone.config


def test_what_a_whole_model_saves_of_its_backbone_is_what_runs(configs, tmp_path):
    model = upernet(*configs)[0].eval()
    body = model.backbone.backbone
    body.frozen_stages = 2
    model(torch.randn(1, 3, 64, 64))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).backbone.backbone
    assert again.frozen_stages == 2
    assert trained(again) == trained(body)


def trained(backbone):
    return {name for name, p in backbone.named_parameters() if p.requires_grad}


def test_frozen_stages_and_those_that_are_not_run_take_no_gradient_after_loading(tmp_path):
    backbone = ConvNextBackbone(**SHAPE, out_features=["stage2"], frozen_stages=1)
    to_transformers(backbone).save_pretrained(tmp_path)
    again = ConvNextAutoBackbone.from_pretrained(tmp_path).backbone
    assert trained(again) == trained(backbone)
    for body in (backbone, again):
        body.frozen_stages, body.out_features = -1, ["stage4"]
    assert trained(again) == trained(backbone) == {*dict(again.named_parameters())}


def test_a_wrapped_backbone_compiles_after_a_change_of_outputs():
    wrapped = to_transformers(ConvNextBackbone(hidden_sizes=(4, 8), depths=(1, 1))).eval()
    x = torch.randn(1, 3, 16, 16)
    compiled = torch.compile(wrapped, fullgraph=True, backend="eager")
    for names in (["stage1"], ["stem", "stage2"]):
        wrapped.out_features = names
        got, expected = compiled(x).feature_maps, wrapped(x).feature_maps
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_gradient_checkpointing_of_the_model_reaches_the_blocks(configs):
    model = transformers.AutoBackbone.from_config(configs[0])
    model.gradient_checkpointing_enable()
    assert model.backbone.with_cp is True
    model.gradient_checkpointing_disable()
    assert model.backbone.with_cp is False


def test_weights_of_a_file_are_loaded_into_a_models_backbone(configs, tmp_path):
    source = ConvNextBackbone(**SHAPE, out_features=STAGES)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model, _, _ = upernet(*configs)
    report = load_backbone_weights(model, tmp_path / "weights.safetensors")
    assert not report.fresh
    torch.testing.assert_close(model.backbone.backbone.state_dict(), source.state_dict())
    with pytest.raises(ValueError, match="must hold one ConvNextAutoBackbone"):
        load_backbone_weights(torch.nn.Linear(1, 1), source)


def test_a_backbone_of_another_architecture_is_refused_and_changes_nothing():
    wrapped = to_transformers(ConvNextBackbone(**SHAPE, out_features=STAGES))
    before = {name: p.clone() for name, p in wrapped.state_dict().items()}
    wider = ConvNextBackbone(**{**SHAPE, "hidden_sizes": (8, 16, 24, 40)}, out_features=STAGES)
    fewer = ConvNextBackbone(**SHAPE, out_features=STAGES[1:])
    for source, key in ((wider, r"norms\.stage4\.bias"), (fewer, r"norms\.stage1\.weight")):
        with pytest.raises(ValueError, match=f"source must have the tensors .* differ in .*{key}"):
            load_backbone_weights(wrapped, source)
    torch.testing.assert_close(dict(wrapped.state_dict()), before, rtol=0, atol=0)


def test_options_of_loading_are_refused_beside_a_backbone():
    source = ConvNextBackbone(**SHAPE)
    with pytest.raises(TypeError, match=r"takes no options, got \['ema'\]"):
        load_backbone_weights(to_transformers(source), source, ema=True)
