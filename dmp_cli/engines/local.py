"""This machine: reader threads, the caller's thread or two for the device, writer threads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dmp_cli.device import share_threads
from dmp_cli.engines.flow import stream
from dmp_cli.jobs import Job, Result
from dmp_cli.plan import Plan
from dmp_cli.predict import Predictor


def run(
    plan: Plan, jobs: Sequence[Job], note: Callable[[str], None], aside: Path | None = None
) -> Iterator[Result]:
    """Load, then predict every job, as `opened` and `stream` say."""
    with opened(plan, note) as predict:
        yield from predict(jobs, aside)


@contextmanager
def opened(plan: Plan, note: Callable[[str], None]) -> Iterator[Callable[..., Iterator[Result]]]:
    """Load the network of a plan, and give what takes jobs as `stream` does.

    `note` is told where it runs, and what is odd about the model. Raises ModelError or
    ResourceError.
    """
    yield partial(stream, load(plan, note))


def load(plan: Plan, note: Callable[[str], None], among: int = 1) -> Predictor:
    """The network of a plan; `note` is told where it runs, and what is odd about it.

    `among` so many processes the cores of this machine are shared.
    """
    share_threads(among)
    predictor = Predictor.from_plan(plan)
    where = predictor.placement
    spared = ", parts in turn" if where.in_turns else ", freed memory given back"
    note(
        f"on {where.device} in {where.dtype_name} ({where.reason}), "
        f"batches of {predictor.batch}{spared if plan.low_memory else ''}"
    )
    for text in predictor.notes:
        note(text)
    return predictor
