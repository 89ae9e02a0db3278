"""Several devices: who does what, and what becomes of a run when a worker, or its parent, dies."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from dmp_cli import digests, jobs
from dmp_cli.device import several
from dmp_cli.engines import crew, devices, flow, local
from dmp_cli.engines.crew import Worker
from dmp_cli.engines.saving import Waiting
from dmp_cli.errors import DmpError, ModelError, ResourceError, UsageError
from dmp_cli.jobs import Job, Result
from dmp_cli.plan import Output, Plan, Settings
from tests import clips, workers
from tests.conftest import Dmp, write_image
from tests.faults.outputs import maps
from tests.faults.process import Command, Running

Stream = Callable[..., Iterator[Result]]


def plan_for(weights: Path, batch: int = 1, **look: object) -> Plan:
    output = Output(**({"formats": ("npy",)} | look))  # type: ignore[arg-type]
    return Plan(
        ("depth",), model="tiny", weights=str(weights), settings=Settings(steps=1), batch=batch,
        output=output,
    )  # fmt: skip


def tasks_of(
    plan: Plan, folder: Path, out: Path, prompts: dict[int, str] | None = None
) -> list[Job]:
    found = jobs.plan_targets(jobs.find([str(folder)], out, print), out, plan.tasks, plan.output)
    return [replace(job, prompt=(prompts or {}).get(i)) for i, job in enumerate(found)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of 24 pictures, all of one shape."""
    for seed in range(24):
        write_image(tmp_path / f"in/{seed:02}.png", seed=seed)
    return tmp_path / "in"


@contextmanager
def at_work(plan: Plan, count: int = 2, told: list[str] | None = None) -> Iterator[Stream]:
    """So many workers with a stand-in for the network; none is left at the end."""
    notes = [] if told is None else told
    with devices.opened(plan, notes.append, ("cpu",) * count, workers.load) as stream:
        yield stream
    assert not active_children()


def once(results: Sequence[Result], todo: Sequence[Job]) -> None:
    """Each job has one result."""
    assert sorted(one.job.source for one in results) == sorted(job.source for job in todo)


# What is made -------------------------------------------------------------------------------


