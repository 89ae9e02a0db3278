"""EXR and Radiance HDR as input pictures, written by OpenEXR and OpenCV, not by what reads them."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenEXR
import pytest

from dmp_cli import images
from dmp_cli.errors import ImageError
from dmp_cli.inputs import radiance
from tests.mutations import LIMIT, require_pixels_or_an_error

SIZE = (6, 10)
Read = Callable[..., images.Pixels]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read bytes as the file x.png, whatever they are."""

    def run(data: bytes, max_pixels: int = LIMIT, **options: Any) -> images.Pixels:
        path = tmp_path / "x.png"
        path.write_bytes(data)
        return images.read(path, max_pixels, **options)

    return run


Exr = Callable[..., bytes]


@pytest.fixture
def exr(tmp_path: Path) -> Exr:
    """The bytes of an EXR of channels, or of parts {title: channels}, with header attributes."""

    def plain(channels: Mapping[str, Any]) -> dict[str, Any]:
        return {name: OpenEXR.Channel(np.ascontiguousarray(v)) for name, v in channels.items()}

    def run(channels: Mapping[str, Any], parts: bool = False, **header: Any) -> bytes:
        head = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage} | header
        if parts:
            made = [OpenEXR.Part(dict(head), plain(c), title) for title, c in channels.items()]
            file = OpenEXR.File(made)
        else:
            file = OpenEXR.File(head, plain(channels))
        path = tmp_path / "made.exr"
        file.write(str(path))
        return path.read_bytes()

    return run


def light(seed: int = 0, size: tuple[int, int] = SIZE) -> Any:
    """Scene-linear light, some of it brighter than white."""
    return np.random.default_rng(seed).random((*size, 3)).astype("f4") * 1.3


def named(rgb: Any, prefix: str = "", alpha: Any = None) -> dict[str, Any]:
    channels = {f"{prefix}{name}": rgb[..., i] for i, name in enumerate("RGB")}
    return channels if alpha is None else channels | {f"{prefix}A": alpha}


def coded(linear: Any) -> Any:
    """sRGB of linear light, 0 to 255, as the standard has it."""
    cut = np.clip(linear.astype("f8"), 0, 1)
    return np.where(cut <= 0.0031308, cut * 12.92, 1.055 * cut ** (1 / 2.4) - 0.055) * 255


def assert_near(pixels: images.Pixels, linear: Any, apart: float = 0.51) -> None:
    assert pixels.rgb.dtype == np.uint8
    np.testing.assert_allclose(pixels.rgb, coded(linear), rtol=0, atol=apart)


# Light -> 8 bits --------------------------------------------------------------------------


@pytest.mark.parametrize("exposure", [-3.0, 0.0, 0.5, 2.0, 60.0])
@pytest.mark.parametrize("kind", ["f2", "f4"])
def test_exposure(read: Read, exr: Exr, kind: str, exposure: float) -> None:
    rgb = light().astype(kind)
    assert_near(read(exr(named(rgb)), exposure=exposure), rgb.astype("f8") * 2**exposure)


def test_middle_grey(read: Read, exr: Exr) -> None:
    """18 % reflectance is 118 in sRGB."""
    assert (read(exr(named(np.full((2, 2, 3), 0.18, "f4")))).rgb == 118).all()


@pytest.mark.parametrize(
    "compression", ["NO", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "DWAA", "DWAB"]
)
def test_compressions(read: Read, exr: Exr, compression: str) -> None:
    rgb = np.repeat(np.linspace(0, 1, 40, dtype="f2")[None, :, None], 24, 0).repeat(3, -1)
    data = exr(named(rgb), compression=getattr(OpenEXR, f"{compression}_COMPRESSION"))
    assert_near(read(data), rgb, 0.51 if compression[0] in "NRZP" else 4)


def test_tiles(read: Read, exr: Exr) -> None:
    rgb = light(size=(70, 50))
    data = exr(named(rgb), type=OpenEXR.tiledimage, tiles=OpenEXR.TileDescription())
    assert_near(read(data), rgb)


def test_more_rows_than_a_band(read: Read, exr: Exr) -> None:
    rgb = light(size=(2 * radiance._BAND + 7, 5))
    assert_near(read(exr(named(rgb))), rgb)


