"""A run that can be left alone: what is left of it, the engine, its manifest, its orderly end."""

import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmp_cli import files, manifest, marks, standing, tasks, unfinished
from dmp_cli.catalogue import load
from dmp_cli.commands import fetch, texts
from dmp_cli.commands.pulse import beating
from dmp_cli.commands.report import Talk, Tally, count, shown
from dmp_cli.commands.run_options import RunOptions
from dmp_cli.digests import Hashed
from dmp_cli.errors import DmpError, ResourceError
from dmp_cli.jobs import Job, Result
from dmp_cli.manifest import Manifest, Past
from dmp_cli.plan import Plan
from dmp_cli.prompts import Found
from dmp_cli.shards import Shard
from dmp_cli.signals import Interrupted, Stop
from dmp_cli.sources import missing
from dmp_cli.urls import url_of
from dmp_cli.weights import Recipe, beside, completed, stands_in_for

if TYPE_CHECKING:  # it needs Pillow, which takes time that `dmp --help` has not
    from dmp_cli.deciding import Deciding
    from dmp_cli.resume import Left

Stream = Callable[..., Iterator[Result]]  # of engines.local.stream, bound to a network


@dataclass(frozen=True)
class Run:
    """What a run is done with."""

    plan: Plan
    chosen: list[Recipe]
    options: RunOptions
    talk: Talk
    stop: Stop
    shard: Shard | None = None


# What is left ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rest:
    """What a run has to do yet, what decides that, and what was done before."""

    left: "Left"
    deciding: "Deciding"
    past: Past


def left(run: Run, found: Found) -> Rest:
    """What decides the outputs, and what of the jobs is left to do.

    Where a manifest lies in OUT, that is found out before torch or the backbone is touched, unless
    weights have to be fetched to know them.
    """
    out = run.options.output
    begun = manifest.books(out) and not run.options.overwrite
    rest = _resumed(run, found) if begun else _fresh(run, found)
    sweep(out, found.jobs)
    return rest


def dry(run: Run, found: Found) -> "Left":
    """What would be left. Nothing is fetched or written: where weights are not known, all is."""
    from dmp_cli.resume import Left

    if run.options.overwrite or _unknown(run):
        return Left(found.jobs, [], [])
    past = _past(run, found.jobs)
    return _sorted(run, found.jobs, past, past.weights).left


def _fresh(run: Run, found: Found) -> Rest:
    from dmp_cli import host
    from dmp_cli.deciding import Deciding
    from dmp_cli.resume import Left

    prepare(run)
    todo = texts.complete(found, run.plan, run.options, run.talk)
    past = manifest.past(run.options.output, ())  # of which only the number of the last run counts
    return Rest(Left(todo, [], []), Deciding.of(host.completed(run.plan), todo), past)


def _resumed(run: Run, found: Found) -> Rest:
    unknown = _unknown(run)
    if unknown:
        prepare(run)
    elif run.options.caption:
        files.check_writable(run.options.output)
    todo = texts.complete(found, run.plan, run.options, run.talk)
    past = _past(run, todo)
    rest = _sorted(run, todo, past, past.weights)
    if not rest.left.todo:
        return rest
    if not unknown:
        prepare(run)
    return _confirmed(run, todo, rest)


def _confirmed(run: Run, todo: list[Job], rest: Rest) -> Rest:
    """The same for weights as they are read now: a run that loads them trusts no older hash."""
    if not rest.deciding.hashed:
        return rest
    read = _sorted(run, todo, rest.past, {})
    return replace(rest, deciding=read.deciding) if _same_weights(read, rest) else read


def _same_weights(one: Rest, other: Rest) -> bool:
    return one.deciding.backbone == other.deciding.backbone


def _sorted(run: Run, todo: list[Job], past: Past, known: Mapping[str, Hashed]) -> Rest:
    from dmp_cli import host, resume
    from dmp_cli.deciding import Deciding
    from dmp_cli.resume import Asked

    options = run.options
    deciding = Deciding.of(host.completed(run.plan), todo, known)
    asked = Asked(options.checksum, options.overwrite, options.retry_failed)
    return Rest(resume.left(todo, past, deciding, options.output, asked), deciding, past)


def _unknown(run: Run) -> bool:
    """Whether weights have to be fetched before it is known what decides the outputs."""
    from dmp_cli.deciding import is_unknown

    backbone = run.chosen[0].backbone
    return any(map(missing, beside(run.chosen))) or is_unknown(backbone)


