"""The engine on Ray Data: as the local one, byte for byte, on one machine and on several."""

import importlib.util
import json
import os
import pickle
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import host
from dmp_cli.engines import ray_cluster, ray_data, ray_work, steps
from dmp_cli.engines.ray_cluster import Cluster
from dmp_cli.errors import DmpError, ModelError, ResourceError, UsageError
from dmp_cli.jobs import Job
from dmp_cli.plan import Plan, Settings
from tests.clips import numbered
from tests.conftest import Dmp, write_image, write_weights
from tests.faults.outputs import maps
from tests.faults.process import Command, Ended, Forks, Running

RAY = ("--engine", "ray")
# coverage is measured in the command, not in the ten processes of the cluster
ALONE = """
import os
for name in [name for name in os.environ if name.startswith("COVERAGE")]: del os.environ[name]
"""


def no_forks() -> Forks:
    raise RuntimeError("Ray's processes do not fork")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`dmp` as a process."""
    (tmp_path / "process").mkdir()
    weights = write_weights(tmp_path / "weights.toml", "size = 64")
    return Command(tmp_path / "process", weights, no_forks)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of 150 pictures, of one shape."""
    for seed in range(150):
        write_image(tmp_path / "many" / f"{seed:03}.png", seed=seed)
    return tmp_path / "many"


