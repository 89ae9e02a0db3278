"""The generator of scenes: its geometry against independent arithmetic, its files, its promises."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import catalogue, maps
from dmp_cli.classes import parse_classes
from dmp_cli.colour import linear_from_srgb
from dmp_cli.errors import ResourceError, UsageError
from dmp_cli.scenes.build import build
from dmp_cli.scenes.materials import PATTERNS, Material
from dmp_cli.scenes.render import Frame, render
from dmp_cli.scenes.shapes import Hole, Part, Solid
from dmp_cli.scenes.world import FARTHEST, Camera, Light, World, class_id
from dmp_cli.scenes.write import Order, frame, write
from dmp_cli.tasks import TASKS
from tests.conftest import Dmp

SIZE = 96
PLAIN = Part(0, Material("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def scene(index: int, style: str = "plain") -> tuple[World, Frame]:
    rng = np.random.default_rng([9, index])
    world = replace(build(rng), style=style)
    return world, render(world, SIZE, rng)


SCENES = [scene(index) for index in range(12)]


def solid(kind: str, half: tuple[float, float, float], **more: object) -> Solid:
    return Solid(kind, (0.3, -0.2, 0.1), half, (PLAIN,), yaw=0.7, **more)


def inside(shape: Solid, points: np.ndarray) -> np.ndarray:
    """Whether points [3, N] of the world are in the solid, from its definition."""
    x, y, z = points - np.array(shape.centre)[:, None]
    cos, sin = np.cos(-shape.yaw), np.sin(-shape.yaw)
    x, z = cos * x + sin * z, cos * z - sin * x
    a, b, c = shape.half
    if shape.kind == "box":
        return (abs(x) <= a) & (abs(y) <= b) & (abs(z) <= c)
    if shape.kind == "ball":
        return (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 <= 1
    radius = a + (c - a) * (y + b) / (2 * b)
    return (abs(y) <= b) & (np.hypot(x, z) <= radius)


@pytest.mark.parametrize(
    "shape",
    [
        solid("box", (0.5, 0.3, 0.8)),
        solid("ball", (0.6, 0.4, 0.7)),
        solid("frustum", (0.6, 0.5, 0.2)),
        solid("frustum", (0.4, 0.5, 0.4)),
        solid("frustum", (0.7, 0.5, 0.0)),
    ],
)
def test_a_ray_meets_a_solid_where_marching_along_it_does(shape: Solid) -> None:
    rng = np.random.default_rng(0)
    origin = np.array([[0.5], [0.4], [3.0]], np.float32)
    rays = np.stack([rng.uniform(-0.4, 0.4, 400), rng.uniform(-0.4, 0.3, 400), -np.ones(400)])
    met = shape.meet(origin, rays.astype(np.float32))
    steps = np.linspace(0, 6, 6001)
    marched = np.full(400, np.inf)
    for i in range(400):
        found = np.flatnonzero(inside(shape, origin + rays[:, i : i + 1] * steps))
        marched[i] = steps[found[0]] if found.size else np.inf
    assert 40 < np.isfinite(marched).sum() < 400
    both = np.isfinite(marched) & np.isfinite(met)
    assert (np.isfinite(marched) != np.isfinite(met)).sum() <= 2  # grazing
    assert np.abs(met[both] - marched[both]).max() < 2e-3


@pytest.mark.parametrize("kind", ["box", "ball", "frustum"])
def test_normals_point_out_of_a_solid(kind: str) -> None:
    shape = solid(kind, (0.6, 0.5, 0.4))
    rng = np.random.default_rng(1)
    origin = np.array([[0.5], [0.8], [3.0]], np.float32)
    rays = np.stack([rng.uniform(-0.3, 0.2, 300), rng.uniform(-0.5, 0, 300), -np.ones(300)])
    rays = rays.astype(np.float32)
    t = shape.meet(origin, rays)
    points = (origin + rays * t)[:, np.isfinite(t)]
    normals = shape.to_world(shape.normals(shape.local(points)))
    assert np.allclose((normals**2).sum(0), 1, atol=1e-4)
    assert not inside(shape, points + 5e-3 * normals).any()
    assert inside(shape, points - 5e-3 * normals).mean() > 0.97  # not at an edge


def test_a_shell_is_met_from_inside_but_not_through_its_holes() -> None:
    hole = Hole(2, -1, (-0.5, -0.5), (0.5, 0.5))
    shell = Solid("shell", (0, 1, 0), (2, 1, 3), (PLAIN,) * 3, holes=(hole,))
    origin = np.array([[0.0], [1.0], [0.0]], np.float32)
    rays = np.array([[0, 0, -1], [0.9, 0, -3], [1, 0, 0], [0, 1, 0]], np.float32).T
    assert shell.meet(origin, rays).tolist() == pytest.approx([np.inf, 1, 2, 1])
    roofless = replace(shell, roofless=True)
    assert roofless.meet(origin, rays).tolist() == pytest.approx([np.inf, 1, 2, np.inf])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_stay_between_their_two_colours(pattern: str) -> None:
    rng = np.random.default_rng(2)
    points = rng.uniform(-3, 3, (3, 2000)).astype(np.float32)
    normals = np.tile(np.array([[0], [1], [0]], np.float32), 2000)
    material = Material(pattern, (0.1, 0.2, 0.3), (0.8, 0.7, 0.6), 0.4, seed=5)
    albedo = material.albedo(points, normals)
    low, high = np.array([[0.1], [0.2], [0.3]]) - 1e-6, np.array([[0.8], [0.7], [0.6]]) + 1e-6
    assert ((albedo >= low) & (albedo <= high)).all()
    assert (albedo.std(axis=1).min() > 0.02) == (pattern != "plain")


@pytest.mark.parametrize("index", range(len(SCENES)))
def test_normals_are_those_of_the_surface_that_the_depth_describes(index: int) -> None:
    """Points from depth and the camera's field, their differences, a cross product: OpenGL axes."""
    world, picture = SCENES[index]
    depth, normals = (picture.maps[name].astype(np.float64) for name in ("depth", "normals"))
    reach = np.tan(world.camera.field / 2)
    centre = ((np.arange(SIZE) + 0.5) / SIZE * 2 - 1) * reach
    points = np.stack([centre[None, :] * depth, -centre[:, None] * depth, -depth], axis=-1)
    right = points[1:-1, 2:] - points[1:-1, :-2]
    up = points[:-2, 1:-1] - points[2:, 1:-1]
    found = np.cross(right, up)
    found /= np.linalg.norm(found, axis=-1, keepdims=True) + 1e-12
    inner = normals[1:-1, 1:-1]
    same = [np.einsum("ijk,ijk->ij", inner, normals[dy : SIZE - 2 + dy, dx : SIZE - 2 + dx])
            for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2))]  # fmt: skip
    smooth = (np.min(same, axis=0) > 0.995) & (depth[1:-1, 1:-1] > 0)
    angle = np.degrees(np.arccos(np.clip(np.einsum("ijk,ijk->ij", found, inner), -1, 1)))[smooth]
    assert smooth.mean() > 0.3
    assert np.median(angle) < 0.1
    assert np.quantile(angle, 0.9) < 3  # the rest: two parallel faces at different depths