def sweep(out: Path, every: Iterable[Job]) -> None:
    """Remove what killed runs left unfinished in OUT, in the folders of jobs and of movies."""
    if not url_of(out):
        folders = {job.folder for job in every} - {out}
        unfinished.sweep({out, *folders, *(folder.parent for folder in folders)})


def _past(run: Run, todo: list[Job]) -> Past:
    out = run.options.output
    wanted = {manifest.relative(out, path) for job in todo for path in job.targets.values()}
    return manifest.past(out, wanted)


def prepare(run: Run) -> None:
    """Check what can be before a model is loaded, and fetch what is not on this machine.

    First what is known without torch, which takes seconds to import.
    """
    plan, chosen, talk = run.plan, run.chosen, run.talk
    backbone, others = chosen[0].backbone, beside(chosen)
    half = fetch.half_of(plan.device, plan.dtype)
    fetch.ready(backbone, others, half, run.options.offline)
    files.check_writable(run.options.output)
    if run.options.engine == "ray":  # this machine may not have what the cluster has
        fetch.fetch([backbone, *others], bool(half), talk)
    else:
        from dmp_cli.device import choose, several

        several(run.options.each_device())
        placement = choose(plan.device, plan.dtype)
        fetch.fetch([backbone, *others], placement.dtype_name == "fp16", talk)
    write_labels(run)


def write_labels(run: Run, if_missing: bool = False) -> None:
    """Say beside the maps what their class ids mean."""
    output = run.options.output
    if if_missing and all(files.exists(output / name) for name in marks.LEGENDS):
        return
    for recipe in run.chosen:
        if tasks.find(recipe.task).labels:
            from dmp_cli.classes import parse_classes
            from dmp_cli.outputs import legend

            classes = parse_classes(run.plan.classes or recipe.classes)
            table, picture = legend.write(output, classes)
            run.talk.detail(f"class ids: {shown(table)}, {shown(picture)}")


# The run -----------------------------------------------------------------------------------


@contextmanager
def results(run: Run, rest: Rest, tally: Tally) -> Iterator[Iterator[Result]]:
    """The results of all jobs: of those that are there, of those that failed before, of the rest.

    What the engine gives is put down in the manifest before it is given on. ResourceError if it
    gives less than was asked for.
    """
    found = rest.left
    before = chain(map(_kept, found.kept), (_as_before(*each) for each in found.failed))
    if not (found.todo or _has_news(run, rest, tally)):
        yield before
        return
    header = head(run, tally.total, found)
    with booked(run, rest.past.runs + 1, header, tally) as book, told(run, tally):
        note_weights(book, rest.deciding, rest.past)
        if found.todo:
            with (
                engine(run) as stream,
                run.stop.draining(),
                closing(drawn(stream, found.todo, run)) as made,
            ):
                noted = recorded(made, book, rest.deciding, run, time.monotonic())
                yield chain(before, limited(noted, run))
        else:
            yield before
        require_all(run, tally.total - tally.seen)


def drawn(stream: Stream, todo: list[Job], run: Run) -> Generator[Result]:
    """The results of an engine; closed before its end, what is in flight is finished."""
    yield from stream(todo, run.options.output, run.stop)


def require_all(run: Run, rest: int) -> None:
    """ResourceError if jobs are without a result, though nobody asked the run to end."""
    if rest and not run.stop():
        raise ResourceError(
            f"{count(rest, 'image')} came to no result", "run it again: it does what is left"
        )


def _has_news(run: Run, rest: Rest, tally: Tally) -> bool:
    """Whether the manifests do not say that all is done, though it is, or lack a hash."""
    if _are_new(rest.deciding, rest.past):
        return True
    report = standing.read(run.options.output)
    own = [one for one in report.runs if one.part == run.shard] if report else []
    if not own:
        return True
    last, failed = own[-1], len(rest.left.failed)
    said = (last.total, last.done, last.failed, last.code)
    return said != (tally.total, len(rest.left.kept), failed, 3 if failed else 0)


def _are_new(deciding: "Deciding", past: Past) -> bool:
    return any(past.weights.get(one.path) != one for one in deciding.hashed)


def note_weights(book: Manifest, deciding: "Deciding", past: Past) -> None:
    """Put down the hashes of weights that were read: the next run need not read all of them."""
    if _are_new(deciding, past):
        book.append("weights", {"files": [asdict(one) for one in deciding.hashed]})


