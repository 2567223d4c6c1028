"""Symbolic and recorded graphs hold the network as a call with images alone runs it."""

import warnings

import pytest
import torch
from helpers.peers import DEPTHS, STAGES, WIDTHS, build_pair
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification, ConvNextModel

SHAPE = {"hidden_sizes": WIDTHS, "depths": DEPTHS}
MODELS = {
    "v1": lambda: ConvNextBackbone(**SHAPE, out_features=STAGES),
    "v2": lambda: ConvNextBackbone(**SHAPE, model_type="convnextv2", out_features=STAGES),
    "dilated": lambda: ConvNextBackbone(**SHAPE, output_stride=8),
    "hidden states": lambda: ConvNextBackbone(**SHAPE, output_hidden_states=True),
    "overlap": lambda: ConvNextBackbone(**SHAPE, stem_type="overlap_tiered", norm_layer="rmsnorm"),
    "model": lambda: ConvNextModel(**SHAPE),
    "dinov3": lambda: ConvNextModel(**SHAPE, model_type="dinov3_convnext"),
    "classifier": lambda: ConvNextForImageClassification(**SHAPE, num_labels=3),
}
EVERY_MODEL = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def tensors(output):
    """The tensors of an output, in order: a traced graph gives plain tuples and dicts."""
    output = dict(output).values() if isinstance(output, dict) else output
    return tuple(t for item in output for t in ([item] if torch.is_tensor(item) else item))


@EVERY_MODEL
@pytest.mark.parametrize("training", [False, True])
def test_a_symbolic_trace_computes_the_same_at_other_sizes(build, training):
    model = build().train(training)
    traced = torch.fx.symbolic_trace(model)
    for size in ((1, 3, 32, 64), (2, 3, 65, 33)):
        x = torch.randn(size)
        torch.testing.assert_close(tensors(traced(x)), tensors(model(x)), rtol=0, atol=0)


def test_a_symbolic_trace_still_refuses_what_is_no_image():
    traced = torch.fx.symbolic_trace(ConvNextBackbone(**SHAPE))
    with pytest.raises(ValueError, match=r"pixel_values must have shape \(N, 3, H, W\)"):
        traced(torch.zeros(1, 4, 32, 32))


def test_a_symbolic_trace_passes_gradients_to_every_parameter():
    model = ConvNextBackbone(**SHAPE, out_features=STAGES, drop_path_rate=0.5)
    traced = torch.fx.symbolic_trace(model)
    torch.manual_seed(0)
    expected = sum(m.sum() for m in model(torch.ones(2, 3, 32, 32)))
    torch.manual_seed(0)
    got = sum(m.sum() for m in traced(torch.ones(2, 3, 32, 32)))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    got.backward()
    assert all(p.grad is not None for p in traced.parameters())


def test_torchvisions_feature_extraction_gives_the_stages_of_torchvisions_own_model():
    ours, theirs, _ = build_pair("torchvision")
    x = torch.randn(2, 3, 64, 96)
    nodes = {f"stages.{i}": str(i) for i in range(4)}
    peers = {f"features.{2 * i + 1}": str(i) for i in range(4)}
    mine = create_feature_extractor(ours, nodes)(x)
    peer = create_feature_extractor(theirs, peers)(x)
    assert mine.keys() == peer.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], peer[name], rtol=1e-5, atol=1e-5)


@EVERY_MODEL
def test_torchvision_names_the_same_nodes_in_both_modes(build):
    train, evaluation = get_graph_node_names(build())
    assert {n.split(".")[0] for n in evaluation} >= {"pixel_values", "downsample_layers", "stages"}
    assert [n for n in train if "keep_mask" not in n] == evaluation


@pytest.mark.parametrize(
    ("name", "strict"), [("v2", True), ("classifier", True), *((name, False) for name in MODELS)]
)
def test_an_exported_program_computes_the_same(name, strict):
    model, x = MODELS[name]().eval(), torch.randn(2, 3, 32, 64)
    program = torch.export.export(model, (x,), strict=strict)
    got, expected = tensors(program.module()(x)), tensors(model(x))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@EVERY_MODEL
def test_recording_a_trace_warns_of_nothing(build):
    model, x = build().eval(), torch.randn(1, 3, 32, 64)
    model(x)  # what running it warns of
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch announces the end of torch.jit, whatever is traced.
        warnings.filterwarnings("ignore", message=".*deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*deprecated", category=DeprecationWarning)
        # As with transformers' models, dicts are allowed by strict=False only.
        traced = torch.jit.trace(model, x, strict=isinstance(model, ConvNextBackbone))
    other = torch.randn(2, 3, 64, 32)
    torch.testing.assert_close(tensors(traced(other)), tensors(model(other)), rtol=0, atol=0)
