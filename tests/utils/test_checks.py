"""Texts of errors and long lists."""

import numpy as np
import pytest
import torch

from convnext_backbone.utils.checks import (
    as_int,
    check_min,
    first_line,
    shorten_list,
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (list("abcde"), "a, b, c and 2 more")],
)
def test_a_long_list_is_cut_and_the_rest_counted(names, expected):
    assert shorten_list(names, 3) == expected


@pytest.mark.parametrize(
    ("error", "first"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n one:\n\n  two\n"), "one:"),
        (ValueError(), "ValueError()"),
    ],
)
def test_the_first_line_with_any_text_is_taken(error, first):
    assert first_line(error) == first


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_integers_of_other_libraries_become_pythons(value):
    assert type(as_int(value)) is type(check_min("n", value, 3)) is int
    assert as_int(value) == 3
    with pytest.raises(ValueError, match="n must be an integer of at least 4, got"):
        check_min("n", value, 4)


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float32(3), "3", None, [3], np.ones(2)])
def test_what_is_no_integer_is_none(value):
    assert as_int(value) is None
    with pytest.raises(ValueError, match="n must be an integer of at least 0, got"):
        check_min("n", value, 0)
