"""`dmp bench`: what it measures, what it says of that, and how it fails."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmp_cli import host
from dmp_cli.bench import advice, figures, machine, passes
from dmp_cli.bench.clock import Clock, Instead
from dmp_cli.bench.figures import NETWORK, READING, STAGES, WRITING, Figures
from dmp_cli.bench.passes import Meter, Serial, Supply
from dmp_cli.errors import ImageError
from dmp_cli.host import Prepared
from dmp_cli.jobs import Input
from dmp_cli.plan import Plan
from tests import workers
from tests.conftest import Dmp

TINY = ("--seconds", "0.1", "--device", "cpu")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


# The command ------------------------------------------------------------------------------


def test_all_is_said_within_80_columns(
    dmp: Dmp, photos: Path, model: tuple[str, ...], temporary: Path
) -> None:
    before = sorted(photos.rglob("*"))
    ran = dmp("bench", photos, *model, *TINY)
    assert ran.code == 0
    assert all(f"  {title}" in ran.out for title in STAGES.values())
    for part in ("what", "before the first map", "stages of an image", "a run (", "bottleneck: "):
        assert f"\n{part}" in f"\n{ran.out}"
    assert "\n- " in ran.out.partition("bottleneck: ")[2]
    assert max(map(len, ran.out.splitlines())) < 80
    assert sorted(photos.rglob("*")) == before
    assert not list(temporary.glob("dmp-*"))


@pytest.mark.parametrize(
    ("words", "tasks", "calls"),
    [
        ((), ["depth"], {"depth": 3}),
        (("--tasks", "normals,depth", "--batch", "2"), ["normals", "depth"], None),
        (("--task", "all", "--format", "npy,exr"), None, None),
    ],
)
def test_figures_fit_together(
    dmp: Dmp, photos: Path, weights: Path, words: tuple[str, ...],
    tasks: list[str] | None, calls: dict[str, int] | None,
) -> None:  # fmt: skip
    model = ("--weights", weights, "--model", "tiny", "--steps", "3")
    ran = dmp("bench", photos, *model, *TINY, *words, "--json", "-q")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    made, stages, run = found["pipeline"], found["stages"], found["run"]
    names = run["tasks"]
    assert names == (tasks or ["depth", "normals", "segmentation", "albedo", "shading"])
    assert run["calls"] == (calls or dict.fromkeys(names, 3))
    assert made["maps"] == len(names) * made["images"] > 0
    assert set(stages["seconds"]) == set(STAGES)
    assert all(stages["seconds"][name] > 0 for name in ("read", "encode", "unet", "decode"))
    assert stages["unet_step"] == pytest.approx(stages["seconds"]["unet"] / 3 / len(names))
    assert made["images_per_second"] == pytest.approx(made["images"] / made["seconds"])
    assert 0 < made["p50"] <= made["p95"]
    assert made["idle"] is None or 0 <= made["idle"] < 1
    assert found["bottleneck"] in STAGES
    assert 1 <= len(found["advice"]) <= 3
    assert found["memory"]["host"] > 50_000_000
    assert found["failed"] == {}
    assert found["machine"]["device"] == "cpu"


def test_what_fails_is_told_once_and_left_out(
    dmp: Dmp, photos: Path, model: tuple[str, ...]
) -> None:
    (photos / "0.png").write_bytes(b"not a picture")
    (photos / "z.jpg").touch()
    ran = dmp("bench", photos, *model, "--seconds", "1", "--json")
    assert ran.code == 3
    failed = json.loads(ran.out)["failed"]
    assert failed.keys() == {str(photos / "0.png"), str(photos / "z.jpg")}
    assert all(ran.err.count(f"failed: {path}: {why}") == 1 for path, why in failed.items())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["BAD", "--model", "untrained"], 3, "no image could be predicted"),
        (["EMPTY"], 4, "no image found"),
        (["nowhere"], 2, "no such file or folder"),
        ([], 2, "give images"),
        (["IN", "--task", "dept"], 2, "unknown task 'dept'"),
        (["IN", "--task", ","], 2, "no task named"),
        (["IN", "--seconds", "0"], 2, "--seconds 0"),
        (["IN", "--seconds", "nan"], 2, "--seconds nan"),
        (["IN", "--seconds", "1e9"], 2, "--seconds 1e+09"),
        (["IN", "--format", "jpg"], 2, "unknown format jpg"),
        (["IN", "--batch", "0"], 2, "--batch 0"),
        (["IN", "--model", "nope"], 2, "unknown model 'nope'"),
        (["IN", "--model", "dmp"], 5, "no weights for depth"),
        (["IN", "--model", "untrained", "--device", "cuda:77"], 6, "--device cuda:77"),
        (["IN", "--model", "untrained", "--device", "cpu", "--dtype", "fp16"], 2, "not for the"),
        (["IN", "--model", "untrained", "-o", "out"], 2, "No such option"),
    ],
)
def test_exit_codes(
    dmp: Dmp, photos: Path, tmp_path: Path, temporary: Path,
    words: list[str], code: int, message: str,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    places = {"IN": photos, "EMPTY": tmp_path / "empty", "BAD": tmp_path / "bad.png"}
    ran = dmp("bench", *(places.get(word, word) for word in words))
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert not list(temporary.glob("dmp-*"))


# How it is measured -----------------------------------------------------------------------


def supply(photos: Path, out: Path, weights: Path, *tasks: str) -> Supply:
    plan = Plan(tasks or ("depth",), model="tiny", weights=str(weights), batch=2)
    inputs = [Input(path, Path(path.name)) for path in (photos / "a.png", photos / "b.jpg")]
    return Supply(inputs, out, plan)


def test_images_go_round_with_names_apart(photos: Path, weights: Path, tmp_path: Path) -> None:
    jobs = supply(photos, tmp_path, weights)
    made = [*jobs.jobs(3), *jobs.jobs(2)]
    assert [job.source.name for job in made] == ["a.png", "b.jpg", "a.png", "b.jpg", "a.png"]
    assert len({path for job in made for path in job.targets.values()}) == 5
    jobs.drop({photos / "a.png"})
    assert {job.source.name for job in jobs.jobs(4)} == {"b.jpg"}
    with pytest.raises(ImageError, match="no image could be predicted"):
        jobs.drop({photos / "b.jpg"})


def test_frames_of_a_clip_keep_their_number(weights: Path, tmp_path: Path) -> None:
    clip = [Input(tmp_path / "a.mp4", Path("a.mp4"), frame) for frame in (0, 1)]
    plan = Plan(("depth",), model="tiny", weights=str(weights))
    jobs = Supply(clip, tmp_path / "out", plan).jobs(4)
    assert [job.frame for job in jobs] == [0, 1, 0, 1]
    assert len({path for job in jobs for path in job.targets.values()}) == 4


def test_unreadable_inputs_are_dropped_before_anything_is_loaded(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    jobs, told = supply(photos, tmp_path, weights), dict[Path, str]()
    (photos / "a.png").write_bytes(b"")
    passes.readable(host.completed(jobs.plan), jobs, told.__setitem__)
    assert told.keys() == {photos / "a.png"}
    assert [item.path for item in jobs.inputs] == [photos / "b.jpg"]


def test_the_first_pass_counts_images_and_their_failures(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    jobs = supply(photos, tmp_path / "out", weights, "depth", "albedo")
    (photos / "b.jpg").write_bytes(b"")
    settled: list[None] = []
    clock = Clock(lambda: settled.append(None))
    serial = Serial(workers.load(jobs.plan, print, 1), clock, jobs.out)
    serial.run(iter(jobs.jobs(6)))
    assert (serial.taken, serial.images) == (6, 3)
    assert serial.failed.keys() == {photos / "b.jpg"}
    assert len(settled) % 2 == 0
    found = serial.stages().seconds
    assert min(found.values()) >= 0
    spent = clock.seconds
    assert found["read"] == pytest.approx(spent["read"] / 3)
    assert sum(found[name] for name in NETWORK) == pytest.approx(spent["draw"] / 3)
    assert sum(found[name] for name in WRITING) >= spent["save"] / 3 * 0.999
    assert not [path for path in jobs.out.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("seconds", "taken"), [(0.0, 2), (float("inf"), 6)])
def test_the_first_pass_ends_after_its_time_but_not_before_a_batch(
    photos: Path, weights: Path, tmp_path: Path, seconds: float, taken: int
) -> None:
    jobs = supply(photos, tmp_path / "out", weights)
    serial = Serial(workers.load(jobs.plan, print, 1), Clock(lambda: None), jobs.out)
    serial.run(iter(jobs.jobs(6)), seconds)
    assert serial.taken == taken


def test_nothing_predicted_has_no_stages(photos: Path, weights: Path, tmp_path: Path) -> None:
    jobs = supply(photos, tmp_path / "out", weights)
    for path in (photos / "a.png", photos / "b.jpg"):
        path.write_bytes(b"")
    network = workers.load(jobs.plan, print, 1)
    serial = Serial(network, Clock(lambda: None), jobs.out)
    serial.run(iter(jobs.jobs(2)))
    with pytest.raises(ImageError, match="no image could be predicted"):
        serial.stages()
    with pytest.raises(ImageError, match="no image could be predicted"):
        passes.pipeline(network, jobs, 0.0, 1.0)


def test_the_second_pass_is_a_run_whose_files_are_deleted(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    jobs = supply(photos, tmp_path / "out", weights, "depth", "albedo")
    (photos / "b.jpg").write_bytes(b"")
    made, failed = passes.pipeline(workers.load(jobs.plan, print, 1), jobs, 0.2, 0.1)
    assert failed.keys() == {photos / "b.jpg"}
    assert made.maps == 2 * made.images > 0
    assert not [path for path in jobs.out.rglob("*") if path.is_file()]


def test_the_device_waits_between_its_calls(photos: Path, weights: Path, tmp_path: Path) -> None:
    meter = Meter(workers.load(supply(photos, tmp_path, weights).plan, print, 1))
    assert meter.idle is None
    image = Prepared(4, 4, {64: np.zeros((4, 4, 3), np.uint8)})
    assert meter.draw([image], ["depth"])[0].keys() == {"depth"}
    assert meter.idle is None
    meter.spans = [(0.0, 1.0), (1.5, 2.0), (2.0, 4.0)]
    assert meter.idle == pytest.approx(0.5 / 4)
    meter.batch = 1
    assert meter.batch == 1


def test_what_stands_in_for_an_object_is_it_in_all_else() -> None:
    clock = Clock(lambda: None)
    text: Any = Instead("a word", {"upper": lambda: "other"})
    assert (text.upper(), text.title()) == ("other", "A Word")
    timed = clock.around(text, {"title": "spelling"})
    assert (timed.title(), timed.upper(), list(clock.seconds)) == ("A Word", "other", ["spelling"])


def test_the_processor_is_described() -> None:
    here = machine.describe(torch.device("cpu"))
    assert here.processor
    assert here.cores >= 1
    assert (here.device, here.device_name, here.torch) == ("cpu", "", torch.__version__)
    assert machine.peaks(torch.device("cpu")).device is None


# What is said of it -----------------------------------------------------------------------


def measured(
    idle: float | None = 0.0, cpu: float = 0.1, steps: int = 1, device: str = "cuda",
    dtype: str = "fp16", load: float = 0.0, **seconds: float,
) -> Figures:  # fmt: skip
    """Figures of 16 cores and two tasks; of an image 0.1 s in the network, 0.01 beside it."""
    each = dict.fromkeys(STAGES, 0.0) | {"read": 0.005, "write": 0.005, "decode": 0.1} | seconds
    here = figures.Machine("a processor", 16, 8, "2.13", device, "", "amx_bf16", False)
    run = figures.Run(
        "demo", ("depth", "albedo"), {}, {"depth": steps, "albedo": steps}, dtype, "auto", "auto",
        4, 2, 2, ("png",),
    )  # fmt: skip
    return Figures(
        here, run, figures.Start(load / 2, load / 2, 1.0), figures.Stages(5, each),
        figures.Pipeline(50, 100, 5.0, 0.1, 0.2, idle, cpu), figures.Memory(1, 1),
    )  # fmt: skip


Change = Callable[[Figures], Figures]


def with_machine(**changes: Any) -> Change:
    return lambda found: replace(found, machine=replace(found.machine, **changes))


def with_run(**changes: Any) -> Change:
    return lambda found: replace(found, run=replace(found.run, **changes))


SAME: Change = with_run()
FP32 = with_run(dtype_asked="fp32")
WITH_TINY = with_run(tiny_decoder=False)  # which the model has, and which does not draw


@pytest.mark.parametrize(
    ("given", "change", "stage", "said"),
    [
        ({}, SAME, "decode", ["the device is busy 100% of the time: of the options, only a s"]),
        ({"idle": None}, SAME, "decode", ["the device is busy all the time"]),
        ({"steps": 5, "unet": 0.3}, SAME, "unet",
         ["75% of the network's time: --fast (one step instead of 5) would save about 0.24 s"]),
        ({"steps": 5, "unet": 0.02}, SAME, "decode", ["the device is busy"]),
        ({"unet": 0.3}, SAME, "unet", ["the device is busy"]),
        ({"idle": 0.4, "read": 0.5}, SAME, "read", ["40% of the time for readers: --readers 5"]),
        ({"idle": 0.4, "look": 0.5}, SAME, "look", ["40% of the time for writers: --writers 6"]),
        ({"idle": 0.4, "read": 9.0}, SAME, "read", ["--readers 16"]),
        ({"idle": 0.4, "read": 0.5, "cpu": 1.6}, SAME, "read",
         ["0.505 s of a core an image, so that 16 cores do at most 31.7 images/s", "--shard"]),
        ({"idle": 0.4, "read": 0.5}, with_machine(cores=2), "read", ["2 cores do at most 3.96"]),
        ({"device": "cpu", "dtype": "bf16"}, SAME, "decode",
         ["no accelerator found: the network, 91% of an image's time, runs on 8 threads"]),
        ({"device": "cpu", "dtype": "bf16"}, with_machine(idle_gpu=True), "decode",
         ["there is an NVIDIA driver, but torch 2.13 is built without CUDA"]),
        ({"device": "cpu", "dtype": "fp32"}, FP32, "decode",
         ["fp32 was asked for on a processor with amx_bf16: dmp bench --dtype bf16"]),
        ({"device": "cuda:1", "dtype": "fp32"}, FP32, "decode",
         ["fp32 was asked for on cuda:1: dmp bench --dtype fp16"]),
        ({"load": 4.0}, SAME, "decode", ["starting takes 4 s, as long as 40 images"]),
        ({"unet": 0.3}, WITH_TINY, "unet",
         ["the VAE's decoder is 25% of the network's time: --tiny-decoder draws with a small one",
          "its maps differ"]),
    ],
)  # fmt: skip
def test_advice_is_of_what_was_measured(
    given: dict[str, Any], change: Change, stage: str, said: list[str]
) -> None:
    found = change(measured(**given))
    assert advice.bottleneck(found) == stage
    text = "\n".join(advice.advice(found))
    assert [words for words in said if words not in text] == []


def test_what_does_not_apply_is_not_said() -> None:
    plain = FP32(with_machine(bf16=None)(measured(device="cpu", dtype="fp32")))
    assert not any("bf16" in text for text in advice.advice(plain))
    chosen = measured(device="cpu", dtype="fp32")  # by dmp, for a small network
    assert not any("bf16" in text for text in advice.advice(chosen))
    asked = with_run(device_asked="cpu")(plain)
    assert not any("accelerator" in text for text in advice.advice(asked))
    for tiny, given in ((None, {}), (True, {}), (False, {"unet": 0.5})):  # 17 % of it is little
        drawn = with_run(tiny_decoder=tiny)(measured(**given))
        assert not any("--tiny-decoder" in text for text in advice.advice(drawn))


def test_of_more_than_three_the_decoder_is_left_out_first() -> None:
    every = FP32(WITH_TINY(measured(device="cpu", dtype="fp32", steps=5, unet=0.3, load=9.0)))
    first, second, third = advice.advice(every)
    assert "--fast" in first
    assert "no accelerator" in second
    assert "--dtype bf16" in third


def test_stages_are_each_somewhere() -> None:
    assert (*READING, *NETWORK, *WRITING) == tuple(STAGES)
