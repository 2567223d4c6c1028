"""ConvNextConfig: transformers' rules for outputs, with its gaps closed."""

import copy
import dataclasses
import json
import math
import pickle
import re
import typing

import numpy as np
import pytest
import timm
import transformers
from hypothesis import given
from hypothesis import strategies as st

from convnext_backbone import ConvNextBackbone, ConvNextConfig, list_archs
from convnext_backbone.archs import ARCHS
from convnext_backbone.models.config import ConfigFields

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


@pytest.mark.parametrize("index", [-5, -1, 0, 3])
def test_a_plain_integer_is_one_index(index):
    config, as_list = ConvNextConfig(out_indices=index), ConvNextConfig(out_indices=[index])
    assert config == as_list
    assert config.to_dict() == as_list.to_dict()
    config = ConvNextConfig()
    config.out_indices = index
    assert (config.out_indices, config.out_features) == ([index], as_list.out_features)
    assert config.replace(out_indices=-1).out_indices == [-1]


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
        ({"out_indices": 5}, ValueError, "out_indices must be valid indices for stage_names"),
        ({"out_indices": True}, TypeError, "out_indices must be a list or tuple of int"),
        ({"out_indices": 4.0}, TypeError, "out_indices must be a list or tuple of int"),
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


TOO_MANY = {"hidden_sizes": [8] * 1001, "depths": [1] * 1001}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 300_000_000}, "num_labels must be at most 1000000 without id2label, got"),
        ({"num_labels": 10**18}, "num_labels must be at most 1000000 without id2label, got"),
        (TOO_MANY, "depths must be of at most 1000 stages and 10000 blocks, got 1001"),
        ({"hidden_sizes": [1] * 20_000, "depths": [1] * 20_000}, "depths must be of at most 1000"),
        ({"depths": [1, 1, 10**12, 1]}, "depths must be of at most .*and 1000000000003"),
        ({"initializer_range": 10**400}, "initializer_range must lie between 0 and inf"),
    ],
    ids=["labels", "more labels", "stages", "more stages", "blocks", "range"],
)
def test_a_short_file_cannot_ask_for_all_memory(fields, message, tmp_path):
    text = json.dumps({"model_type": "convnext", **fields})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        ConvNextConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        ConvNextConfig().update(fields)


def test_as_many_classes_and_stages_as_any_network_has_are_taken():
    assert ConvNextConfig(num_labels=200_000).num_labels == 200_000
    deep = ConvNextConfig(hidden_sizes=[1] * 100, depths=[9] * 100)
    assert (deep.num_stages, deep.out_features) == (100, ["stage100"])


# What NumPy hands over, and the same in plain Python.
OF_NUMPY = {
    "num_channels": (np.int32(4), 4),
    "patch_size": (np.array(2), 2),
    "num_stages": (np.int64(4), 4),
    "hidden_sizes": (np.array([8, 16, 24, 32]), (8, 16, 24, 32)),
    "depths": (np.array([1, 2, 3, 1], dtype=np.uint8), (1, 2, 3, 1)),
    "hidden_act": (np.str_("relu"), "relu"),
    "initializer_range": (np.float64(0.5), 0.5),
    "layer_norm_eps": (np.float32(0.5), 0.5),
    "layer_scale_init_value": (np.int64(1), 1.0),
    "drop_path_rate": (np.float16(0.25), 0.25),
    "image_size": (np.array([32, 64]), (32, 64)),
    "use_grn": (np.True_, True),
    "norm_eps": (np.float32(0.5), 0.5),
    "kernel_size": (np.array([7, 5, 5, 3]), (7, 5, 5, 3)),
    "output_stride": (np.int64(16), 16),
    "dilations": (np.array([1, 1, 2, 4]), (1, 1, 2, 4)),
    "pad_to_stride": (np.True_, True),
    "stem_type": (np.str_("overlap"), "overlap"),
    "norm_layer": (np.str_("rmsnorm"), "rmsnorm"),
    "conv_bias": (np.False_, False),
    "head_norm_first": (np.True_, True),
    "head_hidden_size": (np.int64(5), 5),
    "out_features": (np.array(["stem", "stage2"]), ["stem", "stage2"]),
    "out_indices": (np.array([1, -1]), [1, -1]),
    "model_type": (np.str_("convnextv2"), "convnextv2"),
    "num_labels": (np.int64(3), 3),
    "id2label": ({np.int64(0): "a", np.int64(1): "b"}, {0: "a", 1: "b"}),
    "label2id": ({"a": np.int64(0), "b": np.int64(1)}, {"a": 0, "b": 1}),
    "problem_type": (np.str_("regression"), "regression"),
    "output_hidden_states": (np.True_, True),
    "return_dict": (np.False_, False),
}


