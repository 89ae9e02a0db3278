"""`dmp weights remove`: imported LoRAs out of the store, and revisions out of the Hub's cache."""

from typing import Annotated

import typer

from dmp_cli.commands import options as opt
from dmp_cli.commands import weights_options as own
from dmp_cli.commands.report import Talk
from dmp_cli.errors import UsageError
from dmp_cli.files import in_words
from dmp_cli.inventory import FOLDERS, Part, parts_of


def remove(
    model: Annotated[
        str, typer.Argument(help="Name of a model.", autocompletion=opt.complete_models)
    ],
    task: own.Task = None,
    hub_cache: Annotated[
        bool,
        typer.Option("--hub-cache", help="Also what lies in the Hub's cache, if no other model "
                     "of the weights file needs it; other programs may."),
    ] = False,
    weights: opt.Weights = None,
    quiet: opt.Quiet = False,
) -> None:  # fmt: skip
    """Delete the LoRAs of a model that were imported. Prints the files that went."""
    from dmp_cli import store

    talk = Talk(quiet)
    chosen = own.choose(model, task, weights)
    commits = _commits(chosen, task) if hub_cache else set()  # an entry that goes names them
    freed = 0
    kept = [part for part in chosen.parts if _in_store(part)]
    for part in kept:
        before = part.bytes or 0
        gone = store.remove(model, part.name)
        if gone:
            freed += before
            talk.output(str(gone))
    if hub_cache:
        freed += _forget(commits, chosen, task, weights, talk)
    elif not kept:
        held = _cached(chosen, task)
        more = f"--hub-cache deletes what of it is in the Hub's cache, {in_words(held)}"
        raise UsageError(f"nothing of model {model!r} was imported", more if held else "")
    talk.note(f"{in_words(freed)} freed")


def _in_store(part: Part) -> bool:
    from dmp_cli.store import home

    path = part.source.path if part.source else None
    return part.name not in FOLDERS and path is not None and path.is_relative_to(home() / "loras")


def _cached(chosen: own.Chosen, task: str | None) -> int:
    going = _going(chosen, task)
    of_hub = [part for part in chosen.parts
              if part.name in going and part.source and part.source.repo]  # fmt: skip
    return sum(path.stat().st_size for path in {path for part in of_hub for path in part.files})


def _going(chosen: own.Chosen, task: str | None) -> set[str]:
    """The parts to remove: of some tasks only their LoRAs."""
    return {part.name for part in chosen.parts if part.name not in FOLDERS or not task}


def _commits(chosen: own.Chosen, task: str | None) -> set[str | None]:
    """The revisions of the Hub's cache that the parts need which go."""
    going = _going(chosen, task)
    return {_commit(part) for part in chosen.parts if part.name in going} - {None}


def _forget(
    commits: set[str | None], chosen: own.Chosen, task: str | None, weights: str | None, talk: Talk
) -> int:
    """Delete those revisions that no other part needs; the bytes that this frees."""
    from dmp_cli import catalogue, hub

    going = _going(chosen, task)
    every = parts_of(catalogue.load(weights), weights=weights)
    others = (part for part in every if part.model != chosen.model or part.name not in going)
    needed = {_commit(part) for part in others}
    for commit in sorted(filter(None, commits & needed)):
        talk.note(f"revision {commit} stays: another model or task needs it")
    return hub.forget(filter(None, commits - needed))


def _commit(part: Part) -> str | None:
    """The revision of the Hub's cache that holds a part."""
    from dmp_cli import hub

    if not part.source or not part.source.repo:
        return None
    folder = hub.snapshot(part.source.repository, [])
    return folder.name if folder else None
