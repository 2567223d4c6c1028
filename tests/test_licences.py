"""LICENSE_WEIGHTS.md says of every weight what the catalogue says."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from convnext_backbone.weights.catalogue import WEIGHTS

TEXT = (Path(__file__).parents[1] / "LICENSE_WEIGHTS.md").read_text(encoding="utf-8")
ROWS = [
    (re.findall(r"`([^`]+)`", names), licence, commercial)
    for names, licence, commercial in re.findall(
        r"^\| (`.*?) \| ([^|]+) \| ([^|]+) \|", TEXT, flags=re.MULTILINE
    )
]


def rows_of(name):
    return [row for row in ROWS if any(fnmatchcase(name, pattern) for pattern in row[0])]


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_the_licence_of_a_weight_is_the_catalogues(name):
    ((_, licence, commercial),) = rows_of(name)
    assert WEIGHTS[name].licence == licence
    assert WEIGHTS[name].non_commercial == commercial.startswith("**no**")


def test_no_row_stands_for_nothing():
    patterns = [pattern for names, _, _ in ROWS for pattern in names]
    unused = [p for p in patterns if not any(fnmatchcase(name, p) for name in WEIGHTS)]
    assert unused == []
