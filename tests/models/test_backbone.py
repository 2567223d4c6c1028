"""The backbone's contract: outputs, freezing, checkpointing, shapes, precision, bad input."""

import copy
import inspect
import json
import warnings

import numpy as np
import pytest
import timm
import torch
import transformers
from helpers.peers import PEERS
from helpers.process_group import one_process
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from convnext_backbone import (
    ConvNextBackbone,
    ConvNextConfig,
    ConvNextForImageClassification,
    list_archs,
)
from convnext_backbone.models.outputs import FeatureMaps
from convnext_backbone.models.trunk import Block

TINY = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 2, 3, 1)}
ALL = ("stem", "stage1", "stage2", "stage3", "stage4")
# Classifier included; the papers' and timm's own figures.
PUBLISHED_PARAMETERS = {
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "convnext_xlarge": 350_196_968,
    "convnext_xxlarge": 846_471_016,
    "convnextv2_atto": 3_708_400,
    "convnextv2_femto": 5_233_240,
    "convnextv2_pico": 9_066_280,
    "convnextv2_nano": 15_623_800,
    "convnextv2_tiny": 28_635_496,
    "convnextv2_base": 88_717_800,
    "convnextv2_large": 197_956_840,
    "convnextv2_huge": 660_289_640,
}


def tiny(**kwargs):
    outputs = {} if "out_indices" in kwargs else {"out_features": ALL}
    return ConvNextBackbone(**{**TINY, **outputs, **kwargs})


# Architectures


@pytest.mark.parametrize("arch", list_archs())
def test_arch_has_the_parameters_of_timm(arch):
    with torch.device("meta"):
        ours = ConvNextBackbone(arch, out_indices=(4,))
        theirs = timm.create_model(arch, num_classes=1000)
    width = ours.channels[0]
    head = 1000 * width + 1000  # the final norm is as large as our norm of stage4
    count = sum(p.numel() for p in ours.parameters()) + head
    assert count == sum(p.numel() for p in theirs.parameters())
    assert count == PUBLISHED_PARAMETERS.get(arch, count)


@pytest.mark.parametrize("arch", list_archs())
def test_arch_has_the_norm_epsilon_of_timm(arch):
    with torch.device("meta"):
        ours, theirs = ConvNextBackbone(arch), timm.create_model(arch)
    eps = {m.eps for m in theirs.modules() if isinstance(m, nn.LayerNorm)}
    assert {m.eps for m in ours.modules() if isinstance(m, nn.LayerNorm)} == eps