@pytest.mark.parametrize("index", range(len(SCENES)))
def test_maps_keep_the_conventions(index: int) -> None:
    _, picture = SCENES[index]
    made = picture.maps
    assert set(made) == set(TASKS)
    sky = made["segmentation"] == class_id("sky")
    assert ((made["depth"] == 0) == sky).all()
    assert (made["depth"][~sky] > 0.3).all()
    assert (made["depth"] < FARTHEST).all()
    length = np.linalg.norm(made["normals"], axis=-1)
    assert np.allclose(length[~sky], 1, atol=1e-4)
    assert (length[sky] == 0).all()
    for name in ("albedo", "shading"):
        assert made[name].min() >= 0
        assert made[name].max() <= 1
    assert picture.image.dtype == np.uint8
    assert made["segmentation"].dtype == np.uint8


def test_surfaces_face_the_viewer() -> None:
    for world, picture in SCENES:
        reach = np.tan(world.camera.field / 2)
        centre = ((np.arange(SIZE) + 0.5) / SIZE * 2 - 1) * reach
        x, y = np.meshgrid(centre, -centre)
        rays = np.stack([x, y, -np.ones_like(x)], axis=-1)
        assert (np.einsum("ijk,ijk->ij", rays, picture.maps["normals"]) < 1e-3).all()


