"""`doctor`: report what is installed, whether it works, and what to type where it does not."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .doctor_checks import CheckResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`: it has none."""


def run(args: argparse.Namespace) -> None:
    """Print the result of every check; exit with status 1 if there is a problem."""
    from .doctor_checks import PROBLEM, run_checks

    results = run_checks()
    print(format_report(results))
    if any(result.state == PROBLEM for result in results):
        raise SystemExit(1)


def format_report(results: Sequence["CheckResult"]) -> str:
    """Return the results as text that ends with the line to type for each problem."""
    from .doctor_checks import PROBLEM

    width = max(len(result.what) for result in results)
    lines = [f"{r.state:<8} {r.what:<{width}}  {r.detail}" for r in results]
    fixes = list(dict.fromkeys(r.fix for r in results if r.state == PROBLEM))
    if not fixes:
        return "\n".join([*lines, "", "No problems."])
    count = sum(r.state == PROBLEM for r in results)
    head = f"{count} problem{'s' if count > 1 else ''}. To fix, type:"
    return "\n".join([*lines, "", head, *(f"  {fix}" for fix in fixes)])
