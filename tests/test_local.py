"""The local engine: what it writes, and how failures travel."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dmp_cli import jobs, predict
from dmp_cli.engines import flow, local, saving, steps
from dmp_cli.errors import ResourceError
from dmp_cli.jobs import Job, Result
from dmp_cli.networks.fetching import fetch
from dmp_cli.outputs import writers
from dmp_cli.plan import Output, Plan, Settings
from dmp_cli.predict import Predictor
from tests import workers
from tests.conftest import write_image


def plan_for(weights: Path, *tasks: str, **options: object) -> Plan:
    look = {name: options.pop(name) for name in set(options) & set(Output.__dataclass_fields__)}
    output = Output(**({"formats": ("png", "npy")} | look))  # type: ignore[arg-type]
    given = {"model": "tiny", "weights": str(weights), "output": output} | options
    return Plan(tasks or ("depth",), settings=Settings(steps=1), **given)  # type: ignore[arg-type]


def jobs_in(folder: Path, out: Path, plan: Plan) -> list[Job]:
    found = jobs.find([str(folder)], out, print)
    return jobs.plan_targets(found, out, plan.tasks, plan.output)


def run(plan: Plan, todo: list[Job]) -> list[Result]:
    return list(local.run(plan, todo, print))


def test_each_job_gets_its_files(photos: Path, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights, "depth", "segmentation")
    results = run(plan, jobs_in(photos, tmp_path / "out", plan))
    assert sorted(result.job.source.name for result in results) == ["a.png", "b.jpg", "c.webp"]
    for result in results:
        assert result.errors == ()
        assert set(result.written) == set(result.job.targets.values())
        assert result.seconds > 0
        with Image.open(result.job.source) as image:
            size = image.size
        for (task, form), path in result.job.targets.items():
            if form == "png":
                with Image.open(path) as image:
                    assert image.size == size
            else:
                assert np.load(path).shape == size[::-1], task
    assert (tmp_path / "out/sub/c.depth.npy").exists()
    assert not list((tmp_path / "out").rglob("*.part"))


def test_files_hold_what_the_predictor_gives(photos: Path, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights)
    run(plan, jobs_in(photos, tmp_path / "out", plan))
    expected = Predictor("depth", model="tiny", weights=weights, steps=1)(photos / "a.png")
    assert np.array_equal(np.load(tmp_path / "out/a.depth.npy"), expected)


def test_pictures_say_where_they_come_from(photos: Path, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights)
    run(plan, jobs_in(photos, tmp_path / "out", plan))
    with Image.open(tmp_path / "out/a.depth.png") as image:
        text = image.info
    assert (text["Task"], text["Model"], text["Source"]) == ("depth", "tiny", "a.png")
    assert "steps=1" in text["Settings"]
    assert len(text["Weights-SHA256"]) == 64
    assert text["near"].endswith(" m")


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_bad_files_fail_and_the_rest_goes_on(
    photos: Path, weights: Path, tmp_path: Path, batch: int
) -> None:
    (photos / "bad.png").write_bytes(b"not a picture")
    (photos / "empty.jpg").touch()
    plan = plan_for(weights, batch=batch)
    results = run(plan, jobs_in(photos, tmp_path / "out", plan))
    failed = {r.job.source.name: r.errors[0] for r in results if r.errors}
    assert set(failed) == {"bad.png", "empty.jpg"}
    assert "not an image" in failed["bad.png"]
    assert failed["empty.jpg"].startswith("empty")
    assert len(list((tmp_path / "out").rglob("*.depth.png"))) == 3


@pytest.mark.parametrize("at", [0, 9])
def test_a_bad_file_is_told_before_its_batch_is_full(
    weights: Path, tmp_path: Path, at: int
) -> None:
    for i in range(40):
        write_image(tmp_path / f"in/{i:02}.png", seed=i)
    (tmp_path / f"in/{at:02}.png").write_bytes(b"not a picture")
    plan = plan_for(weights, batch=8)
    todo = jobs_in(tmp_path / "in", tmp_path / "out", plan)
    results: list[Result] = []
    for one in flow.stream(workers.load(plan, print, 1), todo, stopped=lambda: failed(results)):
        results.append(one)
    assert [bool(one.errors) for one in results].index(True) == at // 8 * 8
    assert len(results) <= 8 * 4  # the rest is left


def failed(results: list[Result]) -> bool:
    return any(one.errors for one in results)


@pytest.mark.parametrize("until", ["a map waits", "one is complete"])
def test_what_waits_is_left_when_a_run_is_stopped(
    weights: Path, tmp_path: Path, until: str
) -> None:
    """Thousands that wait for the span of the run take longer than a signal leaves."""
    for i in range(30):
        write_image(tmp_path / f"in/{i:02}.png", seed=i)
    (tmp_path / "in/03.png").write_bytes(b"not a picture")
    plan, out = plan_for(weights, formats=("png",), range="run"), tmp_path / "out"
    todo, results = jobs_in(tmp_path / "in", out, plan), list[Result]()

    def stopped() -> bool:
        if until == "a map waits":
            return len(results) >= 6
        return any(one.done and one.made for one in results)

    for one in flow.stream(workers.load(plan, print, 1), todo, out, stopped):
        results.append(one)
    done = [one for one in results if one.done]
    assert [one.job.source.name for one in done if one.errors] == ["03.png"]
    written = [one for one in done if one.made]
    assert len(written) == 0 if until == "a map waits" else 1 <= len(written) <= 8
    assert {path.name for path in out.iterdir()} == {
        path.name for one in written for path in one.written
    }


def test_jobs_that_are_lost_are_an_error(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(*arguments: object) -> Iterator[Result | saving.Waiting]:
        made = written(*arguments)  # type: ignore[arg-type]
        next(made, None)
        yield from made

    written = flow.written
    monkeypatch.setattr(flow, "written", lossy)
    plan = plan_for(weights)
    todo = jobs_in(photos, tmp_path / "out", plan)
    network = workers.load(plan, print, 1)
    with pytest.raises(ResourceError, match="1 of 3 images neither done nor failed"):
        list(flow.stream(network, todo))
    assert len(list(flow.stream(network, todo, stopped=lambda: True))) == 0


def test_a_file_that_vanishes_fails(photos: Path, weights: Path, tmp_path: Path) -> None:
    plan = plan_for(weights)
    todo = jobs_in(photos, tmp_path / "out", plan)
    (photos / "a.png").unlink()
    failed = [result for result in run(plan, todo) if result.errors]
    assert [result.job.source.name for result in failed] == ["a.png"]
    assert "No such file" in failed[0].errors[0]


def test_images_of_equal_shape_share_a_batch(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        write_image(tmp_path / f"in/{i}.png", *((64, 96) if i % 2 else (96, 64)), i)
    sizes: list[int] = []
    draw = Predictor.draw

    def counted(self: Predictor, batch: list[object], *names: object) -> list[object]:
        sizes.append(len(batch))
        return draw(self, batch, *names)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(Predictor, "draw", counted)
    plan = plan_for(weights, batch=3)
    results = run(plan, jobs_in(tmp_path / "in", tmp_path / "out", plan))
    assert sizes == [3, 3]
    assert len(results) == 6


def test_a_full_disk_ends_the_run(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise ResourceError("out/a.png cannot be written: No space left on device")

    monkeypatch.setattr(writers, "write_npy", full)
    plan = plan_for(weights)
    with pytest.raises(ResourceError, match="No space left"):
        run(plan, jobs_in(photos, tmp_path / "out", plan))


@pytest.mark.parametrize("step", ["read", "draw", "write"])
def test_a_bug_in_any_thread_surfaces_and_nothing_hangs(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(saving if step == "write" else steps, step, broken)
    plan = plan_for(weights)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(plan, jobs_in(photos, tmp_path / "out", plan))
    assert threading.active_count() <= before


def test_a_name_that_is_too_long_fails_alone(weights: Path, tmp_path: Path) -> None:
    write_image(tmp_path / f"in/{'x' * 250}.png")
    write_image(tmp_path / "in/short.png")
    plan = plan_for(weights)
    results = run(plan, jobs_in(tmp_path / "in", tmp_path / "out", plan))
    assert [bool(result.errors) for result in results] == [False, True]
    assert "cannot be written" in results[1].errors[0]


# The device goes on while a batch is fetched ------------------------------------------------


class Slow:
    """Fetching of batches, which may take until the next is begun, as of a device by itself."""

    def __init__(self, count: int, waits: bool) -> None:
        self.begun = [threading.Event() for _ in range(count)]
        self.waits, self.late, self.ahead = waits, list[int](), 0

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[Any]]:
        number = sum(one.is_set() for one in self.begun)
        self.begun[number].set()
        wait = fetch(tensors)

        def fetched() -> list[Any]:
            last = number + 1 == len(self.begun)
            if self.waits and not last and not self.begun[number + 1].wait(20):
                self.late.append(number)
            self.ahead = max(self.ahead, sum(one.is_set() for one in self.begun) - number - 1)
            return wait()

        return fetched


@pytest.mark.parametrize("at_once", [1, 2])
def test_of_two_at_once_the_next_is_begun_before_the_last_is_fetched(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    for i in range(4):
        write_image(tmp_path / f"in/{i}.png", 64, 64, i)
    plan = plan_for(weights, "depth", "normals", batch=1)
    network = Predictor.from_plan(plan)
    wanted = written(network, tmp_path / "in", tmp_path / "wanted")
    slow = Slow(4, waits=at_once == 2)  # with 1, it would wait in vain
    monkeypatch.setattr(predict, "fetch", slow.fetch)
    network.at_once = at_once
    found = written(network, tmp_path / "in", tmp_path / "found")
    assert slow.late == []
    assert all(one.is_set() for one in slow.begun)
    assert slow.ahead == at_once - 1
    assert len(found) == 8
    assert found == wanted


def test_two_batches_at_once_are_halved_and_mended(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(9):
        write_image(tmp_path / f"in/{i}.png", 64, 64, i)
    plan = plan_for(weights, "depth", "normals", batch=4, dtype="bf16")
    network = Predictor.from_plan(plan)
    backbone = network._backbone
    decode, encode, inside = backbone.decode, backbone.encode, threading.Lock()

    def small(images: torch.Tensor) -> torch.Tensor:
        assert inside.acquire(blocking=False)  # the device is told by one thread at a time
        try:
            if len(images) > 2:
                raise torch.OutOfMemoryError("too much")
            return encode(images)
        finally:
            inside.release()

    def overflowing(latents: torch.Tensor) -> torch.Tensor:
        pictures = decode(latents)
        return pictures if backbone._wide else pictures * float("inf")

    monkeypatch.setattr(backbone, "encode", small)
    monkeypatch.setattr(backbone, "decode", overflowing)
    network.at_once = 2
    results = [*flow.stream(network, jobs_in(tmp_path / "in", tmp_path / "out", plan))]
    assert [result.job.source.name for result in results] == [f"{i}.png" for i in range(9)]
    assert not [error for result in results for error in result.errors]
    assert all("drawn again in fp32" in result.notes[0] for result in results)
    assert network.batch <= 2


def written(network: Predictor, images: Path, out: Path) -> dict[str, bytes]:
    results = [*flow.stream(network, jobs_in(images, out, network.plan))]
    assert not [error for result in results for error in result.errors]
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.npy"))}