def test_the_image_is_albedo_times_shading() -> None:
    """Away from edges and highlights, up to the light's tint and the camera's gain."""
    for world, picture in SCENES:
        made = picture.maps
        light = made["albedo"] * made["shading"][..., None]
        seen = linear_from_srgb(picture.image / np.float32(255))
        inner = (seen < 0.95) & (light > 0.05)
        ratio = np.median(seen[inner] / light[inner])
        assert 0.6 < ratio < 1.4
        error = np.abs(seen - light * ratio * np.array(world.tint))[inner]
        assert np.median(error) < 0.02


def test_the_classes_are_those_that_the_demo_model_knows() -> None:
    seen: set[int] = set()
    for index in range(60):
        rng = np.random.default_rng([8, index])
        seen |= set(np.unique(render(build(rng), 40, rng).maps["segmentation"]).tolist())
    entry = catalogue.load()["models"]["demo"]["tasks"]["segmentation"]
    assert seen == set(parse_classes(entry["classes"]) or ())


def test_what_stands_in_the_light_throws_a_shadow() -> None:
    """A lamp above a ball above the floor: the floor below the ball is darker than beside it."""
    shell = Solid("shell", (0, 1.5, 0), (3, 1.5, 3), (PLAIN,) * 3)
    ball = Solid("ball", (0, 1, 0), (0.4, 0.4, 0.4), (PLAIN,))
    camera = Camera((0, 1.2, 2.8), 0.0, -0.3, 0.0, 1.2)
    grey = (0.5, 0.5, 0.5)
    world = World((shell, ball), (Light((0, 2.8, 0), 3.0),), 0.3, (1, 1, 1), (grey, grey), camera,
                  "plain", "")  # fmt: skip
    lit = render(replace(world, solids=(shell,)), 64, np.random.default_rng(0)).maps
    with_ball = render(world, 64, np.random.default_rng(0)).maps
    floor = (with_ball["normals"] == lit["normals"]).all(axis=-1) & (with_ball["depth"] > 2)
    darker = with_ball["shading"] / lit["shading"]
    assert (darker[floor] < 0.6).sum() > 20
    assert np.median(darker[floor]) > 0.9


def test_scenes_are_varied() -> None:
    """Rooms and yards, and no two alike."""
    assert len({made.image.tobytes() for _, made in SCENES}) == len(SCENES)
    worlds = [world for world, _ in SCENES]
    assert len({world.caption for world in worlds}) == len(SCENES)
    assert any("yard" in world.caption for world in worlds)
    assert any("room" in world.caption for world in worlds)


def test_styles_change_the_image_and_not_the_maps() -> None:
    plain, poster = scene(3), scene(3, "poster")
    assert not np.array_equal(plain[1].image, poster[1].image)
    for name, values in plain[1].maps.items():
        assert np.array_equal(values, poster[1].maps[name])


