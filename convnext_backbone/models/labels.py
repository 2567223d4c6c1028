"""The classes of a classifier: their number, their names and the kind of problem.

The rules are transformers' (configuration_utils.py).
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..utils.checks import as_int, check_choice, check_min

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_DEFAULT_NUM_LABELS = 2
_MAX_UNNAMED = 1_000_000  # classes whose names are made up: a number in a file may ask for any


def align_labels(
    num_labels: int | None,
    id2label: Mapping[Any, str] | None,
    label2id: Mapping[str, Any] | None,
) -> tuple[int, dict[int, str], dict[str, int]]:
    """Return all three, each derived from the others where it is None.

    Indices may be strings, as JSON has them. Two classes may share a name (ImageNet's cranes do),
    so `label2id` may be shorter than `id2label`.

    Raises:
        ValueError: The number and the names do not fit, an index is not an integer or is there
            twice, or more classes than `_MAX_UNNAMED` have no names.
        TypeError: One of them is of the wrong type.
    """
    for name, value in (("id2label", id2label), ("label2id", label2id)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a dict, got {value!r}")
    if num_labels is not None:
        num_labels = check_min("num_labels", num_labels, 0)
    ids = {} if label2id is None else {k: _index("label2id", v) for k, v in label2id.items()}
    if id2label is not None:
        names = _names(id2label)
    elif num_labels is None and label2id is not None:
        names = {index: name for name, index in ids.items()}
    else:
        count = _DEFAULT_NUM_LABELS if num_labels is None else num_labels
        if count > _MAX_UNNAMED:
            raise ValueError(
                f"num_labels must be at most {_MAX_UNNAMED} without id2label, got {count}"
            )
        names = {i: f"LABEL_{i}" for i in range(count)}
    if num_labels not in (None, len(names)):
        raise ValueError(
            f"num_labels must be the length of id2label, {len(names)}, got {num_labels}"
        )
    if label2id is None:
        ids = {name: index for index, name in names.items()}
    return len(names), names, ids


def _names(id2label: Mapping[Any, str]) -> dict[int, str]:
    names: dict[int, str] = {}
    for key, name in id2label.items():
        index = _index("id2label", key)
        if index in names:  # as the number 0 and as the text "0"
            raise ValueError(f"id2label names class {index} twice, {names[index]!r} and {name!r}")
        names[index] = name
    return names


def _index(name: str, value: Any) -> int:
    """Return an integer, also one that is written as a text or as 3.0."""
    index = as_int(value)
    if isinstance(value, str) or (isinstance(value, float) and value.is_integer()):
        with suppress(ValueError):
            index = int(value)
    if index is None:
        raise ValueError(f"indices of {name} must be integers, got {value!r}")
    return index


def check_problem_type(problem_type: str | None, num_labels: int) -> None:
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