def test_the_files_are_those_of_one_device(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for seed in range(5):
        write_image(tmp_path / f"in/{seed}.png", seed=seed)
    plan = plan_for(weights, batch=2, formats=("png", "npy"))
    alone = list(local.run(plan, tasks_of(plan, tmp_path / "in", tmp_path / "a"), print))
    told: list[str] = []
    todo = tasks_of(plan, tmp_path / "in", tmp_path / "b")
    with devices.opened(plan, told.append, ("cpu", "cpu")) as stream:
        results = list(stream(todo))
    once(results, todo)
    assert maps(tmp_path / "a") == maps(tmp_path / "b")
    assert told == [
        "2 workers: cpu, cpu", "on cpu in fp32 (as asked), batches of 2",
    ]  # fmt: skip
    assert {one.device for one in results} == {one.device for one in alone} == {"cpu"}
    assert all(one.read and one.stamps for one in results)


def test_every_worker_has_a_part_and_is_told_how_many_share(weights: Path, many: Path) -> None:
    plan, told = plan_for(weights), []  # type: ignore[var-annotated]
    todo = tasks_of(plan, many, many.parent / "out", dict.fromkeys(range(24), "slow"))
    with at_work(plan, 2, told) as stream:
        results = list(stream(todo))
    once(results, todo)
    assert [one for one in results if one.errors] == []
    shares = Counter(one.device for one in results)
    assert len(shares) == 2
    assert min(shares.values()) >= 6
    assert told == ["2 workers: cpu, cpu", "shared by 2"]


def test_a_second_round_goes_to_the_same_workers(weights: Path, many: Path) -> None:
    plan = plan_for(weights)
    todo = tasks_of(plan, many, many.parent / "out")
    with at_work(plan) as stream:
        first, second = list(stream(todo[:12])), list(stream(todo[12:]))
    once(first + second, todo)
    assert {one.device for one in first} & {one.device for one in second}


def pixels(folder: Path) -> dict[str, bytes]:
    """Of its PNGs: how they are packed may differ by what was in memory before."""
    return {path.name: Image.open(path).tobytes() for path in folder.glob("*.png")}


def test_a_span_of_the_run_is_that_of_all_workers(weights: Path, many: Path) -> None:
    plan = plan_for(weights, formats=("png",), range="run")
    alone = workers.load(plan, print, 1)
    list(flow.stream(alone, tasks_of(plan, many, many.parent / "a"), many.parent))
    todo = tasks_of(plan, many, many.parent / "b")
    with at_work(plan) as stream:
        results = list(stream(todo, many.parent / "b"))
    assert [one.done for one in results] == [False] * 24 + [True] * 24
    once(results[24:], todo)
    assert pixels(many.parent / "a") == pixels(many.parent / "b")
    assert len({one.device for one in results[24:]}) == 2
    assert not list((many.parent / "b").glob(".dmp-*"))


def test_frames_of_a_clip_go_in_blocks(weights: Path, tmp_path: Path) -> None:
    clip = clips.numbered(tmp_path / "clip.mp4", 40)
    plan = plan_for(weights)
    inputs = [jobs.Input(clip, Path(clip.name), index) for index in range(40)]
    todo = jobs.plan_targets(inputs, tmp_path / "out", plan.tasks, plan.output)
    with at_work(plan) as stream:
        results = list(stream(todo))
    assert [one.errors for one in results] == [()] * 40
    by_frame = [one.device for one in sorted(results, key=lambda one: one.job.frame or 0)]
    assert len(set(by_frame[:32])) == 1
    assert len(set(by_frame[32:])) == 1


def test_a_worker_that_stands_still_holds_few(weights: Path, many: Path) -> None:
    plan = plan_for(weights)
    todo = tasks_of(plan, many, many.parent / "out")
    with at_work(plan) as stream:
        made = stream(todo)
        results = [next(made) for _ in range(4)]
        still = active_children()[0].pid or 0
        os.kill(still, signal.SIGSTOP)
        try:
            results += [next(made) for _ in range(24 - 4 - 8)]
        finally:
            os.kill(still, signal.SIGCONT)
        results += made
    once(results, todo)


def test_a_queue_of_thousands_costs_two_messages_a_job(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()
    send, recv = Connection.send, Connection.recv

    def sent(self: Connection, value: object) -> None:
        counted["sent"] += 1
        send(self, value)

    def received(self: Connection) -> object:
        counted["received"] += 1
        return recv(self)

    first = write_image(tmp_path / "in/0000.png", 8, 8)
    for number in range(1, 2000):
        os.link(first, tmp_path / f"in/{number:04}.png")
    plan = replace(plan_for(weights, batch=8), max_pixels=1)  # refused by their headers
    todo = tasks_of(plan, tmp_path / "in", tmp_path / "out")
    with at_work(plan) as stream:
        monkeypatch.setattr(Connection, "send", sent)
        monkeypatch.setattr(Connection, "recv", received)
        results = list(stream(todo))
    once(results, todo)
    assert counted["sent"] <= 2000 / 8 + 2 * 2  # blocks; each round begins and ends
    assert counted["received"] <= 2000 + 2000 / 8 + 2


# What goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "kind", "said", "hint"),
    [
        (workers.no_model, ModelError, "model x is not to be had", "dmp weights pull x"),
        (workers.no_device, ResourceError, "out of memory", "free it"),
        (workers.wrong, UsageError, "fp16 is not for the CPU", "use --dtype fp32"),
        (workers.killed, ResourceError, r"of cpu ended while it loaded .* \(SIGKILL\)", "memory"),
    ],
)
def test_what_loading_raises_arrives_as_itself(
    weights: Path, load: object, kind: type[DmpError], said: str, hint: str
) -> None:
    ways = devices.opened(plan_for(weights), print, ("cpu", "cpu"), load)  # type: ignore[arg-type]
    with pytest.raises(kind, match=said) as raised, ways:
        pass
    assert type(raised.value) is kind
    assert hint in raised.value.hint
    assert not active_children()


@pytest.mark.parametrize("when", ["loading", "drawing"])
def test_a_bug_in_a_worker_arrives_with_its_traceback(weights: Path, many: Path, when: str) -> None:
    plan = plan_for(weights)
    todo = tasks_of(plan, many, many.parent / "out", {7: "bug"})
    load = workers.broken if when == "loading" else workers.load
    with (
        pytest.raises(RuntimeError, match=r"(?s)worker of cpu.*Traceback.*workers\.py.*ZeroDiv"),
        devices.opened(plan, print, ("cpu", "cpu"), load) as stream,
    ):
        list(stream(todo))
    assert not active_children()


def test_a_full_disk_ends_the_run(weights: Path, many: Path) -> None:
    plan = plan_for(weights, formats=("png",), range="run")
    out = many.parent / "out"
    todo = tasks_of(plan, many, out, {7: "full"})
    with pytest.raises(ResourceError, match="No space left") as raised, at_work(plan) as stream:
        list(stream(todo, out))
    assert raised.value.hint == "free some space"
    assert not list(out.glob(".dmp-*"))
    assert not active_children()


def test_what_a_killed_worker_had_is_done_by_the_others(weights: Path, many: Path) -> None:
    plan, told = plan_for(weights, formats=("png",), range="run"), []  # type: ignore[var-annotated]
    out = many.parent / "out"
    todo = tasks_of(plan, many, out, dict.fromkeys(range(24), "slow"))
    with at_work(plan, 2, told) as stream:
        made = stream(todo, out)
        results = [next(made) for _ in range(4)]
        os.kill(active_children()[0].pid or 0, signal.SIGKILL)
        results += made
    once([one for one in results if one.done], todo)
    assert [one for one in results if one.errors] == []
    assert told[-1] == "the worker of cpu is lost (SIGKILL); 1 left"
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("how", "why"), [("killed", "SIGKILL"), ("lost", "fell off the bus")])
def test_an_image_that_two_workers_are_lost_over_fails(
    weights: Path, many: Path, how: str, why: str
) -> None:
    plan, told = plan_for(weights), []  # type: ignore[var-annotated]
    todo = tasks_of(plan, many, many.parent / "out", {3: how})
    with at_work(plan, 3, told) as stream:
        results = list(stream(todo))
    once(results, todo)
    (failed,) = [one for one in results if one.errors]
    assert failed.job is todo[3]
    assert "a second worker was lost over it" in failed.errors[0]
    assert failed.read == digests.stamp(todo[3].source)
    assert why in failed.errors[0]
    assert [text[-7:] for text in told[-2:]] == [" 2 left", " 1 left"]
    assert len(list((many.parent / "out").glob("*.npy"))) == 23