def test_values_that_are_not_finite(read: Read, exr: Exr) -> None:
    rgb = np.full((1, 4, 3), 0.18, "f4")
    rgb[0, 0], rgb[0, 1, 0], rgb[0, 2], rgb[0, 3] = np.nan, np.inf, -np.inf, -3e38
    pixels = read(exr(named(rgb)), exposure=4)
    np.testing.assert_array_equal(pixels.rgb[0, 0], (0, 0, 0))
    assert pixels.rgb[0, 1, 0] == 255
    np.testing.assert_array_equal(pixels.rgb[0, 2:], np.zeros((2, 3)))
    assert pixels.notes == (
        "7 values are NaN or infinite: infinity is white, the others are black",
    )


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 128, 250)])
@pytest.mark.parametrize("exposure", [0.0, 1.0])
def test_alpha_is_associated_and_mixed_as_light(
    read: Read, exr: Exr, background: tuple[int, int, int], exposure: float
) -> None:
    alpha = np.broadcast_to(np.linspace(0, 1, 10, dtype="f4"), SIZE)
    rgb = light() / 3 * alpha[..., None]
    pixels = read(exr(named(rgb, alpha=alpha)), background=background, exposure=exposure)
    back = np.asarray(background) / 255
    behind = np.where(back <= 0.04045, back / 12.92, ((back + 0.055) / 1.055) ** 2.4)
    assert_near(pixels, rgb * 2**exposure + (1 - alpha[..., None]) * behind)
    np.testing.assert_array_equal(pixels.rgb[:, 0], np.broadcast_to(background, (6, 3)))


def test_light_without_alpha_is_added(read: Read, exr: Exr) -> None:
    """A flame: light where alpha is 0."""
    alpha = np.zeros(SIZE, "f4")
    alpha[:, 0] = 1
    pixels = read(exr(named(light(), alpha=alpha)), background=(0, 0, 0))
    assert_near(pixels, light())


def test_alpha_of_nothing_is_ignored(read: Read, exr: Exr) -> None:
    pixels = read(exr(named(light(), alpha=np.zeros(SIZE, "f4"))))
    assert_near(pixels, light())
    assert pixels.notes == ("its alpha is 0 everywhere: ignored",)


def test_grey_with_alpha(read: Read, exr: Exr) -> None:
    grey, alpha = np.full(SIZE, 0.25, "f4"), np.full(SIZE, 0.5, "f4")
    pixels = read(exr({"Y": grey, "A": alpha}), background=(0, 0, 0))
    assert_near(pixels, np.full((*SIZE, 3), 0.25))


# Primaries --------------------------------------------------------------------------------

AP1 = (0.713, 0.293, 0.165, 0.830, 0.128, 0.044, 0.32168, 0.33767)
P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290)
REC2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290)
# Published: ACES CTL and OpenColorIO (AP1), ITU-R BT.2087 (2020), Apple and Skia (P3)
TO_REC709 = {
    AP1: [[1.70505, -0.62179, -0.08326], [-0.13026, 1.14080, -0.01055],
          [-0.02400, -0.12897, 1.15297]],
    REC2020: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    P3: [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09827]],
}  # fmt: skip


@pytest.mark.parametrize("primaries", TO_REC709)
def test_primaries_are_converted(read: Read, exr: Exr, primaries: tuple[float, ...]) -> None:
    rgb = 0.3 + light() / 4
    pixels = read(exr(named(rgb), chromaticities=primaries))
    assert_near(pixels, rgb @ np.transpose(TO_REC709[primaries]), 0.6)
    assert pixels.notes == ("its colours were converted from other primaries",)
    assert np.abs(coded(rgb) - pixels.rgb).max() > 8  # so they matter


def test_primaries_of_rec709_change_nothing(read: Read, exr: Exr) -> None:
    pixels = read(exr(named(light()), chromaticities=radiance.REC709))
    assert_near(pixels, light())
    assert pixels.notes == ()


