"""The prompts of single images in a run: found, or made, and what is said of them."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from dmp_cli import prompts
from dmp_cli.commands import fetch
from dmp_cli.commands import options as opt
from dmp_cli.commands.report import Talk, count, shown
from dmp_cli.commands.run_options import RunOptions
from dmp_cli.errors import UsageError
from dmp_cli.files import in_words
from dmp_cli.jobs import Job
from dmp_cli.plan import Plan
from dmp_cli.prompts import Found
from dmp_cli.urls import url_of
from dmp_cli.weights import completed, recipes


def find(todo: list[Job], options: RunOptions) -> Found:
    """The jobs with the texts that lie there for their images; nothing is loaded or written.

    UsageError for a text that cannot be used, or if there is not one and nothing else is asked for.
    """
    if options.caption_model != opt.CAPTIONER and not options.caption:
        raise UsageError("--caption-model is of no use alone", "add --caption")
    if options.caption and url_of(options.output):
        raise UsageError(
            f"--caption adds to a file line by line: {shown(options.output)} takes whole ones",
            "caption into a folder, then use --prompt-from there",
        )
    if options.prompt_from is None:
        return Found(todo, "", "")
    if away := next(filter(url_of, (job.source for job in todo)), None):
        raise UsageError(
            f"--prompt-from looks beside images, and not beside {shown(away)}",
            "copy the images here, or give one --prompt for all",
        )
    found = prompts.find(todo, options.prompt_from)
    if not options.caption:
        prompts.require_some(found)
    return found


def complete(found: Found, plan: Plan, options: RunOptions, talk: Talk) -> list[Job]:
    """The jobs with captions for the images that have no text yet, if they are asked for."""
    todo = found.jobs
    if options.prompt_from is None and not options.caption:
        return todo
    _tell_unprompted(plan, talk)
    if options.caption:
        todo = _captioned(todo, plan, options, talk)
    _tell_without(todo, found, plan, talk)
    return todo


def _captioned(todo: list[Job], plan: Plan, options: RunOptions, talk: Talk) -> list[Job]:
    without = [job for job in prompts.images(todo) if job.prompt is None]
    file, model = options.output / prompts.CAPTIONS, options.caption_model
    texts = prompts.kept(file, without, model)
    left = [job for job in without if job.source not in texts]
    before = f"; {len(texts)} in {shown(file)} already" if texts else ""
    talk.note(f"captions for {count(len(without), 'image')} by {model}{before}")
    if left:
        texts |= _made(left, file, plan, options, talk)
    return prompts.fill(todo, texts)


def _made(
    left: Sequence[Job], file: Path, plan: Plan, options: RunOptions, talk: Talk
) -> dict[Path, str]:
    """Captions as the model makes them, each in the file at once; then the model is let go."""
    from dmp_cli import captioning

    model, texts = options.caption_model, {}
    folder = captioning.model_folder(model, lambda name, size: _fetching(name, size, talk))
    hidden = None if talk.progress and not talk.quiet else True
    with tqdm(
        total=len(left), unit="caption", file=sys.stderr, disable=hidden, dynamic_ncols=True
    ) as bar:
        for job, text in captioning.run(left, folder, plan):
            prompts.keep(file, job, model, text)
            texts[job.source] = text
            talk.detail(f"{shown(job.source)}: {text!r}")
            bar.update()
    return texts


@contextmanager
def _fetching(name: str, size: int, talk: Talk) -> Iterator[Callable[[int], object]]:
    """Tell what is fetched, and show a bar of its bytes."""
    talk.note(f"fetching {name}: {in_words(size)}")
    with fetch.byte_bar(size, talk) as moved:
        yield moved


def _tell_unprompted(plan: Plan, talk: Talk) -> None:
    """Say which tasks have weights that were trained without a prompt, by what is stated of them.

    A text may be of use to them all the same.
    """
    own = replace(plan, settings=replace(plan.settings, prompt=None))
    without = [one for one in map(completed, recipes(own)) if not one.prompt]
    if without:
        names = ", ".join(one.task for one in without)
        talk.note(
            f"model {without[0].model} states no prompt for {names}: if it was trained without, "
            "texts may make its maps worse"
        )


def _tell_without(todo: Sequence[Job], found: Found, plan: Plan, talk: Talk) -> None:
    """Count the images that are left without a text of their own, and say what they take."""
    shots = prompts.images(todo)
    left = sum(job.prompt is None for job in shots)
    if not left:
        return
    taken = {one.prompt for one in map(completed, recipes(plan))}
    one = next(iter(taken))
    what = f"the prompt {one!r} stands in" if one else "predicted without a prompt"
    what = "the prompts of the tasks stand in" if len(taken) > 1 else what
    where = f" in {found.place}" if found.place else ""
    talk.note(f"no text{where} for {left} of {count(len(shots), 'image')}: {what}")
