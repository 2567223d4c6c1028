"""optimize_for_inference: the same maps, in any dtype, and nothing else changed."""

import copy
import functools
import types

import pytest
import torch
from helpers import reference
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune

from convnext_backbone import ConvNextBackbone, ConvNextConfig, ConvNextForImageClassification
from convnext_backbone.inference import OptimizedModule, optimize_for_inference, pack
from convnext_backbone.inference.fold import fold_block
from convnext_backbone.models.block import Block
from convnext_backbone.models.layers import GlobalResponseNorm, LayerNorm2d

VERSIONS = pytest.mark.parametrize("use_grn", [False, True], ids=["v1", "v2"])
# ||error|| / ||map|| against double precision
TOLERANCE = {
    torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-12,
}  # fmt: skip


def build(use_grn=False, **fields):
    scale = 0.0 if use_grn else 0.5
    b = ConvNextBackbone(
        hidden_sizes=(16, 24, 32), depths=(2, 1, 1), use_grn=use_grn, layer_scale_init_value=scale,
        out_indices=(0, 1, 2, 3), **fields,
    ).eval()  # fmt: skip
    for parameter in b.parameters():
        # norms and scales about one, so that what is folded is neither nothing nor everything
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return b


def relative(got, expected):
    return ((got.double() - expected).norm() / expected.norm()).item()


@VERSIONS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_maps_are_those_of_the_original(dtype, use_grn):
    b = build(use_grn)
    exact, optimized = copy.deepcopy(b).double(), b.optimize_for_inference(dtype=dtype)
    for shape in ((2, 3, 64, 64), (1, 3, 45, 77), (3, 3, 97, 160)):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = exact(x.double())
        for got, e in zip(optimized(x), expected, strict=True):
            assert got.dtype == dtype
            assert got.is_contiguous()
            assert relative(got, e) <= TOLERANCE[dtype]


@VERSIONS
def test_the_original_is_untouched(use_grn):
    b = build(use_grn).train()
    before = copy.deepcopy(b.state_dict())
    optimized = b.optimize_for_inference()
    assert b.training
    assert not optimized.training
    assert all(p.requires_grad for p in b.parameters())
    assert before.keys() == b.state_dict().keys()
    assert all(torch.equal(before[k], v) for k, v in b.state_dict().items())


def test_twice_is_once_and_another_wish_is_refused():
    optimized = build().optimize_for_inference(dtype=torch.bfloat16)
    assert optimized.optimize_for_inference() is optimized
    assert optimized.optimize_for_inference(dtype=torch.bfloat16) is optimized
    with pytest.raises(ValueError, match="optimize the original anew"):
        optimized.optimize_for_inference(dtype=torch.float32)


def test_it_refuses_to_train_and_has_no_gradients():
    optimized = build().optimize_for_inference()
    assert optimized.eval() is optimized
    with pytest.raises(RuntimeError, match="cannot train; train the original"):
        optimized.train()
    with pytest.raises(RuntimeError, match="has no gradients"):
        optimized(torch.randn(1, 3, 32, 32, requires_grad=True))
    with pytest.raises(RuntimeError, match="save the original"):
        optimized.save_pretrained("anywhere")
    assert not any(m.requires_grad for m in optimized(torch.randn(1, 3, 32, 32)))


def test_its_maps_may_feed_a_head_that_trains():
    optimized = build().optimize_for_inference()
    head = nn.Conv2d(32, 2, 1)
    head(optimized(torch.randn(1, 3, 32, 32))[-1]).sum().backward()
    assert head.weight.grad is not None


def test_it_says_what_the_backbone_says_and_may_be_copied():
    b = build()
    optimized = b.optimize_for_inference()
    assert isinstance(optimized, OptimizedModule)
    assert type(optimized.network) is ConvNextBackbone
    for name in ("channels", "strides", "out_features", "config"):
        assert getattr(optimized, name) == getattr(b, name)
    x = torch.randn(1, 3, 40, 40)
    for got, e in zip(copy.deepcopy(optimized)(x), optimized(x), strict=True):
        assert torch.equal(got, e)


