"""A map -> each format, and back to the numbers of the map by other libraries and by maps.read."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import OpenImageIO
import pytest
import tifffile
from PIL import Image

from dmp_cli import maps
from dmp_cli.classes import ade20k
from dmp_cli.colour import MARK, linear_from_srgb
from dmp_cli.jobs import EXTENSIONS
from dmp_cli.outputs import export
from dmp_cli.outputs.export import Span
from dmp_cli.plan import EXR_LAYOUTS, FORMATS, Output
from dmp_cli.tasks import TASKS, Array, Coding, Task, View, find, unit_vectors

RNG = np.random.default_rng(3)
TEXT = {"Software": "dmp 1", "Task": "x"}


def a_map(name: str, size: tuple[int, int] = (13, 17)) -> Array:
    if name == "normals":
        return unit_vectors(RNG.normal(size=(*size, 3)))
    if name == "segmentation":
        return RNG.integers(0, 150, size).astype(np.uint8)
    if name == "albedo":
        return RNG.random((*size, 3), np.float32)
    values = RNG.random(size, np.float32)
    return values * 9 + np.float32(0.5) if name == "depth" else values


PLAIN = Output()


def saved(folder: Path, form: str, name: str, values: Array, look: Output = PLAIN) -> Path:
    path = folder / f"a.{name}.{EXTENSIONS[form]}"
    task = find(name)
    covered = export.span(task, values)
    if form == "exr":
        layer, told = export.layer(task, values, look.exr_layout)
        assert told == []
        export.save_exr(path, [layer], look, TEXT)
    else:
        assert export.save(path, form, task, values, export.view(look, covered), TEXT) == []
    return path


def step(form: str, name: str) -> float:
    """How far a value may be from what was written."""
    if form in ("npy", "tiff") or (form == "exr" and name in ("depth", "segmentation")):
        return 2e-7 if name == "normals" else 0  # made unit length again
    if form == "exr":
        return 2**-11
    return {"depth": 0.0006, "segmentation": 0, "normals": 5e-5}.get(name, 4e-5)


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "png"])
@pytest.mark.parametrize("name", TASKS)
def test_data_comes_back_as_the_map(tmp_path: Path, form: str, name: str) -> None:
    values = a_map(name)
    found = maps.read(saved(tmp_path, form, name, values), find(name))
    assert found.shape == values.shape
    np.testing.assert_allclose(found, values, rtol=0, atol=step(form, name))


@pytest.mark.parametrize("layout", EXR_LAYOUTS)
@pytest.mark.parametrize("name", TASKS)
def test_every_layout_comes_back(tmp_path: Path, layout: str, name: str) -> None:
    values = a_map(name)
    path = saved(tmp_path, "exr", name, values, Output(exr_layout=layout))
    found = maps.read(path, find(name))
    np.testing.assert_allclose(found, values, rtol=0, atol=step("exr", name))


def exr(path: Path) -> dict[str, tuple[str, Array]]:
    """Channels of an EXR by OpenImageIO: name -> (type, values)."""
    file = OpenImageIO.ImageInput.open(str(path))
    spec = file.spec()
    kinds = spec.channelformats or [spec.format] * spec.nchannels
    found = {}
    for index, name in enumerate(spec.channelnames):
        values = file.read_image(0, 0, index, index + 1, kinds[index])
        found[name] = (str(kinds[index]), values[..., 0])
    return found


def test_one_file_holds_all_layers_with_types_and_origin(tmp_path: Path) -> None:
    layers = [export.layer(task, a_map(name), "flat")[0] for name, task in TASKS.items()]
    path = tmp_path / "room.exr"
    export.save_exr(path, layers, Output(), TEXT)
    kinds = {name: kind for name, (kind, _) in exr(path).items()}
    rgb = "RGB"
    assert kinds == {
        "Z": "float", "seg.id": "uint", "N.X": "half", "N.Y": "half", "N.Z": "half",
        **{f"albedo.{c}": "half" for c in rgb}, **{f"shading.{c}": "half" for c in rgb},
    }  # fmt: skip
    spec = OpenImageIO.ImageInput.open(str(path)).spec()
    assert spec.getattribute("colorInteropID") == "lin_rec709_scene"
    assert spec.getattribute("dmp:Task") == "x"
    assert spec.getattribute("Software") == "dmp 1"


@pytest.mark.parametrize(
    ("name", "space"),
    [("depth", "data"), ("normals", "data"), ("segmentation", "data"),
     ("albedo", "lin_rec709_scene")],
)  # fmt: skip
def test_each_exr_says_what_its_numbers_are(tmp_path: Path, name: str, space: str) -> None:
    path = saved(tmp_path, "exr", name, a_map(name))
    spec = OpenImageIO.ImageInput.open(str(path)).spec()
    assert spec.getattribute("colorInteropID") == space


def test_what_half_cannot_hold_is_counted(tmp_path: Path) -> None:
    values = np.array([[1, 65504, 65505, 1e9], [np.inf, np.nan, -7e4, 0]], np.float32)
    layer, told = export.layer(find("shading"), values, "flat")
    assert told == ["shading: 2 values beyond 65504 are infinite in EXR"]
    export.save_exr(tmp_path / "a.exr", [layer], Output(), {})
    _, found = exr(tmp_path / "a.exr")["shading.R"]
    assert np.isinf(found[0, 3]) and np.isnan(found[1, 1]) and found[0, 1] == 65504  # noqa: PT018


def test_nan_stays_nan_in_float_data(tmp_path: Path) -> None:
    depth = a_map("depth")
    depth[2, 3] = np.nan
    for form in ("npy", "exr", "tiff"):
        found = maps.read(saved(tmp_path, form, "depth", depth), find("depth"))
        assert np.argwhere(np.isnan(found)).tolist() == [[2, 3]]


# Pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TASKS if name != "segmentation"])
def test_pixels_without_a_value_are_seen_and_told(tmp_path: Path, name: str) -> None:
    values = a_map(name)
    values[1, 2], values[3, 4] = np.nan, np.inf
    picture = Image.open(saved(tmp_path, "png", name, values))
    marked = (np.asarray(picture) == MARK).all(axis=-1)
    assert np.argwhere(marked).tolist() == [[1, 2], [3, 4]]
    (told,) = export.remarks(find(name), values)
    assert f"{2 if values.ndim == 2 else 6} of {values.size} values are not finite" in told


def test_a_map_without_any_value_is_a_picture_of_marks(tmp_path: Path) -> None:
    values = np.full((4, 5), np.nan, np.float32)
    picture = np.asarray(Image.open(saved(tmp_path, "png", "depth", values)))
    assert (picture == MARK).all()


@pytest.mark.parametrize("name", ["depth", "shading", "albedo"])
def test_a_constant_map_is_a_picture_and_told(tmp_path: Path, name: str) -> None:
    values = np.full_like(a_map(name), 0.5)
    for form in FORMATS:
        assert saved(tmp_path, form, name, values).exists()
    assert export.remarks(find(name), values) == [f"{name}: every pixel has the same value"]
    assert export.remarks(find(name), a_map(name)) == []
    assert export.remarks(find(name), values[:1, :1]) == []


@pytest.mark.parametrize(("how", "mode"), [("palette", "P"), ("ids", "L"), ("color", "RGB")])
def test_pictures_of_classes(tmp_path: Path, how: str, mode: str) -> None:
    ids = a_map("segmentation")
    ids[0, 0] = 255
    picture = Image.open(saved(tmp_path, "png", "segmentation", ids, Output(seg_format=how)))
    assert picture.mode == mode
    if mode != "RGB":
        assert np.array_equal(picture, ids)
    if mode != "L":
        colours = np.concatenate([ade20k().standard, np.zeros((106, 3), np.uint8)])
        assert np.array_equal(picture.convert("RGB"), colours[ids])


# Depth ------------------------------------------------------------------------------------

CASES = [
    (Output(), "auto"),
    (Output(range="image"), "image"),
    (Output(range=(1.0, 9.0)), "given"),
    (Output(range="run"), "run"),
    (Output(depth_unit=0.0005), "unit"),
]


@pytest.mark.parametrize(("look", "what"), CASES, ids=[name for _, name in CASES])
@pytest.mark.parametrize("form", ["png16", "tiff16"])
def test_sixteen_bits_give_metres_from_the_file_alone(
    tmp_path: Path, look: Output, what: str, form: str
) -> None:
    depth = np.clip(a_map("depth"), 1, 9)
    path = tmp_path / ("a.16.png" if form == "png16" else "a.16.tiff")
    covered = Span(1.2, 8.5, 0.7, 9.3) if what == "run" else export.span(find("depth"), depth)
    assert export.save(path, form, find("depth"), depth, export.view(look, covered), TEXT) == []
    if form == "png16":
        image = Image.open(path)
        stored, text = np.asarray(image), image.text  # type: ignore[attr-defined]
        assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), stored)
    else:
        import json

        with tifffile.TiffFile(path) as file:
            stored, text = file.asarray(), json.loads(file.pages.first.description)
    assert stored.dtype == np.uint16
    metres = float(text["metres_at_zero"]) + float(text["metres_per_step"]) * stored
    np.testing.assert_allclose(metres, depth, atol=float(text["metres_per_step"]) * 0.51)
    np.testing.assert_allclose(maps.read(path, find("depth")), depth, atol=0.001)
    assert ("near" in text) is (what not in ("auto", "unit"))
    if what == "auto":
        np.testing.assert_allclose(stored, depth * 1000, atol=0.51)


def test_depth_past_sixteen_bits_is_cut_and_counted(tmp_path: Path) -> None:
    depth = np.array([[1, 65.535, 65.6, 100, np.nan, 0]], np.float32)
    (told,) = export.save(
        tmp_path / "a.png", "png16", find("depth"), depth, export.view(Output(), None), {}
    )
    assert (
        told
        == "a.png: 3 of 6 pixels are cut to what fits; --depth-unit or --range can make them fit"
    )
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [
        [1000, 65535, 65535, 65535, 0, 1]
    ]


def test_a_range_keeps_zero_for_no_depth() -> None:
    packed = find("depth").pack(
        np.array([[1, 2, 3, 0.5, np.nan]], np.float32), View(ends=(1.0, 3.0))
    )
    assert packed.values.tolist() == [[1, 32768, 65535, 1, 0]]
    assert packed.cut == 1


def test_the_range_of_a_run_is_that_of_its_images() -> None:
    one, other = Span(1, 5, 0.5, 6), Span(2, 8, 1, 9)
    assert one | other == Span(1, 8, 0.5, 9)
    shown = export.view(Output(range="run"), one | other)
    assert (shown.range, shown.ends) == ((1, 8), (0.5, 9))


@pytest.mark.parametrize(("name", "form", "expected"), [
    ("depth", "png", True), ("depth", "png16", True), ("depth", "tiff16", True),
    ("depth", "exr", False), ("depth", "npy", False), ("normals", "png", False),
])  # fmt: skip
def test_what_waits_for_the_run(name: str, form: str, expected: bool) -> None:
    assert export.waits(find(name), form, Output(range="run")) is expected
    assert not export.waits(find(name), form, Output(range="image"))


def test_near_and_far_are_in_the_picture(tmp_path: Path) -> None:
    depth = a_map("depth")
    image = Image.open(saved(tmp_path, "png", "depth", depth, Output(range=(1.0, 4.0))))
    assert (image.text["near"], image.text["far"]) == ("1 m", "4 m")  # type: ignore[attr-defined]
    near, far = np.percentile(depth, (1, 99))
    image = Image.open(saved(tmp_path, "png", "depth", depth))
    assert image.text["near"] == f"{near:.6g} m"  # type: ignore[attr-defined]
    assert image.text["far"] == f"{far:.6g} m"  # type: ignore[attr-defined]


# A task of one's own ----------------------------------------------------------------------


def sixth(three: bool) -> Task:
    return replace(find("shading"), name="edges", measured="values", channels={},
                   decode=lambda rgb, coding: rgb if three else rgb[..., 0],
                   pack=Task.__dataclass_fields__["pack"].default,
                   unpack=Task.__dataclass_fields__["unpack"].default)  # fmt: skip


@pytest.mark.parametrize("three", [False, True])
def test_a_row_that_says_nothing_of_files_can_be_written(tmp_path: Path, three: bool) -> None:
    task, values = sixth(three), a_map("albedo" if three else "shading")
    layer, _ = export.layer(task, values, "blender")
    assert [channel.name for channel in layer.channels] == (
        ["edges.R", "edges.G", "edges.B"] if three else ["edges.Y"]
    )
    for form in ("png16", "tiff16", "tiff", "npy"):
        path = tmp_path / f"a.{EXTENSIONS[form]}"
        export.save(path, form, task, values, View(), {})
        np.testing.assert_allclose(maps.read(path, task), values, atol=4e-5)


def test_shading_is_coded_as_srgb_in_sixteen_bits(tmp_path: Path) -> None:
    values = a_map("shading")
    stored = np.asarray(Image.open(saved(tmp_path, "png16", "shading", values)))
    np.testing.assert_allclose(linear_from_srgb(stored / np.float32(65535)), values, atol=4e-5)


@pytest.mark.parametrize("name", TASKS)
def test_only_light_is_declared_as_srgb(tmp_path: Path, name: str) -> None:
    light = name in ("albedo", "shading")
    for form in ("png", "png16"):
        with Image.open(saved(tmp_path, form, name, a_map(name))) as image:
            image.load()
            assert ("srgb" in image.info) is light
            assert (image.info.get("ColorSpace") == "sRGB") is light
    with tifffile.TiffFile(saved(tmp_path, "tiff", name, a_map(name))) as file:
        assert ("lin_rec709_scene" in file.pages.first.description) is light


@pytest.mark.parametrize("ends", [(5.0, 5.0), (7.9, 7.91), (1000.0, 1001.0), (5.0, 5.001)])
def test_nothing_within_a_narrow_range_is_cut(ends: tuple[float, float]) -> None:
    depth = np.linspace(*ends, 20, dtype=np.float32)[None]
    covered = export.span(find("depth"), depth)
    assert covered is not None
    for view in (View(ends=(covered.least, covered.most)), View(unit=ends[1] / 60000)):
        packed = find("depth").pack(depth, view)
        assert packed.cut == 0
        metres, text = packed.values.astype(np.float64), packed.text
        metres = metres * float(text["metres_per_step"]) + float(text["metres_at_zero"])
        np.testing.assert_allclose(metres, depth, atol=float(text["metres_per_step"]) * 0.51)


@pytest.mark.parametrize("axes", ["opengl", "directx", "opencv", "-z x y"])
@pytest.mark.parametrize("form", ["png16", "tiff16", "exr", "tiff"])
def test_a_file_of_normals_says_its_axes(tmp_path: Path, axes: str, form: str) -> None:
    task, truth = find("normals"), a_map("normals")
    values = task.decode(truth, Coding(axes=axes))
    path = tmp_path / f"a.normals.{EXTENSIONS[form]}"
    if form == "exr":
        export.save_exr(path, [export.layer(task, values, "flat")[0]], PLAIN, {"Axes": axes})
    else:
        export.save(path, form, task, values, View(), {"Axes": axes})
    np.testing.assert_allclose(maps.read(path, task), truth, atol=1e-3)
