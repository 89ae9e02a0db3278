"""Jobs -> results by a network that is loaded: readers, batches, the network, writers."""

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path

from dmp_cli import files, tasks
from dmp_cli.engines import saving, steps
from dmp_cli.engines.stream import Budget, batches, ordered_map
from dmp_cli.errors import ResourceError
from dmp_cli.host import Host
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Job, Result
from dmp_cli.outputs import export
from dmp_cli.plan import Plan


def stream(
    network: steps.Network,
    jobs: Sequence[Job],
    aside: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """The results of jobs by a network that is loaded, as they are done, failed ones among them.

    Maps that wait for the end of the run lie in a hidden folder in `aside`, else beside the first
    output. Once `stopped` says so, what the network has drawn is written and the rest left.
    Raises ResourceError when the run as a whole cannot go on.
    """
    host = network.host
    with kept_aside(host.plan, jobs, aside) as folder:
        ahead = 2 * (network.batch + host.plan.readers)
        with closing(written(network, jobs, folder, stopped, ahead)) as made:
            yield from completed(host, counted(made, len(jobs), stopped), stopped)


def written(
    network: steps.Network,
    jobs: Iterable[Job],
    folder: Path,
    stopped: Callable[[], bool],
    ahead: int,
) -> Generator[Result | saving.Waiting]:
    """The first part of `stream`: what waits for the span of the run is left so, in `folder`.

    `ahead` is how many pictures are read before they are asked for.
    """
    host, batch, plan = network.host, network.batch, network.host.plan
    budget, most = Budget(plan.in_flight), _most(host)
    with ExitStack() as stack:
        clips = stack.enter_context(closing(Clips(plan.max_pixels)))
        read = partial(steps.read, host, clips, room=budget.room)
        todo = takewhile(lambda _: not stopped(), jobs)
        ahead = min(ahead, max(most, batch))
        items = stack.enter_context(closing(ordered_map(read, todo, plan.readers, ahead)))
        back = max(min(4 * batch, most), batch)
        keyed = batches(items, partial(steps.key, host), lambda: network.batch, back)
        going = takewhile(lambda _: not stopped(), keyed)
        groups = stack.enter_context(closing(_drawn(network, going)))
        drawn = (item for group in groups for item in _each(group))
        write = partial(saving.write, host, folder, room=budget.room)
        beside = max(min(2 * plan.writers, most // len(plan.tasks)), 1)
        made = ordered_map(write, drawn, plan.writers, beside, eager=True)
        yield from stack.enter_context(closing(made))


def _drawn(
    network: steps.Network, groups: Iterable[list[steps.Item]]
) -> Generator[list[steps.Item]]:
    """Groups with what the network drew; where a device computes by itself, one ahead."""
    draw, at_once = partial(steps.draw, network), network.at_once
    if at_once > 1:
        return ordered_map(draw, groups, at_once, at_once)
    return (draw(group) for group in groups)


def _most(host: Host) -> int:
    """How many pictures of the network's size are as many pixels as may be in flight."""
    sizes = {recipe.size for recipe in host.recipes.values()}
    return host.plan.in_flight // sum(map(host.largest, sizes))


def _each(items: list[steps.Item]) -> Iterator[steps.Item]:
    """The items of a list that is emptied: one that is written is not held for the others."""
    while items:
        yield items.pop(0)


@contextmanager
def kept_aside(plan: Plan, jobs: Sequence[Job], aside: Path | None) -> Iterator[Path]:
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


def counted(
    made: Iterable[Result | saving.Waiting], jobs: int, stopped: Callable[[], bool]
) -> Iterator[Result | saving.Waiting]:
    """The same; ResourceError if there are fewer than `jobs` at the end, though nobody stopped."""
    count = 0
    for one in made:
        count += 1
        yield one
    if count < jobs and not stopped():
        raise ResourceError(
            f"the run ended with {jobs - count} of {jobs} images neither done nor failed",
            "run it again to go on",
        )


def completed(
    host: Host, written: Iterable[Result | saving.Waiting], stopped: Callable[[], bool]
) -> Iterator[Result]:
    """Results as they are; if one waits for the span of the run, then from it on a sign of life.

    Once `stopped`, what waits is left: thousands take longer than a signal leaves, and the span of
    the next run is another. Nothing is told of it, so that it is done again.
    """
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
    finish = partial(saving.finish, host, covered, room=Budget(host.plan.in_flight).room)
    writers = host.plan.writers
    left = (one for one in waiting if isinstance(one, Result) or not stopped())
    yield from ordered_map(finish, left, writers, 2 * writers, eager=True)
