"""`dmp predict-all`, and what it shares with `dmp predict`: formats, ranges, clips, pages."""

import json
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import maps
from dmp_cli.commands.run_options import RunOptions
from dmp_cli.engines import local
from dmp_cli.errors import ModelError
from dmp_cli.outputs import writers
from dmp_cli.plan import FORMATS, Plan
from dmp_cli.tasks import TASKS, find
from tests.clips import numbered
from tests.conftest import Dmp, write_image

av = pytest.importorskip("av")


def test_one_exr_for_an_image_and_pictures_of_each_task(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    ran = dmp("predict-all", photos, "-o", out, "--format", "exr,png", *model)
    assert ran.code == 0
    assert "3 of 3 images, 15 maps" in ran.err
    printed = ran.out.splitlines()
    assert len(printed) == len({*printed}) == 18
    assert {path.name for path in out.glob("a*")} == {"a.exr", *(f"a.{t}.png" for t in TASKS)}


def test_its_maps_are_those_of_predict(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for name in TASKS:
        assert dmp("predict", name, photos, "-o", one, "--format", "npy", *model).code == 0
    assert dmp("predict-all", photos, "-o", other, "--format", "npy", *model).code == 0
    made = sorted(path.relative_to(one) for path in one.rglob("*.npy"))
    assert len(made) == 15
    for path in made:
        assert (one / path).read_bytes() == (other / path).read_bytes()


def test_some_tasks_and_an_exr_for_each(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    ran = dmp("predict-all", photos / "a.png", "-o", tmp_path, "--tasks", "seg,depth",
              "--format", "exr", "--exr-per-task", *model)  # fmt: skip
    assert ran.code == 0
    assert [Path(line).name for line in ran.out.splitlines()] == [
        "a.segmentation.exr", "a.depth.exr"
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_written_under_its_name(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], form: str
) -> None:
    ran = dmp("predict", "depth", photos / "a.png", "-o", tmp_path, "--format", form, *model)
    assert ran.code == 0
    (path,) = map(Path, ran.out.splitlines())
    assert path.exists()
    assert path.name.startswith("a.depth.")
    if form != "png":
        assert maps.read(path, find("depth")).shape == (48, 64)


def test_the_layers_of_an_image_can_be_measured(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    dmp("predict-all", photos, "-o", one, "--format", "npy", *model)
    dmp("predict-all", photos, "-o", other, "--format", "exr,png", *model)
    for name in TASKS:
        ran = dmp("eval", other, one, "--task", name, "--json")
        assert ran.code == 0, ran.err
        found = json.loads(ran.out)
        assert found["images"] == 3
        error = {"depth": "abs_rel", "normals": "mean_angle"}.get(name, "rmse")
        if name != "segmentation":
            assert found["metrics"][error] < (0.1 if name == "normals" else 1e-3)


def test_a_second_run_on_the_folder_of_the_outputs_finds_the_same_images(
    dmp: Dmp, photos: Path, model: tuple[str, ...]
) -> None:
    given = ("predict-all", photos, "-o", photos / "out", "--tasks", "depth,seg", "--side-by-side",
             "--contact-sheet", "--format", "exr,png,png16,tiff,tiff16,npy", *model)  # fmt: skip
    assert "3 of 3 images" in dmp(*given).err
    assert "3 of 3 images" in dmp(*given).err


def test_an_input_is_never_overwritten(dmp: Dmp, tmp_path: Path, model: tuple[str, ...]) -> None:
    light = np.random.default_rng(0).random((48, 64), np.float32)
    path = tmp_path / "a.exr"
    writers.write_exr(path, [writers.Channel(c, light, "half") for c in "RGB"], {})
    before = path.read_bytes()
    ran = dmp("predict-all", path, "-o", tmp_path, "--format", "exr", *model)
    assert (ran.code, ran.out) == (2, "")
    assert f"input {path} would be overwritten\n  choose another -o" in ran.err
    assert path.read_bytes() == before
    ran = dmp("predict-all", path, "-o", tmp_path / "out", "--format", "exr", *model)
    assert ran.code == 0
    assert maps.read(tmp_path / "out/a.exr", find("depth")).shape == (48, 64)


# Options ----------------------------------------------------------------------------------


def test_without_options_a_run_is_that_of_an_empty_plan() -> None:
    """The defaults of options are those of Plan, Output and Settings."""
    assert RunOptions(Path("out")).plan(("depth",)) == Plan(("depth",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--range", "near"), "--range near: must be auto, image, run, or two metres"),
        (("--range", "3,2"), "LO below HI"),
        (("--depth-unit", "0"), "--depth-unit 0: must be metres from 1e-9"),
        (("--exr-layout", "maya"), "--exr-layout maya: unknown\n  known: flat, blender, nuke"),
        (("--exr-compression", "dwaa"), "--exr-compression dwaa: unknown\n  known: none, rle"),
        (("--seg-format", "jpg"), "--seg-format jpg: unknown\n  known: palette, ids, color"),
        (("--background", "blurple"), "'blurple' is no colour"),
        (("--exposure", "900"), "--exposure 900: must be stops"),
        (("--exposure", "nan"), "--exposure nan: must be stops"),
        (("--format", "exr,gif"), "unknown format gif\n  known: png, png16, exr"),
        (("--tasks", "depth,colour"), "unknown task 'colour'"),
        (("--video", "--format", "exr"), "--video is made of pictures\n  add png to --format"),
        (("--fps", "0", "--video"), "--fps 0: must be above 0"),
        (("--fps", "5"), "--fps 5: there is no movie without --video\n  add --video"),
        (("--depth-unit", "0.001", "--range", "run"), "--depth-unit 0.001: with --range run the"),
        (("--depth-unit", "0.01", "--range", "1,2"), "--depth-unit 0.01: with --range 1,2 the"),
        (("--tasks", ""), "no task named\n  known: depth, normals"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything(
    dmp: Dmp, photos: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    ran = dmp("predict-all", photos, "-o", tmp_path / "out", *given)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_background_and_exposure_reach_the_network(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...]
) -> None:
    clear = np.zeros((48, 64, 4), np.uint8)
    clear[:, :32] = (200, 30, 30, 255)
    Image.fromarray(clear).save(tmp_path / "a.png")
    found = set()
    for colour in ("white", "black", "#204060"):
        out = tmp_path / colour.strip("#")
        dmp("predict", "depth", tmp_path / "a.png", "-o", out, "--format", "npy",
            "--background", colour, *model)  # fmt: skip
        found.add((out / "a.depth.npy").read_bytes())
    assert len(found) == 3


def test_exposure_reaches_the_network(dmp: Dmp, tmp_path: Path, model: tuple[str, ...]) -> None:
    light = np.linspace(0, 0.5, 48 * 64, dtype=np.float32).reshape(48, 64)
    path = tmp_path / "a.exr"
    writers.write_exr(path, [writers.Channel(c, light, "half") for c in "RGB"], {})
    found = []
    for given in ((), ("--exposure", "2")):
        out = tmp_path / f"out{len(found)}"
        dmp("predict", "depth", path, "-o", out, "--format", "npy", *given, *model)
        found.append((out / "a.depth.npy").read_bytes())
    assert found[0] != found[1]


def test_depth_unit_is_the_step_of_16_bits(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    steps = []
    for given in ((), ("--depth-unit", "0.002")):
        ran = dmp("predict", "depth", photos / "a.png", "-o", tmp_path, "--format", "png16",
                  *given, *model)  # fmt: skip
        with Image.open(ran.out.strip()) as image:
            steps.append(float(image.text["metres_per_step"]))  # type: ignore[attr-defined]
    assert steps == [0.001, 0.002]


# Files of others --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "left_alone"),
    [
        ("labels.json", ("--tasks", "seg"), ("--tasks", "depth")),
        ("labels.png", ("--tasks", "seg"), ("--tasks", "depth")),
        ("contact-sheet.html", ("--tasks", "depth", "--contact-sheet"), ("--tasks", "depth")),
        ("a.exr", ("--tasks", "depth,albedo", "--format", "exr"),
         ("--tasks", "depth,albedo", "--format", "exr", "--exr-per-task")),
    ],
)  # fmt: skip
def test_what_dmp_did_not_write_is_not_overwritten(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...],
    name: str, given: tuple[str, ...], left_alone: tuple[str, ...],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"convention": "mine"}')
    ran = dmp("predict-all", photos, "-o", out, *given, *model)
    assert (ran.code, ran.out) == (2, "")
    assert f"{out / name} would be overwritten, and dmp did not write it" in ran.err
    assert os.listdir(out) == [name]  # noqa: PTH208
    ran = dmp("predict-all", photos, "-o", out, *left_alone, "--dry-run", *model)
    assert (ran.code, str(out / name) in ran.out) == (0, False)


# Pages and legends ------------------------------------------------------------------------


def test_class_ids_are_explained_beside_the_maps(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    dmp("predict", "seg", photos, "-o", tmp_path, "--classes", "wall,bed", *model)
    table = json.loads((tmp_path / "labels.json").read_text())
    assert {"wall", "bed"} <= {row["name"] for row in table["classes"]}
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.mode == "RGB"
    dmp("predict", "depth", photos, "-o", tmp_path / "depth", *model)
    assert not (tmp_path / "depth/labels.json").exists()


def test_a_contact_sheet_shows_every_image_and_what_failed(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    ran = dmp("predict-all", photos, "-o", tmp_path / "out", "--contact-sheet", *model)
    assert ran.code == 3
    page = (tmp_path / "out/contact-sheet.html").read_text()
    for name in ("a.png", "b.jpg", "sub/c.webp", "broken.png"):
        assert name in page
    assert page.count("data:image/jpeg;base64,") == 18
    assert "not an image" in page
    assert str(tmp_path) not in page


def test_class_ids_are_explained_before_the_first_map(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise ModelError("lost on the way")

    monkeypatch.setattr(local, "opened", run)
    assert dmp("predict", "seg", photos, "-o", tmp_path / "out", *model).code == 5
    maps = [path for path in (tmp_path / "out").iterdir() if path.name.startswith("a.")]
    assert (maps, (tmp_path / "out/labels.json").exists()) == ([], True)


# Clips ------------------------------------------------------------------------------------


def test_a_clip_becomes_numbered_maps_and_a_movie(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...]
) -> None:
    (tmp_path / "in").mkdir()
    numbered(tmp_path / "in/shot.mp4", 5)
    write_image(tmp_path / "in/still.png")
    ran = dmp("predict", "depth", tmp_path / "in", "-o", tmp_path / "out", "--range", "run",
              "--video", "--json", *model)  # fmt: skip
    assert ran.code == 0, ran.err
    out = tmp_path / "out"
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert made == [
        "dmp-manifest.jsonl", "sequence.depth.mp4", "shot.depth.mp4",
        *(f"shot/{i:06d}.depth.png" for i in range(1, 6)),
        "still.depth.png",
    ]  # fmt: skip
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row.get("frame") for row in rows[:6]] == [1, 2, 3, 4, 5, None]
    assert {row["outputs"][0]["format"] for row in rows[6:]} == {"mp4"}
    with av.open(str(out / "shot.depth.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    text = Image.open(out / "shot/000003.depth.png").text  # type: ignore[attr-defined]
    assert text["Source"] == "shot.mp4 frame 3"


def test_a_clip_that_is_none_fails_as_an_input(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    (photos / "bad.mp4").write_bytes(b"text")
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", *model)
    assert ran.code == 3
    assert "bad.mp4" in ran.err
    assert len(ran.out.splitlines()) == 3


def tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return dict(container.metadata)


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("span", ["auto", "run", "0.5,8"])
def test_tags_of_a_movie_are_true_of_all_of_it(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...], span: str
) -> None:
    (tmp_path / "in").mkdir()
    numbered(tmp_path / "in/shot.mp4", 2)
    write_image(tmp_path / "in/a.png")
    out = tmp_path / "out"
    ran = dmp("predict", "depth", tmp_path / "in", "-o", out, "--video", "--range", span, *model)
    assert ran.code == 0, ran.err
    clip, folder = tags(out / "shot.depth.mp4"), tags(out / "sequence.depth.mp4")
    assert (clip["Source"], folder["Source"]) == ("shot.mp4", "in")
    assert clip["Task"] == "depth"
    picture = Image.open(out / "shot/000001.depth.png").text  # type: ignore[attr-defined]
    for key in ("near", "far"):
        assert clip.get(key) == (None if span == "auto" else picture[key])


def test_a_movie_shows_only_what_its_run_made(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...]
) -> None:
    for number in range(3):
        write_image(tmp_path / f"in/{number}.png", seed=number)
    given = ("predict", "depth", tmp_path / "in", "-o", tmp_path / "out", "--video", "--json")
    assert dmp(*given, *model).code == 0
    assert frames(tmp_path / "out/sequence.depth.mp4") == 3
    (tmp_path / "in/1.png").write_bytes(b"no picture")
    ran = dmp(*given, *model)
    assert ran.code == 3
    assert (tmp_path / "out/1.depth.png").exists(), "of the run before"
    assert frames(tmp_path / "out/sequence.depth.mp4") == 2
    notes = json.loads(ran.out.splitlines()[-1])["notes"]
    assert notes == ["1 picture left out, which could not be made"]


def test_records_of_movies_have_the_keys_of_others(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...]
) -> None:
    write_image(tmp_path / "in/good/a.png")
    write_image(tmp_path / "in/mixed/a.png")
    write_image(tmp_path / "in/mixed/b.png", 64, 64)
    out = tmp_path / "out"
    ran = dmp("predict", "depth", tmp_path / "in", "-o", out, "--video", "--json", *model)
    assert ran.code == 3
    *pictures, good, mixed = map(json.loads, ran.out.splitlines())
    assert {(*row,) for row in (*pictures, good, mixed)} == {(*pictures[0],)}
    assert good["outputs"] == [
        {"task": "depth", "format": "mp4", "path": str(out / "good.depth.mp4")}
    ]
    assert (good["status"], good["errors"]) == ("done", [])
    assert (mixed["status"], mixed["outputs"]) == ("failed", [])
    assert mixed["input"] == str(tmp_path / "in/mixed")
    assert "b.depth.png is 64x64, those before it 64x48; a movie" in mixed["errors"][0]
    assert f"failed: {out / 'mixed.depth.mp4'}: " in ran.err


def test_two_movies_of_one_name_are_refused_before_anything(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...]
) -> None:
    write_image(tmp_path / "in/a.png")
    write_image(tmp_path / "in/sequence/b.png")
    given = ("predict", "depth", tmp_path / "in", "-o", tmp_path / "out", *model)
    ran = dmp(*given, "--video")
    assert (ran.code, ran.out) == (2, "")
    assert f"would both be written to {tmp_path / 'out/sequence.depth.mp4'}" in ran.err
    assert not (tmp_path / "out").exists()
    assert dmp(*given).code == 0


def test_a_movie_has_the_rate_of_its_clip_or_what_is_asked_for(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...]
) -> None:
    path = numbered(tmp_path / "shot.mp4", 2)
    rates = []
    for given in ((), ("--fps", "12.5")):
        dmp("predict", "depth", path, "-o", tmp_path / "out", "--video", *given, *model)
        with av.open(str(tmp_path / "out/shot.depth.mp4")) as container:
            rates.append(container.streams.video[0].average_rate)
    assert rates == [25, Fraction(25, 2)]


def test_a_clip_without_pyav_fails_alone(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered(photos / "shot.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", *model)
    assert ran.code == 3
    assert f"failed: {path}: video needs PyAV" in ran.err
    assert "pip install 'av>=18,<19'" in ran.err
    assert len(ran.out.splitlines()) == 3
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "movies", "--video", *model)
    assert ran.code == 2
    assert not (tmp_path / "movies").exists()


def test_movies_of_outputs_are_no_inputs(dmp: Dmp, photos: Path, model: tuple[str, ...]) -> None:
    for picture in photos.rglob("*.*"):
        Image.open(picture).resize((64, 48)).save(picture)
    given = ("predict", "depth", photos, "-o", photos / "out", "--video", "--fps", "5", *model)
    first, second = dmp(*given), dmp(*given)
    assert (first.code, second.code) == (0, 0)
    assert "3 of 3 images" in second.err
    assert os.path.exists(photos / "out/sequence.depth.mp4")  # noqa: PTH110
