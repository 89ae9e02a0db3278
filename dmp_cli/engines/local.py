"""This machine: reader threads, the caller's thread for the device, writer threads."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from dmp_cli.engines import steps
from dmp_cli.engines.stream import batches, ordered_map
from dmp_cli.jobs import Job, Result
from dmp_cli.plan import Plan
from dmp_cli.predict import Predictor


def run(plan: Plan, jobs: Iterable[Job], note: Callable[[str], None]) -> Iterator[Result]:
    """Load, then predict every job; results come as they are done, failed inputs among them.

    `note` is told where it runs, and what is odd about the model. Raises ModelError or
    ResourceError when the run as a whole cannot go on.
    """
    predictor = Predictor.from_plan(plan)
    where = predictor.placement
    note(f"on {where.device} in {where.dtype_name} ({where.reason}), batches of {predictor.batch}")
    for text in predictor.notes:
        note(text)
    return _stream(predictor, jobs)


def _stream(predictor: Predictor, jobs: Iterable[Job]) -> Iterator[Result]:
    plan, batch = predictor.plan, predictor.batch
    ahead = 2 * (batch + plan.readers)
    items = ordered_map(partial(steps.read, predictor), jobs, plan.readers, ahead)
    groups = batches(items, _shape, lambda: predictor.batch, 4 * batch)
    drawn = (item for group in groups for item in steps.draw(predictor, group))
    write = partial(steps.write, predictor)
    return ordered_map(write, drawn, plan.writers, 2 * plan.writers, eager=True)


def _shape(item: steps.Item) -> object:
    return item.prepared.shape if item.prepared else None
