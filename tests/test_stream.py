"""Bounded streams: order, how much is in flight, and what an exception does to them."""

import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from dmp_cli.engines import stream as stream_module
from dmp_cli.engines.stream import Budget, batches, ordered_map

pytestmark = pytest.mark.timeout(30)


class BrokenError(Exception):
    """What the tests raise."""


class Gauge:
    """Counts the items taken and not given back, and how many calls run at once."""

    def __init__(self) -> None:
        self.taken = self.given = self.most = self.running = self.most_running = 0
        self.lock = threading.Lock()

    def items(self, count: int) -> Iterator[int]:
        for item in range(count):
            self.taken += 1
            self.most = max(self.most, self.taken - self.given)
            yield item

    def work(self, item: int) -> int:
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        time.sleep(0.002)
        with self.lock:
            self.running -= 1
        return item


def threads_left(before: int) -> int:
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    return threading.active_count() - before


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 4), (4, 2), (8, 50), (2, 0)])
def test_order_is_kept(workers: int, ahead: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.003 * (item % 4 == 0))
        return item * item

    found = list(ordered_map(slow_first, range(40), workers, ahead))
    assert found == [item * item for item in range(40)]


def test_nothing_in_nothing_out() -> None:
    assert list(ordered_map(abs, [], 2, 4)) == []


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (3, 8)])
def test_bounded_number_in_flight(workers: int, ahead: int) -> None:
    gauge = Gauge()
    for _ in ordered_map(gauge.work, gauge.items(60), workers, ahead):
        gauge.given += 1
    assert gauge.given == 60
    assert gauge.most <= ahead
    assert gauge.most_running <= workers


def test_items_are_worked_on_at_once() -> None:
    """Three calls that wait for each other end only if they run side by side."""
    meeting = threading.Barrier(3)
    assert len(list(ordered_map(lambda _: meeting.wait(10), range(9), 3, 6))) == 9


def test_input_is_taken_only_as_it_is_needed() -> None:
    gauge = Gauge()
    stream = ordered_map(gauge.work, gauge.items(10**9), 2, 5)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    assert gauge.taken <= 3 + 5
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("at", [0, 7, 19])
@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 6), (4, 30)])
def test_exception_stands_where_its_result_would(workers: int, ahead: int, at: int) -> None:
    def work(item: int) -> int:
        if item == at:
            raise BrokenError(item)
        return item

    before = threading.active_count()
    stream = ordered_map(work, range(20), workers, ahead)
    assert [next(stream) for _ in range(at)] == list(range(at))
    with pytest.raises(BrokenError, match=str(at)):
        next(stream)
    assert threads_left(before) == 0


def test_exception_cancels_what_has_not_begun() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)
        raise BrokenError

    with pytest.raises(BrokenError):
        list(ordered_map(work, range(1000), 1, 500))
    assert len(begun) < 100


def test_exception_of_the_input_surfaces() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise BrokenError

    before = threading.active_count()
    with pytest.raises(BrokenError):
        list(ordered_map(abs, items(), 2, 3))
    assert threads_left(before) == 0


def test_exception_passes_through_two_maps_and_batches() -> None:
    """As local.run chains them: reader threads, the device's, writer threads."""

    def read(item: int) -> int:
        if item == 30:
            raise BrokenError
        return item

    before = threading.active_count()
    groups = batches(ordered_map(read, range(60), 2, 8), lambda i: i % 2, lambda: 4, 16)
    with pytest.raises(BrokenError):
        list(ordered_map(sum, groups, 2, 4))
    assert threads_left(before) == 0


def test_a_consumer_that_stops_leaves_no_threads() -> None:
    before = threading.active_count()
    stream = ordered_map(abs, iter(int, 1), 3, 9)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threads_left(before) == 0


# What hangs -------------------------------------------------------------------------------


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PATIENCE", 0.3)


@pytest.mark.fault(28)
@pytest.mark.parametrize("eager", [True, False])
def test_a_failure_does_not_wait_for_a_call_that_hangs(hurry: None, eager: bool) -> None:
    """One reader on a disk that is gone must not hide the bug that another has met."""
    hangs = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            hangs.wait()
        if item == 2:
            raise BrokenError
        return item

    before, start = threading.active_count(), time.monotonic()
    stream = ordered_map(work, range(9), 2, 4, eager)
    assert next(stream) == 0
    with pytest.raises(BrokenError):
        next(stream)
    assert time.monotonic() - start < 5
    assert threads_left(before + 1) == 0  # but for the one that hangs
    hangs.set()
    assert threads_left(before) == 0


