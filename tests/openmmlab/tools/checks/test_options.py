"""What is typed on the command line is obeyed or refused, never passed over."""
# ruff: noqa: E402 - imports follow the check that OpenMMLab is there

import argparse

import pytest

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config, DictAction

from convnext_backbone.openmmlab.tools.arguments import ConfigOptions
from convnext_backbone.openmmlab.tools.checks import options as option_checks
from convnext_backbone.openmmlab.tools.errors import UsageError

CFG = {
    "max_epochs": 36,
    "my_switch": False,
    "model": {"type": "MaskRCNN", "backbone": {"type": "ConvNextBackbone"}},
    "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 36, "val_interval": 1},
    "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 1e-4}},
    "param_scheduler": [{"type": "LinearLR"}, {"type": "MultiStepLR"}],
    "custom_hooks": [],
}


def parse(*pairs):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=ConfigOptions)
    return parser.parse_args(["--cfg-options", *pairs]).cfg_options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-3,2", [1e-3, 2]),
        ("[(1,2),(a,b)]", [(1, 2), ("a", "b")]),
        (
            "[dict(type='EMAHook',momentum=0.01), dict(type=SyncHook)]",
            [{"type": "EMAHook", "momentum": 0.01}, {"type": "SyncHook"}],
        ),
        ("{'type': 'Adam', 'betas': (0.9, -1)}", {"type": "Adam", "betas": (0.9, -1)}),
        ("dict(a=dict(b=[1, None, True]))", {"a": {"b": [1, None, True]}}),
        ("/data/my cells", "/data/my cells"),
        ("annotations (copy).json", "annotations (copy).json"),
        ("(copy) 1.json", "(copy) 1.json"),
        ("'my cells'", "my cells"),
        ("('traffic light','stop sign')", ("traffic light", "stop sign")),
        ("[traffic light, stop sign]", ["traffic light", "stop sign"]),
        ("traffic light,stop sign", ["traffic light", "stop sign"]),
        ("['a b',1]", ["a b", 1]),
        ("['a b', c-d, 001]", ["a b", "c-d", 1]),
        ("['a, b',\"it's\"]", ["a, b", "it's"]),
        ("[it's,so]", ["it's", "so"]),
        ("'a,b'", "a,b"),
        ("'(0.9, 0.99)'", (0.9, 0.99)),  # the marks that cmd.exe leaves in place
        (
            "[dict(type='A, B', on=false, off=[true])]",
            [{"type": "A, B", "on": False, "off": [True]}],
        ),
        ("[a, dict(b=1)]", ["a", {"b": 1}]),
        ("iter_{}.pth", "iter_{}.pth"),
        ("{}.pth", "{}.pth"),
        ("runs/{a},b", ["runs/{a}", "b"]),
    ],
)
def test_values_are_numbers_words_lists_and_dicts(text, value):
    assert parse(f"key={text}") == {"key": value}


@pytest.mark.parametrize(
    "pair",
    [
        *(".=5", "a..b=1", "=1", "a", "a=dict(b=", "a={1: exit()}", "a=dict(b=open('x'))"),
        *("a={[1]: 2}", "a=[b, {c: exit()}]", "a=[1,2"),
    ],
)
def test_what_is_no_pair_or_would_have_to_be_run_is_refused(pair):
    with pytest.raises(argparse.ArgumentError, match="key=value"):
        parse(pair)


@pytest.mark.parametrize(
    "text",
    [
        *("true", "False", "None", "1e-4", "001", "1_0", "0x10", "nan", "word", "a.b", "-1", ""),
        *("(a)", "1,", "(1,)", "[]", "()", "[[1,2],(a)]", "3,[4]", "[1, true, None]", "'1'"),
        "ann(1).json,x",
    ],
)
def test_values_without_blanks_and_dicts_are_mmengines(text):
    theirs = DictAction._parse_iterable(text)
    assert repr(parse(f"key={text}")) == repr({"key": theirs})


@pytest.mark.parametrize(
    "options",
    [
        {"train_cfg.max_epochs": 1},
        {"load_from": "a.pth"},
        {"custom_dataset.root": "/data"},
        {"from_scratch": None},
        {"randomness.seed": 3},
        {"param_scheduler.1.gamma": 0.1},
        {"model.backbone.arch": "convnext_tiny"},
        {"custom_hooks": [{"type": "EMAHook"}]},
        None,
    ],
)
def test_settings_of_a_run_pass(options, capsys):
    option_checks.check_option_names(Config(CFG), options)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("max_epochs", "train_cfg.max_epochs"),
        ("lr", "optim_wrapper.optimizer.lr"),
        ("epochs", "unknown setting 'epochs'"),
        ("foo.bar", "unknown setting 'foo'"),
        ("custom_hooks.0.type", "list of 0"),
        ("param_scheduler.2.gamma", "list of 2"),
        ("param_scheduler.gamma", "list of 2"),
        ("vis_backends.0.type", "vis_backends"),
        ("train_dataloader.0.x", "train_dataloader is no list"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_with_the_one_that_is_meant(key, named):
    with pytest.raises(UsageError) as caught:
        option_checks.check_option_names(Config(CFG), {key: 1})
    assert f"--cfg-options {key}" in str(caught.value)
    assert named in str(caught.value)


def test_a_variable_of_the_file_that_stands_nowhere_else_passes_with_a_note(capsys):
    option_checks.check_option_names(Config(CFG), {"my_switch": True})
    assert "my_switch" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["max_epochs", "max_iters", "val_interval"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_a_training_of_no_length_is_refused(key, value):
    with pytest.raises(UsageError, match=f"train_cfg.{key}"):
        option_checks.check_loop(Config({"train_cfg": {key: value}}))


@pytest.mark.parametrize("key", ["max_epochs", "max_iters", "val_interval"])
def test_a_length_may_be_a_whole_float_as_mmengine_takes_it(key):
    """As mmdet's V3Det recipes have: `val_interval=max_iter / 5`."""
    option_checks.check_loop(Config({"train_cfg": {key: 1e2}}))


def test_a_layer_decay_that_does_not_know_the_backbone_is_refused_with_ours():
    cfg = Config(CFG)
    option_checks.check_optimizer(cfg)
    cfg.optim_wrapper.constructor = "mmdet.LearningRateDecayOptimizerConstructor"
    with pytest.raises(UsageError, match="ConvNextLayerDecayOptimWrapperConstructor"):
        option_checks.check_optimizer(cfg)
    cfg.model.backbone.type = "mmpretrain.ConvNeXt"
    option_checks.check_optimizer(cfg)


def test_a_file_where_a_folder_is_to_be_written_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    option_checks.check_folders(work_dir=str(tmp_path / "new" / "run"), show_dir=None)
    for path in (file, file / "below"):
        with pytest.raises(UsageError, match=r"--show-dir.*is a file"):
            option_checks.check_folders(show_dir=str(path))
