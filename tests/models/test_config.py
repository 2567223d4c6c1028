"""ConvNextConfig: transformers' rules for outputs, with its gaps closed."""

import copy
import json

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from convnext_backbone import ConvNextBackbone, ConvNextConfig, list_archs
from convnext_backbone.archs import ARCHS

NAMES = ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_default_construction_builds_a_backbone():
    assert ConvNextBackbone(ConvNextConfig()).out_features == ("stage4",)


@pytest.mark.parametrize(
    "given_outputs",
    [
        {},
        {"out_features": ["stem", "stage1"], "out_indices": [0, 1]},
        {"out_features": ["stage1", "stage3"]},
        {"out_indices": [0, 2]},
        {"out_indices": [0, -1]},
        {"out_indices": [-5, -1]},
    ],
)
def test_outputs_align_as_in_transformers(given_outputs):
    ours, theirs = ConvNextConfig(**given_outputs), transformers.ConvNextConfig(**given_outputs)
    assert ours.out_features == theirs.out_features
    assert ours.out_indices == theirs.out_indices
    assert ours.stage_names == theirs.stage_names == NAMES


@given(st.lists(st.integers(-9, 9), max_size=5), st.booleans())
def test_out_indices_are_valid_exactly_when_they_pick_stages_in_order(indices, as_tuple):
    given_value = tuple(indices) if as_tuple else list(indices)
    before = copy.copy(given_value)
    picked = [i + 5 if i < 0 else i for i in indices]
    valid = bool(picked) and all(0 <= i < 5 for i in picked)
    valid = valid and picked == sorted(set(picked))
    if valid:
        config = ConvNextConfig(out_indices=given_value)
        assert config.out_features == [NAMES[i] for i in picked]
    else:
        with pytest.raises(ValueError, match="out_indices must"):
            ConvNextConfig(out_indices=given_value)
    assert given_value == before


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 6])
def test_stage_names_follow_the_number_of_stages(depth):
    config = ConvNextConfig(hidden_sizes=(8,) * depth, depths=(1,) * depth, out_indices=[-1])
    assert config.out_features == [f"stage{depth}"]
    assert config.num_stages == depth


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"out_features": []}, ValueError, "out_features must not be empty"),
        ({"out_features": ["stage9"]}, ValueError, r"subset of stage_names .*\['stage9'\]"),
        ({"out_features": ["stage2", "stage1"]}, ValueError, "same order"),
        ({"out_features": ["stem", "stem"]}, ValueError, "duplicates"),
        ({"out_features": "stage1"}, TypeError, "out_features must be a list or tuple of str"),
        ({"out_features": [1]}, TypeError, "out_features must be a list or tuple of str"),
        ({"out_indices": [4, -1]}, ValueError, "duplicates"),
        ({"out_indices": 4}, TypeError, "out_indices must be a list or tuple of int"),
        ({"out_indices": [True]}, TypeError, "out_indices must be a list or tuple of int"),
        (
            {"out_features": ["stage1", "stage2"], "out_indices": [0, 2]},
            ValueError,
            "must name the same stages",
        ),
        ({"depths": (3, 3)}, ValueError, "one entry per stage"),
        ({"num_stages": 3}, ValueError, "num_stages must be the length of depths, 4, got 3"),
        ({"depths": (3, 3, 0, 3)}, ValueError, "depths must be positive"),
        ({"depths": (3, 3, 1.5, 3)}, TypeError, "depths must be a list or tuple of int"),
        ({"kernel_size": 6}, ValueError, "kernel_size must be odd, got 6"),
        ({"patch_size": 0}, ValueError, "patch_size must be positive"),
        ({"drop_path_rate": 1.5}, ValueError, "drop_path_rate must lie between 0 and 1.0, got 1.5"),
        ({"drop_path_rate": "0.1"}, TypeError, "drop_path_rate must be a number"),
        ({"hidden_act": "gelly"}, ValueError, "hidden_act must be one of .*'gelu'.*'gelly'"),
        ({"use_grn": 1}, TypeError, "use_grn must be True or False"),
        ({"model_type": "resnet"}, ValueError, "model_type must be one of"),
        ({"model_type": "convnext", "use_grn": True}, ValueError, "does not fit model_type"),
        ({"return_dict": None}, TypeError, "return_dict must be True or False, got None"),
        ({"hidden_size": 3}, TypeError, "hidden_size"),
    ],
)
def test_bad_values_are_refused_by_name(fields, error, message):
    with pytest.raises(error, match=message):
        ConvNextConfig(**fields)


