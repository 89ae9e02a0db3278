"""From maps to files: what one image gets, what a failing part leaves, what waits for the run."""

import re
from pathlib import Path

import numpy as np
import OpenImageIO
import pytest
from PIL import Image

from dmp_cli import jobs, maps
from dmp_cli.engines import local
from dmp_cli.errors import ImageError, ResourceError
from dmp_cli.host import Host
from dmp_cli.jobs import SIDE_BY_SIDE, Result
from dmp_cli.plan import Output, Plan, Settings
from dmp_cli.tasks import Array, find
from tests.conftest import TASKS, write_image

EVERY = ",".join(TASKS)


def run(weights: Path, folder: Path, out: Path, *tasks: str, **look: object) -> list[Result]:
    output = Output(**look)  # type: ignore[arg-type]
    plan = Plan(
        tasks or TASKS, model="tiny", weights=str(weights), settings=Settings(steps=1),
        output=output,
    )  # fmt: skip
    todo = jobs.plan_targets(jobs.find([str(folder)], out, print), out, plan.tasks, output)
    return list(local.run(plan, todo, print))


def done(results: list[Result]) -> list[Result]:
    return [result for result in results if result.done]


def text(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(image.text)  # type: ignore[attr-defined]


def channels(path: Path) -> dict[str, Array]:
    file = OpenImageIO.ImageInput.open(str(path))
    names = file.spec().channelnames
    return {name: file.read_image(0, 0, i, i + 1, "float")[..., 0] for i, name in enumerate(names)}


def test_one_exr_holds_the_maps_that_npy_holds(photos: Path, weights: Path, tmp_path: Path) -> None:
    results = run(weights, photos, tmp_path, formats=("exr", "npy"), merged=True)
    assert [len(result.written) for result in results] == [6, 6, 6]
    for result in results:
        path = result.job.targets["depth", "exr"]
        assert path.name == f"{result.job.source.stem}.exr"
        for name in TASKS:
            truth = np.load(result.job.targets[name, "npy"])
            found = maps.read(path, find(name))
            exact = name in ("depth", "segmentation")
            np.testing.assert_allclose(found, truth, atol=0 if exact else 1e-3)


def test_a_file_says_where_each_of_its_layers_comes_from(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    result = run(weights, photos, tmp_path, "depth", "albedo", formats=("exr",), merged=True)[0]
    spec = OpenImageIO.ImageInput.open(str(result.written[0])).spec()
    said = {value.name: value.value for value in spec.extra_attribs}
    assert said["dmp:Task"] == "depth,albedo"
    assert said["dmp:Source"] == "a.png"
    for name in ("depth", "albedo"):
        assert len(said[f"dmp:{name}.Weights-SHA256"]) == 64
        assert "steps=1" in said[f"dmp:{name}.Settings"]


@pytest.mark.parametrize("merged", [True, False])
def test_a_task_that_fails_does_not_take_the_others_with_it(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    finish = Host.finish

    def broken(self: Host, task: str, *rest: object) -> Array:
        if task == "normals":
            raise ImageError("normals: the output is not finite in fp16", "try --dtype fp32")
        return finish(self, task, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Host, "finish", broken)
    results = run(weights, photos, tmp_path, formats=("exr", "png"), merged=merged)
    for result in results:
        assert result.errors == ("normals: the output is not finite in fp16; try --dtype fp32",)
        assert result.maps == set(TASKS) - {"normals"}
    names = channels(results[0].job.targets["depth", "exr"])
    assert "Z" in names
    assert "N.X" not in names


def test_an_exr_that_cannot_be_written_fails_alone(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.exr").mkdir()
    results = run(weights, photos / "a.png", tmp_path, formats=("exr", "npy"), merged=True)
    (result,) = results
    assert len(result.errors) == 1
    assert "a.exr cannot be written" in result.errors[0]
    assert len(result.written) == 5


# One range for the run --------------------------------------------------------------------


def test_all_pictures_of_a_run_have_one_range(photos: Path, weights: Path, tmp_path: Path) -> None:
    look = {"formats": ("png", "png16", "npy"), "range": "run"}
    results = run(weights, photos, tmp_path, "depth", "normals", **look)
    assert [result.done for result in results] == [False] * 3 + [True] * 3
    assert [result.job.source.name for result in done(results)] == ["a.png", "b.jpg", "c.webp"]
    depths = [np.load(result.job.targets["depth", "npy"]) for result in done(results)]
    near = min(np.percentile(depth, 1) for depth in depths)
    far = max(np.percentile(depth, 99) for depth in depths)
    for result, depth in zip(done(results), depths, strict=True):
        assert set(result.written) == set(result.job.targets.values())
        said = text(result.job.targets["depth", "png"])
        assert (said["near"], said["far"]) == (f"{near:.6g} m", f"{far:.6g} m")
        found = maps.read(result.job.targets["depth", "png16"], find("depth"))
        np.testing.assert_allclose(found, depth, atol=1e-4)
    steps = {text(result.job.targets["depth", "png16"])["metres_per_step"] for result in results}
    assert len(steps) == 1
    assert list(tmp_path.rglob(".dmp-*")) == []


def test_float_files_do_not_wait_for_the_run(photos: Path, weights: Path, tmp_path: Path) -> None:
    results = run(weights, photos, tmp_path, "depth", formats=("exr", "npy", "tiff"), range="run")
    assert [result.done for result in results] == [True] * 3
    assert [len(result.written) for result in results] == [3] * 3


@pytest.mark.parametrize(
    ("formats", "range_"), [(("png", "exr"), "auto"), (("exr", "npy", "png"), "run")]
)
def test_a_format_that_cannot_be_written_takes_no_other_with_it(
    photos: Path, weights: Path, tmp_path: Path, formats: tuple[str, ...], range_: str
) -> None:
    (tmp_path / "a.depth.png").mkdir()
    (result,) = done(
        run(weights, photos / "a.png", tmp_path, "depth", "albedo", formats=formats, merged=True,
            range=range_)
    )  # fmt: skip
    (error,) = result.errors
    assert "a.depth.png cannot be written" in error
    assert "Z" in channels(tmp_path / "a.exr")
    assert set(result.job.targets) - set(result.made) == {("depth", "png")}


def test_what_is_lost_aside_fails_one_image(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, seen = np.load, []

    def lossy(path: Path) -> object:
        seen.append(path)
        return load(path) if len(seen) > 1 else load(path.with_suffix(".gone"))

    monkeypatch.setattr(np, "load", lossy)
    results = done(run(weights, photos, tmp_path, "depth", range="run"))
    assert sorted(len(result.errors) for result in results) == [0, 0, 1]
    assert any("lost what was kept" in error for result in results for error in result.errors)


def test_each_picture_has_its_own_range_otherwise(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    results = run(weights, photos, tmp_path, "depth", range="image")
    assert len({text(result.written[0])["near"] for result in results}) == 3


def test_a_failed_image_keeps_its_place_in_a_run_with_one_range(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    (photos / "aa.png").write_bytes(b"no picture")
    results = done(run(weights, photos, tmp_path, "depth", range="run"))
    assert [bool(result.errors) for result in results] == [False, True, False, False]


def test_a_run_that_is_left_leaves_nothing_aside(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    plan = Plan(("depth",), model="tiny", weights=str(weights), settings=Settings(steps=1),
                output=Output(range="run"))  # fmt: skip
    todo = jobs.plan_targets(jobs.find([str(photos)], tmp_path, print), tmp_path, plan.tasks,
                             plan.output)  # fmt: skip
    results = local.run(plan, todo, print)
    next(results)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert list(tmp_path.rglob("*.npz")) == []
    assert list(tmp_path.rglob(".dmp-*")) == []


def test_a_disk_that_is_full_for_what_is_kept_aside_ends_the_run(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        run(weights, photos, tmp_path, "depth", range="run")


# Pictures of all maps ---------------------------------------------------------------------


@pytest.mark.parametrize("range_", ["auto", "run"])
def test_side_by_side(photos: Path, weights: Path, tmp_path: Path, range_: str) -> None:
    for result in done(run(weights, photos, tmp_path, side_by_side=True, range=range_)):
        path = result.job.targets[SIDE_BY_SIDE, "png"]
        assert path in result.written
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert image.width > image.height  # three columns, two rows
            assert image.text["Task"] == EVERY  # type: ignore[attr-defined]


@pytest.mark.parametrize("range_", ["auto", "run"])
def test_a_glance_shows_the_input_and_every_map(weights: Path, tmp_path: Path, range_: str) -> None:
    import io

    photo = write_image(tmp_path / "in/a.png", 700, 900)
    (result,) = done(run(weights, photo, tmp_path / "out", thumbnail=100, range=range_))
    assert result.glance
    assert set(result.glance.pictures) == {"input", *TASKS}
    for data in result.glance.pictures.values():
        assert Image.open(io.BytesIO(data)).size == (100, 78)
    assert sum(result.glance.classes.values()) == pytest.approx(1)
    assert re.fullmatch(r"[\d.]+ to [\d.]+ m", result.glance.captions["depth"])


def test_no_glance_is_made_unless_asked_for(photos: Path, weights: Path, tmp_path: Path) -> None:
    assert all(result.glance is None for result in run(weights, photos, tmp_path, "depth"))


def test_what_does_not_fit_is_a_note(photos: Path, weights: Path, tmp_path: Path) -> None:
    results = run(weights, photos, tmp_path, "depth", formats=("png16",), depth_unit=1e-6)
    for result in results:
        assert result.errors == ()
        assert any("are cut to what fits" in note for note in result.notes)


def test_a_constant_map_is_written_with_a_note(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "finish", lambda *_: np.full((48, 64), 2, np.float32))
    results = run(weights, photos / "a.png", tmp_path, "depth", formats=("png", "png16"))
    assert results[0].notes == ("depth: every pixel has the same value",)
    assert len(results[0].written) == 2
