"""torch's process-wide list of safe types is the user's: no load changes it, whatever its end."""

import argparse
import pickle

import pytest
import torch
from helpers.originals import ORIGINALS, V1

from convnext_backbone import ConvNextBackbone, load_weights
from convnext_backbone.weights import open_weights


class OfTheUser:
    """A type that the user allows."""


@pytest.fixture(autouse=True)
def list_stays():
    with torch.serialization.safe_globals([OfTheUser, (dict, "users.Name")]):
        before = set(torch.serialization.get_safe_globals())
        assert OfTheUser in before
        yield
        assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("name", ORIGINALS)
def test_after_a_load_of_every_origin(name, tmp_path):
    open_weights(ORIGINALS[name].write(tmp_path))


class Runs:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [{"w": Runs()}, {"w": OfTheUser()}, {"args": argparse.Namespace(), "w": torch.ones(1)}],
    ids=["refused", "of the user", "unknown layout"],
)
def test_after_a_load_that_fails(content, tmp_path, capsys):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth"):
        open_weights(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"w\.pth"):
        open_weights(tmp_path / "w.pth")
    assert "executed" not in capsys.readouterr().out


def test_after_a_module_was_loaded_saved_and_loaded_again(tmp_path):
    torch.save(V1.state_dict(), tmp_path / "w.pth")
    module = ConvNextBackbone.from_pretrained(tmp_path / "w.pth")
    module.save_pretrained(tmp_path / "saved")
    load_weights(module, tmp_path / "w.pth", prefix="")
    module.load_state_dict(V1.state_dict(), strict=False)
    assert torch.equal(module.stages[0][0].gamma, V1.stages[0][0].gamma)