@pytest.mark.parametrize("name", OF_NUMPY)
def test_values_of_numpy_are_stored_as_pythons(name):
    value, plain = OF_NUMPY[name]
    expected = ConvNextConfig(**{name: plain})
    config = ConvNextConfig()
    config.update({name: value})
    for got in (ConvNextConfig(**{name: value}), config):
        assert got == expected
        assert got.to_json_string() == expected.to_json_string()
    stored = getattr(config, name)
    assert "np." not in repr(stored).replace("np.str_", "")
    assert "array" not in repr(stored)


def test_every_field_is_in_the_table_of_numpys_values():
    assert list(OF_NUMPY) == [field.name for field in dataclasses.fields(ConvNextConfig)]


def test_an_equal_number_of_numpy_is_no_change():
    config = ConvNextConfig(id2label={0: "cat", 1: "dog", 2: "cow"})
    assert config.replace(num_labels=np.int64(3)) == config
    assert ConvNextConfig(out_indices=np.int64(-2)).out_features == ["stage3"]
    with pytest.raises(TypeError, match="hidden_sizes must be a list or tuple of int"):
        ConvNextConfig(hidden_sizes=np.array(1.5))
    with pytest.raises(TypeError, match="depths must be a list or tuple of int"):
        ConvNextConfig(depths=np.ones((2, 2), dtype=int))


def test_positions_from_the_end_are_kept_through_json():
    config = ConvNextConfig(out_indices=[0, -1])
    again = ConvNextConfig.from_dict(json.loads(config.to_json_string()))
    assert again == config
    deeper = {"depths": (1,) * 6, "hidden_sizes": (8,) * 6}
    assert again.replace(**deeper) == config.replace(**deeper)
    # Positions of another release, which do not stand for the names.
    other = ConvNextConfig.from_dict({"out_features": ["stage1"], "out_indices": [-1]})
    assert (other.out_features, other.out_indices) == (["stage1"], [1])


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


# What other libraries call things, and what the message has to lead to.
OTHER_WORDS = {
    "pretrained": r"from_pretrained\('convnext_tiny\.fb_in1k'\)",
    "in_chans": "'num_channels'",
    "in_channels": "'num_channels'",
    "features_only": "ConvNextBackbone returns the feature maps",
    "num_classes": "'num_labels'",
    "gap_before_final_norm": "head_norm_first",
    "ls_init_value": "'layer_scale_init_value'",
    "drop_path_rat": "did you mean 'drop_path_rate'",
}


@pytest.mark.parametrize("word", OTHER_WORDS)
@pytest.mark.parametrize("call", [ConvNextBackbone, ConvNextBackbone.from_pretrained])
def test_words_of_other_libraries_lead_to_the_right_call(word, call):
    with pytest.raises(TypeError, match=OTHER_WORDS[word]):
        call("convnext_atto", **{word: True})


@pytest.mark.parametrize("name", ["convnext_tiny.fb_in1k", "facebook/convnext-tiny-224", "w.pth"])
def test_weights_where_an_architecture_is_meant_lead_to_from_pretrained(name):
    for arguments in ({"config": name}, {"arch": name}):
        with pytest.raises(ValueError, match=rf"from_pretrained\('{re.escape(name)}'\)"):
            ConvNextBackbone(**arguments)