def test_an_empty_batch_gives_empty_maps():
    b, x = build(), torch.randn(0, 3, 32, 32)
    shapes = [m.shape for m in b.optimize_for_inference()(x)]
    assert shapes == [m.shape for m in b(x)]


def test_other_activations_are_optimized_too():
    b = build(hidden_act="silu")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = copy.deepcopy(b).double()(x.double())
    for got, e in zip(b.optimize_for_inference()(x), expected, strict=True):
        assert relative(got, e) <= 1e-6


def test_a_classifier_is_optimized_too():
    model = ConvNextForImageClassification(
        hidden_sizes=(16, 24), depths=(1, 1), layer_scale_init_value=0.5, num_labels=5
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double()).logits
    assert relative(model.optimize_for_inference()(x).logits, expected) <= 1e-6


def test_compiling_serves_all_sizes_with_four_graphs(monkeypatch):
    b = build()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda m, **options: compile_module(m, backend=backend, **options)
    )
    optimized = b.optimize_for_inference(compile=True)
    sides = ((64, 64), (96, 64), (77, 91), (80, 80), (101, 64))
    for shape in ((n, 3, *hw) for n in (2, 1, 3) for hw in sides):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = b(x)
        for got, e in zip(optimized(x), expected, strict=True):
            assert relative(got, e.double()) <= 1e-6
    assert 1 <= len(graphs) <= 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": torch.int8}, ValueError, r"dtype must be one of \(torch.float32.*int8"),
        ({"compile": "max"}, TypeError, "compile must be True or False, got 'max'"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        build().optimize_for_inference(**options)


def test_what_would_break_it_is_refused(tmp_path):
    b = build()
    fast = b.optimize_for_inference()
    detector = nn.ModuleDict({"backbone": fast, "head": nn.Linear(2, 2)})
    for use in (
        fast.state_dict,
        detector.state_dict,
        lambda: fast.load_state_dict(b.state_dict(), strict=False),
        lambda: detector.load_state_dict({}, strict=False),
    ):
        with pytest.raises(RuntimeError, match=r"an optimized module cannot be (saved|loaded)"):
            use()
    with pytest.raises(TypeError, match=r"module must be a ConvNextBackbone.*got Linear"):
        optimize_for_inference(nn.Linear(2, 2))
    assert fast.to("cpu") is fast
    assert fast.to(torch.float32) is fast
    for use in (lambda: fast.to(torch.bfloat16), fast.half, fast.init_weights):
        with pytest.raises(RuntimeError, match="optimized module"):
            use()
    b.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
    assert b.optimize_for_inference().float().dtype == torch.float32
    with pytest.raises(RuntimeError, match="cannot be moved or cast"):
        b.optimize_for_inference().double()
    with pytest.raises(RuntimeError, match="cannot be pickled; save the original"):
        torch.save(fast, tmp_path / "fast.pt")
    with pytest.raises(TypeError, match="must be a tensor, got ndarray"):
        fast(torch.zeros(1, 3, 32, 32).numpy())
    with pytest.raises(TypeError, match=r"must be floating point, got torch\.uint8"):
        fast(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"must have shape \(N, 3, H, W\), got \(1, 4, 32, 32\)"):
        fast(torch.zeros(1, 4, 32, 32))


# The packed block, tile by tile


def blocks(use_grn, channels=8):
    config = ConvNextConfig(
        hidden_sizes=(channels,), depths=(1,), use_grn=use_grn,
        layer_scale_init_value=0.0 if use_grn else 0.5,
    )  # fmt: skip
    block = Block(config, channels, 0.0).eval()
    for p in block.parameters():
        nn.init.normal_(p, mean=float(p.ndim == 1), std=0.3)
    return block


@VERSIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 8, 5, 3), (1, 8, 33, 40), (5, 8, 7, 7), (3, 8, 20, 21), (0, 8, 4, 4)], ids=str
)
def test_a_packed_block_equals_the_papers_in_one_tile_and_in_many(
    shape, dtype, use_grn, monkeypatch
):
    monkeypatch.setattr(pack, "_TILE", 1 << 12)
    monkeypatch.setattr(pack, "_MIN_ROWS", 50)
    block, x = blocks(use_grn), torch.randn(shape).to(dtype)
    packed = pack.PackedBlock(fold_block(block).to(dtype))
    expected = reference.block({k: v.double() for k, v in block.state_dict().items()}, x.double())
    kept = x.clone()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():
            got = packed(x.to(memory_format=memory_format))
        assert got.shape == expected.shape
        if x.numel():
            assert relative(got, expected) <= TOLERANCE[dtype]
    assert torch.equal(x, kept)