@pytest.mark.parametrize(
    "primaries", [(0.0,) * 8, (0.3, 0.3) * 4, (float("nan"),) * 8, (1e38,) * 6 + (0.3, 0.3)]
)
def test_damaged_primaries_are_ignored(read: Read, exr: Exr, primaries: tuple[float, ...]) -> None:
    pixels = read(exr(named(light()), chromaticities=primaries))
    assert_near(pixels, light())
    assert pixels.notes == ("its primaries are damaged: taken as Rec. 709",)


# Which channels ---------------------------------------------------------------------------


def depth(size: tuple[int, int] = SIZE) -> Any:
    return np.full(size, 3, "f4")


PICTURES: dict[str, dict[str, Any]] = {
    "RGB beside depth and normals": named(light()) | {"Z": depth(), "N.X": depth()},
    "RGB before layers": named(light()) | named(light(1), "diffuse."),
    "Blender": named(light(), "ViewLayer.Combined.")
    | named(light(1), "ViewLayer.DiffCol.")
    | {"ViewLayer.Depth.Z": depth(), "ViewLayer.Normal.X": depth()},
    "the only colours": named(light(), "beauty.") | {"Z": depth(), "object.id": depth()},
    "lower case": {name: light()[..., i] for i, name in enumerate("rgb")},
}


@pytest.mark.parametrize("kind", PICTURES)
def test_the_picture_is_found(read: Read, exr: Exr, kind: str) -> None:
    assert_near(read(exr(PICTURES[kind])), light())


@pytest.mark.parametrize("name", ["Y", "L", "R", "left.Y", "channel0"])
def test_one_channel_is_grey(read: Read, exr: Exr, name: str) -> None:
    assert_near(read(exr({name: light()[..., 0]})), light()[..., :1].repeat(3, -1))


@pytest.mark.parametrize(
    "first", [{"Z": depth()}, {"N.X": depth(), "N.Y": depth()}, {"A": depth()}]
)
def test_first_part_with_a_picture(read: Read, exr: Exr, first: dict[str, Any]) -> None:
    parts = {"first": first, "beauty": named(light()), "third": named(light(1))}
    assert_near(read(exr(parts, parts=True)), light())


@pytest.mark.parametrize(
    "channels",
    [{"Z": depth()}, {"V": depth(), "Z": depth()}, {"ViewLayer.Depth.Z": depth()},
     {"N.X": depth(), "N.Y": depth(), "N.Z": depth()}, {"X": depth(), "Y": depth(), "Z": depth()},
     {"seg.id": np.ones(SIZE, "u4")}, {"Y": np.ones(SIZE, "u4")}, {"A": depth()},
     {"depth.V": depth()}],
    ids=" ".join,
)  # fmt: skip
def test_maps_are_no_pictures(read: Read, exr: Exr, channels: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="holds no colours") as refused:
        read(exr(channels))
    assert set(channels) <= set(str(refused.value).replace("only ", "").split(", ")[1:])
    assert "maps" in refused.value.hint


def test_what_is_called_data_is_no_picture(read: Read, exr: Exr) -> None:
    with pytest.raises(ImageError, match="holds no colours"):
        read(exr(named(light()), colorInteropID="data"))


def test_several_layers_of_colours(read: Read, exr: Exr) -> None:
    with pytest.raises(ImageError, match="layers albedo, shading: which one is the picture"):
        read(exr(named(light(), "albedo.") | named(light(), "shading.")))


def test_deep_exr_is_refused(read: Read, tmp_path: Path) -> None:
    import OpenImageIO

    spec = OpenImageIO.ImageSpec(3, 2, 4, "float")
    spec.deep = True
    out = OpenImageIO.ImageOutput.create("x.exr")
    assert out.open(str(tmp_path / "deep.exr"), spec)
    samples = OpenImageIO.DeepData()
    samples.init(spec)
    samples.set_samples(0, 1)
    assert out.write_deep_image(samples)
    out.close()
    with pytest.raises(ImageError, match="deep"):
        read((tmp_path / "deep.exr").read_bytes())


# Sizes and windows ------------------------------------------------------------------------


