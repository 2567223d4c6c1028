"""Outputs behave as transformers' ModelOutput does."""

import dataclasses

import pytest
import torch
import torch.utils._pytree as pytree
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from convnext_backbone.models.outputs import ImageClassifierOutput

LOGITS, LOSS = torch.arange(6.0).view(2, 3), torch.tensor(1.0)


def pair(**values):
    return ImageClassifierOutput(**values), ImageClassifierOutputWithNoAttention(**values)


def seen(output):
    """What a caller sees of an output."""
    return (
        list(output.keys()), list(output), len(output), list(output.to_tuple()),
        output.loss, output.logits, output.hidden_states, list(output.items()),
        output[0], output["logits"], output[:1], output.get("loss"), "loss" in output,
    )  # fmt: skip


@pytest.mark.parametrize(
    "values", [{"logits": LOGITS}, {"loss": LOSS, "logits": LOGITS}], ids=["logits", "both"]
)
def test_names_positions_and_attributes(values):
    ours, theirs = map(seen, pair(**values))
    assert str(ours) == str(theirs)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: setattr(o, "loss", LOSS),
        lambda o: o.__setitem__("loss", LOSS),
        lambda o: setattr(o, "logits", 2 * LOGITS),
        lambda o: setattr(o, "loss", None),
    ],
    ids=["attribute", "item", "replace", "none"],
)
def test_attributes_and_items_are_assigned_together(change):
    outputs = pair(logits=LOGITS)
    for output in outputs:
        change(output)
    ours, theirs = map(seen, outputs)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.pop("logits"),
        lambda o: o.__delitem__("logits"),
        lambda o: o.update({"logits": None}),
        lambda o: o.setdefault("loss", LOSS),
    ],
    ids=["pop", "del", "update", "setdefault"],
)
def test_nothing_can_be_removed(change):
    for output in pair(logits=LOGITS):
        with pytest.raises(Exception, match=r"cannot|ImageClassifierOutput"):
            change(output)
        assert output["logits"] is LOGITS


def test_names_are_transformers_own():
    theirs = [f.name for f in dataclasses.fields(ImageClassifierOutputWithNoAttention)]
    assert list(ImageClassifierOutput.names) == theirs


def test_unknown_names_are_refused():
    with pytest.raises(TypeError, match=r"ImageClassifierOutput has .*got .*'scores'"):
        ImageClassifierOutput(scores=LOGITS)


def test_pytrees_take_them_apart_and_rebuild_them():
    output = ImageClassifierOutput(logits=LOGITS, hidden_states=(LOGITS, LOGITS))
    doubled = pytree.tree_map(lambda t: 2 * t, output)
    assert isinstance(doubled, ImageClassifierOutput)
    assert torch.equal(doubled.logits, 2 * LOGITS)
    assert len(doubled.hidden_states) == 2
    assert doubled.loss is None
