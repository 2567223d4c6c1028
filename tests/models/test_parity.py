"""Ours against timm, transformers and torchvision: equal maps and equal gradients."""

import pytest
import torch
from helpers.peers import PEERS, build_pair, parameter_pairs

SIZES = ((64, 96), (45, 53), (112, 137))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def _largest_gap(a, b):
    """The largest difference; random weights make maps of a few hundred, so per unit of scale."""
    return (a - b).abs().max().item() / max(1.0, b.abs().max().item())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_stage_maps_equal_the_peers(name, size, dtype):
    ours, theirs, peer = build_pair(name)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x = torch.rand(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        got, expected = ours(x), peer.run(theirs, x)
    assert len(got) == len(expected) == len(peer.outputs)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.is_contiguous()
        assert _largest_gap(a, b) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_gradients_equal_the_peers(name, size, dtype):
    ours, theirs, peer = build_pair(name)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    inputs = [torch.rand(2, 3, *size, dtype=dtype).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = ours(inputs[0]), peer.run(theirs, inputs[1])
    weights = [torch.randn_like(m) / m.numel() for m in outputs[0]]
    for maps in outputs:
        sum((m * w).sum() for m, w in zip(maps, weights, strict=True)).backward()
    gaps = {"input": (inputs[0].grad, inputs[1].grad)}
    for key, mine, other in parameter_pairs(ours, theirs, peer):
        gaps[key] = (mine.grad, other.grad.view_as(mine.grad))
    for key, (a, b) in gaps.items():
        assert b.abs().max() > 0, f"{key} has no gradient to compare"
        assert _largest_gap(a, b) <= TOLERANCE[dtype], key