def test_an_architecture_where_weights_are_meant_leads_to_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"whose weights are convnext_atto\.d2_in1k"):
        ConvNextBackbone.from_pretrained("convnext_atto")
    with pytest.raises(ValueError, match="did you mean 'convnext_tiny'"):
        ConvNextBackbone("convnext_tinny")


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
    plain = transformers.ConvNextConfig()
    assert ConvNextConfig().return_dict == plain.return_dict
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


# Fields that follow one another


FAMILIES = {
    "convnext": transformers.ConvNextConfig,
    "convnextv2": transformers.ConvNextV2Config,
    "dinov3_convnext": transformers.DINOv3ConvNextConfig,
}


def check_family(config, family):
    """The fields are those of transformers' class, and of a config built for the family."""
    theirs = FAMILIES[family]()
    assert config == ConvNextConfig(model_type=family)
    assert config.model_type == theirs.model_type == family
    assert config.layer_norm_eps == theirs.layer_norm_eps
    assert config.use_grn == (family == "convnextv2")
    # transformers' V2 has no layer scale.
    assert config.layer_scale_init_value == getattr(theirs, "layer_scale_init_value", 0.0)


@pytest.mark.parametrize("after", FAMILIES)
@pytest.mark.parametrize("before", FAMILIES)
@pytest.mark.parametrize("source", ["arguments", "config.json", "transformers' config.json"])
def test_the_family_can_change_and_takes_its_defaults_along(before, after, source):
    def build():
        if source == "arguments":
            return ConvNextConfig(model_type=before)
        config = FAMILIES[before]() if "their" in source else ConvNextConfig(model_type=before)
        return ConvNextConfig.from_dict(json.loads(json.dumps(config.to_dict())))

    check_family(build().replace(model_type=after), after)
    config = build()
    config.model_type = after
    check_family(config, after)
    config.update({"model_type": before})
    check_family(config, before)


def test_the_block_and_the_family_follow_each_other():
    config = ConvNextConfig.from_arch("convnext_atto")
    config.use_grn = True
    assert config == ConvNextConfig.from_arch("convnext_atto", use_grn=True)
    assert config == ConvNextConfig.from_arch("convnextv2_atto", layer_scale_init_value=1e-6)
    config.use_grn = False
    assert config == ConvNextConfig.from_arch("convnext_atto")
    config.model_type = "dinov3_convnext"
    config.use_grn = False  # as it is, so the family stays
    assert (config.model_type, config.layer_norm_eps) == ("dinov3_convnext", 1e-6)
    config.use_grn = True
    assert (config.model_type, config.layer_norm_eps) == ("convnextv2", 1e-12)
    v2 = ConvNextConfig.from_arch("convnextv2_atto")
    assert v2.replace(use_grn=False) == ConvNextConfig.from_arch("convnext_atto")
    assert v2.replace() == v2


def test_grn_alone_leaves_layer_scale_as_in_timm():
    block = timm.models.convnext.ConvNeXtBlock(8, use_grn=True)
    start = block.gamma.unique().item()
    assert ConvNextConfig(use_grn=True).layer_scale_init_value == pytest.approx(start)


def test_what_the_user_gave_does_not_follow_the_family():
    given = {"layer_norm_eps": 1e-12, "layer_scale_init_value": 1e-6, "norm_eps": 1e-5}
    config = ConvNextConfig(**given)
    for family in ("dinov3_convnext", "convnextv2", "convnext"):
        config.model_type = family
        assert {name: getattr(config, name) for name in given} == given
    config.layer_norm_eps = config.norm_eps = None
    config.model_type = "dinov3_convnext"
    assert config.layer_norm_eps == config.norm_eps == 1e-6


def test_dinov3_has_one_epsilon_as_in_transformers():
    config = ConvNextConfig(model_type="dinov3_convnext", layer_norm_eps=1e-3)
    assert config.norm_eps == 1e-3
    config.layer_norm_eps = 1e-4
    assert config.norm_eps == 1e-4
    assert config.replace(norm_eps=1e-2).layer_norm_eps == 1e-4
    config.model_type = "convnext"
    assert (config.layer_norm_eps, config.norm_eps) == (1e-4, 1e-6)


