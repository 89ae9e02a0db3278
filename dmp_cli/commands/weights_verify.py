"""`dmp weights verify`: whether the files here are those that were stated."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from dmp_cli.commands import fetch
from dmp_cli.commands import options as opt
from dmp_cli.commands import weights_options as own
from dmp_cli.commands.report import Talk, count
from dmp_cli.errors import ModelError
from dmp_cli.inventory import BACKBONE, Part, parts_of, remains, stated
from dmp_cli.sources import Source

Damage = dict[Path, Source]


def verify(
    model: own.Model = None,
    task: own.Task = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch damaged files of the Hub again.")
    ] = False,
    weights: opt.Weights = None,
    quiet: opt.Quiet = False,
    progress: opt.Progress = True,
) -> None:
    """Hash all files here of a model, or of all models, and name those that are damaged.

    What was never fetched is passed over. Prints the damaged files that are left. No server is
    asked, unless with --repair.
    """
    from dmp_cli import catalogue

    talk = Talk(quiet, progress=progress)
    if model or task:
        parts = own.choose(model, task, weights).parts
    else:
        parts = parts_of(catalogue.load(weights), weights=weights)
    damaged = _damaged(parts, talk)
    if repair:
        damaged = _repaired(damaged, talk)
    for path in damaged:
        talk.output(str(path))
    if damaged:
        raise ModelError(f"{count(len(damaged), 'file')} damaged", _remedies(damaged))


def _damaged(parts: Iterable[Part], talk: Talk) -> Damage:
    """The files that are lost or not as stated, each told; and how many were looked at."""
    from dmp_cli import digests

    found: Damage = {}
    seen: dict[Path, bool] = {}
    for part in parts:
        if not part.source:
            continue
        for known in _known(part, part.source):
            lost = [path for path in known if not path.is_file()]
            here = {path: hashes for path, hashes in known.items() if path not in lost}
            seen |= {path: bool(hashes) for path, hashes in here.items()}
            why = {path: f"expected {one}, found {two}"
                   for path, (one, two) in digests.wrong(here).items()}  # fmt: skip
            for path, text in (dict.fromkeys(lost, "it is not there") | why).items():
                if path not in found:
                    talk.fail(f"{path}: {text}")
                found[path] = part.source
    bare = len(seen) - sum(seen.values())
    of_those = f"; no hash is known of {bare} more" if bare else ""
    talk.note(f"{count(sum(seen.values()), 'file')} checked, {len(found)} damaged{of_those}")
    return found


def _known(part: Part, source: Source) -> Iterator[dict[Path, list[str]]]:
    """The files of a part, of a backbone in both precisions, with what is stated of them.

    Of one that was here and is not whole any more, with those that are lost.
    """
    if not part.here:
        yield remains(source, part.name)
        return
    for half in (False, True) if part.name == BACKBONE else (False,):
        yield stated(source, part.name, half)


def _repaired(damaged: Damage, talk: Talk) -> Damage:
    """Fetch what is of the Hub again; the files that are left."""
    from dmp_cli import hub, sources

    left = {path: source for path, source in damaged.items() if not source.repo}
    for source in dict.fromkeys(damaged.values()):
        if not source.repo:
            continue
        paths = [path for path, one in damaged.items() if one == source]
        wanted = sources.Fetch.again(source, paths)  # before anything is deleted
        for path in paths:
            if not path.is_dir():
                hub.drop(path)
        fetch.bring(wanted, talk)
        left |= {path: source for path in paths if not path.exists()}
    return left


def _remedies(damaged: Damage) -> str:
    from dmp_cli.sources import remedy
    from dmp_cli.store import home

    lines = [
        _import(path, source) if path.is_relative_to(home() / "loras") else remedy(source)
        for path, source in damaged.items()
    ]
    return "\n".join(dict.fromkeys(lines))


def _import(path: Path, source: "Source") -> str:
    """What to import again, as far as the damaged file still tells."""
    from dmp_cli import header

    try:
        told = header.read(path)
    except ModelError:
        told = {}
    name = told.get("source", "the file that it was made from")
    digest = f" (sha256 {told['source_sha256']})" if "source_sha256" in told else ""
    return f"import {name}{digest} again: dmp weights import FILE --model {source.asked}"
