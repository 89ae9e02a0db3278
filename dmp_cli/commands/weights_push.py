"""`dmp weights push`: a model's LoRAs into a repository of the Hub."""

import json as json_
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmp_cli.commands import options as opt
from dmp_cli.commands.report import Talk, count
from dmp_cli.files import in_words

if TYPE_CHECKING:
    from dmp_cli.publishing.release import Release
    from dmp_cli.publishing.upload import Published


Repo = Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository of the Hub.")]
Tasks = Annotated[
    str | None,
    typer.Option("--task", metavar="LIST", help="Only these tasks of the model.",
                 autocompletion=opt.complete_tasks),
]  # fmt: skip
Private = Annotated[
    bool, typer.Option("--private", help="If the repository is made, make it private.")
]
License = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="Licence of the files, such as apache-2.0."),
]
Right = Annotated[
    bool,
    typer.Option("--i-have-the-right",
                 help="Publish what has no stated licence: you answer for it."),
]  # fmt: skip
Branch = Annotated[
    str,
    typer.Option("--revision", metavar="BRANCH", help="Branch to publish on; made if need be."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the README that would be published; send nothing."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON record.")]


def push(
    repo: Repo,
    model: opt.Model = None,
    task: Tasks = None,
    private: Private = False,
    license: License = None,
    right: Right = False,
    revision: Branch = "main",
    weights: opt.Weights = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Publish the LoRAs of a model on the Hub, with a model card.

    Prints the tables for a weights file that take the model from there.
    The token is that of `hf auth login` or $HF_TOKEN and must be one that writes.
    """
    from dmp_cli.publishing import upload

    talk = Talk(quiet=quiet)
    upload.check_target(repo, revision)
    release = _release(repo, model, task, weights, revision, license, right)
    tasks = ", ".join(adapter.task for adapter in release.adapters)
    talk.note(f"model {release.model}: {tasks}; {in_words(release.bytes)}")
    if dry_run:
        readme = upload.readme(release)
        talk.output(json_.dumps(_record(release) | {"readme": readme}) if json else readme.strip())
        talk.note(f"nothing was sent; without --dry-run it goes to {repo}, branch {revision}")
        return
    done = upload.push(release, private)
    _explain(release, done, talk)
    if json:
        talk.output(json_.dumps(_record(release, done)))
    else:
        talk.output(_stanza(release, done).strip())


def _release(
    repo: str, model: str | None, task: str | None, weights: str | None, revision: str,
    license: str | None, right: bool,
) -> "Release":  # fmt: skip
    from dmp_cli import catalogue
    from dmp_cli.publishing import release
    from dmp_cli.tasks import find_several

    table = catalogue.load(weights)
    name = model or release.default_model(table)
    names = [one.name for one in find_several(task)] if task else release.tasks_of(table, name)
    return release.licensed(release.gather(table, name, names, repo, revision), license, right)


def _stanza(release: "Release", done: "Published") -> str:
    from dmp_cli.publishing.release import stanza

    return stanza(release, done.commit)


def _explain(release: "Release", done: "Published", talk: Talk) -> None:
    """Say on standard error what was done and what to do with what is printed."""
    kind = "private" if done.private else "public"
    there = f"{'new ' if done.created else ''}{kind} repository {release.repo}"
    if done.changed:
        talk.note(f"published {count(len(release.adapters), 'LoRA')} in the {there}")
    else:
        talk.note(f"the {there} holds all this already: no new commit")
    for text in done.notes:
        talk.note(f"{release.repo}: {text}")
    talk.note(f"{done.url}, commit {done.commit}")
    if "path" in release.entry["backbone"] and "packaged" not in release.entry["backbone"]:
        talk.note("the backbone is a folder of this machine: elsewhere another `path` is needed")
    task = release.adapters[0].task
    talk.note(
        "add this to a weights file FILE, then: "
        f"dmp predict {task} photos -o maps --weights FILE --model {release.model}"
    )


def _record(release: "Release", done: "Published | None" = None) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "model": release.model,
        "repo": release.repo,
        "branch": release.branch,
        **({} if done is None else asdict(done) | {"stanza": _stanza(release, done)}),
        "files": [
            {
                "task": adapter.task,
                "file": adapter.file,
                "sha256": adapter.sha256,
                "bytes": adapter.path.stat().st_size,
                "license": adapter.license or None,
            }
            for adapter in release.adapters
        ],
    }