@pytest.mark.parametrize("given_outputs", [{}, {"out_indices": [-1]}])
def test_the_last_stage_stays_the_output_when_stages_are_added(given_outputs):
    config = ConvNextConfig(**given_outputs)
    config.update({"depths": (1,) * 6, "hidden_sizes": (8,) * 6})
    assert (config.num_stages, config.out_features) == (6, ["stage6"])
    named = ConvNextConfig(out_features=["stage4"]).replace(depths=(1,) * 6, hidden_sizes=(8,) * 6)
    assert (named.num_stages, named.out_features, named.out_indices) == (6, ["stage4"], [4])


BAD_ASSIGNMENTS = {
    "num_channels": (0, 1.5, "3", True, None),
    "patch_size": (0, [4, 4]),
    "num_stages": (3, "4"),
    "hidden_sizes": ((8, 16), (), 8, None, "abcd"),
    "depths": ((1, 1, 1), (1, 1, 0, 1), np.array([1.0, 1, 1, 1])),
    "hidden_act": ("gelly", None),
    "initializer_range": (-0.1, math.inf, math.nan, "x"),
    "layer_norm_eps": (-1e-6, 2.0, math.nan, "1e-6"),
    "layer_scale_init_value": (-1.0, math.inf),
    "drop_path_rate": (1.5, -0.1, None, True),
    "image_size": (0, None),
    "use_grn": (1, "yes"),
    "norm_eps": (2.0, "x"),
    "kernel_size": (4, 0, None, 3.0, (7, 7, 7), (7, 5, 4, 3), "7"),
    "output_stride": (0, 12, 64, "16"),
    "dilations": ((2, 2, 2, 2), (1, 1, 2), (1, 1, 2, 8), (1, 2, 1, 1), (1, 1, 0, 0), 2, "1124"),
    "pad_to_stride": (1, None),
    "stem_type": ("overlapping", None),
    "norm_layer": ("batchnorm", None),
    "conv_bias": (0, None),
    "head_norm_first": ("yes", None),
    "head_hidden_size": (-1, 1.5),
    "out_features": ([], ["stage9"], ["stage2", "stage1"], "stage1", [1]),
    "out_indices": ([], [5], [1, 0], 5, "4", True, [True]),
    "model_type": ("resnet", 3),
    "num_labels": (-1, "3", 2.0),
    "id2label": (["cat"], {"x": "cat"}),
    "label2id": (["cat"], {"cat": "x"}),
    "problem_type": ("clustering",),
    "output_hidden_states": (None, 1),
    "return_dict": (None, "no"),
}


def test_every_field_has_bad_values_in_the_table():
    assert list(BAD_ASSIGNMENTS) == [field.name for field in dataclasses.fields(ConvNextConfig)]


@pytest.mark.parametrize("name", BAD_ASSIGNMENTS)
@pytest.mark.parametrize("how", ["assign", "update", "replace", "construct"])
def test_a_bad_value_is_refused_by_name_and_changes_nothing(name, how):
    config = ConvNextConfig(id2label={0: "cat", 1: "dog", 2: "cow"}, out_features=["stem"])
    before = copy.deepcopy(config)
    change = {
        "assign": lambda value: setattr(config, name, value),
        "update": lambda value: config.update({"image_size": 32, name: value}),
        "replace": lambda value: config.replace(**{name: value}),
        "construct": lambda value: ConvNextConfig(**{name: value}),
    }[how]
    for value in BAD_ASSIGNMENTS[name]:
        with pytest.raises((ValueError, TypeError), match=name):
            change(value)
        assert config == before
        assert config.replace() == before


def test_an_assignment_is_an_argument():
    values = {
        "num_channels": 4, "patch_size": 2, "hidden_sizes": [8, 16, 24, 32], "kernel_size": 5,
        "depths": [1, 2, 3, 1], "hidden_act": "gelu", "initializer_range": 0.1, "norm_eps": 1e-5,
        "layer_norm_eps": 1e-5, "layer_scale_init_value": 1, "drop_path_rate": 0.5,
        "image_size": 64, "use_grn": True, "out_indices": (0, -1), "num_labels": 3,
        "problem_type": "regression", "output_hidden_states": True, "return_dict": False,
    }  # fmt: skip
    config = ConvNextConfig()
    for name, value in values.items():
        setattr(config, name, value)
    assert config == ConvNextConfig(**values)
    assert config.replace() == config


