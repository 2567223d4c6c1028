"""Harmless objects beside the weights do not refuse a file; nothing of them is built or kept."""

import collections
import datetime
import decimal
import fractions
import functools
import os
import pathlib
import types
import typing
import uuid

import pytest
import torch
from helpers.originals import V1
from torch import nn

from convnext_backbone import ConvNextBackbone, load_weights
from convnext_backbone.weights.inert_types import INERT_TYPES, Inert
from convnext_backbone.weights.pickles import _NAMES
from convnext_backbone.weights.read import read_checkpoint
from convnext_backbone.weights.torch_files import CheckpointError, read_torch_file

STATE = V1.state_dict()
UTC = datetime.timezone.utc
VALUES = {
    "path": pathlib.Path("/a/b"),
    "pure path": pathlib.PureWindowsPath("a"),
    "optimizer": functools.partial(torch.optim.AdamW, lr=0.1),
    "scheduler": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=3),
    "class of one": torch.optim.SGD,
    "an optimizer itself": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2], maxlen=3),
    "moment": datetime.datetime(2026, 1, 2, tzinfo=UTC),
    "date": datetime.date(2026, 1, 2),
    "duration": datetime.timedelta(1),
    "uuid": uuid.UUID(int=7),
    "decimal": decimal.Decimal("1.1"),
    "fraction": fractions.Fraction(1, 3),
    "settings": types.SimpleNamespace(a=1, b=pathlib.Path("c")),
    "version": torch.torch_version.TorchVersion("2.9.0"),
    "range": range(3),
    "slice": slice(1, 2),
    "frozenset": frozenset([1]),
    "ellipsis": ...,
    "classes": [int, float, str, bool, list, dict, tuple, object, typing.Any],
    "as keys": {pathlib.Path("a"): 1, frozenset([1]): 2, int: 3},
    "in themselves": (lambda space: [setattr(space, "itself", space), space])(
        types.SimpleNamespace()
    ),
}


def save(value, path, **options):
    torch.save({"state_dict": STATE, "hyper_parameters": {"x": value}}, path, **options)
    return path


def check(path):
    tensors = read_checkpoint(path).tensors
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("name", VALUES)
def test_weights_beside_a_harmless_object_are_read(name, is_zip, tmp_path):
    path = save(VALUES[name], tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
    check(path)


def test_what_lightning_writes_is_read(tmp_path):
    data = pytest.importorskip("lightning.fabric.utilities.data")
    check(save(data.AttributeDict(a=1, b=pathlib.Path("c")), tmp_path / "w.ckpt"))


def test_what_omegaconf_writes_is_read(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    nodes = {"a": 1, "b": [1.5, "x", None, True], "c": {"d": "${a}"}, "p": pathlib.Path("/a")}
    check(save(omegaconf.OmegaConf.create(nodes), tmp_path / "w.ckpt"))


def test_nothing_of_an_object_is_kept(tmp_path):
    value = {"a": types.SimpleNamespace(b=1), "c": collections.deque([1])}
    read = read_torch_file(save(value, tmp_path / "w.pth"))["hyper_parameters"]["x"]
    assert type(read["a"]) is Inert
    assert not hasattr(read["a"], "b")
    assert read["c"] == [1]


@pytest.mark.parametrize("function", [os.system, eval, os.mkdir, __import__, getattr])
def test_a_function_inside_one_is_not_called(function, tmp_path):
    mark = tmp_path / "was_here"
    partial = functools.partial(function, str(mark))
    if function is getattr:  # a name that mmengine's checkpoints hold, and that is inert itself
        check(save(partial, tmp_path / "w.pth"))
    else:
        with pytest.raises(CheckpointError, match=rf"asks for \S*{function.__name__}"):
            read_checkpoint(save(partial, tmp_path / "w.pth"))
    assert not mark.exists()


def test_no_name_is_one_that_is_called():
    assert not INERT_TYPES.keys() & _NAMES.keys()
    assert not INERT_TYPES.keys() & torch._weights_only_unpickler._get_allowed_globals().keys()


# ------------------------------------------------------------------------------ the user's types


class Color:
    """A class of the user's."""

    def __init__(self, name):
        self.name = name


def test_a_type_that_the_user_allows_is_read(tmp_path):
    path = save(Color("red"), tmp_path / "w.pth")
    advice = "allow the type by torch.serialization.add_safe_globals"
    for load in (ConvNextBackbone.from_pretrained, lambda path: load_weights(V1, path)):
        with pytest.raises(ValueError, match=rf"asks for \S*Color, .*{advice}"):
            load(path)
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([Color]):
        check(path)
        loaded = ConvNextBackbone.from_pretrained(path)
        assert Color in torch.serialization.get_safe_globals()
    assert torch.equal(loaded.stages[0][0].gamma, STATE["stages.0.0.gamma"])
    assert set(torch.serialization.get_safe_globals()) == before