def test_arch_positional_by_keyword_and_in_full_are_the_same_network():
    by_name, by_keyword = (
        ConvNextBackbone("convnextv2_atto"),
        ConvNextBackbone(arch="convnextv2_atto"),
    )
    in_full = ConvNextBackbone(
        hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], use_grn=True, layer_scale_init_value=0
    )
    assert by_name.config == by_keyword.config == in_full.config


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_any_number_of_stages(num):
    widths = tuple(8 * (i + 1) for i in range(num))
    b = ConvNextBackbone(hidden_sizes=widths, depths=(1,) * num, out_indices=range(num + 1))
    assert b.strides == (4, *(4 * 2**i for i in range(num)))
    shapes = [m.shape for m in b(torch.randn(1, 3, 128, 64))]
    expected = zip(b.channels, b.strides, strict=True)
    assert shapes == [(1, c, 128 // s, 64 // s) for c, s in expected]


@pytest.mark.parametrize("num_channels", [1, 2, 4, 6])
@pytest.mark.parametrize("patch_size", [2, 4, 16])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_any_channels_patch_and_kernel(num_channels, patch_size, kernel_size):
    b = tiny(num_channels=num_channels, patch_size=patch_size, kernel_size=kernel_size)
    side = 8 * patch_size
    maps = b(torch.randn(1, num_channels, side, side))
    assert [m.shape[-1] for m in maps] == [side // s for s in b.strides] == [8, 8, 4, 2, 1]


# Outputs


@settings(deadline=None, max_examples=40)
@given(st.sets(st.sampled_from(range(5)), min_size=1), st.integers(32, 97), st.integers(32, 97))
def test_maps_have_the_channels_and_strides_that_the_backbone_says(indices, height, width):
    b = tiny(out_indices=sorted(indices)).eval()
    maps = b(torch.randn(2, 3, height, width))
    assert isinstance(maps, tuple)
    assert len(maps) == len(b.channels) == len(b.strides) == len(indices)
    reference = timm.create_model("convnext_atto", features_only=True, **_timm_tiny())
    by_stride = dict(
        zip(reference.feature_info.reduction(), reference.feature_info.channels(), strict=True)
    )
    for m, channels, stride in zip(maps, b.channels, b.strides, strict=True):
        # Floored once per downsampling, which for powers of two is floored once.
        assert m.shape == (2, channels, height // stride, width // stride)
        assert by_stride[stride] == channels
        assert m.is_contiguous()


def _timm_tiny():
    return {"depths": TINY["depths"], "dims": TINY["hidden_sizes"]}


def test_norms_exist_for_the_outputs_only():
    names = {n.split(".")[1] for n in tiny(out_indices=(1, -1)).state_dict() if "norms" in n}
    assert names == {"stage1", "stage4"}


def test_the_stem_is_normed_twice_as_in_transformers():
    # Its own norm belongs to the stem, the second to the output; see test_parity for the values.
    b = tiny(out_features=["stem"])
    nn.init.constant_(b.norms["stem"].bias, 7.0)
    assert abs(b(torch.randn(2, 3, 32, 32))[0].mean().item() - 7.0) < 0.05


def test_negative_indices_become_positions():
    assert tiny(out_indices=(0, -1)).out_indices == (0, 4)


@pytest.mark.parametrize("through", ["backbone", "config"])
def test_outputs_can_change_later(through):
    b = tiny(out_features=["stage1"])
    with torch.no_grad():
        b.norms["stage1"].weight.fill_(3.0)
    target = b if through == "backbone" else b.config
    target.out_features = ["stage1", "stage3"]
    maps = b(torch.randn(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == [8, 24] == list(b.channels)
    assert b.norms["stage1"].weight.unique().item() == 3.0
    assert {p.requires_grad for p in b.stages[2].parameters()} == {True}
    assert {p.requires_grad for p in b.stages[3].parameters()} == {False}


def test_what_is_built_later_has_the_dtype_of_the_stages():
    # A user's own parameter comes before those of the stages.
    b, x = tiny(out_indices=(1,)), torch.randn(1, 3, 32, 32)
    b.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
    b.out_indices = (1, 4)
    assert b.dtype == torch.float32
    assert [m.dtype for m in b(x)] == [torch.float32] * 2
    model = ConvNextForImageClassification(**TINY, num_labels=5)
    model.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
    model.reset_classifier(7)
    assert model(x).logits.dtype == torch.float32


def test_the_callers_config_stays_the_callers():
    config = ConvNextConfig(**TINY, out_indices=[-1])
    before = copy.deepcopy(config)
    b = ConvNextBackbone(config, drop_path_rate=0.3)
    b.out_features = ["stem"]
    config.out_features = ["stage2"]
    assert b.out_features == ("stem",)
    config.out_features = ["stage4"]
    assert config.drop_path_rate == before.drop_path_rate == 0.0


def test_every_parameter_that_is_run_gets_a_gradient_and_so_does_the_input():
    b = tiny(out_features=["stage2"], layer_scale_init_value=0.5)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    b(x)[0].square().sum().backward()
    assert x.grad.abs().sum() > 0
    for name, p in b.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        assert p.requires_grad == (".3" not in name and ".2" not in name[:20]), name


def test_outputs_are_those_that_transformers_callers_expect():
    b = tiny(out_features=["stem", "stage2"])
    assert (
        next(iter(inspect.signature(b.forward).parameters)) == b.main_input_name == "pixel_values"
    )
    x = torch.randn(2, 3, 64, 96)
    outputs = b(pixel_values=x)
    assert type(outputs.feature_maps) is tuple
    assert outputs.hidden_states is None
    assert outputs.attentions is None
    hidden = b(x, output_hidden_states=True).hidden_states
    theirs = _transformers_twin(b)
    expected = theirs(x, output_hidden_states=True)
    for got, want in zip(hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert len(b.stage_names) == len(b.num_features) == len(b.out_feature_channels) == len(hidden)
    assert list(b.channels) == [b.num_features[i] for i in b.out_indices] == theirs.channels


def _transformers_twin(b):
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 3, 1], out_features=list(b.out_features)
    )
    theirs = transformers.ConvNextBackbone(config).eval()
    with torch.no_grad():
        for name, parameter in b.named_parameters():
            theirs.get_parameter(PEERS["transformers_v1"].name_of(name)).copy_(parameter)
    return theirs


# Stochastic depth and initialisation


def test_drop_path_grows_linearly_over_all_blocks():
    b = tiny(drop_path_rate=0.6)
    rates = [m.drop_path.rate for m in b.modules() if isinstance(m, Block)]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.6, 7))


def test_init_on_meta_equals_init_on_cpu():
    torch.manual_seed(3)
    on_cpu = tiny(drop_path_rate=0.1)
    with torch.device("meta"):
        on_meta = tiny(drop_path_rate=0.1)
    on_meta.to_empty(device="cpu")
    torch.manual_seed(3)
    expected = tiny(drop_path_rate=0.1)
    expected.init_weights()
    torch.manual_seed(3)
    tiny(drop_path_rate=0.1)  # draws what the constructor of `expected` drew
    on_meta.init_weights()
    assert on_cpu.state_dict().keys() == on_meta.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(value, on_meta.state_dict()[name]), name


def test_fresh_weights_follow_the_paper():
    b = ConvNextBackbone("convnext_atto", layer_scale_init_value=1e-6)
    for module in b.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert abs(module.weight.std().item() - 0.02) < 0.002
            assert not module.bias.any()
        if isinstance(module, Block):
            assert torch.equal(module.gamma, torch.full_like(module.gamma, 1e-6))


@pytest.mark.parametrize("value", [0, 0.0])
def test_layer_scale_zero_builds_none(value):
    b = tiny(layer_scale_init_value=value)
    assert not any("gamma" in name for name in b.state_dict())


def test_init_weights_loads_what_init_cfg_names(tmp_path):
    source = tiny(out_features=["stem", "stage4"])
    torch.save({"state_dict": source.state_dict()}, tmp_path / "b.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "b.pth"), "map_location": "cpu"}
    b = tiny(out_features=["stem", "stage4"], init_cfg=init_cfg)
    assert b.load_report is None
    b.init_weights()
    assert len(b.load_report.loaded) == len(source.state_dict())
    for name, value in source.state_dict().items():
        assert torch.equal(value, b.state_dict()[name])
    with torch.no_grad():
        b.norms["stem"].weight.fill_(2.0)
    b.init_weights()  # mmengine may call again, and must not undo what came since
    assert b.norms["stem"].weight.unique().item() == 2.0


# Freezing


# mmdet's rule: the stem is frozen from 0 on; stage k, with the downsampling before it, from k on.
FROZEN = {
    -1: (),
    0: ("downsample_layers.0.",),
    1: ("downsample_layers.0.", "stages.0."),
    2: ("downsample_layers.0.", "stages.0.", "downsample_layers.1.", "stages.1."),
    4: ("downsample_layers.", "stages."),
}


def check_frozen(b, k):
    """Frozen parameters take no gradient, and frozen modules are in eval mode; nothing else."""
    names = FROZEN[k] or ("nothing",)
    for name, p in b.named_parameters():
        assert p.requires_grad != name.startswith(names), name
    for name, module in b.named_modules():
        if name not in ("", "downsample_layers", "stages", "norms"):
            assert module.training != f"{name}.".startswith(names), name
    b.zero_grad()
    torch.stack([m.square().sum() for m in b(torch.randn(2, 3, 32, 32))]).sum().backward()
    for name, p in b.named_parameters():
        assert (p.grad is None) == name.startswith(names), name


@pytest.mark.parametrize("k", FROZEN)
def test_frozen_stages_take_no_gradient_and_stay_in_eval_mode(k):
    b = tiny(frozen_stages=k, drop_path_rate=0.1)
    assert b.train() is b
    assert b.eval() is b
    check_frozen(b.train(), k)


def test_numbers_of_numpy_name_frozen_stages_too():
    b = tiny(frozen_stages=np.int64(1))
    assert json.dumps(b.frozen_stages) == "1"
    check_frozen(b, 1)
    b.frozen_stages = np.int64(2)
    check_frozen(b, 2)


def test_frozen_stages_can_change_later():
    b = tiny(frozen_stages=2).train()
    for k in (1, 4, -1):
        b.frozen_stages = k
        check_frozen(b, k)
    with pytest.raises(ValueError, match="frozen_stages must be an integer from -1 to 4, got 5"):
        b.frozen_stages = 5


def test_what_the_user_froze_stays_frozen_when_the_outputs_change():
    b = tiny(out_features=["stage1", "stage4"]).requires_grad_(False)
    for names in (["stage1"], ["stage1", "stage4"]):
        b.out_features = names
    # A norm that left and came back is a fresh one, which has everything to learn.
    learning = {name for name, p in b.named_parameters() if p.requires_grad}
    assert learning == {"norms.stage4.weight", "norms.stage4.bias"}


def test_a_list_of_the_config_that_is_edited_in_place_is_checked_at_the_next_call():
    b, x = tiny(out_features=["stage1", "stage2"]), torch.randn(1, 3, 32, 32)
    b.config.out_features.append("stage4")
    assert [m.shape[1] for m in b(x)] == [8, 16, 32]
    assert (b.channels, b.config.out_indices) == ((8, 16, 32), [1, 2, 4])
    b.config.out_features.append("stage3")
    with pytest.raises(ValueError, match="out_features must"):
        b(x)
    b.config.out_features.clear()
    with pytest.raises(ValueError, match="out_features must"):
        b(x)


# Checkpointing


def _outputs_and_gradients(backbone, x):
    torch.manual_seed(5)  # the same paths drop
    maps = backbone(x)
    sum(m.square().mean() for m in maps).backward()
    return [*maps, *(p.grad for p in backbone.parameters())]


def test_with_cp_changes_no_output_and_no_gradient():
    plain = tiny(drop_path_rate=0.5, layer_scale_init_value=0.5).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.with_cp = True
    x = torch.randn(4, 3, 32, 32)
    expected = _outputs_and_gradients(plain, x)
    got = _outputs_and_gradients(checkpointed, x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_with_cp_recomputes_each_block_once():
    b = tiny(with_cp=True)
    calls = []
    b.stages[1][0].register_forward_pre_hook(lambda *_: calls.append(1))
    sum(m.sum() for m in b(torch.randn(1, 3, 32, 32))).backward()
    assert len(calls) == 2


# Batches, precision, memory formats, compilers


def test_a_row_of_a_batch_equals_the_row_alone():
    b = tiny(use_grn=True, layer_scale_init_value=0.0).eval()
    nn.init.normal_(b.stages[0][0].grn.gamma)
    x = torch.randn(3, 3, 45, 53)
    for whole, row in zip(b(x), b(x[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], row, rtol=0, atol=1e-5)


def test_an_empty_batch_gives_empty_maps():
    shapes = [m.shape for m in tiny()(torch.randn(0, 3, 32, 32))]
    assert shapes == [(0, 8, 8, 8), (0, 8, 8, 8), (0, 16, 4, 4), (0, 24, 2, 2), (0, 32, 1, 1)]


def test_channels_last_and_strided_input_change_nothing():
    b = tiny().eval()
    x = torch.randn(2, 3, 40, 48)
    variants = (
        x.to(memory_format=torch.channels_last),
        x.repeat_interleave(2, dim=3)[..., ::2],
    )
    for variant in variants:
        for got, expected in zip(b(variant), b(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
            assert got.is_contiguous()


@pytest.mark.parametrize("use_grn", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_near_full_precision(dtype, use_grn):
    b = tiny(use_grn=use_grn, layer_scale_init_value=0.0 if use_grn else 1.0).eval()
    for module in b.modules():
        if use_grn and isinstance(module, Block):
            nn.init.normal_(module.grn.gamma)
    x = torch.randn(2, 3, 64, 64)
    expected = b.double()(x.double())
    b.float()
    with torch.autocast("cpu", dtype=dtype):
        got = b(x)
    for a, e in zip(got, expected, strict=True):
        assert ((a.double() - e).norm() / e.norm()).item() <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("with_cp", [False, "selective", True])
@pytest.mark.parametrize("use_grn", [False, True])
def test_distributed_training_finds_gradients_with_the_strides_of_their_parameters(
    use_grn, with_cp
):
    b = tiny(num_channels=1, use_grn=use_grn, with_cp=with_cp)
    with one_process():
        model = nn.parallel.DistributedDataParallel(b)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sum(y.square().mean() for y in model(torch.randn(2, 1, 64, 64))).backward()
    # torch warns of the first difference in a process only, so look at all of them as well
    assert {n: p.grad.stride() for n, p in b.named_parameters()} == {
        n: p.stride() for n, p in b.named_parameters()
    }


def test_export_with_dynamic_sizes_equals_eager():
    # From 64 pixels: below, stage4 is one pixel wide, a size that torch.export specialises on.
    b = tiny().eval()
    sizes = {axis: torch.export.Dim(f"d{axis}", min=64, max=512) for axis in (2, 3)}
    sizes[0] = torch.export.Dim("n", min=1, max=8)
    program = torch.export.export(b, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,))
    x = torch.randn(3, 3, 65, 112)
    for got, expected in zip(program.module()(x), b(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_dynamo_traces_the_backbone_as_one_graph():
    b = tiny().eval()
    compiled = torch.compile(b, fullgraph=True, dynamic=True, backend="eager")
    for size in ((64, 64), (45, 53)):
        x = torch.randn(1, 3, *size)
        for got, expected in zip(compiled(x), b(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("with_cp", [False, "selective", True])
def test_jit_trace_equals_eager(with_cp):
    b = tiny(with_cp=with_cp).eval()
    x = torch.randn(1, 3, 64, 64)
    for got, expected in zip(torch.jit.trace(b, x)(x), b(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_a_copy_and_a_state_dict_round_trip_change_nothing():
    b = tiny(frozen_stages=1).train()
    twin = copy.deepcopy(b)
    fresh = tiny(frozen_stages=1)
    assert str(fresh.load_state_dict(b.state_dict())) == "<All keys matched successfully>"
    x = torch.randn(1, 3, 32, 32)
    for a, c, d in zip(b(x), twin(x), fresh(x), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(a, d)


# Bad input


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(1, 4, 32, 32), ValueError, r"shape \(N, 3, H, W\), got \(1, 4, 32, 32\)"),
        (torch.zeros(3, 32, 32), ValueError, r"shape \(N, 3, H, W\), got \(3, 32, 32\)"),
        (
            torch.zeros(1, 3, 31, 64),
            ValueError,
            "at least 32x32 pixels to reach 'stage4', got 31x64",
        ),
        (
            torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
            TypeError,
            "floating point, got torch.uint8",
        ),
        ([1, 2], TypeError, "a tensor, got list"),
    ],
)
def test_bad_pixel_values_are_refused_by_name(value, error, message):
    with pytest.raises(error, match=f"pixel_values must (have|be) {message}"):
        tiny()(value)


def test_one_patch_is_enough_for_the_stem_and_stage1():
    assert [
        m.shape[2:] for m in tiny(out_features=("stem", "stage1"))(torch.randn(1, 3, 4, 5))
    ] == [
        (1, 1),
        (1, 1),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"arch": "tinny"}, ValueError, "arch must be one of .*'tinny'"),
        ({"arch": 3}, ValueError, "arch must be one of"),
        ({"config": ConvNextConfig(), "arch": "convnext_tiny"}, ValueError, "not both"),
        ({"frozen_stages": 5}, ValueError, "frozen_stages must be an integer from -1 to 4, got 5"),
        ({"frozen_stages": "all"}, ValueError, "frozen_stages must be"),
        ({"init_cfg": {"type": "Xavier"}}, ValueError, "init_cfg must be None or"),
        ({"init_cfg": {"type": "Pretrained"}}, ValueError, "must name a checkpoint"),
        (
            {"init_cfg": {"type": "Pretrained", "checkpoint": "x", "chekpoint": "y"}},
            ValueError,
            "init_cfg takes .*'map_location'.*got .'chekpoint'",
        ),
        ({"out_feature": ["stem"]}, TypeError, "out_feature"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        ConvNextBackbone(**arguments)


# Stages behind the outputs, and frozen ones


def test_hidden_states_train_the_stages_that_gave_them_as_in_transformers():
    b = tiny(out_features=["stage1"])
    assert not any(p.requires_grad for p in b.stages[1:].parameters())
    out = b(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    sum(h.square().mean() for h in out.hidden_states).backward()
    assert all(
        p.grad is not None for p in (*b.stages.parameters(), *b.downsample_layers.parameters())
    )


def test_hidden_states_by_config_leave_no_stage_untrained():
    b = tiny(out_features=["stage1"], output_hidden_states=True)
    assert all(p.requires_grad for p in b.parameters())
    b(torch.randn(1, 3, 64, 64)).hidden_states[-1].sum().backward()
    assert all(p.grad is not None for p in b.stages.parameters())


def test_hidden_states_with_other_parameters_leave_the_own_ones_as_they_are():
    b = tiny(out_features=["stage1"]).train()
    x = torch.randn(2, 3, 64, 64)
    values = {k: v.detach().clone().requires_grad_() for k, v in b.named_parameters()}
    torch.func.functional_call(b, values, (x,), {"output_hidden_states": True})
    b(x, output_hidden_states=True).hidden_states[-1].sum().backward()
    assert all(p.grad is not None for n, p in b.named_parameters() if not n.startswith("norms"))


def test_hidden_states_within_a_transform_train_all_stages_too():
    b, x = tiny(out_features=["stage1"]).train(), torch.randn(1, 3, 64, 64)
    all_stages = tiny(out_features=["stage1"], output_hidden_states=True).train()
    all_stages.load_state_dict(b.state_dict())

    def last(network):
        return lambda x: network(x, output_hidden_states=True).hidden_states[-1].square().sum()

    got, expected = (torch.func.grad(last(network))(x) for network in (b, all_stages))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert all(p.requires_grad for p in b.parameters())


def test_hidden_states_without_gradients_change_nothing():
    b = tiny(out_features=["stage1"])
    with torch.no_grad():
        b(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    assert not any(p.requires_grad for p in b.stages[1:].parameters())


class Lora(nn.Module):
    """A low-rank adapter around a linear layer, as peft puts it there."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def _adapt(b):
    b.stages[0][0].pwconv1 = Lora(b.stages[0][0].pwconv1)


def _remove(b):
    b.stages[0][0].gamma = None


def _add(b):
    b.stages[0][0].register_parameter("extra", nn.Parameter(torch.zeros(3)))


def _tie(b):
    b.stages[0][0].norm.weight = b.norms["stage1"].weight


def _replace_stage(b):
    b.stages[0] = nn.Sequential(copy.deepcopy(b.stages[0]))


def _replace_block(b):
    b.stages[0][0] = nn.Conv2d(8, 8, 3, padding=1)


CHANGES = (_adapt, _remove, _add, _tie, _replace_stage, _replace_block)
ASSIGNMENTS = {
    "out_features": lambda b: setattr(b, "out_features", ["stage2"]),
    "frozen_stages": lambda b: setattr(b, "frozen_stages", 2),
    "unfrozen": lambda b: setattr(b, "frozen_stages", -1),
    "config": lambda b: (
        setattr(b.config, "out_features", ["stage3"]),
        b(torch.zeros(1, 3, 64, 64)),
    ),
}


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_parts_of_a_frozen_stage_may_be_replaced_before_an_assignment(change, assignment):
    b = tiny(frozen_stages=1, out_features=["stage1", "stage4"])
    change(b)
    ASSIGNMENTS[assignment](b)
    b(torch.randn(1, 3, 64, 64))


def test_adapters_put_into_a_frozen_stage_stay_trainable_and_their_base_frozen():
    b = tiny(frozen_stages=1, out_features=["stage1", "stage4"])
    _adapt(b)
    adapter = b.stages[0][0].pwconv1
    b.out_features = ["stage2", "stage4"]
    assert adapter.a.weight.requires_grad
    assert not adapter.base.weight.requires_grad
    sum(m.square().sum() for m in b(torch.randn(1, 3, 64, 64))).backward()
    assert adapter.b.weight.grad is not None


def test_what_the_user_froze_and_unfroze_stays_so():
    b = tiny(frozen_stages=1)
    b.stages[0][0].norm.requires_grad_(True)
    b.stages[2].requires_grad_(False)
    b.out_features = ["stage2", "stage4"]
    assert b.stages[0][0].norm.weight.requires_grad
    b.frozen_stages = 2
    b.frozen_stages = -1
    assert all(p.requires_grad for p in b.stages[0].parameters())
    assert not any(p.requires_grad for p in b.stages[2].parameters())


@pytest.mark.parametrize("change", ["hidden states", "outputs"])
def test_a_backbone_that_the_user_froze_whole_stays_frozen(change):
    b = tiny(out_features=["stage1"]).requires_grad_(False)
    if change == "outputs":
        b.out_features = ["stage3"]
    else:
        b(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    trained = [name for name, p in b.named_parameters() if p.requires_grad]
    assert trained == (["norms.stage3.weight", "norms.stage3.bias"] if change == "outputs" else [])
    b.frozen_stages = 2
    b.frozen_stages = -1
    assert trained == [name for name, p in b.named_parameters() if p.requires_grad]


def test_each_output_is_a_map_whatever_norms_there_are():
    b, x = tiny(out_indices=(1, 2)).eval(), torch.randn(1, 3, 64, 64)
    expected = b(x, output_hidden_states=True).hidden_states
    b.norms["stage3"] = nn.Identity()
    assert len(b(x)) == len(b.channels) == 2
    del b.norms["stage1"]
    maps = b(x)
    assert [m.shape[1] for m in maps] == [*b.channels]
    assert torch.equal(maps[0], expected[1])


def test_a_stem_of_other_channels_takes_them():
    b = tiny().eval()
    old, b.downsample_layers[0][0] = b.downsample_layers[0][0], nn.Conv2d(4, 8, 4, 4)
    assert b(torch.randn(1, 4, 64, 64))[-1].shape[1] == b.channels[-1]
    with pytest.raises(ValueError, match=r"must have shape \(N, 4, H, W\)"):
        b(torch.randn(1, 3, 64, 64))
    b.downsample_layers[0][0] = nn.Sequential(nn.Conv2d(5, 3, 1), old)
    assert b(torch.randn(1, 5, 64, 64))[-1].shape[1] == b.channels[-1]


class _Focus(nn.Module):
    """A stem over pixels that were moved into channels, as YOLO's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 8, 2, 2)

    def forward(self, x):
        return self.conv(nn.functional.pixel_unshuffle(x, 2))


def test_a_stem_of_the_users_takes_what_it_takes():
    b = tiny()
    b.downsample_layers[0][0] = nn.Conv2d(1, 8, 3, 1, 1)  # as for images of 28 x 28
    assert [tuple(m.shape[2:]) for m in b(torch.randn(1, 1, 28, 28))][-1] == (3, 3)
    with pytest.raises(ValueError, match="at least 32x32"):
        tiny()(torch.randn(1, 3, 28, 28))
    b.downsample_layers[0] = _Focus()
    assert [m.shape[1] for m in b(torch.randn(1, 3, 64, 64))] == [*b.channels]


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
def test_backward_hooks_on_the_backbone_leave_the_maps_as_they_are(kind, number):
    b, seen = tiny(out_indices=range(5 - number, 5)), []
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    expected = b(x)
    getattr(b, f"register_{kind}")(lambda *args: seen.append(args))
    maps = b(x)
    assert isinstance(maps, FeatureMaps)
    assert len(maps) == number
    for got, e in zip(maps.feature_maps, expected, strict=True):
        torch.testing.assert_close(got, e, rtol=0, atol=0)
    sum(m.sum() for m in maps).backward()
    assert len(seen) == 1


def test_a_part_of_a_stage_keeps_its_with_cp():
    b = tiny(with_cp=True)
    assert b.stages[0][:1].with_cp is True
    assert tiny().stages[0][:1].with_cp is False


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "assign", "meta", "bfloat16"])
def test_unfreezing_works_after_copies_casts_and_loading(way, tmp_path):
    b = tiny(frozen_stages=2)
    if way == "deepcopy":
        b = copy.deepcopy(b)
    elif way == "pickle":
        torch.save(b, tmp_path / "b.pt")
        b = torch.load(tmp_path / "b.pt", weights_only=False)
    elif way == "assign":
        b.load_state_dict({k: v.clone() for k, v in b.state_dict().items()}, assign=True)
    elif way == "meta":
        with torch.device("meta"):
            b = tiny(frozen_stages=2)
        b.to_empty(device="cpu")
    else:
        b = b.to(torch.bfloat16)
    assert not any(p.requires_grad for p in b.stages[:2].parameters())
    b.frozen_stages = -1
    assert all(p.requires_grad for p in b.parameters())


def _share(b):
    layer = nn.Linear(8, 32, device="meta")  # as conversions do: another layer, the same parameters
    layer.weight, layer.bias = b.stages[0][0].pwconv1.weight, b.stages[0][0].pwconv1.bias
    b.stages[0][0].pwconv1 = layer


def _parametrize(b):
    parametrize.register_parametrization(b.stages[0][0].pwconv1, "weight", nn.Identity())


def _prune(b):
    prune.l1_unstructured(b.stages[0][0].pwconv1, "weight", 0.5)


RENAMINGS = {
    "wrapped stage": lambda b: b.stages.__setitem__(0, nn.Sequential(b.stages[0])),
    "shared parameters": _share,
    "parametrization": _parametrize,
    "removed parametrization": lambda b: (
        _parametrize(b),
        parametrize.remove_parametrizations(b.stages[0][0].pwconv1, "weight"),
    ),
    "weight norm": lambda b: parametrizations.weight_norm(b.stages[0][0].pwconv1),
    "pruning": _prune,
    "removed pruning": lambda b: (
        _prune(b),
        prune.remove(b.stages[0][0].pwconv1, "weight"),
    ),
}


@pytest.mark.parametrize("rename", RENAMINGS)
def test_parameters_are_known_again_by_another_name(rename):
    b = tiny(frozen_stages=1, out_features=["stage1", "stage4"])
    RENAMINGS[rename](b)
    b.out_features = ["stage2"]
    assert not any(p.requires_grad for p in b.stages[0].parameters())
    b.frozen_stages = -1
    assert all(p.requires_grad for p in b.stages[0].parameters())


def test_removed_stages_do_not_hinder_an_assignment():
    b = tiny(out_features=["stage2", "stage4"])
    b.out_features = ["stage2"]
    del b.stages[2:], b.downsample_layers[2:]
    b.out_features = ["stage1"]
    b.frozen_stages = 0
    assert not any(p.requires_grad for p in b.stages[1].parameters())
    b.out_features = ["stage1", "stage2"]
    assert all(p.requires_grad for p in b.stages.parameters())
    assert [m.shape[1] for m in b(torch.randn(1, 3, 32, 32))] == [8, 16]


# transformers' ways of calling


def test_unknown_keywords_are_filtered_as_in_transformers():
    b, x = tiny(), torch.randn(1, 3, 64, 64)
    out = b.forward_with_filtered_kwargs(x, foo=1, output_hidden_states=True)
    assert len(out.hidden_states) == 5
    torch.testing.assert_close(out.feature_maps[0], b(pixel_values=x)[0])
    assert isinstance(
        b.forward_with_filtered_kwargs(pixel_values=x, bar=2, return_dict=False), tuple
    )
