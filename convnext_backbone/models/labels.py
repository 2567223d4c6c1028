"""The classes of a classifier: their number, their names and the kind of problem.

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

    Indices may be strings, as JSON has them. Two classes may share a name (ImageNet's cranes do),
    so `label2id` may be shorter than `id2label`.

    Raises:
        ValueError: The number and the names do not fit, or an index is not an integer.
        TypeError: One of them is of the wrong type.
    """
    for name, value in (("id2label", id2label), ("label2id", label2id)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a dict, got {value!r}")
    if num_labels is not None:
        check_min("num_labels", num_labels, 0)
    ids = {} if label2id is None else {k: _index("label2id", v) for k, v in label2id.items()}
    if id2label is not None:
        names = {_index("id2label", index): name for index, name in id2label.items()}
    elif num_labels is None and label2id is not None:
        names = {index: name for name, index in ids.items()}
    else:
        count = _DEFAULT_NUM_LABELS if num_labels is None else num_labels
        names = {i: f"LABEL_{i}" for i in range(count)}
    if num_labels not in (None, len(names)):
        raise ValueError(
            f"num_labels must be the length of id2label, {len(names)}, got {num_labels}"
        )
    if label2id is None:
        ids = {name: index for index, name in names.items()}
    return len(names), names, ids


def _index(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"indices of {name} must be integers, got {value!r}") from None


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
