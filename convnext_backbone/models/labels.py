"""The classes of a classifier: how many, their names, and what kind of problem they make.

The rules are transformers' (configuration_utils.py).
"""

from collections.abc import Mapping
from typing import Any

from ..utils.checks import check_choice, check_min

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_DEFAULT_NUM_LABELS = 2


def align_labels(
    num_labels: int | None,
    id2label: Mapping[Any, str] | None,
    label2id: Mapping[str, Any] | None,
) -> tuple[int, dict[int, str], dict[str, int]]:
    """Return all three, each derived from the others where it is None.

    Keys of `id2label` may be strings, as JSON has them. Two classes may share a name (ImageNet's
    cranes do), so `label2id` may be shorter than `id2label`.

    Raises:
        ValueError: The number and the names do not fit.
        TypeError: One of them is of the wrong type.
    """
    for name, value in (("id2label", id2label), ("label2id", label2id)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a dict, got {value!r}")
    if num_labels is not None:
        check_min("num_labels", num_labels, 0)
    if id2label is None and num_labels is None and label2id is not None:
        id2label = {index: name for name, index in label2id.items()}
    if id2label is None:
        count = _DEFAULT_NUM_LABELS if num_labels is None else num_labels
        id2label = {i: f"LABEL_{i}" for i in range(count)}
    if num_labels not in (None, len(id2label)):
        raise ValueError(
            f"num_labels must be the length of id2label, {len(id2label)}, got {num_labels}"
        )
    names = {int(index): name for index, name in id2label.items()}
    if label2id is None:
        label2id = {name: index for index, name in names.items()}
    return len(names), names, {name: int(index) for name, index in label2id.items()}


def check_problem_type(problem_type: str | None, num_labels: int | None) -> None:
    """Refuse a problem type that is unknown or does not fit the number of classes.

    Raises:
        ValueError: It is not one of `PROBLEM_TYPES`, or asks for one class out of one.
    """
    check_choice("problem_type", problem_type, (None, *PROBLEM_TYPES))
    if problem_type == "single_label_classification" and num_labels == 1:
        raise ValueError(
            "problem_type 'single_label_classification' needs num_labels > 1, got num_labels=1; "
            "use 'regression' for one output"
        )