@pytest.mark.fault(28)
def test_a_stream_is_closed_though_a_call_hangs(hurry: None) -> None:
    hangs, begun = threading.Event(), []

    def work(item: int) -> int:
        begun.append(item)
        if item:
            hangs.wait()
        return item

    before, start = threading.active_count(), time.monotonic()
    stream = ordered_map(work, range(9), 1, 4)
    assert next(stream) == 0
    stream.close()
    assert time.monotonic() - start < 5
    hangs.set()
    assert threads_left(before) == 0
    assert begun == [0, 1]


@pytest.mark.fault(28)
def test_what_has_begun_is_finished_when_a_stream_is_closed() -> None:
    done = []

    def work(item: int) -> int:
        time.sleep(0.1 * (item > 0))
        done.append(item)
        return item

    stream = ordered_map(work, range(9), 1, 4)
    assert next(stream) == 0
    time.sleep(0.05)
    stream.close()
    assert done == [0, 1]


@pytest.mark.fault(28)
def test_a_slow_consumer_is_told_at_its_next_turn() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise BrokenError
        return item

    before = threading.active_count()
    stream = ordered_map(work, range(20), 2, 6, eager=True)
    for item in range(3):
        assert next(stream) == item
        time.sleep(0.05)
    with pytest.raises(BrokenError):
        next(stream)
    assert threads_left(before) == 0


@pytest.mark.fault(28)
def test_a_thread_that_hangs_keeps_no_process_alive() -> None:
    code = (
        "import time\n"
        "from dmp_cli.engines import stream\n"
        "stream.PATIENCE = 0.3\n"
        "def work(item):\n"
        "    time.sleep(600) if item == 0 else 1 / 0\n"
        "list(stream.ordered_map(work, range(4), 2, 4))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=False
    )
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


def test_a_result_is_not_held_once_it_is_given() -> None:
    class Large:
        pass

    alive: list[weakref.ref[Large]] = []

    def work(item: int) -> Large:
        large = Large()
        alive.append(weakref.ref(large))
        return large

    most = 0
    for large in ordered_map(work, range(30), 2, 3):
        del large
        most = max(most, sum(one() is not None for one in alive))
    assert most <= 3 + 2  # those that wait, and those in the making


# Room -------------------------------------------------------------------------------------


class Held:
    """How many pixels threads hold at once."""

    def __init__(self) -> None:
        self.now = self.most = self.threads = self.most_threads = 0
        self.lock = threading.Lock()

    def work(self, budget: Budget, pixels: int, seconds: float = 0.001) -> int:
        with budget.room(pixels):
            with self.lock:
                self.now, self.threads = self.now + pixels, self.threads + 1
                self.most = max(self.most, self.now)
                self.most_threads = max(self.most_threads, self.threads)
                if pixels > 100:
                    assert self.threads == 1, "what is larger than the budget passes alone"
            time.sleep(seconds)
            with self.lock:
                self.now, self.threads = self.now - pixels, self.threads - 1
        return pixels


@pytest.mark.fault(40)
@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("largest", [10, 60, 100, 500])
def test_no_more_is_held_than_there_is_room_for(workers: int, largest: int) -> None:
    rng, held, budget = random.Random(largest), Held(), Budget(100)
    sizes = [rng.randint(1, largest) for _ in range(80)]
    assert list(ordered_map(partial(held.work, budget), sizes, workers, 12)) == sizes
    assert held.most <= max(100, *sizes)
    if workers == 8 and largest == 10:
        assert held.most_threads > 2


@pytest.mark.fault(40)
def test_readers_and_writers_share_room_without_waiting_for_each_other() -> None:
    """Two chained maps of several threads, each image larger than half of the budget."""
    held, budget = Held(), Budget(100)
    work = partial(held.work, budget)
    read = ordered_map(work, [60, 100, 300, 1] * 20, 4, 8)
    groups = batches(read, lambda pixels: pixels, lambda: 3, 8)
    drawn = (pixels for group in groups for pixels in group)
    found = list(ordered_map(work, drawn, 4, 4, eager=True))
    assert sorted(found) == sorted([60, 100, 300, 1] * 20)
    assert held.most <= 300