def test_unmodified_parts_are_packed_where_onednn_takes_the_dtype():
    fast = build().optimize_for_inference()
    kinds = [type(m).__name__ for m in fast.modules()]
    assert kinds.count("PackedBlock") == 4
    assert kinds.count("PackedPatchConv") == 3
    assert "PackedBlock" not in [
        type(m).__name__ for m in build().optimize_for_inference(dtype=torch.float64).modules()
    ]


# What was altered acts in the optimized form, or is refused by name


class Bent(nn.Module):
    def forward(self, x):
        return x.abs() + 0.1


def _bend(module, inputs, output):
    return output.abs() + 0.1


def _tie(b):
    b.stages[0][1].pwconv1 = b.stages[0][0].pwconv1


def _tie_weights(b):
    b.stages[0][1].pwconv2.weight = b.stages[0][0].pwconv2.weight
    b.stages[0][1].norm.bias = b.stages[0][0].norm.bias


def _tie_memory(b):
    b.stages[0][1].pwconv2.weight = nn.Parameter(b.stages[0][0].pwconv2.weight.data)


def _share_block(b):
    b.stages[0][1] = b.stages[0][0]


def _share_norm(b):
    b.stages[0][1].norm = b.stages[0][0].norm


def _compute_weight(path):
    def alter(b):
        layer = b.get_submodule(path)
        weight = layer.weight.detach() + torch.zeros(1, requires_grad=True)
        del layer.weight
        layer.weight = weight * 1.5

    return alter


def _replace(path, make):
    def alter(b):
        parent, _, name = path.rpartition(".")
        setattr(b.get_submodule(parent), name, make())

    return alter


def _as_buffer(path, name):
    def alter(b):
        layer = b.get_submodule(path)
        value = getattr(layer, name).detach() + torch.zeros(1)
        delattr(layer, name)
        layer.register_buffer(name, value)

    return alter


def _reshape_scale(*shape):
    def alter(b):
        for owner in (b.stages[0][1], b.stages[0][1].grn):
            for name, p in owner.named_parameters(recurse=False):
                setattr(owner, name, nn.Parameter(p.detach().mean().expand(shape).clone()))

    return alter


def _hold_activation(b):
    b.held = {"maps": []}
    b.stages[1].register_forward_hook(lambda m, i, o: b.held["maps"].append(o))
    b(torch.randn(1, 3, 32, 32))


def _reads_its_norm(module, inputs, output):
    return output + module[0](inputs[0])[:, :1, ::2, ::2]


