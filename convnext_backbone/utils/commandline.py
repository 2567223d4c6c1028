"""Command lines whose errors are one line on stderr, with exit code 2."""

import argparse
import sys
from typing import NoReturn

EXIT_USAGE = 2  # argparse's own exit code for a wrong command line
_MAX_LENGTH = 1000  # some errors of other packages repeat a whole config


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr and exit code 2.

    Its subparsers are of the same class.
    """

    def error(self, message: str) -> NoReturn:
        """Exit with `message`, without argparse's usage block."""
        self.exit(print_error(self.prog, message))


def print_error(program: str, error: object) -> int:
    """Print an error in one line on stderr, and return the exit code."""
    print(f"{program}: error: {one_line(error)}", file=sys.stderr)
    return EXIT_USAGE


def one_line(message: object) -> str:
    """Return the text of an error or a warning as one line of readable length."""
    # str() of a KeyError is the repr of its key, which is a whole sentence in many packages.
    if isinstance(message, KeyError) and message.args:
        message = message.args[0]
    lines = [" ".join(line.split()) for line in str(message).splitlines()]
    text = printable("; ".join(line for line in lines if line) or type(message).__name__)
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."


def printable(text: str) -> str:
    """Escape what does not print but commands a terminal, as a key in a file of weights may."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