@contextmanager
def booked(run: Run, number: int, header: dict[str, Any], tally: Tally) -> Iterator[Manifest]:
    """The manifest, between the first record of a run and its last, which says how it ended."""
    with Manifest(run.options.output / manifest.name(run.shard), number) as book:
        book.append("run", header)
        code = 1
        try:
            yield book
            code = 3 if tally.failed else 0
        except Interrupted as stopped:
            code = stopped.exit_code
            raise
        except DmpError as error:
            code = error.exit_code
            raise
        finally:
            with suppress(ResourceError):  # it adds nothing to what failed
                book.append("end", {"code": code, "seconds": round(_seconds(tally), 3)})


@contextmanager
def told(run: Run, tally: Tally) -> Iterator[None]:
    """Say now and then how far it is, and that it ends early if it does."""
    try:
        with beating(lambda: tally, run.talk):
            yield
    except Interrupted:
        run.talk.fail(f"interrupted after {tally}; each file there is whole: run it again to go on")
        raise


def engine(run: Run) -> AbstractContextManager[Stream]:
    """What loads the network and gives what takes jobs, here or on other machines."""
    _tell_model(run)
    options, talk = run.options, run.talk
    if options.engine == "ray":
        from dmp_cli.engines import ray_data

        return ray_data.opened(run.plan, talk.note, options.ray_address, talk.verbose)
    if options.devices:
        from dmp_cli.device import several
        from dmp_cli.engines import devices

        return devices.opened(run.plan, talk.note, several(options.each_device()))
    from dmp_cli.engines import local

    return local.opened(run.plan, talk.note)


def _tell_model(run: Run) -> None:
    first, plan, talk = run.chosen[0], run.plan, run.talk
    for recipe in map(completed, run.chosen) if talk.verbose else ():
        talk.detail(f"{recipe.task}: {recipe.lora}, {recipe.settings}")
    if first.backbone.made:
        talk.note(f"model {first.model} has random weights: its maps mean nothing")
    without = stands_in_for(load(plan.weights), first.model, plan.model)
    if without:
        talk.note(
            f"model {without} has no weights here: taking {first.model} "
            f"({first.summary}). docs/weights.md says how to get those of {without}"
        )
    talk.detail(f"backbone {first.backbone}")
    if first.decoder:
        talk.detail(f"tiny decoder {first.decoder}")
    talk.note(f"loading model {first.model}")


def _kept(job: Job) -> Result:
    return Result(job, made=tuple(job.targets), kept=True)


def _as_before(job: Job, error: str) -> Result:
    return Result(job, errors=(error,), kept=True)


def recorded(
    made: Iterable[Result], book: Manifest, deciding: "Deciding", run: Run, start: float
) -> Iterator[Result]:
    """The same results, each put down in the manifest before it is given on.

    `start` is when work began, by the monotonic clock.
    """
    from dmp_cli import resume

    for result in made:
        if result.done:
            record = resume.record(result, deciding, run.options.output)
            at = {"time": _now(), "at": round(time.monotonic() - start, 3)}
            book.append("input", record | at)
        yield result


def limited(made: Iterable[Result], run: Run) -> Iterator[Result]:
    """End in order once too many inputs have failed."""
    most = 1 if run.options.fail_fast else run.options.max_errors
    failed = 0
    for result in made:
        failed += bool(result.errors)
        if most and failed >= most:
            run.stop.ask()
        yield result


def tell_end(run: Run, tally: Tally) -> None:
    """Say that a run ended before it was done, if it did."""
    rest = tally.total - tally.seen
    if rest:
        run.talk.fail(
            f"ended after {count(tally.failed.total(), 'failed input')}: "
            f"{count(rest, 'image')} not tried; run it again to go on"
        )


def head(run: Run, total: int | None, found: "Left") -> dict[str, Any]:
    """The first record of a run over `total` inputs; None: of one without an end."""
    return {
        "total": total, "kept": len(found.kept), "failed": len(found.failed),
        "todo": len(found.todo), "tasks": list(run.plan.tasks), "model": run.chosen[0].model,
        "shard": list(run.shard) if run.shard else None,
        "host": socket.gethostname(), "pid": os.getpid(), "born": standing.born(os.getpid()),
        "time": _now(),
    }  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _seconds(tally: Tally) -> float:
    return time.monotonic() - tally.start