def window(x0: int, y0: int, x1: int, y1: int) -> tuple[Any, Any]:
    return (np.array([x0, y0], "i4"), np.array([x1, y1], "i4"))


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 1), (-3, -2), (4, -1), (-3, 3)], ids=str)
def test_data_window(read: Read, exr: Exr, x: int, y: int) -> None:
    """A cropped or overscanned render: stored 10 x 6 at (x, y) of a picture of 12 x 8."""
    data = exr(named(light()), dataWindow=window(x, y, x + 9, y + 5),
               displayWindow=window(0, 0, 11, 7))  # fmt: skip
    expected = np.zeros((8, 12, 3))
    for row in range(6):
        for column in range(10):
            if 0 <= row + y < 8 and 0 <= column + x < 12:
                expected[row + y, column + x] = light()[row, column]
    assert_near(read(data), expected)


def test_outside_the_data_window_is_transparent(read: Read, exr: Exr) -> None:
    alpha = np.ones(SIZE, "f4")
    data = exr(named(light(), alpha=alpha), dataWindow=window(2, 2, 11, 7),
               displayWindow=window(0, 0, 11, 7))  # fmt: skip
    np.testing.assert_array_equal(read(data, background=(9, 8, 7)).rgb[0, 0], (9, 8, 7))


@pytest.mark.parametrize("side", [1001, 20_000, 2_000_000])
@pytest.mark.parametrize("attribute", [b"dataWindow", b"displayWindow"])
def test_bombs_are_refused_from_the_header(
    read: Read, exr: Exr, attribute: bytes, side: int
) -> None:
    data = bytearray(exr(named(light())))
    at = data.index(attribute + b"\0box2i\0") + len(attribute) + 7 + 4
    data[at : at + 16] = struct.pack("<4i", 0, 0, side - 1, (1000 if side == 1001 else side) - 1)
    with pytest.raises(ImageError, match=r"more than --max-pixels|damaged"):
        read(bytes(data))


def test_limit_is_inclusive(read: Read, exr: Exr) -> None:
    assert read(exr(named(light())), 60).rgb.shape == (*SIZE, 3)
    with pytest.raises(ImageError, match="10x6 is more than --max-pixels 59"):
        read(exr(named(light())), 59)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (1, 5000), (5000, 1)])
def test_odd_sizes(read: Read, exr: Exr, size: tuple[int, int]) -> None:
    assert read(exr(named(light(size=size)))).rgb.shape == (*size, 3)


# Radiance HDR -----------------------------------------------------------------------------


def rgbe(rgb: Any) -> bytes:
    """Pixels of Radiance's flat RGBE (Ward, Graphics Gems II)."""
    mantissa, power = np.frexp(rgb.max(-1))
    scale = np.where(rgb.max(-1) > 1e-32, mantissa * 256 / np.maximum(rgb.max(-1), 1e-32), 0)
    shared = np.where(rgb.max(-1) > 1e-32, power + 128, 0)
    return np.dstack([rgb * scale[..., None], shared]).astype("u1").tobytes()


def hdr(rgb: Any, resolution: str = "", *lines: str, program: str = "RADIANCE") -> bytes:
    head = "\n".join([f"#?{program}", *lines, "FORMAT=32-bit_rle_rgbe", "", ""])
    return (head + (resolution or f"-Y {rgb.shape[0]} +X {rgb.shape[1]}") + "\n").encode() + rgbe(
        rgb
    )