def processes(session: str) -> list[str]:
    """The processes whose command line or environment names a session of Ray, zombies aside."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if session.encode() in words:
            found.append(folder.name)
    return found


def gone(session: str, seconds: float = 30) -> bool:
    """Whether the processes of a session end in time."""
    until = time.monotonic() + seconds
    while processes(session) and time.monotonic() < until:
        time.sleep(0.2)
    return not processes(session)


# Without a cluster -------------------------------------------------------------------------


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs ray") as raised:
        ray_cluster.require()
    assert "pip install 'dmp-predict[ray]'" in raised.value.hint


def test_an_address_without_the_engine_is_refused(dmp: Dmp, photos: Path, tmp_path: Path) -> None:
    ended = dmp("predict", "depth", photos, "-o", tmp_path / "out", "--ray-address", "head:6379")
    assert ended.code == 2
    assert "add --engine ray" in ended.err


@pytest.mark.parametrize("name", ["DMP_RAY_GPUS", "DMP_RAY_PREDICTORS"])
@pytest.mark.parametrize("value", ["", "two", "0", "-1", "nan", "inf"])
def test_shares_that_are_no_numbers(
    name: str, value: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    plan = Plan(("depth",), model="tiny", weights=str(weights))
    with pytest.raises(UsageError, match=name), ray_data.opened(plan, print):
        pass


def test_a_device_by_its_number_is_refused(weights: Path) -> None:
    plan = Plan(("depth",), model="tiny", weights=str(weights), device="cuda:1")
    with pytest.raises(UsageError, match="the cluster chooses"), ray_data.opened(plan, print):
        pass


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", ":6379", "head:0", "a:b"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with (
        pytest.raises(UsageError, match="must be HOST:PORT"),
        ray_cluster.connected(address, 1),
    ):
        pass


@pytest.mark.parametrize("listening", [False, True])
def test_where_no_cluster_is(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_ANSWER", 2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listening:
            other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with (
            pytest.raises(ResourceError, match=f"no Ray cluster at {address}"),
            ray_cluster.connected(address, 1),
        ):
            pass


@pytest.mark.parametrize(
    ("nodes", "gpus", "each", "wanted", "device", "expected"),
    [
        (1, 0, 1.0, 0, "auto", (1, 0.0, 1, 1)),
        (3, 0, 1.0, 0, "auto", (3, 0.0, 1, 1)),
        (2, 0, 1.0, 3, "cpu", (3, 0.0, 2, 1)),
        (2, 8, 1.0, 0, "auto", (8, 1.0, 1, 8)),
        (2, 2, 0.5, 0, "cuda", (4, 0.5, 1, 8)),
        (1, 2, 0.4, 0, "auto", (4, 0.4, 1, 8)),
        (2, 8, 2.0, 0, "auto", (4, 2.0, 1, 8)),
        (2, 8, 1.0, 3, "auto", (3, 1.0, 1, 8)),
        (2, 8, 1.0, 0, "cpu", (2, 0.0, 1, 1)),
    ],
)
def test_a_network_on_each_accelerator(
    nodes: int, gpus: float, each: float, wanted: float, device: str, expected: tuple[Any, ...]
) -> None:
    cluster = Cluster(nodes, gpus, joined=False)
    way = ray_data.way_for(Plan(("depth",), device=device), cluster, each, wanted)
    assert (way.predictors, way.gpus, way.share, way.batch) == expected


@pytest.mark.parametrize(
    ("memory", "expected"), [(0.0, 0), (4e9, 1e9), (64e9, 28 * Plan(("depth",)).in_flight)]
)
def test_room_that_readers_and_writers_reserve(memory: float, expected: float) -> None:
    cluster = Cluster(1, 0, joined=False, memory=memory)
    assert ray_data.way_for(Plan(("depth",)), cluster, 1.0, 0).memory == expected


@pytest.mark.parametrize(("device", "each", "gpus"), [("cuda", 1.0, 0), ("auto", 4.0, 2)])
def test_too_few_accelerators(device: str, each: float, gpus: float) -> None:
    with pytest.raises(ResourceError, match="the cluster has"):
        ray_data.way_for(Plan(("depth",), device=device), Cluster(1, gpus, False), each, 0)


def test_what_a_lost_machine_had_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError

    begun: list[list[int]] = []

    def once(work: Any, way: Any, numbered: Any, stopped: Any, seen: set[int]) -> Iterator[int]:
        begun.append([number for number, _ in numbered])
        for number in begun[-1][:2] if len(begun) < 3 else []:
            seen.add(number)
            yield number
        raise ActorDiedError

    monkeypatch.setattr(ray_data, "_once", once)
    jobs = [Job(Path(f"{i}.png"), {}) for i in range(5)]
    arrived: list[Any] = []
    with pytest.raises(ResourceError, match="the Ray cluster fails"):  # nothing came any more
        arrived.extend(ray_data._drawn(None, None, jobs, lambda: False))  # type: ignore[arg-type]
    assert begun == [[0, 1, 2, 3, 4], [2, 3, 4], [4]]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 7, 2500])
def test_blocks_hold_each_job_once_and_no_clip_is_torn(batch: int, length: int) -> None:
    clip = [Job(Path("clip.mp4"), {}, frame) for frame in range(150)]
    todo = [*(Job(Path(f"{i}.png"), {}) for i in range(length)), *clip, Job(Path("last.png"), {})]
    blocks = list(ray_data.blocks(list(enumerate(todo)), batch))
    groups = [group for block in blocks for group in block]
    assert [one for group in groups for one in group] == list(enumerate(todo))
    assert max(map(len, groups)) <= batch
    frames = [block for block in blocks if block[0][0][1].frame is not None]
    assert len(frames) == 2 if batch < 8 else len(frames) <= 3
    assert len(blocks) <= 1010


def test_what_has_begun_may_begin_again_when_the_gate_is_closed() -> None:
    gate = ray_work.Gate()
    assert gate.enter([1, 2])
    assert gate.close() == {1, 2}
    assert gate.enter([1, 2])
    assert not gate.enter([2, 3])


def work_for(weights: Path, tmp_path: Path) -> ray_work.Work:
    plan = Plan(("depth",), model="tiny", weights=str(weights), settings=Settings(steps=1))
    return ray_work.Work(host.completed(plan), str(tmp_path), tmp_path, "1", 1)


def test_a_bug_travels_with_its_traceback(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "read", broken)
    work = work_for(weights, tmp_path)
    row = ray_work.read(work, {"held": pickle.dumps([(0, Job(tmp_path / "a.png", {}))])})
    assert ray_work.write(work, row) == row
    error = pickle.loads(row["held"])
    assert isinstance(error, ZeroDivisionError)
    assert "in broken" in error.__notes__[0]


def test_folders_that_a_machine_does_not_have(weights: Path, tmp_path: Path) -> None:
    work = replace(work_for(weights, tmp_path), here=str(tmp_path / "elsewhere"))
    row = ray_work.read(work, {"held": pickle.dumps([])})
    error = pickle.loads(row["held"])
    assert isinstance(error, ResourceError)
    assert "need the same folders" in error.hint


def test_a_model_that_cannot_be_loaded_is_told_as_it_is(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    work = work_for(weights, tmp_path)
    lost = weights.read_text().replace("/lora/full", "/lora/lost")
    weights.write_text(lost)
    held = [pickle.loads(row["held"]) for row in ray_work.Predict(work, None)({"held": b""})]
    assert [type(one) for one in held] == [ModelError]
    assert isinstance(held[0], DmpError)
    assert held[0].hint or str(held[0])


# On this machine ---------------------------------------------------------------------------


def test_as_the_local_engine_and_resumed_by_it(command: Command, dmp: Dmp, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed in range(4):  # of one shape: where shapes mix, batches may be made of other images
        write_image(photos / f"{seed}.png", seed=seed)
    (photos / "bad.png").write_text("not a picture")
    look = ("--format", "png,npy", "--json", "--batch", "2", "--no-progress")
    how = ("predict", "depth", photos, *command.model, *look)
    out, local = tmp_path / "out", tmp_path / "local"
    ended = command.run(*how, "-o", out, *RAY, env={"DMP_RAY_PREDICTORS": "2"}, timeout=250,
                        patch=ALONE, covered=True)  # fmt: skip
    assert ended.code == 3, ended.err
    status = {name: one["status"] for name, one in ended.records.items()}
    assert status == dict.fromkeys(("0.png", "1.png", "2.png", "3.png"), "done") | {
        "bad.png": "failed"
    }
    assert all(line.startswith("dmp: ") for line in ended.err.splitlines()), ended.err
    assert "2 networks, on the CPU" in ended.err
    again = dmp(*how, "-o", out)
    assert [json.loads(line)["status"] for line in again.out.splitlines()].count("kept") == 4
    assert dmp(*how, "-o", local).code == 3
    assert maps(out) == maps(local)


@pytest.mark.slow
def test_what_needs_all_images_and_what_is_of_a_clip(
    photos: Path, command: Command, tmp_path: Path
) -> None:
    numbered(photos / "clip.mp4", 6)
    look = ("--range", "run", "--side-by-side", "--contact-sheet", "--format", "png,exr")
    done = [
        command.predict(photos, "-o", tmp_path / name / "out", *look, *how, timeout=250)
        for name, how in (("ray", RAY), ("local", ()))
    ]
    assert [one.code for one in done] == [0, 0], done[0].err
    assert sorted(line.split("/ray/")[-1] for line in done[0].lines) == sorted(
        line.split("/local/")[-1] for line in done[1].lines
    )
    assert maps(tmp_path / "ray") == maps(tmp_path / "local")
    assert not list((tmp_path / "ray" / "out").glob(".dmp-*"))


def session_of(running: Running) -> str:
    """The temporary folder of the cluster that a run has started."""
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    for child in children.read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        for word in words:
            if b"/dmp-ray-" in word:
                return "dmp-ray-" + os.fsdecode(word).split("/dmp-ray-")[1].split("/")[0]
    raise RuntimeError("it has started no cluster")


def started(command: Command, many: Path, out: Path, *words: str) -> Running:
    running = command.start(
        "predict", "depth", many, "-o", out, *RAY, *command.model, "--json", *words
    )
    running.until(lambda one: one.out.read_bytes().count(b"\n") >= 3, 250)
    return running


def complete(command: Command, many: Path, out: Path) -> None:
    """One more run, by the local engine: then all is as if nothing had been."""
    assert command.predict(many, "-o", out, "-q").code == 0
    assert command.predict(many, "-o", out.with_name("local"), "-q").code == 0
    assert maps(out) == maps(out.with_name("local"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped(
    number: signal.Signals, many: Path, command: Command, tmp_path: Path
) -> None:
    running = started(command, many, tmp_path / "out")
    session = session_of(running)
    begun = time.monotonic()
    running.send(number)
    ended = running.end()
    assert ended.code == (-number if number == signal.SIGKILL else 128 + number), ended.err
    assert time.monotonic() - begun < 10
    assert gone(session)
    if number != signal.SIGKILL:
        printed = {Path(name).stem for name in ended.records}
        assert {path.name.split(".")[0] for path in (tmp_path / "out").glob("*.png")} == printed
    complete(command, many, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_cluster_starts(
    number: signal.Signals, photos: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    running = command.start("predict", "depth", photos, "-o", out, *RAY, *command.model)
    found: list[str] = []

    def begun(one: Running) -> bool:
        try:
            found.append(session_of(one))
        except RuntimeError:
            return False
        return True

    running.until(begun)
    running.send(number)
    ended = running.end(60)
    assert ended.code == 128 + number, ended.err
    assert "Traceback" not in ended.err
    assert gone(found[0])
    assert not list(out.glob("*.png"))


# On several machines -----------------------------------------------------------------------


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with two logical CPUs each, on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster as Nodes

    one: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 << 20}
    cluster = Nodes(initialize_head=True, head_node_args={**one, "include_dashboard": False})
    try:
        cluster.add_node(**one)
        yield cluster
    finally:
        cluster.shutdown()


def records(ended: Ended) -> list[str]:
    return sorted(Path(json.loads(line)["input"]).name for line in ended.out.splitlines())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_node_that_is_killed_in_the_middle(
    nodes: Any, many: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    running = started(command, many, out, "--ray-address", nodes.address)
    nodes.remove_node(nodes.list_all_nodes()[1], allow_graceful=False)
    before = len(list(out.glob("*.png")))
    ended = running.end(280)
    assert ended.code == 0, ended.err
    assert before < 150
    assert "cluster of 2 nodes joined: 2 networks" in ended.err
    assert records(ended) == sorted(path.name for path in many.iterdir())
    complete(command, many, out)
    assert processes(Path(nodes.head_node.get_session_dir_path()).name)  # it was joined: it stays
