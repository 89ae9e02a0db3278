"""Resume: which files are made again after what has changed, and no more."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import digests, host, hub, jobs, manifest, marks, resume
from dmp_cli.deciding import Deciding, is_unknown
from dmp_cli.jobs import Job, Result
from dmp_cli.manifest import Manifest
from dmp_cli.plan import FORMATS, Output, Plan, Settings
from dmp_cli.resume import Asked, Left
from dmp_cli.sources import Source
from tests.conftest import TASKS, Dmp, write_image, write_weights


@dataclass
class Folder:
    """An output folder whose manifest says what lies there; nothing is predicted."""

    weights: Path
    photos: Path
    out: Path

    def plan(self, names: tuple[str, ...] = TASKS, **options: Any) -> Plan:
        """All tasks in all formats."""
        looks: dict[str, Any] = {
            key: options.pop(key) for key in {*options} & {*Output.__dataclass_fields__}
        }
        sets = {key: options.pop(key) for key in {*options} & {*Settings.__dataclass_fields__}}
        given = {"model": "tiny", "weights": str(self.weights), **options}
        panel: dict[str, Any] = {"formats": FORMATS, "side_by_side": True}
        output = Output(**(panel | looks))
        return Plan(names, settings=Settings(**sets), output=output, **given)

    def jobs(self, plan: Plan) -> list[Job]:
        """Those of the photos."""
        found = jobs.find([str(self.photos)], self.out, print)
        return jobs.plan_targets(found, self.out, plan.tasks, plan.output)

    def make(self, plan: Plan, fail: str = "", run: int = 1, book: str = "") -> None:
        """Write a file for each target that is left, and the records; inputs named `fail` fail."""
        todo = self.left(plan).todo
        deciding = self.deciding(plan)
        with Manifest(self.out / (book or manifest.name()), run) as lines:
            for job in todo:
                lines.append("input", resume.record(self.result(job, fail), deciding, self.out))

    def result(self, job: Job, fail: str) -> Result:
        """As an engine gives it."""
        read = digests.stamp(job.source)
        if fail and fail in job.source.name:
            return Result(job, errors=("no good",), read=read)
        stamps = {}
        for path in set(job.targets.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
            mark = marks.MARK + b"\0string\0\5\0\0\0depth"
            path.write_bytes(mark + os.fsencode(path) + os.urandom(3))
            stamps[path] = digests.stamp(path)
        return Result(job, made=tuple(job.targets), read=read, stamps=stamps)

    def deciding(self, plan: Plan) -> Deciding:
        """Of all photos."""
        return Deciding.of(host.completed(plan), self.jobs(plan))

    def left(self, plan: Plan, **asked: bool) -> Left:
        """What a run would do now."""
        self.out.mkdir(exist_ok=True)
        past = manifest.past(self.out)
        return resume.left(self.jobs(plan), past, self.deciding(plan), self.out, Asked(**asked))

    def again(self, plan: Plan, **asked: bool) -> set[tuple[str, str, str]]:
        """(input, task, format) of what is left."""
        todo = self.left(plan, **asked).todo
        return {(job.source.name, *target) for job in todo for target in job.targets}


@pytest.fixture
def folder(weights: Path, photos: Path, tmp_path: Path) -> Folder:
    return Folder(weights, photos, tmp_path / "out")


@pytest.fixture
def done(folder: Folder) -> Folder:
    folder.make(folder.plan())
    assert folder.again(folder.plan()) == set()
    return folder


def kinds(again: set[tuple[str, str, str]]) -> set[tuple[str, str]]:
    return {(task, form) for _, task, form in again}


EVERY = {(task, form) for task in TASKS for form in FORMATS} | {(jobs.SIDE_BY_SIDE, "png")}
PANEL = {(jobs.SIDE_BY_SIDE, "png")}


def of(*tasks: str, forms: tuple[str, ...] = FORMATS) -> set[tuple[str, str]]:
    return {(task, form) for task in tasks for form in forms}


CHANGES: list[tuple[dict[str, Any], set[tuple[str, str]]]] = [
    ({}, set()),
    ({"batch": 4}, set()),
    ({"readers": 5, "writers": 1}, set()),
    ({"max_pixels": 10_000_000}, set()),
    ({"device": "cuda"}, set()),
    ({"thumbnail": 400}, set()),
    ({"steps": 3}, EVERY),
    ({"sampler": "onepass"}, EVERY),
    ({"prediction": "epsilon"}, EVERY),
    ({"final": "y0"}, EVERY),
    ({"spacing": "trailing"}, EVERY),
    ({"size": 128}, EVERY),
    ({"prompt": "a room"}, EVERY),
    ({"dtype": "bf16"}, EVERY),
    ({"background": (0, 0, 0)}, EVERY),
    ({"exposure": 1.0}, EVERY),
    ({"axes": "directx"}, of("normals") | PANEL),
    ({"classes": "bedroom"}, of("segmentation") | PANEL),
    ({"seg_format": "color"}, of("segmentation", forms=("png",))),
    ({"colormap": "turbo"}, of("depth", forms=("png",)) | PANEL),
    ({"invert": True}, of("depth", forms=("png",)) | PANEL),
    ({"depth_unit": 0.01}, of("depth", forms=("png16", "tiff16"))),
    ({"range": "image"}, of("depth", forms=("png16", "tiff16"))),
    ({"range": (1.0, 5.0)}, of("depth", forms=("png", "png16", "tiff16")) | PANEL),
    ({"range": "run"}, of("depth", forms=("png", "png16", "tiff16")) | PANEL),
    ({"exr_layout": "blender"}, of(*TASKS, forms=("exr",))),
    ({"exr_compression": "piz"}, of(*TASKS, forms=("exr",))),
]  # fmt: skip


def named(value: object) -> str:
    """The name of a case; a set is in another order in each process."""
    return str(value)[:40] if isinstance(value, dict) else ""


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=named)
def test_a_setting_that_changed_redoes_what_it_changes(
    done: Folder, change: dict[str, Any], expected: set[tuple[str, str]]
) -> None:
    again = done.again(done.plan(**change))
    assert kinds(again) == expected
    assert len(again) == 3 * len(expected)  # of each photo


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, set()), ({"axes": "opencv"}, of(*TASKS, forms=("exr",)) | of("normals", forms=("png",))),
     ({"colormap": "turbo"}, of("depth", forms=("png",)))],
)  # fmt: skip
def test_one_exr_of_all_layers(
    folder: Folder, change: dict[str, Any], expected: set[tuple[str, str]]
) -> None:
    plain: dict[str, Any] = {
        "merged": True, "formats": ("png", "exr"), "side_by_side": False,
    }  # fmt: skip
    folder.make(folder.plan(**plain))
    assert kinds(folder.again(folder.plan(**plain, **change))) == expected


def test_one_exr_of_other_tasks_is_another(folder: Folder) -> None:
    plain: dict[str, Any] = {"merged": True, "formats": ("exr",), "side_by_side": False}
    folder.make(folder.plan(("depth", "normals"), **plain))
    assert kinds(folder.again(folder.plan(("depth", "albedo"), **plain))) == of(
        "depth", "albedo", forms=("exr",)
    )


def test_a_task_or_format_more_is_all_that_is_done(folder: Folder) -> None:
    plain: dict[str, Any] = {"side_by_side": False}
    folder.make(folder.plan(("depth",), formats=("png",), **plain))
    more = folder.plan(("depth", "normals"), formats=("png", "npy"), **plain)
    assert kinds(folder.again(more)) == {("depth", "npy"), *of("normals", forms=("png", "npy"))}
    folder.make(more)
    assert folder.again(folder.plan(("depth",), formats=("png",), **plain)) == set()


def test_a_lora_of_one_task_that_changed_redoes_that_task(done: Folder, tmp_path: Path) -> None:
    """By its hash: the same file at another place is the same."""
    from tests.conftest import PARITY

    old = next((PARITY / "lora" / "full").glob("*.safetensors"))
    for name, data, expected in (
        ("same", old.read_bytes(), set()),
        ("other", old.read_bytes()[:-1] + b"\x01", of("depth") | PANEL),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        write_weights(done.weights, "size = 64", TASKS)
        text = done.weights.read_text().split("[models.tiny.tasks.depth]")
        head, tail = text[0], text[1].split("\n", 2)[2]
        lora = f"[models.tiny.tasks.depth]\nlora = {{ path = {json.dumps(str(path))} }}\n"
        done.weights.write_text(head + lora + tail)
        assert kinds(done.again(done.plan())) == expected, name


# Inputs and outputs ------------------------------------------------------------------------


def test_inputs_that_were_touched_or_moved_are_not_redone(done: Folder) -> None:
    os.utime(done.photos / "a.png", (4e9, 4e9))  # in 2096
    moved = done.photos.with_name("elsewhere")
    done.photos.rename(moved)
    done.photos = moved
    assert done.again(done.plan()) == set()


@pytest.mark.parametrize("same_time", [False, True])
def test_an_input_that_was_replaced_is_redone(done: Folder, same_time: bool) -> None:
    path = done.photos / "a.png"
    before = path.stat()
    write_image(path, 48, 64, 77)
    if same_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert {name for name, *_ in done.again(done.plan())} == {"a.png"}


def test_bytes_changed_behind_size_and_time_are_seen_with_checksum(done: Folder) -> None:
    source, output = done.photos / "a.png", done.out / "b.depth.npy"
    for path in (source, output):
        before = path.stat()
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert done.again(done.plan()) == set()
    again = done.again(done.plan(), checksum=True)
    assert {one for one in again if one[0] != "a.png"} == {("b.jpg", "depth", "npy")}
    assert kinds({one for one in again if one[0] == "a.png"}) == EVERY


@pytest.mark.parametrize("damage", ["gone", "shorter", "empty", "a folder"])
def test_an_output_that_is_damaged_is_redone_alone(done: Folder, damage: str) -> None:
    path = done.out / "a.albedo.png"
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(data[:-1] if damage == "shorter" else b"")
    assert done.again(done.plan()) == {("a.png", "albedo", "png")}


def test_clocks_decide_nothing(done: Folder) -> None:
    for path in (*done.out.rglob("*.*"), *done.photos.rglob("*.*")):
        os.utime(path, (4e9, 4e9))
    assert done.again(done.plan()) == set()


def test_an_unknown_manifest_counts_for_nothing(done: Folder) -> None:
    book = done.out / manifest.name()
    lines = [json.loads(line) for line in book.read_text().splitlines()]
    book.write_text("".join(json.dumps({**line, "v": 2}) + "\n" for line in lines))
    assert kinds(done.again(done.plan())) == EVERY


# Failures ----------------------------------------------------------------------------------


def test_what_failed_is_left_until_something_changed(folder: Folder) -> None:
    plan = folder.plan()
    folder.make(plan, fail="b.jpg")
    found = folder.left(plan)
    assert [job.source.name for job in found.kept] == ["a.png", "c.webp"]
    assert [(job.source.name, error) for job, error in found.failed] == [("b.jpg", "no good")]
    assert {name for name, *_ in folder.again(plan, retry_failed=True)} == {"b.jpg"}
    assert {name for name, *_ in folder.again(replace(plan, max_pixels=5))} == {"b.jpg"}
    write_image(folder.photos / "b.jpg", 64, 48, 99)
    assert {name for name, *_ in folder.again(plan)} == {"b.jpg"}


# The range of the whole run ----------------------------------------------------------------


@pytest.mark.parametrize("change", ["an output", "an input", "one more", "one less"])
def test_what_shows_the_run_is_redone_together(folder: Folder, change: str) -> None:
    plan = folder.plan(range="run", side_by_side=False)
    folder.make(plan)
    assert folder.again(plan) == set()
    if change == "an output":
        (folder.out / "a.depth.png").unlink()
    elif change == "an input":
        write_image(folder.photos / "a.png", 48, 64, 50)
    elif change == "one more":
        write_image(folder.photos / "new.png")
    else:
        (folder.photos / "a.png").unlink()
    waiting = of("depth", forms=("png", "png16", "tiff16"))
    again = folder.again(plan)
    old = {one for one in again if one[0] in ("b.jpg", "sub/c.webp", "c.webp")}
    assert kinds(old) == waiting
    assert len(old) == 2 * len(waiting)


def test_what_shows_no_range_is_redone_alone(folder: Folder) -> None:
    plan = folder.plan(range="run", side_by_side=False)
    folder.make(plan)
    (folder.out / "a.normals.png").unlink()
    (folder.out / "a.depth.npy").unlink()
    assert folder.again(plan) == {("a.png", "normals", "png"), ("a.png", "depth", "npy")}


# Clips and prompts -------------------------------------------------------------------------


def test_a_frame_of_a_clip_is_an_input_of_its_own(folder: Folder) -> None:
    clip = folder.photos / "clip.mp4"
    clip.write_bytes(b"as if")
    plan = folder.plan(("depth",), formats=("png",), side_by_side=False)
    frames = [jobs.Input(clip, Path("clip.mp4"), frame) for frame in range(3)]
    todo = jobs.plan_targets(frames, folder.out, plan.tasks, plan.output)
    deciding = Deciding.of(host.completed(plan), todo)
    folder.out.mkdir()
    with Manifest(folder.out / manifest.name(), 1) as book:
        for job in todo[:2]:
            book.append("input", resume.record(folder.result(job, ""), deciding, folder.out))
    found = resume.left(todo, manifest.past(folder.out), deciding, folder.out, Asked())
    assert [job.frame for job in found.todo] == [2]
    clip.write_bytes(b"other")
    found = resume.left(todo, manifest.past(folder.out), deciding, folder.out, Asked())
    assert [job.frame for job in found.todo] == [0, 1, 2]


def test_a_prompt_of_one_image_redoes_that_image(folder: Folder) -> None:
    plan = folder.plan(("depth",), side_by_side=False)
    todo = folder.jobs(plan)
    deciding = Deciding.of(host.completed(plan), todo)
    keys = [deciding.key(replace(todo[0], prompt=text), ("depth", "png")) for text in
            (None, "", "a room", "a hall")]  # fmt: skip
    assert keys[0] == keys[1]  # without a text is as the run, which has none
    assert len(set(keys)) == 3


# The whole command -------------------------------------------------------------------------


def test_all_done_in_a_process_that_loads_no_torch(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    write_image(photos / "broken\udcff.png")
    arguments = ["predict", "depth", str(photos), "-o", str(out), *model]
    assert dmp(*arguments, "--json").code == 0  # in ASCII, whatever the names are
    code = (
        "import sys, dmp_cli.cli as cli; sys.argv = ['dmp', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert "4 of 4 images, 4 of them there already" in done.stderr


def test_a_contact_sheet_shows_what_was_there_already(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    arguments = ("predict", "depth,segmentation", photos, "-o", out, "--contact-sheet", *model)
    assert dmp(*arguments).code == 0
    page = out / "contact-sheet.html"
    first = rows(page)
    assert len(first) == 3
    (out / "b.depth.png").unlink()
    ran = dmp(*arguments)
    assert ran.out.splitlines() == [str(out / "b.depth.png")]  # and no more
    assert rows(page) == first
    page.unlink()
    ran = dmp(*arguments)
    assert (ran.code, ran.out) == (0, "")
    assert rows(page) == first


def rows(page: Path) -> set[str]:
    """The rows of a contact sheet, pictures and all, without their numbers."""
    found = re.findall(r'<tr id="r\d+">(.*?)</tr>', page.read_text(), re.DOTALL)
    assert all(row.count("<img") > 1 for row in found)
    return set(found)


def test_a_sheet_of_maps_that_are_no_pictures(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    look = ("--format", "exr", "--contact-sheet", "--normals", "directx")
    arguments = ("predict", "depth,normals", photos, "-o", out, *look, *model)
    assert dmp(*arguments).code == 0
    first = rows(out / "contact-sheet.html")
    assert dmp(*arguments).code == 0
    second = rows(out / "contact-sheet.html")
    assert without_pixels(second) == without_pixels(first)  # halves of normals are not floats
    assert "<img" in min(second)


def without_pixels(rows: set[str]) -> set[str]:
    return {re.sub('src="[^"]*"', "src", row) for row in rows}


def test_a_movie_takes_pictures_that_were_there(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    pytest.importorskip("av")
    for number in range(4):
        write_image(tmp_path / f"seq/{number}.png", 48, 64, number)
    out = tmp_path / "out"
    plain = ("predict", "depth", tmp_path / "seq", "-o", out, *model)
    assert dmp(*plain).code == 0
    (out / "2.depth.png").unlink()
    ran = dmp(*plain, "--video")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [str(out / "2.depth.png"), str(out / "sequence.depth.mp4")]
    assert "4 pictures" in ran.err


def test_a_movie_and_a_record_show_what_was_there_of_a_job_that_lacks_more(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...]
) -> None:
    pytest.importorskip("av")
    for number in range(3):
        write_image(tmp_path / f"seq/{number}.png", 48, 64, number)
    out = tmp_path / "out"
    plain = ("predict", "depth", tmp_path / "seq", "-o", out, *model)
    assert dmp(*plain).code == 0
    ran = dmp(*plain, "--format", "png,npy", "--video", "--json")
    assert ran.code == 0, ran.err
    *records, movie = map(json.loads, ran.out.splitlines())
    assert Path(movie["outputs"][0]["path"]).stat().st_size > 0
    for record in records:
        assert [row["format"] for row in record["outputs"]] == ["png", "npy"]
        assert all(Path(row["path"]).exists() for row in record["outputs"])


def test_a_page_that_was_gone_on_with_is_the_page_of_one_run(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    pages = []
    for before in (("a.png",), ("b.jpg", "bad.png"), ()):
        out = tmp_path / "-".join(("run", *before)) / "maps"
        plain = ("-o", out, "--contact-sheet", *model)
        if before:
            dmp("predict", "depth", *(photos / name for name in before), *plain)
        assert dmp("predict", "depth,albedo", photos, *plain).code == 3
        pages.append((out / "contact-sheet.html").read_bytes())
        assert dmp("predict", "depth,albedo", photos, *plain).code == 3
        pages.append((out / "contact-sheet.html").read_bytes())
    assert len(set(pages)) == 1


# Weights -----------------------------------------------------------------------------------


def test_hashes_of_weights_are_remembered_until_they_change(
    folder: Folder, dmp: Dmp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a backbone in a folder, without stated hashes."""
    from tests.conftest import PARITY

    backbone = tmp_path / "sd"
    shutil.copytree(PARITY / "sd-tiny", backbone)
    text = folder.weights.read_text().replace(str(PARITY / "sd-tiny"), str(backbone))
    folder.weights.write_text(text)
    begun: list[Path] = []
    begin = digests.begin

    def noted(path: Path, like: str) -> Future[str]:
        begun.append(path)
        return begin(path, like)

    monkeypatch.setattr(digests, "begin", noted)
    arguments = (
        "predict", "depth", folder.photos, "-o", folder.out, "--model", "tiny", "--weights",
        folder.weights,
    )  # fmt: skip
    assert dmp(*arguments).code == 0
    assert any(path.is_relative_to(backbone) for path in begun)
    begun.clear()
    assert dmp(*arguments).code == 0
    assert not [path for path in begun if path.is_relative_to(backbone)]
    changed = next(backbone.glob("unet/*.safetensors"))
    os.utime(changed, (1e9, 1e9))
    ran = dmp(*arguments)
    assert "3 of them there already" in ran.err  # by its hash it is the same
    assert changed in begun
    begun.clear()
    assert dmp(*arguments).code == 0
    assert changed not in begun


@pytest.mark.parametrize(
    ("revision", "here", "unknown"),
    [("main", False, True), ("main", True, False), ("a" * 40, False, False)],
)
def test_a_backbone_on_a_branch_is_known_once_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, here: bool, unknown: bool
) -> None:
    monkeypatch.setattr(hub, "snapshot", lambda *_: tmp_path if here else None)
    assert is_unknown(Source(repo="org/sd", revision=revision)) == unknown


def test_what_failed_by_the_moment_is_tried_again(folder: Folder) -> None:
    plan = folder.plan()
    deciding, job = folder.deciding(plan), folder.jobs(plan)[0]
    failed = Result(job, errors=("out of memory",), read=digests.stamp(job.source))
    folder.out.mkdir()
    for again in (False, True):
        with Manifest(folder.out / manifest.name(), 1) as book:
            one = resume.record(replace(failed, again=again), deciding, folder.out)
            book.append("input", one)
        found = folder.left(plan)
        assert (job in found.todo) == again
        assert len(found.failed) == (not again)
