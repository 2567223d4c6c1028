"""Do heads, losses and data sets agree on the classes?"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from ...config_walk import as_list, class_count_key, iter_heads, iter_named_dicts, type_name
from ..datasets import DataSource, find_class, is_published
from ..errors import CONFIG_ERRORS, UsageError, describe_error
from ..loading import first_other_class
from .report import Report, list_quoted

# Heads whose softmax has a class more, for "no object".
_WITH_NO_OBJECT = ("SideAdapterCLIPHead",)


def check_num_classes(cfg: Config, num_classes: int) -> None:
    """Check that every head predicts as many classes as the data set has.

    Raises:
        UsageError: One does not.
    """
    for head, where in iter_heads(cfg):
        key = class_count_key(head)
        if head[key] != num_classes and not _is_binary(head, num_classes):
            raise UsageError(
                f"{where}.{key} is {head[key]}, but the data set has {num_classes} classes"
            )


def _is_binary(head: Mapping[str, Any], num_classes: int) -> bool:
    """Return whether a segmentor's head tells two classes apart by one channel and a sigmoid."""
    sigmoid = any(loss.get("use_sigmoid") for loss in as_list(head.get("loss_decode")))
    return sigmoid and num_classes == 2 and head.get("num_classes") == 1


def check_same_classes(sources: Sequence[DataSource], report: Report) -> None:
    """Check that the data sets of all splits number their classes alike.

    Raises:
        UsageError: One has those of the training set in another order.
    """
    known = [s for s in sources if s.classes and (s.reads or is_published(s.built))]
    numbers = {head[class_count_key(head)] for head, _ in iter_heads(report.cfg)}
    for source in known[1:]:
        first, there, here = known[0], known[0].classes, source.classes
        index = first_other_class(there, here)
        # Heads that are asked in words do not number the classes.
        if index is None or not first.where.startswith("train") or len(here) not in numbers:
            continue
        text = (
            f"{source.where} has the classes {list_quoted(here)}, but {first.where} has "
            f"{list_quoted(there)}: class {index} is {here[index]!r} in one, {there[index]!r} in "
            "the other"
        )
        if set(there) == set(here):
            raise UsageError(f"{text}; give both one order")
        report.warn(text)


def check_losses(classes: Sequence[str], where: str, report: Report) -> None:
    """Check that a segmentor's losses can tell the classes of a data set apart.

    Raises:
        UsageError: A name occurs twice, there is one class only, or a loss has other weights or
            channels.
    """
    option = report.option(where, "metainfo.classes", "classes")
    twice = [name for name, number in Counter(classes).items() if number > 1]
    if twice:
        raise UsageError(f"{option} names {twice[0]!r} twice")
    for head, loss, place in _iter_losses(report.cfg):
        if len(classes) == 1:
            raise UsageError(
                f"{option} has one class: no label is another than 0, and {place} learns nothing, "
                "whatever the image. Name the background too, with num_classes=2 for a softmax, or "
                "num_classes=2, out_channels=1, loss_decode.use_sigmoid=True"
            )
        weights = loss.get("class_weight")
        if _is_softmax(loss) and isinstance(weights, list | tuple) and len(weights) != len(classes):
            raise UsageError(
                f"{place}.class_weight has {len(weights)} weights, but {option} has "
                f"{len(classes)} classes"
            )
        if report.split == "train":
            _try_loss(head, loss, place, len(classes))


def _iter_losses(cfg: Config) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], str]]:
    """Yield the heads whose channels are the classes, and mmsegmentation's losses of each."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    for head, where in iter_heads(cfg):
        type_ = find_class(head.get("type"), MODELS)
        own = isinstance(type_, type) and is_published(type_) and issubclass(type_, BaseDecodeHead)
        if not own or type_name(head) in _WITH_NO_OBJECT:
            continue
        losses = head.get("loss_decode", {"type": "CrossEntropyLoss"})  # the default of each head
        for loss, place in iter_named_dicts(losses, f"{where}.loss_decode"):
            if "type" in loss and is_published(find_class(loss["type"], MODELS)):
                yield head, loss, place


def _is_softmax(loss: Mapping[str, Any]) -> bool:
    return type_name(loss) == "CrossEntropyLoss" and not loss.get("use_sigmoid")


def _try_loss(
    head: Mapping[str, Any], loss: Mapping[str, Any], place: str, num_classes: int
) -> None:
    """Compute a loss once: its weights or its kind may not fit the channels of the head.

    Raises:
        UsageError: It fails, as it would in the first iteration.
    """
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    if getattr(find_class(head["type"], MODELS), "loss_by_feat", None) is not (
        BaseDecodeHead.loss_by_feat
    ):
        return  # it may call its losses in a way of its own
    channels = head.get("out_channels") or (1 if _is_binary(head, num_classes) else num_classes)
    weights = loss.get("class_weight")
    # Not as wide as there are weights: they would be broadcast over the pixels of a row.
    width = 2 * max(num_classes, len(weights or ())) + 1
    labels = (torch.arange(2 * width) % num_classes).reshape(1, 2, width)
    try:
        MODELS.build(dict(loss))(torch.zeros(1, channels, 2, width), labels, ignore_index=255)
    except CONFIG_ERRORS as error:
        given = f", class_weight={weights!r}" if weights else ""
        one = ", which its softmax does not tell apart; set use_sigmoid=True"
        raise UsageError(
            f"{place} ({type_name(loss)}{given}) fails for {num_classes} classes in {channels} "
            f"channels{one if _is_softmax(loss) and channels == 1 else ''}: {describe_error(error)}"
        ) from error
