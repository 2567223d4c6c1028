"""`doctor`: report what is installed, whether it works, and what to type where it does not."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`: it has none."""


def run(args: argparse.Namespace) -> None:
    """Print the result of every check; exit with status 1 if there is a problem."""
    from .doctor_checks import PROBLEM, format_report, run_checks

    results = run_checks()
    print(format_report(results))
    if any(result.state == PROBLEM for result in results):
        raise SystemExit(1)
