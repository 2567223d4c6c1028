"""How errors and long lists are told."""

import pytest

from convnext_backbone.utils.checks import first_line, one_line, shorten_list


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (list("abcde"), "a, b, c and 2 more")],
)
def test_a_long_list_is_cut_and_the_rest_counted(names, expected):
    assert shorten_list(names, 3) == expected


@pytest.mark.parametrize(
    ("error", "first", "whole"),
    [
        (ValueError("one"), "one", "one"),
        (ValueError("\n one:\n\n  two\n"), "one:", "one:; two"),
        (ValueError(), "ValueError()", "ValueError"),
    ],
)
def test_an_error_of_several_lines_is_told_in_one(error, first, whole):
    assert first_line(error) == first
    assert one_line(error) == whole