def written(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    assert list(write(out, Order(3, seed=4, size=48), workers=1)) == ["000000", "000001", "000002"]
    return out


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(
    folder: Path, tmp_path: Path
) -> None:
    list(write(tmp_path, Order(3, seed=4, size=48), workers=2))
    assert written(folder) == written(tmp_path)


def test_files_hold_the_maps(folder: Path) -> None:
    """Read by the reader of data sets; depth to a millimetre, the others to 16 bits."""
    made, caption = frame(Order(3, seed=4, size=48), 1)
    close = {"depth": 5.1e-4, "normals": 1e-4, "albedo": 1e-4, "shading": 1e-4, "segmentation": 0}
    for name, task in TASKS.items():
        values = maps.read(folder / name / "000001.png", task)
        assert values.shape == made.maps[name].shape
        assert np.abs(values.astype(np.float64) - made.maps[name]).max() <= close[name], name
    with Image.open(folder / "images/000001.png") as image:
        assert np.array_equal(np.asarray(image), made.image)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert rows[1] == {"file_name": "images/000001.png", "text": caption}


def test_running_again_makes_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "more"
    shutil.copytree(folder, out)
    (out / "images/000000.png").write_bytes(b"mine")  # noted as whole: left alone
    assert len(list(write(out, Order(4, seed=4, size=48), workers=1))) == 4
    assert (out / "images/000000.png").read_bytes() == b"mine"
    assert (out / "depth/000003.png").exists()
    assert len((out / "metadata.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(("key", "value"), [("seed", 5), ("size", 64)])
def test_a_folder_of_other_scenes_is_refused(folder: Path, key: str, value: int) -> None:
    other = replace(Order(3, seed=4, size=48), **{key: value})
    with pytest.raises(UsageError, match=f"holds scenes of {key}"):
        list(write(folder, other))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "images/mine.png"}', "no scenes of dmp"),
        ("images/000000.png", "mine", "no scenes of dmp"),
        ("scenes.json", "{", "scenes.json is damaged"),
        ("scenes.json", "[]", "scenes.json is damaged"),
    ],
)
def test_what_is_somebody_elses_stays(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        list(write(tmp_path, Order(1, size=16), workers=1))
    assert (tmp_path / name).read_text() == text
    assert not (tmp_path / "depth").exists()


def test_captions_that_are_damaged_are_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(folder, out)
    (out / "metadata.jsonl").write_text('{"file_name"')
    with pytest.raises(UsageError, match=r"metadata\.jsonl is damaged"):
        list(write(out, Order(3, seed=4, size=48)))


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk: the workers inherit it."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))\n"
        "import dmp_cli.cli as cli; sys.argv[0] = 'dmp'\n"
        "if __name__ == '__main__': cli.main()"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    words = ["data", "scenes", tmp_path / "out", "--count", "3", "--size", "128"]
    ran = subprocess.run(
        [sys.executable, script, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 6, ran.stderr
    assert "cannot be written" in ran.stderr
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ResourceError, match="is a file"):
        list(write(tmp_path / "out", Order(1)))


# The command ------------------------------------------------------------------------------


def test_the_command_makes_a_data_set_that_the_check_accepts(dmp: Dmp, tmp_path: Path) -> None:
    out = tmp_path / "rooms"
    ran = dmp("data", "scenes", out, "--count", "2", "--size", "32", "--workers", "1")
    assert (ran.code, ran.out) == (0, f"{out}\n")
    assert "2 scenes in" in ran.err
    assert dmp("data", "check", out).code == 0
    other = dmp("data", "scenes", out, "--count", "2", "--size", "32", "--seed", "1")
    assert other.code == 2
    assert "holds scenes of seed 0, not 1" in other.err


def test_ctrl_c_keeps_what_is_whole(
    dmp: Dmp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> Iterator[str]:
        yield "000000"
        raise KeyboardInterrupt

    monkeypatch.setattr("dmp_cli.scenes.write.write", stopped)
    ran = dmp("data", "scenes", tmp_path, "--count", "5")
    assert ran.code == 130
    assert "interrupted at 1 of 5 scenes; run it again to go on" in ran.err
