"""What docs/generate.py writes of tests/faults: each row of the table with the tests that hold it.

The tests are read, not run: a marker `@pytest.mark.fault(3)` is found in their text.
"""

import ast
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
ROWS = runpy.run_path(str(TESTS / "faults" / "rows.py"))["ROWS"]
BEGIN = "<!-- From here on written by docs/generate.py: `make docs`. Do not edit. -->\n"


@dataclass(frozen=True)
class Test:
    """A test and the rows that it is marked with."""

    path: Path
    name: str
    rows: tuple[int, ...]
    seldom: tuple[str, ...]  # markers of tests that the ordinary suite leaves out

    def __str__(self) -> str:
        where = f"[{self.name}](../{self.path.relative_to(TESTS.parent).as_posix()})"
        return f"{where} ({', '.join(self.seldom)})" if self.seldom else where


def tests() -> list[Test]:
    """Every test with the marker `fault`, by file and line; those that run seldom at the end."""
    found = [
        test
        for path in sorted(TESTS.rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for test in [_marked(path, node)]
        if test.rows
    ]
    return sorted(found, key=lambda test: bool(test.seldom))


def _marked(path: Path, node: ast.FunctionDef) -> Test:
    marks = dict(_marks(node))
    seldom = tuple(name for name in ("slow", "network", "gpu") if name in marks)
    return Test(path, node.name, marks.get("fault", ()), seldom)


def _marks(node: ast.FunctionDef) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Markers on a function as a whole, with their numbers."""
    for mark in node.decorator_list:
        words = ast.unparse(mark).partition("(")[0].split(".")
        if words[:2] == ["pytest", "mark"]:
            given = mark.args if isinstance(mark, ast.Call) else []
            numbers = (one.value for one in given if isinstance(one, ast.Constant))
            yield words[2], tuple(one for one in numbers if isinstance(one, int))


def problems() -> list[str]:
    """Rows without a test that the ordinary suite runs, and tests of rows that there are not."""
    found = tests()
    known = {row.number for row in ROWS}
    held = {number for test in found if not test.seldom for number in test.rows}
    return [f"row {number} of the faults has no test" for number in sorted(known - held)] + [
        f"{test.name} is marked with a row that there is not"
        for test in found
        if not known.issuperset(test.rows)
    ]


def page(written: str) -> str:
    """The page with its table anew; what stands before the table is kept."""
    return f"{written.partition(BEGIN)[0]}{BEGIN}\n{table()}\n"


def table() -> str:
    """The rows as a table of Markdown, each with its tests."""
    found = tests()

    def line(row: Any) -> str:
        names = ", ".join(str(test) for test in found if row.number in test.rows)
        return f"| {row.number} | {row.fault} | {row.promise} | {names} |"

    head = ["| | fault | what happens | tests |", "|---|---|---|---|"]
    return "\n".join([*head, *map(line, ROWS)])
