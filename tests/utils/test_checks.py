"""Texts of errors and long lists."""

import pytest

from convnext_backbone.utils.checks import first_line, shorten_list


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
