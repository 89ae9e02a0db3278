"""The table of faults and the tests that are marked with its rows."""

import runpy
from pathlib import Path

from tests.faults.rows import ROWS

DOCS = Path(__file__).parents[2] / "docs"
FAULTS = runpy.run_path(str(DOCS / "faults.py"))


def test_rows_are_counted_from_one() -> None:
    assert [row.number for row in ROWS] == list(range(1, 44))


def test_every_row_has_a_test_that_the_ordinary_suite_runs() -> None:
    assert FAULTS["problems"]() == []


def test_the_page_is_as_the_tests_are() -> None:
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    assert FAULTS["page"](page) == page
    for test in FAULTS["tests"]():
        assert f"def {test.name}(" in test.path.read_text(encoding="utf-8")
        assert f"[{test.name}](../tests/" in page