def test_a_worker_that_dies_in_the_tail_loses_nothing(
    weights: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had not begun goes to one that was told before that nothing more comes."""
    end_round = devices._Run._end_round
    still: list[int] = []
    lost: list[int] = []

    def then_killed(self: devices._Run, one: Worker) -> None:
        end_round(self, one)
        if one.busy and one.process.pid not in still and not lost:
            lost.extend(len(other.waiting) for other in self.workers if other is not one)
            os.kill(still[0], signal.SIGKILL)

    monkeypatch.setattr(devices._Run, "_end_round", then_killed)
    plan = plan_for(weights)
    todo = tasks_of(plan, many, many.parent / "out", dict.fromkeys(range(24), "slow"))
    with at_work(plan) as stream:
        made = stream(todo)
        results = [next(made) for _ in range(4)]
        still.append(active_children()[0].pid or 0)
        os.kill(still[0], signal.SIGSTOP)
        results += made
    assert lost == [1]  # a block that it had not begun
    once(results, todo)
    assert [one for one in results if one.errors] == []


def test_jobs_that_are_lost_are_an_error(
    weights: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = devices._Run._hear

    def deaf(self: devices._Run, one: Worker, stopping: bool) -> Iterator[Result | Waiting]:
        found = hear(self, one, stopping)
        return (made for made in found if made.job.source != todo[5].source)  # type: ignore[union-attr]

    monkeypatch.setattr(devices._Run, "_hear", deaf)
    plan = plan_for(weights)
    todo = tasks_of(plan, many, many.parent / "out")
    results: list[Result] = []
    lost = pytest.raises(ResourceError, match="1 of 24 images neither done nor failed")
    with lost as raised, at_work(plan) as stream:
        results.extend(stream(todo))
    assert len(results) == 23
    assert "run it again" in raised.value.hint


def test_without_a_worker_the_run_ends(weights: Path, many: Path) -> None:
    plan = plan_for(weights)
    todo = tasks_of(plan, many, many.parent / "out", dict.fromkeys(range(24), "slow"))
    with at_work(plan) as stream:
        made = stream(todo)
        next(made)
        for process in active_children():
            os.kill(process.pid or 0, signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"every worker is lost, with \d+ of 24") as raised:
            list(made)
    assert "run it again" in raised.value.hint


def test_what_is_in_flight_at_a_stop_is_finished(weights: Path, many: Path) -> None:
    plan = plan_for(weights)
    out = many.parent / "out"
    todo = tasks_of(plan, many, out, dict.fromkeys(range(24), "slow"))
    results: list[Result] = []
    with at_work(plan) as stream:
        for one in stream(todo, out, lambda: len(results) >= 4):
            results.append(one)
    assert 4 <= len(results) < 20
    assert [one for one in results if one.errors] == []
    assert {path.name for path in out.iterdir()} == {
        path.name for one in results for path in one.written
    }


def test_a_run_that_is_left_in_the_middle_leaves_nothing(weights: Path, many: Path) -> None:
    plan = plan_for(weights, formats=("png",), range="run")
    out = many.parent / "out"
    todo = tasks_of(plan, many, out, dict.fromkeys(range(24), "slow"))
    with at_work(plan) as stream:
        made = stream(todo, out)
        next(made)
        made.close()  # type: ignore[attr-defined]
    assert not list(out.iterdir())


def test_workers_that_nobody_quieted_write_what_they_have(
    weights: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "EXIT", 0.01)
    plan, out = plan_for(weights), many.parent / "out"
    todo = tasks_of(plan, many, out, dict.fromkeys(range(24), "slow"))
    with at_work(plan) as stream:
        made, processes = stream(todo, out), active_children()
        next(made)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list(out.glob("*.part"))
    made.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_are_started_waits_for_the_last(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    begun = []
    start = SpawnProcess.start

    def interrupted(self: SpawnProcess) -> None:
        os.kill(os.getpid(), number)
        start(self)
        begun.append(self)

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(SpawnProcess, "start", interrupted)
    before = signal.signal(number, stop)
    ways = devices.opened(plan_for(weights), print, ("cpu", "cpu"), workers.load)
    try:
        with pytest.raises(InterruptedError), ways:
            pass
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert len(begun) == 2
    assert not active_children()
    assert "Traceback" not in capfd.readouterr().err


# The command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("--devices banana", 2, "'banana' is no device"),
        ("--devices 0,", 2, "'' is no device"),
        ("--devices -1", 2, "'-1' is no device"),
        ("--devices all,0", 2, "'all' is no device"),
        ("--devices cuda", 2, "'cuda' is no device"),
        ("--devices cpu,cpu --device cpu", 2, "--devices cpu,cpu and --device cpu"),
        ("--devices cpu,cpu --engine ray", 2, "--engine ray finds its devices itself"),
        ("--devices cpu,0", 2, "--dtype fp32"),
        ("--devices cpu --dtype fp16", 2, "fp16 is not for the CPU"),
        ("--devices all", 6, "finds no CUDA device"),
        ("--devices 0,99", 6, "--devices cuda:"),
    ],
)
def test_devices_that_make_no_sense_are_refused(
    dmp: Dmp, photos: Path, model: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, options: str, code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: "99" in options)
    out = tmp_path / "out"
    ran = dmp("predict", "depth", photos, "-o", out, *model, *options.split())
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert not out.exists() or not list(out.iterdir())


def test_all_are_the_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert several(("all",)) == ("cuda:0", "cuda:1", "cuda:2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert several(("cuda:2", "cuda:0")) == ("cuda:2", "cuda:0")
    with pytest.raises(ResourceError, match="there are 3 CUDA devices"):
        several(("cuda:0", "cuda:3"))


SLOW = "import dmp_cli.engines.local as local, tests.workers as w; local.load = w.load"


def workers_of(running: Running) -> list[int]:
    """The processes of workers: the children of `dmp`, without the one that minds resources."""
    pid = running.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    named = [(Path(f"/proc/{child}/cmdline").read_bytes(), int(child)) for child in children]
    return [child for line, child in named if b"spawn_main" in line]


def are_gone(pids: Sequence[int], seconds: float = 12) -> bool:
    late = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < late:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGKILL, False, -9)],
)
def test_a_signal_leaves_no_worker_and_no_half_a_file(
    weights: Path, many: Path, tmp_path: Path, number: int, to_all: bool, code: int
) -> None:
    command, out = Command(tmp_path, weights, Mock()), tmp_path / "out"
    for seed in range(80):
        write_image(many / f"{seed:02}.png", seed=seed).with_suffix(".txt").write_text("slow")
    words = ("predict", "depth", many, "-o", out, "--devices", "cpu,cpu", "--prompt-from", "txt")
    running = command.start(
        *words, *command.model, "--range", "run", patch=SLOW, start_new_session=True
    )
    running.until(lambda _: len(list(out.glob(".dmp-*/*.npz"))) >= 3)
    pids = workers_of(running)
    assert len(pids) == 2
    (os.killpg if to_all else os.kill)(running.process.pid, number)
    ended = running.end(30)
    assert ended.code == code
    assert are_gone(pids)
    assert "Traceback" not in ended.err
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    if code > 0:
        assert not [path for path in out.iterdir() if path.name.startswith(".")]
        assert not list(out.glob("*.depth.png"))  # their span was never known