@pytest.mark.fault(40)
def test_a_large_one_is_not_passed_over_for_ever() -> None:
    budget, ended, order = Budget(100), threading.Event(), []

    def small() -> None:
        while not ended.is_set():
            with budget.room(40):
                time.sleep(0.002)

    def large() -> None:
        with budget.room(100):
            order.append("large")

    threads = [threading.Thread(target=small, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    last = threading.Thread(target=large, daemon=True)
    last.start()
    last.join(10)
    ended.set()
    for thread in threads:
        thread.join(10)
    assert order == ["large"]


def test_room_is_given_back_by_what_fails() -> None:
    budget = Budget(10)
    for _ in range(3):
        with pytest.raises(BrokenError), budget.room(7):
            raise BrokenError
    with budget.room(10):
        pass


# Batches ----------------------------------------------------------------------------------


def grouped(items: Any, size: int, waiting: int) -> list[list[Any]]:
    return list(batches(items, lambda item: item[0], lambda: size, waiting))


@pytest.mark.parametrize("waiting", [1, 3, 8, 100])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_hold_equal_keys_and_lose_nothing(size: int, waiting: int) -> None:
    items = [("abc"[i * i % 3], i) for i in range(50)]
    groups = grouped(items, size, waiting)
    assert all(len({key for key, _ in group}) == 1 for group in groups)
    assert all(1 <= len(group) <= size for group in groups)
    assert sorted(item for group in groups for item in group) == sorted(items)


@pytest.mark.parametrize("key", "ab")
def test_batches_keep_the_order_of_equal_keys(key: str) -> None:
    items = [("ab"[i % 3 == 0], i) for i in range(30)]
    found = [item for group in grouped(items, 4, 12) for item in group if item[0] == key]
    assert found == [item for item in items if item[0] == key]


def test_batches_of_one_key_are_full() -> None:
    assert [len(group) for group in grouped("a" * 10, 4, 16)] == [4, 4, 2]


def test_the_oldest_group_goes_first_when_too_many_wait() -> None:
    assert grouped("aabcde", 10, 4) == [["a", "a"], ["b"], ["c"], ["d"], ["e"]]


@pytest.mark.parametrize("waiting", [1, 2, 5, 9])
def test_what_waits_is_bounded(waiting: int) -> None:
    gauge, most = Gauge(), 0
    for group in batches(gauge.items(100), lambda i: i % 7, lambda: 4, waiting):
        gauge.given += len(group)
        most = max(most, gauge.taken - gauge.given)
    assert gauge.given == 100
    assert gauge.most <= waiting
    assert most < waiting


@pytest.mark.parametrize("keys", ["aaaaaaaaaa", "aaaaabbbbb", "ababababab", "aaabcdefgh"])
def test_batches_follow_a_size_that_shrinks(keys: str) -> None:
    """Out of memory, the device thread halves the batch while a larger one is being filled."""
    size, seen = [4], []
    for group in batches(keys, str, lambda: size[0], 8):
        assert len(group) <= size[0]
        seen += group
        size[0] = 1
    assert sorted(seen) == sorted(keys)


def test_size_that_shrinks_while_a_group_is_filled() -> None:
    size = 8

    def items() -> Iterator[str]:
        nonlocal size
        yield from "aaaaa"
        size = 2
        yield from "aab"

    groups = list(batches(items(), str, lambda: size, 100))
    assert [len(group) for group in groups] == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_what_has_no_key_goes_on_at_once(size: int) -> None:
    items = ["a", None, "a", "b", None, "a"]
    taken: list[object] = []

    def taking() -> Iterator[object]:
        for item in items:
            taken.append(item)
            yield item

    found = []
    for group in batches(taking(), lambda item: item, lambda: size, 99):
        found += group
        if group == [None]:
            assert taken[-1] is None
    assert sorted(map(str, found)) == sorted(map(str, items))


def test_batches_of_nothing() -> None:
    assert grouped([], 4, 8) == []


def test_eager_gives_what_is_done_before_it_takes_more() -> None:
    """The bar of a slow run must move when a map is written, not four images later."""
    gauge = Gauge()

    def slowly() -> Iterator[int]:
        for item in gauge.items(4):
            time.sleep(0.1)  # longer than the work on an item
            yield item

    taken = [gauge.taken for _ in ordered_map(gauge.work, slowly(), 2, 4, eager=True)]
    assert taken == [2, 3, 4, 4]
