"""Errors of a command line are one line and exit code 2."""

import pytest

from convnext_backbone.utils.commandline import OneLineParser, one_line, print_error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n one:\n\n  two   words\n"), "one:; two words"),
        (ValueError(), "ValueError"),
        (KeyError("no such\ntype"), "no such; type"),
        (KeyError(), "KeyError"),
        ("x" * 1000, "x" * 1000),
        ("x" * 1001, "x" * 997 + "..."),
        ("a\x1b[2Jb\x7f\x9b\u202ec", "a\\x1b[2Jb\\x7f\\x9b\\u202ec"),
        ("modèle \U0001f600", "modèle \U0001f600"),
        ("\x1b" * 999, "\\x1b" * 249 + "\\..."),
    ],
)
def test_an_error_becomes_one_line(error, text):
    assert one_line(error) == text


def test_an_error_is_printed_behind_the_name_of_the_program(capsys):
    assert print_error("tool.py", ValueError("a\nb")) == 2
    assert capsys.readouterr() == ("", "tool.py: error: a; b\n")


def test_a_parser_and_its_subparsers_end_in_one_line_and_2(capsys):
    parser = OneLineParser(prog="tool.py")
    parser.add_subparsers(required=True).add_parser("run").add_argument("--number", type=int)
    for arguments, message in (
        (["run", "--number", "x"], "tool.py run: error: argument --number: invalid int value: 'x'"),
        (["walk"], "tool.py: error: argument {run}: invalid choice: 'walk' (choose from "),
    ):
        with pytest.raises(SystemExit) as raised:
            parser.parse_args(arguments)
        assert raised.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(message)
        assert err.count("\n") == 1
