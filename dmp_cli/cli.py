"""Which verbs there are, and how an error reaches the user."""

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from dmp_cli import __version__, allocation
from dmp_cli.commands import (
    bench,
    data,
    doctor,
    predict,
    predict_all,
    scenes,
    status,
    tasks,
    train,
    watch,
    weights,
)
from dmp_cli.commands import eval as eval_
from dmp_cli.commands.report import complain, plain
from dmp_cli.errors import DmpError
from dmp_cli.signals import Interrupted

app = typer.Typer(
    name="dmp",
    help="Dense maps of many images: depth, normals, segmentation, albedo and shading.",
    epilog="Exit codes: 0 every output is there, 1 a bug, 2 usage, 3 some inputs failed, "
    "4 no input matched, 5 a model is not to be had, 6 the surroundings failed, "
    "7 and 8 of status: going on, cut short, 130 and 143 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("predict")(predict.predict)
app.command("predict-all")(predict_all.predict_all)
app.command("watch")(watch.watch)
app.command("status")(status.status)
app.command("train")(train.train)
app.command("eval")(eval_.evaluate)
data.app.command("scenes")(scenes.scenes)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.command("bench")(bench.bench)
app.command("tasks")(tasks.tasks)
app.command("doctor")(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dmp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run `dmp`; errors.py says which exit code means what."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # closed by whoever started us
    sys.stderr = sys.stderr or Path(os.devnull).open("w")
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    # Idle threads of torch would spin: two runs on one machine then take ten times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    allocation.ask_for_large_pages()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of them, dmp says itself
    try:
        app()
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
    except DmpError as error:
        complain(f"dmp: {plain(str(error))}")
        if error.hint:
            complain(f"  {plain(error.hint)}".replace("\n", "\n  "))
        sys.exit(error.exit_code)
