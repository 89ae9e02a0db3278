"""Bounded streams: map in order with threads, group what belongs together, wait for room."""

import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 10.0  # seconds for calls that have begun when a stream ends early
_LOOK = 0.5  # seconds between looks whether a later call failed while the next one takes long


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int, eager: bool = False
) -> Generator[R]:
    """`function` of each item, in order, computed by threads while at most `ahead` wait.

    With `eager`, a result is given as soon as it is there, before more items are taken: right for
    the end of a chain, where waiting results are of no use; wrong for reading ahead.
    What `function` raises is raised where its result would stand, or before, if a result that
    stands before it is not there yet. Ended early, what has not begun is dropped, and what has
    begun is waited for, PATIENCE at most: the threads are daemons, so that one that hangs, on a
    disk of another machine for example, keeps nothing from ending.
    """
    calls: SimpleQueue[tuple[Future[R], T] | None] = SimpleQueue()
    threads = [Thread(target=_work, args=(function, calls), daemon=True) for _ in range(workers)]
    waiting: deque[Future[R]] = deque()
    for thread in threads:
        thread.start()
    try:
        for item in items:
            future: Future[R] = Future()
            waiting.append(future)
            calls.put((future, item))
            while waiting and (len(waiting) >= ahead or (eager and waiting[0].done())):
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    finally:
        for future in waiting:
            future.cancel()
        _end(threads, calls)


def _work(function: Callable[[T], R], calls: "SimpleQueue[tuple[Future[R], T] | None]") -> None:
    while (call := calls.get()) is not None:
        future, item = call
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:  # whoever waits for it is told, whatever it is
                future.set_exception(error)
        del call, future, item  # a large result is not held while the next is waited for


def _next(waiting: deque[Future[R]]) -> R:
    """The first result, or what a later call raised while the first has none."""
    while not wait([waiting[0]], _LOOK).done:
        for future in waiting:
            if future.done():
                future.result()
    return waiting.popleft().result()


def _end(threads: Sequence[Thread], calls: "SimpleQueue[tuple[Future[R], T] | None]") -> None:
    for _ in threads:
        calls.put(None)
    late = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(late - time.monotonic(), 0))


def batches(
    items: Iterable[T], key: Callable[[T], Hashable | None], size: Callable[[], int], waiting: int
) -> Iterator[list[T]]:
    """Groups of items of equal key, `size()` at most; `waiting` items are held back at most.

    An item whose key is None is held back for no others: it goes on alone, at once.
    """
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        kind = key(item)
        if kind is None:
            yield [item]
            continue
        group = groups.setdefault(kind, [])
        group.append(item)
        if len(group) >= size():
            yield from _cut(groups.pop(kind), size)
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


class Budget:
    """Room for pixels at full size, which threads share: it bounds memory, whatever the images."""

    def __init__(self, pixels: int) -> None:
        self._most = self._left = pixels
        self._first = Lock()
        self._changed = Condition()

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Wait for room and hold it. What is larger than the budget waits for all of it.

        Who holds room must not ask for more. Of those who wait, one is served before the others
        may try, or small images would keep a large one waiting for ever.
        """
        needed = min(pixels, self._most)
        with self._first, self._changed:
            self._changed.wait_for(lambda: self._left >= needed)
            self._left -= needed
        try:
            yield
        finally:
            with self._changed:
                self._left += needed
                self._changed.notify_all()
