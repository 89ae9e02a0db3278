"""`dmp watch`: maps of what arrives in folders, until a signal ends it."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmp_cli import jobs, manifest, signals, tasks, urls
from dmp_cli.arrivals import MOST, Arrivals
from dmp_cli.commands import night, parse, pulse
from dmp_cli.commands import options as opt
from dmp_cli.commands.night import Run, Stream
from dmp_cli.commands.report import Tally, count, shown, tell
from dmp_cli.commands.run import check_foreign, check_order, frames
from dmp_cli.commands.run_options import RunOptions, with_run_options
from dmp_cli.errors import UsageError
from dmp_cli.jobs import Input, Job, Result
from dmp_cli.manifest import Manifest, Past
from dmp_cli.plan import ENGINES
from dmp_cli.signals import Interrupted
from dmp_cli.weights import recipes

if TYPE_CHECKING:  # it needs Pillow, which takes time that `dmp --help` has not
    from dmp_cli.deciding import Deciding

_SOON, _LATE = 0.2, 2.0  # seconds between looks
_SHARE = 10  # of the time, at most a tenth is spent on looking
_FIRST = 2.0  # seconds in which the files that were there at the start are sorted

# Options that ask for all inputs at once, or for a list of them, and what to do instead
_REFUSED = {
    "files_from": ("--files-from", "name folders"),
    "null": ("-0", "name folders"),
    "contact_sheet": ("--contact-sheet", "dmp predict makes it later of what is there"),
    "video": ("--video", "dmp predict makes it later of what is there"),
    "fps": ("--fps", "dmp predict --video makes movies later of what is there"),
    "dry_run": ("--dry-run", "dmp predict --dry-run shows what would be written"),
    "shard": ("--shard", "give each machine a folder of its own"),
    "overwrite": ("--overwrite", "remove the outputs, or dmp predict --overwrite"),
    "prompt_from": ("--prompt-from", "--prompt gives all images one text"),
    "caption": ("--caption", "--prompt gives all images one text"),
}  # fmt: skip


@partial(with_run_options, hidden={*_REFUSED, "engine", "ray_address"})
def watch(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="depth, normals, segmentation, albedo, shading; with commas.",
            autocompletion=opt.complete_tasks,
        ),
    ],
    options: RunOptions,
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="FOLDER...", help="Folders to watch.")
    ] = None,
) -> None:
    """Predict maps of what arrives in folders, until Ctrl-C or SIGTERM; run it again to go on.

    A file is taken once it is complete: a second without a change, or renamed in.

    dmp watch depth incoming/ -o out/
    """
    check_order(task, folders or [])
    _check(options, folders or [])
    plan = options.plan(tuple(row.name for row in tasks.find_several(task)))
    if plan.output.range == "run":
        raise UsageError("--range run: a watch has no end", "name the range: --range LO,HI")
    check_foreign(plan, [], options)
    with signals.heeded() as stop:
        run = Run(plan, recipes(plan), options, options.talk(), stop)
        _watch(run, [Path(folder) for folder in folders or []])


def _check(options: RunOptions, folders: list[str]) -> None:
    default = RunOptions(options.output)
    for name, (flag, hint) in _REFUSED.items():
        if getattr(options, name) != getattr(default, name):
            raise UsageError(f"{flag}: not with dmp watch", hint)
    parse.one_of("--engine", options.engine, ENGINES)
    parse.ray_address(options.ray_address, options.engine)
    if options.engine != "local":
        raise UsageError(f"--engine {options.engine}: not with dmp watch", "dmp predict takes it")
    pulse.interval()
    if not folders:
        raise UsageError("no folder to watch", "dmp watch depth incoming/ -o out/")
    if urls.url_of(options.output):
        where = urls.shown(options.output)
        raise UsageError(f"{where}: not with dmp watch", "dmp predict writes to URLs")
    for folder in folders:
        if urls.is_url(folder):
            raise UsageError(f"{folder}: only folders can be watched", "dmp predict takes URLs")
        if not os.path.isdir(folder):  # noqa: PTH112  any text is answered
            there = os.path.exists(folder)  # noqa: PTH110
            why = "a file" if there else "no such folder"
            raise UsageError(f"{folder}: {why}", "watch the folder that files arrive in")


def _watch(run: Run, roots: list[Path]) -> None:
    from dmp_cli import host
    from dmp_cli.deciding import Deciding
    from dmp_cli.resume import Left

    talk, out = run.talk, run.options.output
    night.prepare(run)
    deciding = Deciding.of(host.completed(run.plan), [])
    past = manifest.past(out)
    night.sweep(out, ())
    watched = _Watched(run, deciding, roots, past)
    header = night.head(run, None, Left([], [], []))
    with (
        night.booked(run, past.runs + 1, header, watched.tally) as book,
        _told(watched),
        night.engine(run) as stream,
    ):
        night.note_weights(book, deciding, past)
        talk.note(f"watching {', '.join(map(shown, roots))}; Ctrl-C ends it")
        watched.until_stopped(stream, book)
    talk.fail(f"ended after {count(watched.tally.failed.total(), 'failed input')}: {watched}")
    raise typer.Exit(3)


@contextmanager
def _told(watched: "_Watched") -> Iterator[None]:
    try:
        with pulse.beating(lambda: watched, watched.run.talk):
            yield
    except Interrupted:
        watched.run.talk.note(f"{watched}; run it again to go on")
        raise


class _Watched:
    """A watch on its way: what was predicted, and what is known of the files."""

    def __init__(self, run: Run, deciding: "Deciding", roots: list[Path], past: Past) -> None:
        self.run, self.tally = run, Tally(0)
        self._deciding, self._roots = deciding, [os.path.abspath(root) for root in roots]
        self._past: Past | None = past  # until what was there at the start is sorted
        self._written = set[str]()  # the outputs of which it says nothing or no longer the last
        own = jobs.own_outputs(run.options.output, tuple(tasks.TASKS))
        self._arrivals = Arrivals(roots, run.options.recursive, own)
        self._swept = set[Path]()  # folders of outputs
        self._worked = 0.0  # seconds
        self._troubles: dict[str, str] = {}

    def __str__(self) -> str:
        tally = self.tally
        done = tally.seen - tally.kept - tally.failed.total()
        parts = [f"{count(done, 'image')} predicted"]
        parts += [f"{tally.kept} there already"] if tally.kept else []
        parts += [f"{tally.failed.total()} failed"] if tally.failed else []
        waiting = self._arrivals.waiting
        parts += [f"{count(waiting, 'file')} not complete"] if waiting else []
        return ", ".join(parts)

    def until_stopped(self, stream: Stream, book: Manifest) -> None:
        """Look, predict what is complete, and wait, in turn."""
        stop, start, pause = self.run.stop, time.monotonic(), _SOON
        while not stop():
            looked = time.monotonic()
            found = self._arrivals.look(looked)
            took = time.monotonic() - looked
            self._tell_troubles()
            if found:
                self._predict(*self._sorted(found, book), stream, book)
            if len(found) == MOST:  # there are more
                continue
            if looked - start > _FIRST:
                self._past, self._written = None, set()
            busy = bool(found) or self._arrivals.changed
            pause = _SOON if busy else min(pause * 1.5, _LATE)
            time.sleep(max(pause, took * _SHARE))

    def _tell_troubles(self) -> None:
        """Say once what cannot be read; it may come back."""
        for folder, why in self._arrivals.troubles.items():
            if folder not in self._troubles:
                self.run.talk.fail(f"{shown(Path(folder))}: cannot be read: {why}; still watching")
        self._troubles = self._arrivals.troubles

    def _predict(
        self, refused: list[Result], todo: list[Job], stream: Stream, book: Manifest
    ) -> None:
        run, began = self.run, time.monotonic()
        most = 1 if run.options.fail_fast else run.options.max_errors
        self._sweep(todo)
        rest, start = len(todo) + len(refused), began - self._worked
        with run.stop.draining(), closing(night.drawn(stream, todo, run)) as made:
            each = chain(refused, made if todo else ())
            for result in night.recorded(each, book, self._deciding, run, start):
                tell(result, run.talk)
                self._count(result)
                rest -= result.done
                if most and self.tally.failed.total() >= most:
                    run.stop.ask()
        night.require_all(run, rest)
        self._worked += time.monotonic() - began

    def _sweep(self, todo: list[Job]) -> None:
        """Remove what a killed run left in folders of outputs, each once."""
        new = {job.folder: job for job in todo if job.folder not in self._swept}
        night.sweep(self.run.options.output, new.values())
        self._swept |= new.keys()

    def _count(self, result: Result) -> None:
        self.tally.seen += 1
        if self._past is not None:
            out = self.run.options.output
            self._written |= {manifest.relative(out, path) for path in result.job.targets.values()}
        if result.errors:
            self.tally.failed["inputs"] += 1  # no names: a watch may go on for months

    # What is to be done ---------------------------------------------------------------------

    def _sorted(self, found: list[Input], book: Manifest) -> tuple[list[Result], list[Job]]:
        """Inputs that cannot be written beside others, and the jobs that are left of the rest."""
        from dmp_cli import resume
        from dmp_cli.resume import Asked

        options, out = self.run.options, self.run.options.output
        refused, planned = self._planned(found)
        past = self._past_of(planned)
        asked = Asked(checksum=options.checksum, retry_failed=options.retry_failed)
        left = resume.left(planned, past, self._deciding, out, asked)
        self._tell_kept(len(left.kept), len(left.failed), book)
        taken = {_first(job): job.source for job in left.kept}
        todo = []
        for job in left.todo:
            rival = taken.setdefault(_first(job), job.source)
            if rival == job.source:
                rival = self._owner(job, past) or job.source
            if rival == job.source:
                todo.append(job)
            else:
                refused.append(_clash(job, rival))
        return refused, todo

    def _planned(self, found: list[Input]) -> tuple[list[Result], list[Job]]:
        run, planned, refused = self.run, list[Job](), list[Result]()
        options, plan = run.options, run.plan
        for item in found:
            try:
                each = list(frames([item], run.talk))
                planned += jobs.plan_targets(
                    each, options.output, plan.tasks, plan.output, options.keep_suffix
                )
            except UsageError as error:  # of this one; a watch goes on
                refused.append(Result(Job(item.path, {}), errors=(f"{error}; {error.hint}",)))
        return refused, planned

    def _past_of(self, planned: list[Job]) -> Past:
        """What is recorded of jobs; what never was written needs no look into the manifest."""
        out = self.run.options.output
        paths = {path for job in planned for path in job.targets.values()}
        wanted = {manifest.relative(out, path) for path in paths}
        if self._past is not None and self._written.isdisjoint(wanted):
            return self._past
        if not any(path.exists() for path in paths):
            return Past()
        return manifest.past(out, wanted)

    def _owner(self, job: Job, past: Past) -> Path | None:
        """Another file of these folders that the outputs of a job were made from, if there is."""
        for path in job.targets.values():
            made = past.outputs.get(manifest.relative(self.run.options.output, path))
            other = Path(made.source) if made and made.size is not None else None
            watched = other and any(other.is_relative_to(root) for root in self._roots)
            if other and watched and not _same(other, job.source) and other.exists():
                return other
        return None

    def _tell_kept(self, kept: int, failed: int, book: Manifest) -> None:
        if kept or failed:
            book.append("there", {"kept": kept, "failed": failed})
        self.tally.kept += kept
        self.tally.seen += kept
        if kept:
            self.run.talk.note(f"{count(kept, 'image')} there already")
        if failed:
            self.run.talk.note(
                f"{count(failed, 'input')} failed before; --retry-failed tries again"
            )


def _first(job: Job) -> str:
    """What two jobs must not have in common."""
    return str(next(iter(job.targets.values()))).casefold()


def _same(other: Path, source: Path) -> bool:
    return os.path.abspath(other) == os.path.abspath(source)


def _clash(job: Job, rival: Path) -> Result:
    target = next(iter(job.targets.values())).name
    error = f"{target} is that of {shown(rival)}; use --keep-suffix, or another name"
    return Result(replace(job, targets={}), errors=(error,))
