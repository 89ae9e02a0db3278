"""Bounded streams: map in order with threads, and group what belongs together."""

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int, eager: bool = False
) -> Generator[R]:
    """`function` of each item, in order, computed by threads while at most `ahead` wait.

    With `eager`, a result is given as soon as it is there, before more items are taken: right for
    the end of a chain, where waiting results are of no use; wrong for reading ahead.
    What `function` raises is raised where its result would stand; nothing is left running then.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and (len(waiting) >= ahead or (eager and waiting[0].done())):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(
    items: Iterable[T], key: Callable[[T], Hashable], size: Callable[[], int], waiting: int
) -> Iterator[list[T]]:
    """Groups of items of equal key, `size()` at most; `waiting` items are held back at most."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        group = groups.setdefault(key(item), [])
        group.append(item)
        if len(group) >= size():
            yield from _cut(groups.pop(key(item)), size)
        elif sum(map(len, groups.values())) >= waiting:
            yield from _cut(groups.pop(next(iter(groups))), size)
    for group in groups.values():
        yield from _cut(group, size)


def _cut(group: list[T], size: Callable[[], int]) -> Iterator[list[T]]:
    """The pieces of a group, should `size()` have become smaller since it was begun."""
    while group:
        most = max(size(), 1)
        yield group[:most]
        group = group[most:]