def test_outputs_can_change_after_construction():
    config = ConvNextConfig(out_features=["stage4"])
    config.out_features = ("stem", "stage2")
    assert config.out_indices == [0, 2]
    config.out_indices = [-1]
    assert config.out_features == ["stage4"]
    config.out_features = None
    assert (config.out_features, config.out_indices) == (["stage4"], [4])
    with pytest.raises(ValueError, match="out_indices"):
        config.out_indices = [7]
    assert config.out_features == ["stage4"]


@pytest.mark.parametrize("kind", ["V1", "V2", "DINOv3"])
def test_config_json_is_read_and_written_as_transformers_does(kind, tmp_path):
    theirs_class = {
        "V1": transformers.ConvNextConfig,
        "V2": transformers.ConvNextV2Config,
        "DINOv3": transformers.DINOv3ConvNextConfig,
    }[kind]
    shared = {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "num_channels": 5}
    if kind != "DINOv3":
        shared["num_stages"] = 3
    theirs = theirs_class(**shared, out_features=["stem", "stage3"])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ConvNextConfig.from_pretrained(tmp_path / "theirs")
    assert ours.model_type == theirs.model_type
    assert ours.use_grn == (kind == "V2")
    ours.save_pretrained(tmp_path / "ours")
    back = theirs_class.from_pretrained(tmp_path / "ours")
    for name in (*shared, "out_features", "out_indices", "hidden_act", "layer_norm_eps"):
        expected = getattr(theirs, name)
        assert _plain(getattr(back, name)) == _plain(expected) == _plain(getattr(ours, name))
    if kind == "DINOv3":
        assert ours.norm_eps == theirs.layer_norm_eps


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_replace_carries_derived_fields_along():
    config = ConvNextConfig(out_features=["stem"])
    v2 = config.replace(use_grn=True, layer_scale_init_value=0.0)
    assert (v2.model_type, v2.out_features) == ("convnextv2", ["stem"])
    deeper = config.replace(depths=(1,) * 5, hidden_sizes=(8,) * 5, out_indices=[-1])
    assert (deeper.num_stages, deeper.out_features) == (5, ["stage5"])
    assert config.replace() == config


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "resnet"}'])
def test_a_file_that_is_no_convnext_config_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json|model_type"):
        ConvNextConfig.from_pretrained(tmp_path)


def test_unknown_arch_names_the_choices():
    with pytest.raises(ValueError, match=r"arch must be one of .*'convnext_tiny'.*got 'tinny'"):
        ConvNextConfig.from_arch("tinny")


def test_every_arch_round_trips_through_json():
    for arch in list_archs():
        config = ConvNextConfig.from_arch(arch, drop_path_rate=0.1)
        values = json.loads(json.dumps(config.to_dict()))
        assert ConvNextConfig.from_dict(values) == config
        assert set(ARCHS[arch]) <= set(values)


def test_how_models_answer_travels_through_config_json_to_transformers_and_back(tmp_path):
    config = ConvNextConfig(output_hidden_states=True, return_dict=False)
    config.save_pretrained(tmp_path)
    theirs = transformers.ConvNextConfig.from_pretrained(tmp_path)
    assert (theirs.output_hidden_states, theirs.return_dict) == (True, False)
    theirs.save_pretrained(tmp_path / "theirs")
    back = ConvNextConfig.from_pretrained(tmp_path / "theirs")
    assert (back.output_hidden_states, back.return_dict) == (True, False)
    assert back.use_return_dict is back.return_dict
    plain = transformers.ConvNextConfig()
    assert ConvNextConfig().use_return_dict == plain.use_return_dict
    assert ConvNextConfig().output_hidden_states == plain.output_hidden_states


def test_text_file_and_directory_hold_the_same_config(tmp_path):
    config = ConvNextConfig(depths=(1, 2, 1), hidden_sizes=(8, 16, 24), out_indices=(0, 3))
    assert json.loads(config.to_json_string()) == config.to_dict()
    config.to_json_file(tmp_path / "mine.json")
    config.save_pretrained(tmp_path / "nested" / "folder")
    assert ConvNextConfig.from_json_file(tmp_path / "mine.json").to_dict() == config.to_dict()
    nested = ConvNextConfig.from_pretrained(tmp_path / "nested", subfolder="folder")
    assert nested.to_dict() == config.to_dict()
    with pytest.raises(FileNotFoundError, match=r"no config\.json at"):
        ConvNextConfig.from_pretrained(tmp_path)


def test_update_changes_in_place_what_depends_on_it_too():
    config = ConvNextConfig(num_labels=5)
    alias = config
    config.update({"out_indices": [0, -1], "num_labels": 3, "image_size": 64})
    assert alias.out_features == ["stem", "stage4"]
    assert (alias.num_labels, alias.id2label[2], alias.image_size) == (3, "LABEL_2", 64)
    before = alias.to_dict()
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        config.update({"image_size": 32, "kernel_size": 6})
    assert alias.to_dict() == before
