"""Layer decay: groups against the published constructors, and the rules on any model."""
# ruff: noqa: E402 - imports follow the check that mmengine is there

import copy
import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.openmmlab
pytest.importorskip("mmengine")

from mmengine.optim import build_optim_wrapper

from convnext_backbone import ConvNextBackbone
from convnext_backbone.openmmlab.layer_decay import (
    DECAY_TYPES,
    ConvNextLayerDecayOptimWrapperConstructor,
    base_weight_decay,
    format_layer_groups,
    layer_groups,
)

WIDTHS = (8, 8, 16, 16)
DEPTHS = {
    "tiny": (3, 3, 9, 3),
    "small to huge": (3, 3, 27, 3),
}
OUT = ("stage1", "stage2", "stage3", "stage4")
BASE_LR, WEIGHT_DECAY = 2e-4, 0.05


class _FbBlock(nn.Module):
    """The parameters of facebookresearch's block, by its names, with a grn of four dimensions."""

    def __init__(self, dim, use_grn):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        if use_grn:
            self.grn = nn.Module()
            self.grn.gamma = nn.Parameter(torch.zeros(1, 1, 1, 4 * dim))
            self.grn.beta = nn.Parameter(torch.zeros(1, 1, 1, 4 * dim))
        else:
            self.gamma = nn.Parameter(torch.ones(dim))


class FbConvNeXt(nn.Module):
    """What the published constructors look for: this class name and these parameter names."""

    def __init__(self, depths, use_grn=False):
        super().__init__()
        self.downsample_layers = nn.ModuleList()
        for s, width in enumerate(WIDTHS):
            conv = nn.Conv2d(WIDTHS[s - 1] if s else 3, width, 2)
            norm = nn.LayerNorm(WIDTHS[max(s - 1, 0)])
            self.downsample_layers.append(nn.Sequential(*((norm, conv) if s else (conv, norm))))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_FbBlock(w, use_grn) for _ in range(d)))
            for w, d in zip(WIDTHS, depths, strict=True)
        )
        for s, width in enumerate(WIDTHS):
            setattr(self, f"norm{s}", nn.LayerNorm(width))


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)


def detector(depths=(1, 2, 6, 1), **fields):
    options = {"hidden_sizes": WIDTHS, "out_features": OUT, **fields}
    return Detector(ConvNextBackbone(depths=depths, **options))


def assigned(params):
    """{parameter name: (weight decay, lr scale)} of a list of parameter groups."""
    return {
        name: (group["weight_decay"], group["lr_scale"])
        for group in params
        for name in group["param_names"]
    }


def published(package, model, **paramwise):
    module = pytest.importorskip(f"{package}.engine.optimizers.layer_decay_optimizer_constructor")
    params = []
    module.LearningRateDecayOptimizerConstructor(
        {"optimizer": {"type": "AdamW", "lr": BASE_LR, "weight_decay": WEIGHT_DECAY}}, paramwise
    ).add_params(params, model)
    return assigned(params)


def ours(model, **options):
    groups = layer_groups(model, weight_decay=WEIGHT_DECAY, **options)
    scales = {n: (g.weight_decay, g.lr_scale) for g in groups for n in g.param_names}
    # norms.stage1..4 are the published norm0..3
    names = {f"backbone.norms.stage{s + 1}": f"backbone.norm{s}" for s in range(4)}
    return {names.get(n.rpartition(".")[0], n.rpartition(".")[0]) + "." + n.rpartition(".")[2]: v
            for n, v in scales.items()}  # fmt: skip


@pytest.mark.parametrize("package", ["mmdet", "mmseg"])
@pytest.mark.parametrize("decay_type", ["layer_wise", "stage_wise"])
@pytest.mark.parametrize(("size", "num_layers"), [("tiny", 6), ("small to huge", 12)])
@pytest.mark.parametrize("explicit", [True, False])
def test_every_parameter_of_v1_gets_the_published_rate_and_decay(
    package, decay_type, size, num_layers, explicit
):
    options = {"decay_rate": 0.7, "decay_type": decay_type}
    expected = published(
        package, Detector(FbConvNeXt(DEPTHS[size])), num_layers=num_layers, **options
    )
    model = detector(DEPTHS[size])
    got = ours(model, num_layers=num_layers if explicit else None, **options)
    assert got.keys() == expected.keys()
    for name, (weight_decay, scale) in expected.items():
        assert got[name] == (weight_decay, pytest.approx(scale, rel=1e-12)), name


