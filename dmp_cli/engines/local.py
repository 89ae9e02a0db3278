"""This machine: reader threads, the caller's thread for the device, writer threads."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from dmp_cli import files, tasks
from dmp_cli.engines import saving, steps
from dmp_cli.engines.stream import batches, ordered_map
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Job, Result
from dmp_cli.outputs import export
from dmp_cli.plan import Plan
from dmp_cli.predict import Predictor


def run(
    plan: Plan, jobs: Sequence[Job], note: Callable[[str], None], aside: Path | None = None
) -> Iterator[Result]:
    """Load, then predict every job; results come as they are done, failed inputs among them.

    `note` is told where it runs, and what is odd about the model. Maps that wait for the end of the
    run lie in a hidden folder in `aside`, else beside the first output. Raises ModelError or
    ResourceError when the run as a whole cannot go on.
    """
    predictor = Predictor.from_plan(plan)
    where = predictor.placement
    note(f"on {where.device} in {where.dtype_name} ({where.reason}), batches of {predictor.batch}")
    for text in predictor.notes:
        note(text)
    return _stream(predictor, jobs, aside)


def _stream(predictor: Predictor, jobs: Sequence[Job], aside: Path | None) -> Iterator[Result]:
    plan, batch = predictor.plan, predictor.batch
    ahead = 2 * (batch + plan.readers)
    with closing(Clips(plan.max_pixels)) as clips, _kept_aside(plan, jobs, aside) as folder:
        read = partial(steps.read, predictor, clips)
        items = ordered_map(read, jobs, plan.readers, ahead)
        groups = batches(items, _shape, lambda: predictor.batch, 4 * batch)
        drawn = (item for group in groups for item in steps.draw(predictor, group))
        write = partial(saving.write, predictor, folder)
        with closing(
            ordered_map(write, drawn, plan.writers, 2 * plan.writers, eager=True)
        ) as written:
            yield from _completed(predictor, written)


@contextmanager
def _kept_aside(plan: Plan, jobs: Sequence[Job], aside: Path | None) -> Iterator[Path]:
    """A hidden folder for what waits, if anything does; gone at the end, whatever the end is."""
    beside = aside or next((path.parent for job in jobs for path in job.targets.values()), Path())
    if not any(export.set_aside(tasks.find(name), plan.output) for name in plan.tasks):
        yield beside
        return
    folder = files.hidden_folder(beside)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _completed(
    predictor: Predictor, written: Iterable[Result | saving.Waiting]
) -> Iterator[Result]:
    """Results as they are; if one waits for the span of the run, then from it on a sign of life."""
    waiting: list[Result | saving.Waiting] = []
    covered = None
    for one in written:
        if isinstance(one, Result) and not waiting:
            yield one
            continue
        waiting.append(one)  # results stay in order
        if isinstance(one, saving.Waiting):
            covered = one.span if covered is None else covered | (one.span or covered)
        yield replace(one.result if isinstance(one, saving.Waiting) else one, done=False)
    finish = partial(saving.finish, predictor, covered)
    writers = predictor.plan.writers
    yield from ordered_map(finish, waiting, writers, 2 * writers, eager=True)


def _shape(item: steps.Item) -> object:
    return item.prepared.shape if item.prepared else None
