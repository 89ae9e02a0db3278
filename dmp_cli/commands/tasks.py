"""`dmp tasks`: the task table."""

import json as json_
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dmp_cli.tasks import TASKS


def tasks(
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """List the tasks: what each map holds and what it is measured in."""
    rows = [
        {
            "task": task.name,
            "also": ", ".join(task.aliases),
            "shows": task.summary,
            "values": task.unit,
            "measured by": ", ".join(task.metrics),
        }
        for task in TASKS.values()
    ]
    if json:
        typer.echo(json_.dumps(rows))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
