"""A model from weights is whole: in memory of its own, of the asked dtype, nothing left blank."""

import subprocess
import sys

import pytest
import torch
from helpers.originals import V1, WIDTHS
from safetensors.torch import save_file
from torch import nn

from convnext_backbone import ConvNextBackbone, ConvNextForImageClassification

SAVE = {
    "weights.safetensors": lambda state, path: save_file(
        {k: v.contiguous() for k, v in state.items()}, path
    ),
    "weights.pth": torch.save,
}


@pytest.fixture(params=SAVE)
def saved(request, tmp_path):
    path = tmp_path / request.param
    SAVE[request.param](V1.state_dict(), path)
    return path


def test_every_tensor_is_on_the_cpu_contiguous_and_alone_in_its_storage(saved):
    module = ConvNextForImageClassification.from_pretrained(saved)
    tensors = module.state_dict().values()
    assert {t.device.type for t in tensors} == {"cpu"}
    assert all(t.is_contiguous() for t in tensors)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


def test_file_may_be_overwritten_under_the_model(saved):
    module = ConvNextForImageClassification.from_pretrained(saved)
    with open(saved, "r+b") as file:
        file.truncate(1)  # a tensor that is still mapped would end the process
    for name, tensor in V1.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_norms_that_the_file_does_not_have_are_those_of_identity(saved):
    module = ConvNextBackbone.from_pretrained(saved, out_features=["stem", "stage4"])
    assert set(module.load_report.fresh) == {k for k in module.state_dict() if "norms." in k}
    for norm in module.norms.values():
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


def test_fresh_head_is_drawn_from_the_truncated_normal(saved):
    torch.manual_seed(0)
    module = ConvNextForImageClassification.from_pretrained(
        saved, num_labels=400, fresh=("head.",), initializer_range=0.3
    )
    # 12,800 draws: the standard error of their deviation is 0.002
    assert module.head.weight.std().item() == pytest.approx(0.3, abs=0.01)
    assert not module.head.bias.any()
    assert torch.equal(module.norm.weight, V1.norm.weight)


def test_half_of_a_fresh_head_keeps_the_other_half(tmp_path):
    state = V1.state_dict()
    del state["head.bias"]
    torch.save(state, tmp_path / "weights.pth")
    module = ConvNextForImageClassification.from_pretrained(
        tmp_path / "weights.pth", fresh=("head.bias",)
    )
    assert torch.equal(module.head.weight, V1.head.weight)
    assert not module.head.bias.any()


def test_default_dtype_holds_as_in_the_constructor(saved):
    torch.set_default_dtype(torch.float64)
    try:
        module = ConvNextBackbone.from_pretrained(saved)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in module.parameters()} == {torch.float64}


def test_frozen_parameters_take_no_gradient(saved):
    module = ConvNextBackbone.from_pretrained(saved, frozen_stages=1)
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    expected = ("downsample_layers.0.", "stages.0.")
    assert frozen == {name for name, _ in module.named_parameters() if name.startswith(expected)}


def test_tensors_tied_in_the_file_train_apart(tmp_path):
    state = V1.state_dict()
    norm = state["stages.2.0.norm.weight"]
    state["stages.2.0.norm.bias"] = norm  # torch keeps such ties in its files
    torch.save(state, tmp_path / "weights.pth")
    module = ConvNextBackbone.from_pretrained(tmp_path / "weights.pth")
    with torch.no_grad():
        module.stages[2][0].norm.bias.zero_()
    assert torch.equal(module.stages[2][0].norm.weight, norm)


class Calibrated(ConvNextBackbone):
    """A user's subclass whose constructor computes with tensors."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        steps = torch.linspace(0, 1, 5)
        self.register_buffer("steps", steps, persistent=False)
        self.middle = steps[2].item()


def test_subclass_with_a_constructor_of_its_own_keeps_what_it_computes(saved):
    module = Calibrated.from_pretrained(saved)
    assert module.middle == 0.5
    assert torch.equal(module.steps, torch.linspace(0, 1, 5))
    assert torch.equal(module.stages[0][0].gamma, V1.stages[0][0].gamma)


class WithOwnHead(ConvNextForImageClassification):
    """A user's subclass that inherits the constructor, and builds what we know nothing of."""

    def _build_head(self):
        self.head = nn.Sequential(nn.Linear(WIDTHS[-1], 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def test_subclass_with_a_head_of_its_own_gets_the_heads_own_initial_values(saved):
    module = WithOwnHead.from_pretrained(saved, fresh=("head.",))
    assert torch.equal(module.head[1].running_var, torch.ones(6))
    assert torch.equal(module.head[1].weight, torch.ones(6))
    assert torch.equal(module.norm.weight, V1.norm.weight)
    assert module(torch.randn(2, 3, 32, 32)).logits.isfinite().all()


def test_what_was_loaded_survives_init_weights(saved):
    """mmengine's runner calls it on every part of a model before it trains."""
    module = ConvNextBackbone.from_pretrained(saved)
    module.init_weights()
    assert torch.equal(module.stages[0][0].gamma, V1.stages[0][0].gamma)


PEAK = """
import re, sys
from convnext_backbone import ConvNextForImageClassification

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

ConvNextForImageClassification.from_pretrained(sys.argv[1])
before = peak()
model = ConvNextForImageClassification.from_pretrained(sys.argv[2])
print(peak() - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("name", SAVE)
def test_weights_are_held_once_while_they_are_loaded(name, tmp_path):
    big = ConvNextForImageClassification(arch="convnext_tiny", depths=(1, 1, 1, 9), num_labels=1)
    small = ConvNextForImageClassification(depths=(1, 1, 1, 1), hidden_sizes=WIDTHS, num_labels=1)
    paths = [tmp_path / f"{part}_{name}" for part in ("small", "big")]
    for module, path in zip((small, big), paths, strict=True):
        SAVE[name](module.state_dict(), path)
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    growth, size = map(int, done.stdout.split())
    # At most one batch of 64 MB of the file's pages beside the 190 MB that are kept.
    assert size > 170e6
    assert growth < 1.45 * size
