"""Shards: each image in one of them, and in the same one tomorrow; the guides of docs/farm.md."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dmp_cli import shards
from dmp_cli.errors import UsageError
from dmp_cli.jobs import Job
from tests.conftest import Dmp, write_image

PAGE = (Path(__file__).parent.parent / "docs" / "farm.md").read_text()
SLURM = "SLURM_ARRAY_TASK_"


def named(count: int, pattern: str = "shots/{:05}.jpg") -> list[Job]:
    return [Job(Path("in") / name, {}, name=name) for name in map(pattern.format, range(count))]


def split(jobs: list[Job], count: int) -> list[list[Job]]:
    return [shards.part(jobs, (number, count)) for number in range(1, count + 1)]


# Which shard -------------------------------------------------------------------------------


def slurm(at: int, first: int, last: int, step: int | None = 1) -> dict[str, str]:
    count = len(range(first, last + 1, step or 1))
    found = {"ID": at, "MIN": first, "MAX": last, "COUNT": count} | ({"STEP": step} if step else {})
    return {SLURM + name: str(number) for name, number in found.items()}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (None, {"RANK": "1", "WORLD_SIZE": "4"}, None),
        ("1/1", {}, (1, 1)),
        ("2/8", {"RANK": "1", "WORLD_SIZE": "4"}, (2, 8)),
        ("auto", slurm(0, 0, 7), (1, 8)),
        ("auto", slurm(7, 0, 7), (8, 8)),
        ("auto", slurm(3, 1, 4), (3, 4)),
        ("auto", slurm(14, 10, 18, 2), (3, 5)),
        ("auto", slurm(5, 5, 5), (1, 1)),
        ("auto", slurm(2, 1, 2, None), (2, 2)),
        ("auto", {"RANK": "0", "WORLD_SIZE": "4"}, (1, 4)),
        ("auto", {"RANK": "3", "WORLD_SIZE": "4"}, (4, 4)),
        ("auto", slurm(1, 1, 2) | {"RANK": "3", "WORLD_SIZE": "4"}, (1, 2)),
    ],
)
def test_a_part_is_named_or_known_from_the_environment(
    text: str | None, environment: Mapping[str, str], expected: shards.Shard | None
) -> None:
    assert shards.parse(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("0/4", {}, "no such part"),
        ("5/4", {}, "no such part"),
        ("0/0", {}, "no such part"),
        ("", {}, "I/N"),
        ("1", {}, "I/N"),
        ("1/", {}, "I/N"),
        ("-1/4", {}, "I/N"),
        ("1/4/2", {}, "I/N"),
        ("one/two", {}, "I/N"),
        ("1.5/4", {}, "I/N"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor RANK"),
        ("auto", {"RANK": "0"}, "WORLD_SIZE is ''"),
        ("auto", {"RANK": "4", "WORLD_SIZE": "4"}, "part 5 of 4"),
        ("auto", {"RANK": "-1", "WORLD_SIZE": "4"}, "RANK is '-1'"),
        ("auto", {SLURM + "ID": "1"}, "MIN is ''"),
        ("auto", slurm(1, 1, 4) | {SLURM + "COUNT": "many"}, "COUNT is 'many'"),
        ("auto", slurm(9, 1, 4), "part 9 of 4"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(
    text: str, environment: Mapping[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as raised:
        shards.parse(text, environment)
    assert "1/4" in raised.value.hint


# What is in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_every_image_is_in_one_part_in_its_order(count: int) -> None:
    jobs = named(500)
    parts = split(jobs, count)
    for part in parts:
        assert part == [job for job in jobs if job in part]
    assert sorted(job.name for part in parts for job in part) == [job.name for job in jobs]


def test_without_a_shard_it_is_all() -> None:
    jobs = named(5)
    assert shards.part(jobs, None) == jobs


@pytest.mark.parametrize("pattern", ["{:05}.jpg", "a long folder/shot {}.exr", "{0}/{0}.png"])
@pytest.mark.parametrize("count", [2, 8, 10])
def test_ten_thousand_images_are_shared_evenly(pattern: str, count: int) -> None:
    even = 10_000 / count
    for part in split(named(10_000, pattern), count):
        assert abs(len(part) - even) < 5 * even**0.5  # five standard deviations


def test_an_image_stays_in_its_part_when_others_come_and_go() -> None:
    jobs = named(300)
    more = sorted(jobs + named(300, "more/{}.jpg"), key=lambda job: job.name)
    for number in range(1, 5):
        before = shards.part(jobs, (number, 4))
        after = shards.part(more, (number, 4))
        fewer = shards.part(jobs[::2], (number, 4))
        assert [job for job in after if job in jobs] == before
        assert [job for job in before if job in jobs[::2]] == fewer


def test_a_part_is_the_same_on_every_machine_and_in_every_version() -> None:
    parts = split(named(12, "{}.jpg"), 3)
    names = [" ".join(job.name.removesuffix(".jpg") for job in part) for part in parts]
    assert names == ["0 6 10", "4 7 8 11", "1 2 3 5 9"]


def test_a_name_that_is_not_utf_8_has_a_part() -> None:
    job = Job(Path("in"), {}, name=os.fsdecode(b"\xff\xfe.jpg"))
    assert sum(map(len, split([job], 4))) == 1


def test_a_hundred_frames_of_a_clip_stay_together() -> None:
    frames = [Job(Path("a.mp4"), {}, frame, "a.mp4") for frame in range(1000)]
    parts = split(frames, 3)
    assert sum(map(len, parts)) == 1000
    for part in parts:
        assert part
        blocks = {job.frame // 100 for job in part if job.frame is not None}
        assert len(part) == 100 * len(blocks)


# The command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ("--shard 3/2", "no such part", "1/4"),
        ("--shard auto", "neither SLURM_ARRAY_TASK_ID nor RANK", "1/4"),
        ("--shard 1/2 --range run", "--range run needs all inputs", "--range LO,HI"),
        ("--shard 1/2 --contact-sheet", "--contact-sheet needs all inputs", "leave out"),
        ("--shard 1/2 --video", "--video needs all inputs", "leave out"),
    ],
)
def test_a_part_is_refused_before_anything_is_written(
    dmp: Dmp, photos: Path, model: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, options: str, said: str, hint: str,
) -> None:  # fmt: skip
    monkeypatch.delenv(SLURM + "ID", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    out = tmp_path / "out"
    ran = dmp("predict", "depth", photos, "-o", out, *model, *options.split())
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert hint in ran.err
    assert not out.exists()


# docs/farm.md ------------------------------------------------------------------------------


def guide(name: str) -> str:
    """The commands of a guide."""
    (found,) = re.findall(rf"<!-- guide: {name} -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


class Farm:
    """A folder with photos that machines share, and commands that are typed on them."""

    def __init__(self, root: Path, weights: Path, programs: Path) -> None:
        self.root = root
        paths = os.pathsep.join([str(programs), os.environ["PATH"]])
        inherited = {name: text for name, text in os.environ.items() if "SLURM" not in name}
        self._environment = inherited | {
            "PATH": paths, "DMP_HOME": str(root / "kept"), "HF_HOME": str(root / "hf"),
            "HF_HUB_OFFLINE": "1", "DMP_WEIGHTS": str(weights), "DMP_MODEL": "tiny",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        for seed in range(8):
            write_image(root / f"photos/{seed}.png", seed=seed)

    def start(self, text: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-eu", "-c", text], cwd=self.root, env=self._environment | dict(environment),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def type(self, text: str, *machines: Mapping[str, str]) -> list[tuple[str, str]]:
        """Run commands, on several machines at once; what each printed on its two streams."""
        running = [self.start(text, environment) for environment in machines or ({},)]
        ended = [one.communicate(timeout=240) for one in running]
        assert [one.returncode for one in running] == [0] * len(running), ended
        return ended

    def made(self) -> set[str]:
        return {path.name for path in (self.root / "out").glob("*.png")}

    def done(self) -> list[str]:
        """The inputs that the manifests say are done, one in two manifests twice."""
        return sorted(name for names in self.records().values() for name in names)

    def records(self) -> dict[str, list[str]]:
        """The inputs that each manifest says are done."""
        found = {}
        for path in sorted((self.root / "out").glob("dmp-manifest*.jsonl")):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.name] = [Path(one["input"]).name for one in lines if one["kind"] == "input"]
        return found


@pytest.fixture
def farm(tmp_path: Path, weights: Path, typed: Path) -> Farm:
    return Farm(tmp_path, weights, typed)


EVERY = [f"{seed}.png" for seed in range(8)]
TWO = {"dmp-manifest.1-of-2.jsonl", "dmp-manifest.2-of-2.jsonl"}


def test_two_shells_share_the_work_and_a_last_run_finds_all_done(farm: Farm) -> None:
    farm.type(guide("shells"))
    assert farm.made() == {f"{seed}.depth.png" for seed in range(8)}
    parts = farm.records()
    assert set(parts) == TWO
    assert all(parts.values())
    assert farm.done() == EVERY
    ((printed, said),) = farm.type(guide("rest"))
    assert "8 of 8 images, 8 of them there already" in said
    assert ".depth.png" not in printed
    assert farm.records() == parts | {"dmp-manifest.jsonl": []}  # that it found all done


@pytest.mark.slow  # the same with other words
def test_the_tasks_of_a_slurm_array_share_the_work(farm: Farm) -> None:
    tasks = [slurm(number, 1, 2) for number in (1, 2)]
    printed = farm.type(guide("slurm"), *tasks)
    parts = farm.records()
    assert set(parts) == TWO
    assert farm.done() == EVERY
    for (paths, _), done in zip(printed, parts.values(), strict=True):
        assert len(paths.splitlines()) == len(done)


def test_several_devices_are_asked_for_as_the_guide_says(tmp_path: Path, weights: Path) -> None:
    """By the program that is installed."""
    farm = Farm(tmp_path, weights, Path(sys.executable).parent)
    ((printed, _),) = farm.type(f"{guide('devices').strip()} --dry-run")
    assert len(printed.splitlines()) == 8
