"""Writes docs/commands.md from the real `--help`, docs/tasks.md from the task table, and the table
of docs/reliability.md from the tests of faults.

`python docs/generate.py` writes all; with `--check` it writes nothing and exits 1 if one is stale.
It also exits 1 if a fault has no test.
"""

import os
import subprocess
import sys
from pathlib import Path

import faults
import typer

from dmp_cli.cli import app
from dmp_cli.tasks import TASKS, Task

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py: `make docs`. Do not edit. -->\n"
RUN = "import sys; sys.argv[0] = 'dmp'; from dmp_cli.cli import main; main()"
# nothing else of the environment reaches the command, so that its help is the same everywhere
KEPT = ("PATH", "HOME", "SYSTEMROOT", "PYTHONPATH")
FIXED = {"COLUMNS": "100", "LINES": "50", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}


def help_of(*command: str) -> str:
    """What `dmp COMMAND --help` prints at 100 columns, without space at the end of lines."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command, "--help"],
        env={name: os.environ[name] for name in KEPT if name in os.environ} | FIXED,
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")


def names_of(group: typer.Typer) -> list[tuple[str, ...]]:
    """The words of each command of a group, those of the groups in it after it."""
    names: list[tuple[str, ...]] = [(info.name,) for info in group.registered_commands if info.name]
    for info in group.registered_groups:
        if info.name and info.typer_instance:
            names += [(info.name, *words) for words in names_of(info.typer_instance)]
    return names


def commands_page() -> str:
    """Every command with its help."""
    parts = [f"# Commands\n\n{NOTE}"]
    for words in [(), *names_of(app)]:
        title = " ".join(("dmp", *words))
        parts.append(f"## {title}\n\n```text\n{help_of(*words)}\n```\n")
    return "\n".join(parts)


def _row(task: Task) -> tuple[str, ...]:
    return (
        f"`{task.name}`",
        ", ".join(f"`{alias}`" for alias in task.aliases),
        task.summary,
        task.unit,
        "nearest" if task.labels else "bilinear",
        ", ".join(f"`{metric}`" for metric in task.metrics),
        "yes" if task.flip else "no",
    )


def tasks_page() -> str:
    """The task table."""
    head = ("task", "also", "shows", "values", "resized", "measured by", "may be mirrored")
    rows = [head, tuple("---" for _ in head), *map(_row, TASKS.values())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return (
        f"# Tasks\n\n{NOTE}\n{table}\n\n"
        "`also` is another name that the command line takes. "
        "`may be mirrored`: whether a mirrored pair\nmay train the task. "
        "[conventions.md](conventions.md) says how each map is coded and written.\n"
    )


def main() -> int:
    """Write the pages, or with `--check` name those that are not as they would be written."""
    if problems := faults.problems():
        print("\n".join(problems), file=sys.stderr)
        return 1
    reliability = DOCS / "reliability.md"
    pages = {
        DOCS / "commands.md": commands_page(),
        DOCS / "tasks.md": tasks_page(),
        reliability: faults.page(reliability.read_text(encoding="utf-8")),
    }
    stale = [
        path
        for path, text in pages.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"docs/{path.name} is stale: run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
        print(f"wrote docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