def _reads_a_blocks_norm(module, inputs, output):
    return output + module[0].norm(inputs[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class AroundStage(nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def forward(self, x):
        for block in self.stage:
            x = x + block.norm(block.dwconv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x


def _around_stage(b):
    b.stages[0] = AroundStage(b.stages[0])


class Tapped(ConvNextBackbone):
    def iter_maps(self, pixel_values, last):
        for i, x in enumerate(super().iter_maps(pixel_values, last)):
            yield self.downsample_layers[1][0](x) if i == 1 else x


def _subclass(b):
    b.__class__ = Tapped


def _own_convolution(b):
    conv = b.stages[0][1].dwconv
    conv._conv_forward = types.MethodType(
        lambda self, x, w, bias: 1.5 * type(self)._conv_forward(self, x, w, bias), conv
    )


STEM, NORM, CONV = "downsample_layers.0.0", "downsample_layers.1.0", "downsample_layers.1.1"
PARTS = (STEM, "downsample_layers.0.1", NORM, CONV)
HOOKED = (
    *PARTS,
    "downsample_layers.0",
    "downsample_layers.1",
    "stages.0",
    "stages.0.1",
    "norms.stem",
)
ALTERED = {
    **{f"hook on {path}": lambda b, path=path: b.get_submodule(path).register_forward_hook(_bend)
       for path in HOOKED},
    **{f"pruned {path}": lambda b, path=path: prune.l1_unstructured(
        b.get_submodule(path), "weight", 0.5) for path in (*PARTS, "stages.0.1.norm")},
    **{f"pruned bias {path}": lambda b, path=path: prune.random_unstructured(
        b.get_submodule(path), "bias", 0.5) for path in (*PARTS, "stages.0.1.pwconv2")},
    **{f"parametrized {path}": lambda b, path=path: parametrize.register_parametrization(
        b.get_submodule(path), "weight", Bent()) for path in PARTS},
    **{f"computed {path}": _compute_weight(path) for path in (*PARTS, "stages.0.1.pwconv1")},
    "weight norm": lambda b: nn.utils.parametrizations.weight_norm(b.downsample_layers[1][1]),
    "old weight norm": lambda b: nn.utils.weight_norm(b.downsample_layers[1][1]),
    "non-affine norm": _replace(
        NORM, lambda: LayerNorm2d(16, eps=1e-6, elementwise_affine=False)),
    "non-affine stem norm": _replace(
        "downsample_layers.0.1", lambda: LayerNorm2d(16, eps=1e-6, elementwise_affine=False)),
    "norm without bias": lambda b: setattr(b.downsample_layers[1][0], "bias", None),
    "conv without bias": lambda b: setattr(b.downsample_layers[1][1], "bias", None),
    "stem without bias": lambda b: setattr(b.downsample_layers[0][0], "bias", None),
    "overlapping downsampling": _replace(CONV, lambda: nn.Conv2d(16, 24, 3, 2, padding=1)),
    "dilated downsampling": _replace(CONV, lambda: nn.Conv2d(16, 24, 2, 1, dilation=2)),
    "another norm": _replace(NORM, lambda: nn.BatchNorm2d(16)),
    "another layer more": lambda b: b.downsample_layers[1].append(Bent()),
    "another downsampling": _replace(
        "downsample_layers.1", lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(16, 24, 1))),
    "tied layers": _tie, "tied weights": _tie_weights, "tied memory": _tie_memory,
    "one block twice": _share_block, "one norm in two blocks": _share_norm,
    **{f"{name} of {path} a buffer": _as_buffer(path, name) for path, name in (
        (STEM, "weight"), (NORM, "bias"), (CONV, "weight"), ("stages.0.1.pwconv1", "weight"),
        ("stages.0.1.pwconv2", "bias"), ("stages.0.1.norm", "weight"))},
    **{f"scales of shape {shape}": _reshape_scale(*shape) for shape in (
        (), (1,), (1, 1), (1, 1, 1, 1))},
    "activations held": _hold_activation,
    "hook that reads a norm": lambda b: b.downsample_layers[1].register_forward_hook(
        _reads_its_norm),
    "hook that reads a block": lambda b: b.stages[0].register_forward_hook(_reads_a_blocks_norm),
    "class around a stage": _around_stage, "class of the network": _subclass,
    "own convolution": _own_convolution,
    "one norm twice": lambda b: b.downsample_layers[1].insert(0, b.downsample_layers[1][0]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@VERSIONS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ALTERED)
def test_what_was_altered_acts_in_the_optimized_form(name, dtype, use_grn):
    b = build(use_grn)
    x = torch.randn(2, 3, 64, 48)
    ALTERED[name](b)
    b.eval()
    with torch.no_grad():
        expected = [m.double() for m in b(x)]
    optimized = b.optimize_for_inference(dtype=dtype)
    for got, e in zip(optimized(x), expected, strict=True):
        assert relative(got, e) <= max(2e-6, 4 * TOLERANCE[dtype])
    # and the original is as it was
    with torch.no_grad():
        for got, e in zip(b(x), expected, strict=True):
            torch.testing.assert_close(got.double(), e, rtol=0, atol=0)


@pytest.mark.parametrize("cls", [Block, GlobalResponseNorm, nn.Linear, nn.LayerNorm, LayerNorm2d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_class_that_was_patched_stays(monkeypatch, cls, dtype):
    forward = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, *args: 2 * forward(self, *args))
    b, x = build(use_grn=True), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = copy.deepcopy(b).double()(x.double())
    for got, e in zip(b.optimize_for_inference(dtype=dtype)(x), expected, strict=True):
        assert relative(got, e) <= 2e-6


def _wrap(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapped


class _Caller:
    """An object that is called in the place of a function, as accelerate's."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(
    "how", ["closure", "default", "bound", "wrapped twice", "partial", "object"]
)
def test_a_method_that_would_run_the_original_is_refused_by_name(how):
    b = build()
    block = b.stages[0][1]
    run = block.forward
    if how == "closure":
        block.forward = lambda x: run(x) * 1.5
    elif how == "default":
        block.forward = lambda x, run=run: run(x) * 1.5
    elif how == "wrapped twice":
        block.forward = _wrap(_wrap(run))
    elif how == "partial":
        block.forward = functools.partial(lambda part, x: run(x) * 1.5, block)
    elif how == "object":
        block.forward = _wrap(_Caller(run))
    else:
        block.forward = types.MethodType(lambda self, x: run(x) * 1.5, block)
    with pytest.raises(ValueError, match=r"'stages\.0\.1' .*forward.* of the original"):
        b.optimize_for_inference()


def test_a_method_bound_to_the_copy_acts_there():
    b, x = build(), torch.randn(1, 3, 32, 32)
    block = b.stages[0][1]
    block.forward = types.MethodType(lambda self, x: 1.5 * Block.forward(self, x), block)
    with torch.no_grad():
        expected = copy.deepcopy(b).double()(x.double())
        optimized = b.optimize_for_inference()
        nn.init.zeros_(block.pwconv2.weight)
    for got, e in zip(optimized(x), expected, strict=True):
        assert relative(got, e) <= 1e-6


def test_a_compiled_stage_is_copied_with_its_network():
    b, x = build().eval(), torch.randn(1, 3, 32, 32)
    b.stages[1] = torch.compile(b.stages[1], backend="eager")
    with torch.no_grad():
        expected = b(x)
    optimized = b.optimize_for_inference()
    with torch.no_grad():
        for p in b.stages.parameters():
            nn.init.zeros_(p)
    for got, e in zip(optimized(x), expected, strict=True):
        assert relative(got, e.double()) <= 1e-6


norm = nn.Identity()  # a global that has the name of an attribute


def test_a_method_whose_attributes_have_the_names_of_globals_is_no_methods_of_the_original():
    b = build()
    block = b.stages[0][1]
    globals()["norm"] = block.norm
    try:
        block.forward = types.MethodType(lambda self, x: x + self.norm.weight.sum(), block)
        b.optimize_for_inference()
    finally:
        globals()["norm"] = nn.Identity()


class _OnWideDtype(nn.LayerNorm):
    """A norm that is kept in fp32 in a network of bf16."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


def _keep_norm_wide(b):
    b.to(torch.bfloat16)
    b.stages[0][0].norm = _OnWideDtype(b.stages[0][0].norm.normalized_shape)


def _keep_grn_wide(b):
    b.to(torch.bfloat16)
    b.stages[0][0].grn.float()


def _keep_stage_narrow(b):
    b.stages[1].to(torch.bfloat16)
    b.stages[1].register_forward_pre_hook(lambda m, x: x[0].bfloat16())
    b.stages[1].register_forward_hook(lambda m, x, y: y.float())


def _own_first(b):
    b.temperature = nn.Parameter(torch.ones((), dtype=torch.float16))


@pytest.mark.parametrize("alter", [_keep_norm_wide, _keep_grn_wide, _keep_stage_narrow, _own_first])
def test_without_a_dtype_nothing_is_cast(alter):
    b = build(use_grn=True).eval()
    alter(b)
    x = torch.randn(1, 3, 32, 32).to(next(b.stages.parameters()).dtype)
    with torch.no_grad():
        expected = b(x)
    optimized = b.optimize_for_inference()
    assert optimized.dtype == x.dtype
    for got, e in zip(optimized(x), expected, strict=True):
        assert got.dtype == e.dtype
        assert relative(got, e.double()) <= (1e-6 if x.dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_forward_method_that_passes_for_the_packages_own_reads_the_parts(dtype):
    class Mine(ConvNextBackbone):
        @functools.wraps(ConvNextBackbone.forward)
        def forward(self, x):
            return tuple(m * self.stages[0][0].gamma.sum() for m in super().forward(x))

    b = Mine(hidden_sizes=(8, 16), depths=(1, 1), layer_scale_init_value=0.5).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = copy.deepcopy(b).double()(x.double())
    for got, e in zip(b.optimize_for_inference(dtype=dtype)(x), expected, strict=True):
        assert relative(got, e) <= 1e-6


def test_parts_of_other_shapes_do_not_break_it():
    b, x = build().eval(), torch.randn(1, 3, 32, 32)
    b.adapter = nn.Conv3d(1, 1, 1)  # five axes
    del b.stages[0][0].gamma
    b.stages[0][0].gamma = 0.5  # a number in the place of a parameter
    with torch.no_grad():
        expected = b(x)
    for got, e in zip(b.optimize_for_inference()(x), expected, strict=True):
        assert relative(got, e.double()) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "fields",
    [{}, {"output_stride": 4}, {"norm_layer": "rmsnorm"}, {"hidden_act": "relu"},
     {"stem_type": "overlap"}],
    ids=str,
)  # fmt: skip
def test_autocast_around_it_changes_nothing(fields, dtype):
    optimized, x = build(**fields).optimize_for_inference(dtype=dtype), torch.randn(1, 3, 32, 32)
    expected = optimized(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = optimized(x)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == dtype
        assert torch.equal(g, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_has_no_gradients_in_forward_mode_either(dtype):
    optimized = build().optimize_for_inference(dtype=dtype)
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match="has no gradients"):
        torch.func.jvp(lambda y: optimized(y)[-1].sum(), (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="has no gradients"):
        optimized(forward_ad.make_dual(x, x))


def test_a_map_that_vanishes_is_refused():
    b = build()
    b.downsample_layers[0][0] = nn.Conv2d(3, 16, 16, 16)
    for network in (b, b.optimize_for_inference()):
        with pytest.raises(RuntimeError, match=r"[kK]ernel"):
            network(torch.randn(1, 3, 16, 16))


def test_hooks_that_see_every_module_keep_every_module():
    b, seen = build(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m)))
    try:
        optimized = b.optimize_for_inference()
        optimized(torch.randn(1, 3, 32, 32))
    finally:
        handle.remove()
    assert seen.count(Block) == 4


def test_gradcam_like_hooks_on_the_optimized_network_are_called():
    optimized, seen = build().optimize_for_inference(), []
    optimized.network.stages[-1].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    optimized(torch.randn(1, 3, 32, 32))
    assert seen == [(1, 32, 2, 2)]