@pytest.mark.parametrize("exposure", [-1.0, 0.0, 3.0])
def test_hdr_of_opencv(read: Read, tmp_path: Path, exposure: float) -> None:
    rgb = light(size=(24, 32))
    cv2.imwrite(str(tmp_path / "a.hdr"), rgb[..., ::-1])
    pixels = read((tmp_path / "a.hdr").read_bytes(), exposure=exposure)
    stored = cv2.imread(str(tmp_path / "a.hdr"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert_near(pixels, stored * 2**exposure, 0.6)
    assert np.abs(stored - rgb).max() < 0.02


@pytest.mark.parametrize("program", ["RADIANCE", "RGBE", "AUTOPANO"])
def test_hdr_of_other_programs(read: Read, program: str) -> None:
    grey = light()[..., :1].repeat(3, -1)  # 8 bits of each channel: none is far below the others
    assert_near(read(hdr(grey, program=program)), grey, 1.5)


# How the stored [3, 5] picture comes to be upright: Radiance's filefmts, "picture format"
TURNED: dict[str, Callable[[Any], Any]] = {
    "-Y 3 +X 5": lambda a: a,
    "-Y 3 -X 5": lambda a: a[:, ::-1],  # flipped left to right
    "+Y 3 -X 5": lambda a: a[::-1, ::-1],  # rotated by 180 degrees
    "+Y 3 +X 5": lambda a: a[::-1],  # flipped top to bottom
    "+X 3 +Y 5": np.rot90,  # had been rotated clockwise
    "-X 3 +Y 5": lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    "-X 3 -Y 5": lambda a: np.rot90(a, -1),  # had been rotated the other way
    "+X 3 -Y 5": lambda a: a.swapaxes(0, 1),
}


@pytest.mark.parametrize("resolution", TURNED)
def test_hdr_is_turned_upright(read: Read, resolution: str) -> None:
    rgb = np.zeros((3, 5, 3), "f4")
    rgb[0, 0], rgb[0, 4], rgb[2, 0] = (0.99, 0, 0), (0, 0.99, 0), (0, 0, 0.99)
    pixels = read(hdr(rgb, resolution))
    np.testing.assert_array_equal(pixels.rgb > 128, TURNED[resolution](rgb) > 0)


def test_primaries_of_hdr(read: Read) -> None:
    rgb = 0.3 + light() / 4
    pixels = read(hdr(rgb, "", "PRIMARIES=" + " ".join(map(str, P3))))
    assert_near(pixels, rgb @ np.transpose(TO_REC709[P3]), 3)
    assert pixels.notes == ("its colours were converted from other primaries",)


@pytest.mark.parametrize(
    "line", ["PRIMARIES=", "PRIMARIES=a b c d e f g h", "PRIMARIES=1 2 3", "PRIMARIES=1"]
)
def test_damaged_primaries_of_hdr(read: Read, line: str) -> None:
    assert read(hdr(light(), "", line)).notes == ("its primaries are damaged: taken as Rec. 709",)


def test_hdr_of_xyz_is_refused(read: Read) -> None:
    with pytest.raises(ImageError, match="XYZ"):
        read(hdr(light()).replace(b"rgbe\n", b"xyze\n"))


def test_hdr_bomb(read: Read) -> None:
    for side in (1001, 60_000, 10**9):
        with pytest.raises(ImageError, match=r"more than --max-pixels|damaged"):
            read(hdr(light(), f"-Y {side} +X {side}"))


# Damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["8 bytes", "1 %", "50 %", "2 bytes", "12 bytes"])
@pytest.mark.parametrize("kind", ["exr", "hdr"])
def test_truncated(read: Read, exr: Exr, kind: str, cut: str) -> None:
    rgb = light(size=(64, 48))
    data = exr(named(rgb)) if kind == "exr" else hdr(rgb)
    size = len(data)
    left = {"8 bytes": 8, "1 %": size // 100, "50 %": size // 2, "2 bytes": size - 2,
            "12 bytes": size - 12}[cut]  # fmt: skip
    with pytest.raises(ImageError):
        read(data[: max(left, 4)])


def test_a_name_that_is_not_utf8(tmp_path: Path, exr: Exr) -> None:
    path = tmp_path / "a\udcff.exr"
    path.write_bytes(exr(named(light())))
    with pytest.raises(ImageError, match="not UTF-8"):
        images.read(path, LIMIT)


@pytest.mark.parametrize("kind", ["zip", "tiles", "dwaa", "parts", "hdr"])
def test_mutated_bytes_give_pixels_or_an_error(
    read: Read, exr: Exr, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rgb = light(size=(12, 16))
    good = {
        "zip": lambda: exr(named(rgb.astype("f2")) | {"Z": depth((12, 16))}),
        "tiles": lambda: exr(named(rgb), type=OpenEXR.tiledimage, tiles=OpenEXR.TileDescription()),
        "dwaa": lambda: exr(named(rgb), compression=OpenEXR.DWAA_COMPRESSION),
        "parts": lambda: exr({"a": {"Z": depth((12, 16))}, "b": named(rgb)}, parts=True),
        "hdr": lambda: hdr(rgb),
    }[kind]()
    require_pixels_or_an_error(read, good, turns=200, header=400, seed=len(kind))
    assert capfd.readouterr() == ("", "")