def test_v2_differs_from_the_published_constructor_in_the_decay_of_grn_alone():
    # Its rule goes by dimensions, and facebookresearch stores grn as (1, 1, 1, 4C).
    expected = published(
        "mmseg", Detector(FbConvNeXt(DEPTHS["tiny"], use_grn=True)), decay_rate=0.9,
        decay_type="layer_wise", num_layers=6,
    )  # fmt: skip
    got = ours(detector(DEPTHS["tiny"], use_grn=True, layer_scale_init_value=0.0), decay_rate=0.9)
    different = {name for name in expected if got[name] != pytest.approx(expected[name], rel=1e-12)}
    assert different == {name for name in expected if ".grn." in name}
    assert all(expected[name][0] == WEIGHT_DECAY and got[name][0] == 0.0 for name in different)


# Layer ids of stem, downsampling 2-4, then the blocks of each stage, from the formulas of the
# papers' code: object_detection/mmcv_custom and ConvNeXt-V2/optim_factory.py.
_IDS = [
    ("layer_wise", (2, 2, 6, 2), [0, 2, 3, 5], [[1, 1], [2, 2], [3, 3, 3, 4, 4, 4], [5, 5]], 6),
    ("layer_wise", (2, 2, 8, 2), [0, 2, 3, 6],
     [[1, 1], [2, 2], [3, 3, 3, 4, 4, 4, 5, 5], [6, 6]], 7),
    ("layer_wise", (3, 4, 30, 3), [0, 2, 3, 13],
     [[1] * 3, [2] * 4, [3 + b // 3 for b in range(30)], [13] * 3], 14),
    ("group", (3, 3, 9, 3), [0, 2, 3, 12], [[1] * 3, [2] * 3, [3] * 3 + [4] * 3 + [5] * 3,
                                            [12] * 3], 13),
    ("single", (1, 2, 3, 1), [1, 2, 4, 7], [[1], [2, 3], [4, 5, 6], [7]], 8),
    ("stage_wise", (2, 2, 6, 2), [0, 0, 0, 0], [[1] * 2, [2] * 2, [3] * 6, [4] * 2], 6),
]  # fmt: skip


@pytest.mark.parametrize(("decay_type", "depths", "downsample", "blocks", "outside"), _IDS)
def test_layer_ids_follow_the_formula_at_every_depth(
    decay_type, depths, downsample, blocks, outside
):
    groups = layer_groups(detector(depths), decay_rate=0.5, decay_type=decay_type)
    ids = {name: group.layer_id for group in groups for name in group.param_names}
    scales = {name: group.lr_scale for group in groups for name in group.param_names}
    for s, layer_id in enumerate(downsample):
        assert ids[f"backbone.downsample_layers.{s}.0.weight"] == layer_id
        assert ids[f"backbone.downsample_layers.{s}.1.bias"] == layer_id
    for s, stage in enumerate(blocks):
        assert [ids[f"backbone.stages.{s}.{b}.pwconv1.weight"] for b in range(len(stage))] == stage
    for name in ("backbone.norms.stage1.weight", "neck.0.weight", "head.bias"):
        assert (ids[name], scales[name]) == (outside, 1.0)
    for name, layer_id in ids.items():
        assert scales[name] == pytest.approx(0.5 ** (outside - layer_id), rel=1e-12)


@pytest.mark.parametrize("decay_type", DECAY_TYPES)
@pytest.mark.parametrize("depths", [(2,), (2, 4), (1, 2, 6, 1), (3, 4, 30, 3), (1, 1, 2, 7, 2)])
def test_deeper_layers_never_learn_slower(decay_type, depths):
    model = Detector(ConvNextBackbone(depths=depths, hidden_sizes=(8,) * len(depths)))
    groups = layer_groups(model, decay_rate=0.5, decay_type=decay_type)
    scale = {name: group.lr_scale for group in groups for name in group.param_names}
    order = ["backbone.downsample_layers.0.0.weight"]
    for s, depth in enumerate(depths):
        order += [f"backbone.stages.{s}.{b}.dwconv.weight" for b in range(depth)]
    scales = [scale[name] for name in [*order, "head.weight"]]
    assert scales == sorted(scales)
    assert scales[0] < scales[-1] == 1.0


def test_norms_biases_and_scales_have_no_decay_whatever_their_shape():
    model = detector(use_grn=True)
    for block in model.backbone.stages[0]:
        block.grn.gamma = nn.Parameter(block.grn.gamma.detach().reshape(1, 1, 1, -1))
        block.grn.beta = nn.Parameter(block.grn.beta.detach().reshape(1, -1))
        block.gamma = nn.Parameter(block.gamma.detach().reshape(-1, 1, 1))
    spared = {n for g in layer_groups(model, decay_rate=0.9, weight_decay=0.05)
              if g.weight_decay == 0.0 for n in g.param_names}  # fmt: skip
    matrices = {
        f"{name}.weight" for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }  # fmt: skip
    assert spared == {name for name, _ in model.named_parameters()} - matrices


def test_a_flattened_weight_still_decays():
    # As FullyShardedDataParallel leaves the parameters that it shards.
    model = detector()
    linear = model.backbone.stages[0][0].pwconv1
    linear.weight = nn.Parameter(linear.weight.detach().reshape(-1))
    groups = layer_groups(model, decay_rate=0.9, weight_decay=0.05)
    decay = {n: g.weight_decay for g in groups for n in g.param_names}
    assert decay["backbone.stages.0.0.pwconv1.weight"] == 0.05
    assert decay["backbone.stages.0.0.pwconv1.bias"] == 0.0


class _Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher = detector((1, 1, 9, 1))
        self.student = detector((1, 1, 3, 1))


def test_each_trunk_of_a_model_decays_by_its_own_depth():
    groups = layer_groups(_Teacher(), decay_rate=0.5)
    scale = {name: group.lr_scale for group in groups for name in group.param_names}
    # 6 layers in the teacher, 4 in the student
    assert scale["teacher.backbone.downsample_layers.0.0.weight"] == 0.5**7
    assert scale["student.backbone.downsample_layers.0.0.weight"] == 0.5**5
    assert scale["teacher.head.weight"] == scale["student.head.weight"] == 1.0
    assert len({group.name for group in groups}) == len(groups)


class _Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(_Wrapper, id="around the model"),
        pytest.param(lambda m: _replace(m, "backbone", _Wrapper), id="around the backbone"),
        pytest.param(
            lambda m: _replace(m, "backbone", lambda b: torch.compile(b, backend="eager")),
            id="compiled backbone",
        ),
        pytest.param(
            lambda m: _replace(m.backbone.stages[2], "0", _Wrapper) and m, id="around a block"
        ),
        pytest.param(lambda m: m.backbone, id="the backbone itself"),
    ],
)
def test_wrappers_change_no_rate(wrap):
    model = detector()
    expected = {
        id(p): (g.lr_scale, g.weight_decay)
        for g in layer_groups(model, decay_rate=0.7, weight_decay=0.05)
        for p in g.params
    }
    wrapped = wrap(model)
    got = {
        id(p): (g.lr_scale, g.weight_decay)
        for g in layer_groups(wrapped, decay_rate=0.7, weight_decay=0.05)
        for p in g.params
    }
    assert {id(p) for p in wrapped.parameters()} == got.keys()
    assert all(expected[key] == value for key, value in got.items())


def _replace(module, name, wrap):
    setattr(module, name, wrap(getattr(module, name)))
    return module


def test_what_a_user_adds_to_a_stage_learns_as_its_last_block():
    model = detector((1, 2, 7, 1))
    model.backbone.stages[2].adapter = nn.Linear(16, 16)
    groups = layer_groups(model, decay_rate=0.7)
    ids = {name: group.layer_id for group in groups for name in group.param_names}
    assert ids["backbone.stages.2.adapter.weight"] == ids["backbone.stages.2.6.pwconv1.weight"]


def test_frozen_parameters_are_in_no_group():
    model = detector(frozen_stages=2)
    grouped = {id(p) for g in layer_groups(model, decay_rate=0.9) for p in g.params}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(grouped) < len(list(model.parameters()))


def test_a_shared_parameter_is_grouped_once():
    model = detector()
    model.second_head = model.head
    names = [n for g in layer_groups(model, decay_rate=0.9) for n in g.param_names]
    assert names.count("head.weight") == 1
    assert not [name for name in names if name.startswith("second_head")]


def test_the_longest_custom_key_scales_rate_and_decay():
    keys = {
        "head": {"lr_mult": 10.0},
        "backbone.stages.3": {"lr_mult": 0.1, "decay_mult": 2.0},
        "backbone": {"decay_mult": 0.5},
    }
    groups = layer_groups(detector(), decay_rate=0.5, weight_decay=0.05, custom_keys=keys)
    got = {n: (g.lr_scale, g.weight_decay) for g in groups for n in g.param_names}
    assert got["head.weight"] == (10.0, 0.05)
    assert got["head.bias"] == (10.0, 0.0)
    assert got["neck.0.weight"] == (1.0, 0.05)
    assert got["backbone.stages.3.0.pwconv1.weight"] == (pytest.approx(0.05), 0.1)
    assert got["backbone.stages.3.0.norm.weight"] == (pytest.approx(0.05), 0.1)
    assert got["backbone.norms.stage1.weight"] == (1.0, 0.025)


_MISFITS = [
    ({"decay_rate": 0.9, "num_layers": 6}, (3, 3, 27, 3), "num_layers must be at least 12"),
    ({"decay_rate": 0.9, "num_layers": 12}, (3, 4, 30, 3), "num_layers must be at least 13"),
    ({"decay_rate": 0.9, "num_layers": 6.0}, (3, 3, 9, 3), "num_layers must be at least 6"),
    ({"decay_rate": 0.9, "num_layers": 12, "decay_type": "single"}, (1, 2, 3, 1), "must be 7"),
    ({"decay_rate": 0.9, "num_layers": 3, "decay_type": "stage_wise"}, (1, 2, 3, 1), "least 4"),
    ({"decay_rate": 0.9, "decay_type": "layerwise"}, (1, 2, 3, 1), "decay_type must be one of"),
    ({"decay_rate": 1.5}, (1, 2, 3, 1), r"decay_rate must lie in \(0, 1\], got 1.5"),
    ({"decay_rate": 0.9, "custom_keys": {"a": {"lr": 1}}}, (1, 2, 3, 1), r"custom_keys\['a'\]"),
]


@pytest.mark.parametrize(("options", "depths", "message"), _MISFITS)
def test_an_option_that_does_not_fit_is_named(options, depths, message):
    with pytest.raises(ValueError, match=message):
        layer_groups(detector(depths), **options)


def test_a_model_without_a_convnext_is_refused():
    with pytest.raises(ValueError, match="found none in Linear"):
        layer_groups(nn.Linear(2, 2), decay_rate=0.9)


@pytest.mark.parametrize(
    ("paramwise", "message"),
    [
        ({"decay_rate": 0.9, "norm_decay_mult": 0.0}, r"got \['norm_decay_mult'\]"),
        ({"decay_type": "group"}, "must give decay_rate"),
        (None, "must give decay_rate"),
    ],
)
def test_the_constructor_names_a_wrong_option(paramwise, message):
    optimizer = {"type": "AdamW", "lr": 1e-4, "weight_decay": 0.05}
    with pytest.raises(ValueError, match=message):
        ConvNextLayerDecayOptimWrapperConstructor({"optimizer": optimizer}, paramwise)


@pytest.fixture
def log(caplog):
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_the_registered_constructor_steps_each_group_by_its_own_rate(log):
    model = detector()
    before = copy.deepcopy(model.state_dict())
    wrapper = build_optim_wrapper(
        model,
        {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": 1.0},
            "constructor": "ConvNextLayerDecayOptimWrapperConstructor",
            "paramwise_cfg": {"decay_rate": 0.5},
        },
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    # 5 layers at depths (1, 2, 6, 1)
    moved = {n: (before[n] - p).max().item() for n, p in model.named_parameters()}
    assert moved["head.weight"] == pytest.approx(1.0, rel=1e-5)
    assert moved["backbone.stages.3.0.pwconv1.weight"] == pytest.approx(0.5, rel=1e-5)
    assert moved["backbone.downsample_layers.0.0.weight"] == pytest.approx(0.5**6, rel=1e-4)
    assert "layer_0_no_decay" in log.text


def test_the_dry_run_lists_every_group_with_its_rate():
    groups = layer_groups(detector(), decay_rate=0.5, weight_decay=0.05)
    header, *lines = format_layer_groups(groups, lr=1e-3).splitlines()
    assert header.split("  ")[0] == "group"
    assert sorted(line.split()[0] for line in lines) == sorted(g.name for g in groups)
    outside = next(line for line in lines if line.startswith("layer_6_decay"))
    # The neck's 16 x 8 and the head's 8 x 4 weights are all that decays at the full rate.
    assert outside.split() == ["layer_6_decay", "1", "0.001", "0.05", "2", "160"]
    with pytest.raises(ValueError, match="lr must be a number, got None"):
        format_layer_groups(groups, lr=None)


@pytest.mark.parametrize(
    "optimizer",
    ["AdamW", "SGD", {"type": torch.optim.AdamW}, {"type": "AdamW", "weight_decay": 0.3}],
)
def test_the_optimizers_own_weight_decay_is_that_of_its_class(optimizer):
    optimizer = {"type": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    backbone = ConvNextBackbone(hidden_sizes=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    settings = {"type": "OptimWrapper", "optimizer": {**optimizer, "lr": 1e-3}}
    plain = build_optim_wrapper(backbone, copy.deepcopy(settings))
    settings["constructor"] = "ConvNextLayerDecayOptimWrapperConstructor"
    settings["paramwise_cfg"] = {"decay_rate": 0.5}
    layered = build_optim_wrapper(backbone, copy.deepcopy(settings))
    (expected,) = {group["weight_decay"] for group in plain.optimizer.param_groups}
    decays = {group["weight_decay"] for group in layered.optimizer.param_groups}
    assert decays == {0.0, expected}
    assert base_weight_decay(settings["optimizer"]) == expected


@pytest.fixture(scope="module")
def print_layer_decay():
    path = Path(__file__).parents[2] / "tools" / "print_layer_decay.py"
    spec = importlib.util.spec_from_file_location("print_layer_decay", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIGS = Path(__file__).parents[2] / "configs"
UPERNET = CONFIGS / "upernet" / "upernet_convnext-t_8xb2-amp-160k_ade20k-512x512.py"


def test_the_dry_run_of_a_config_prints_its_groups(print_layer_decay, capsys):
    pytest.importorskip("mmseg")
    options = ["--cfg-options", "optim_wrapper.paramwise_cfg.decay_rate=0.5"]
    assert print_layer_decay.main([str(UPERNET), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    rates = {line.split()[0]: line.split()[1] for line in lines if line.startswith("layer_")}
    # Stage-wise, 6 layers: the stem has id 0, the last stage 4, the heads 7.
    assert rates["layer_0_decay"] == f"{0.5**7:.4g}"
    assert rates["layer_4_decay"] == f"{0.5**3:.4g}"
    assert rates["layer_7_decay"] == "1"


def test_the_dry_run_takes_the_weight_decay_that_the_run_has(print_layer_decay, tmp_path, capsys):
    pytest.importorskip("mmseg")
    path = tmp_path / "own.py"
    optimizer = "dict(_delete_=True, type='AdamW', lr=1e-4)"
    path.write_text(f"_base_ = {str(UPERNET)!r}\noptim_wrapper = dict(optimizer={optimizer})\n")
    assert print_layer_decay.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    decays = {line.split()[0]: line.split()[3] for line in lines if line.startswith("layer_")}
    assert (decays["layer_7_decay"], decays["layer_7_no_decay"]) == ("0.01", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.py"], "gone.py"),
        ([str(CONFIGS / "quickstart" / "upernet_convnext-atto_quickstart.py")], "no layer decay"),
        (
            [str(UPERNET), "--cfg-options", "optim_wrapper.paramwise_cfg.num_layers=3"],
            "num_layers must be at least 4",
        ),
    ],
)
def test_a_mistake_in_the_dry_run_is_one_line(print_layer_decay, arguments, message, capsys):
    pytest.importorskip("mmseg")
    assert print_layer_decay.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("print_layer_decay.py: error: ")
    assert message in error
    assert error.count("\n") == 1