def test_no_field_is_none_where_the_annotation_does_not_say_so():
    hints = typing.get_type_hints(ConvNextConfig)
    optional = {name for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    assert optional == {"problem_type"}
    for config in (ConvNextConfig(), *map(ConvNextConfig.from_arch, list_archs())):
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        assert {name for name, value in values.items() if value is None} == {"problem_type"}


def test_the_keyword_arguments_of_models_are_the_fields():
    assert typing.get_type_hints(ConfigFields) == typing.get_type_hints(ConvNextConfig)
    assert list(ConfigFields.__annotations__) == list(ConvNextConfig.__dataclass_fields__)


def test_copies_keep_what_follows_and_what_was_given():
    config = ConvNextConfig(layer_scale_init_value=1e-6)
    copies = (
        copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)),
        config.replace(), dataclasses.replace(config, layer_norm_eps=None),
    )  # fmt: skip
    for twin in copies:
        assert twin == config
        assert dataclasses.asdict(twin) == dataclasses.asdict(config)
        twin.model_type = "dinov3_convnext"
        assert (twin.layer_norm_eps, twin.layer_scale_init_value) == (1e-6, 1e-6)
    assert config.model_type == "convnext"
    assert dataclasses.replace(config, image_size=64).image_size == 64


def test_lists_and_tables_that_are_edited_in_place_count_as_assigned():
    config = ConvNextConfig(num_labels=2)
    config.out_features.insert(0, "stem")
    config.id2label[2] = "cow"
    edited = config.replace()
    assert (edited.out_features, edited.out_indices) == (["stem", "stage4"], [0, 4])
    assert (edited.num_labels, edited.label2id["cow"]) == (3, 2)
    config.out_features.append("stage9")
    with pytest.raises(ValueError, match="out_features must be a subset"):
        config.replace()


def test_other_attributes_are_the_users():
    config = ConvNextConfig()
    config.pad_token_id = 3  # transformers' Trainer writes such
    config.depths = (1, 1, 1, 1)
    assert config.pad_token_id == 3
    with pytest.raises(TypeError, match="hidden_size"):
        config.update({"hidden_size": 3})
    with pytest.raises(AttributeError, match="strides"):
        config.strides = (1, 2)


@pytest.mark.parametrize("size", [96, [96, 64]], ids=str)
def test_sizes_that_transformers_writes_as_pairs_are_read(tmp_path, size):
    theirs = transformers.ConvNextConfig(patch_size=[4, 4], image_size=size)
    theirs.save_pretrained(tmp_path)
    config = ConvNextConfig.from_pretrained(tmp_path)
    assert config.patch_size == 4
    assert config.image_size == (size if isinstance(size, int) else tuple(size))
    assert ConvNextConfig.from_dict(json.loads(config.to_json_string())) == config


@pytest.mark.parametrize(
    "values",
    [{}, {"architecture": "convnext_atto", "num_classes": 4}, {"crop_size": 224}],
    ids=["empty", "timm", "another file"],
)
def test_a_file_that_names_no_convnext_is_refused_by_name(tmp_path, values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=re.escape(f"{path}: this is no config.json")):
        ConvNextConfig.from_pretrained(tmp_path)


def test_a_bad_value_in_a_file_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "convnext", "num_channels": "three"}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: num_channels must be an integer")):
        ConvNextConfig.from_pretrained(tmp_path)


def test_a_home_directory_is_expanded_when_a_config_is_written_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ConvNextConfig(hidden_act="relu").save_pretrained("~/saved")
    assert ConvNextConfig.from_pretrained("~/saved").hidden_act == "relu"
    ConvNextConfig(hidden_act="silu").to_json_file("~/own.json")
    assert ConvNextConfig.from_json_file("~/own.json").hidden_act == "silu"
