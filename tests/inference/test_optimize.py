"""optimize_for_inference: the same maps, in any dtype, and nothing else changed."""

import copy

import pytest
import torch
from torch import nn

from convnext_backbone import ConvNextBackbone

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


def test_it_is_a_backbone_and_may_be_copied():
    b = build()
    optimized = b.optimize_for_inference()
    assert isinstance(optimized, ConvNextBackbone)
    assert (optimized.channels, optimized.strides) == (b.channels, b.strides)
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
    from convnext_backbone import ConvNextForImageClassification

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
    fast = build().optimize_for_inference()
    assert fast.to("cpu") is fast
    assert fast.to(torch.float32) is fast
    for use in (lambda: fast.to(torch.bfloat16), fast.half, fast.init_weights):
        with pytest.raises(RuntimeError, match="optimized module"):
            use()
    with pytest.raises(RuntimeError, match="cannot be pickled; save the original"):
        torch.save(fast, tmp_path / "fast.pt")
    with pytest.raises(TypeError, match="must be a tensor, got ndarray"):
        fast(torch.zeros(1, 3, 32, 32).numpy())
    with pytest.raises(TypeError, match=r"must be floating point, got torch\.uint8"):
        fast(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
