"""Pictures that are damaged, hostile, odd or rich: many in one folder, and one run over them."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmp_cli.outputs import panels
from tests.faults.process import Command, Ended
from tests.mutations import mutations
from tests.test_images import (
    BAD_EXIF,
    BOMBS,
    ORIENTED,
    PROFILES,
    SEEDS,
    chunk,
    encode,
    noise,
    png,
    png16,
    profile,
    psd,
    smooth,
    tiff,
    to_srgb,
    zlib,
)

HIGH, WIDE = panels.HEIGHT, 256  # as high as --side-by-side shows it, so that nothing is resized


def shown(out: Path, stem: str) -> Any:
    """The pixels that dmp read of a picture, as the first of its panels shows them."""
    with Image.open(out / f"{stem}.side-by-side.png") as image:
        left, top = HIGH // 32, HIGH // 14
        return np.asarray(image)[top : top + HIGH, left : left + WIDE].astype(int)


def gentle() -> Any:
    """A picture without edges, which JPEG keeps."""
    rows, columns = np.mgrid[:HIGH, :WIDE]
    return np.stack([rows // 2, columns, (rows // 2 + columns) // 2], -1).astype("u1")


# What fails -------------------------------------------------------------------------------


def cut(data: bytes) -> dict[str, bytes]:
    """The beginnings of a file."""
    return {"1": data[: len(data) // 100], "50": data[: len(data) // 2], "2 short": data[:-2]}


def bomb_of_text() -> bytes:
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(32 << 20), 9))
    return png(4, 4, 8, 2, text, chunk(b"IDAT", zlib.compress(bytes(4 * 13))))


def small_file_of_80_megapixels() -> bytes:
    rows = zlib.compress(bytes(8000 * (1 + 1250)), 9)
    return png(10_000, 8000, 1, 0, chunk(b"IDAT", rows))


FITS = b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800)
OTHERS = {form: encode(smooth(), form) for form in ("EPS", "PDF", "PCX", "TGA", "ICO", "JPEG2000")}
JPEG, PNG = encode(gentle(), "JPEG"), encode(noise(), "PNG")
FAILING: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty"),
    "text.png": (b"not a picture", "not an image"),
    "header.png": (png(8, 8, 8, 2)[:33], "not an image"),
    **{f"cut {much}.jpg": (data, "damaged: ") for much, data in cut(JPEG).items()},
    **{f"cut {much} too.png": (data, "damaged: ") for much, data in cut(PNG).items()},
    **{
        f"{form}.png": (data, "not an image that dmp reads")
        for form, data in {**OTHERS, "PSD": psd(), "FITS": FITS}.items()
    },
    **{f"bomb {kind}.png": (make(20_000, 20_000), "more than") for kind, make in BOMBS.items()},
    "80 MP.png": (small_file_of_80_megapixels(), "10000x8000 is more than --max-pixels 70000000"),
    "text bomb.png": (bomb_of_text(), "too large"),
}


@pytest.mark.fault(1, 2, 5, 6, 7)
def test_what_is_no_picture_fails_and_its_neighbours_do_not(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    for name, (data, _) in FAILING.items():
        (folder / name).write_bytes(data)
    spies = tmp_path / "spies"
    spies.mkdir()
    for name in ("gs", "gswin64c", "convert", "magick", "djpeg", "ffmpeg", "xdg-open"):
        (spies / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/started\n")
        (spies / name).chmod(0o755)
    ran = command.fork(
        "predict", "depth", folder, "-o", tmp_path / "out", "--json", "--max-pixels", 70_000_000,
        *command.model, PATH=f"{spies}:{os.environ['PATH']}",
    )  # fmt: skip
    assert ran.code == 3, ran.err
    records = ran.records
    failed = {name: record for name, record in records.items() if record["status"] == "failed"}
    assert set(failed) == set(FAILING)
    wrong = {
        name: record["errors"]
        for name, record in failed.items()
        if len(record["errors"]) != 1 or FAILING[name][1].lower() not in record["errors"][0].lower()
    }
    assert wrong == {}
    assert {name for name in records if name not in failed} == {f"{i}.png" for i in range(4)}
    lines = [line for line in ran.err.splitlines() if line.startswith("dmp: failed: ")]
    assert len(lines) == len(FAILING)
    assert {path.name for path in (tmp_path / "out").rglob("*.png")} == {
        f"{i}.depth.png" for i in range(4)
    }
    assert not (tmp_path / "started").exists()
    assert 0 < ran.memory < 1 << 30  # 20,000 x 20,000 pixels alone are 1.2 GB


@pytest.mark.slow
@pytest.mark.fault(6)
def test_a_bomb_within_the_limit_is_predicted_in_bounded_memory(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "80.png").write_bytes(small_file_of_80_megapixels())
    ran = command.predict(tmp_path / "80.png", "-o", tmp_path / "out", measured=True)
    assert ran.code == 0, ran.err
    assert 0 < ran.memory < 4 << 30


# What is read -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Good:
    """A file that is read, the pixels that it holds (None: any), and what is remarked."""

    data: bytes
    expected: Any = None
    near: float = 0.0  # levels apart, at most
    note: str = ""


def quarters(mode: str) -> Image.Image:
    """Four colours, of which two are half clear where the mode has alpha."""
    picture = Image.new("RGBA", (WIDE, HIGH), (200, 40, 40, 255))
    picture.paste((30, 180, 60, 255), (0, 0, WIDE // 2, HIGH // 2))
    picture.paste((40, 60, 220, 128), (WIDE // 2, 0, WIDE, HIGH // 2))
    picture.paste((0, 0, 0, 0), (0, HIGH // 2, WIDE // 2, HIGH))
    return picture if mode == "RGBA" else picture.convert(mode)


def over(background: tuple[int, int, int], picture: Image.Image) -> Any:
    pixels = np.asarray(picture.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + np.array(background) * (1 - alpha)


def turned(turn: int) -> bytes:
    """A picture that is `gentle` once it is turned as its EXIF data says."""
    back = {6: 8, 8: 6}.get(turn, turn)
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = gentle()
    return encode(np.ascontiguousarray(ORIENTED[back](upright)), "PNG", exif=exif)


def pictures() -> dict[str, Good]:
    """Files by name; row of the fault in front."""
    white, plain = (255, 255, 255), gentle()
    ramp = np.tile(np.arange(WIDE, dtype="u2") * 257, (HIGH, 1))
    levels = np.dstack([ramp // 257] * 3)
    flat = quarters("RGB")
    inks = Image.new("CMYK", (WIDE, HIGH), (0, 255, 255, 0))
    frames = [Image.fromarray(plain), Image.fromarray(plain[::-1])]
    several = "several frames"
    pale = 40 + noise(HIGH, WIDE) // 2
    return {
        "4 jpeg.png": Good(JPEG, plain, 12),
        "7 exif.jpg": Good(encode(plain, "JPEG", exif=BAD_EXIF["bad offset"]), plain, 12),
        "7 icc.png": Good(encode(plain, "PNG", icc_profile=b"garbage"), plain, note="profile"),
        "10 grey.png": Good(png16(ramp), levels, 1),
        "10 rgb.png": Good(png16(np.dstack([ramp] * 3)), levels, 1),
        "10 float.tif": Good(tiff((ramp / 65535).astype("f4")), levels, 1),
        "11 cmyk.tif": Good(encode(inks, "TIFF"), np.full((HIGH, WIDE, 3), (255, 0, 0)), 6),
        "11 palette.png": Good(encode(flat.quantize(8), "PNG"), np.asarray(flat)),
        "11 bit.png": Good(encode(flat.convert("1"), "PNG"), over(white, flat.convert("1"))),
        "11 la.png": Good(encode(quarters("LA"), "PNG"), over(white, quarters("LA")), 1),
        "11 rgba.png": Good(encode(quarters("RGBA"), "PNG"), over(white, quarters("RGBA")), 1),
        **{f"12 turn {turn}.png": Good(turned(turn), plain) for turn in ORIENTED},
        **{
            f"12 {name}.png": Good(
                encode(pale, "PNG", icc_profile=profile(matrix, curve)),
                to_srgb(pale, matrix, gamma),
                3,
            )
            for name, (matrix, curve, gamma) in PROFILES.items()
        },
        "13 gif.gif": Good(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
                           note=several),
        "13 pages.tif": Good(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
                             plain, note=several),
    }  # fmt: skip


def differs(good: Good, pixels: Any, notes: list[str]) -> str:
    """What is not as it should be, or nothing."""
    if bool(good.note) != bool(notes) or good.note not in " ".join(notes):
        return f"noted {notes}"
    apart = 0.0 if good.expected is None else np.abs(pixels - good.expected).max()
    return f"{apart} levels apart" if apart > good.near + 0.5 else ""


@pytest.mark.fault(4, 7, 10, 11, 12, 13)
def test_what_the_network_is_given(command: Command, tmp_path: Path) -> None:
    folder, out, files = tmp_path / "in", tmp_path / "out", pictures()
    folder.mkdir()
    for name, good in files.items():
        (folder / name).write_bytes(good.data)
    ran = command.fork("predict", "depth", folder, "-o", out, "--json", "--side-by-side",
                       *command.model)  # fmt: skip
    assert ran.code == 0, ran.err
    wrong = {
        name: told
        for name, good in files.items()
        if (told := differs(good, shown(out, Path(name).stem), ran.records[name]["notes"]))
    }
    assert wrong == {}
    assert len(np.unique(shown(out, "10 grey"))) == 256


@pytest.mark.fault(11)
def test_alpha_over_a_background_of_ones_own(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(quarters("RGBA"), "PNG"))
    ran = command.fork(
        "predict", "depth", tmp_path / "a.png", "-o", tmp_path / "out", "--side-by-side",
        "--background", "10,128,250", *command.model,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    expected = over((10, 128, 250), quarters("RGBA"))
    assert np.abs(shown(tmp_path / "out", "a") - expected).max() < 1.5


# Sizes, names, what is no file ------------------------------------------------------------

SIZES = {"one.png": (1, 1), "seven.png": (7, 7), "line.png": (1, 5000), "long.png": (64, 6400),
         "tall.png": (6400, 64)}  # fmt: skip
NAMES = ("\u6d77.png", "-x.png", "a\nb.png", os.fsdecode(b"caf\xe9.png"), "n" * 240 + ".png",
         "m" * 247 + ".png")  # fmt: skip
TOO_LONG = NAMES[-1]  # 251 bytes: with `.depth` there are 257
SEEN = """
from dmp_cli.backbone import Backbone
encode = Backbone.encode
def told(self, pixels):
    with open(os.environ["SEEN"], "a") as file: print(*pixels.shape[2:], file=file)
    return encode(self, pixels)
import os; Backbone.encode = told
"""


@pytest.mark.fault(8, 9, 15, 19)
def test_odd_sizes_names_and_things_that_are_no_files(command: Command, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, size in SIZES.items():
        (folder / name).write_bytes(encode(noise(*size), "PNG"))
    for name in NAMES:
        (folder / name).write_bytes(encode(noise(), "PNG"))
    odd = no_files(folder)
    ran = command.predict(folder, "-o", out, "--json", "--format", "npy,png")
    assert ran.code == 3, ran.err
    records = ran.records
    assert set(records) == {*SIZES, *NAMES}
    assert {name for name in records if records[name]["errors"]} == {TOO_LONG}
    assert "File name too long" in records[TOO_LONG]["errors"][0]
    for name, size in SIZES.items():
        assert np.load(out / f"{Path(name).stem}.depth.npy").shape == size
    for name in NAMES[:-1]:
        with Image.open(out / f"{Path(name).stem}.depth.png") as image:
            assert image.size == (32, 24)
    for name in odd:
        assert f"skipped {folder / name}: not a regular file" in ran.err


def no_files(folder: Path) -> list[str]:
    """A FIFO, a socket, a link to a device and a folder, each with the name of a picture."""
    os.mkfifo(folder / "fifo.png")
    bound = Path.cwd()
    os.chdir(folder)  # the path of a socket is at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket.png")
    finally:
        os.chdir(bound)
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    return ["fifo.png", "socket.png", "device.png", "folder.png"]


@pytest.mark.fault(15)
def test_a_fifo_that_is_named_is_not_opened(command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    ran = command.predict(tmp_path / "x.png", "-o", tmp_path / "out", timeout=20)
    assert (ran.code, ran.out) == (4, b"")
    assert "x.png: not a regular file" in ran.err


@pytest.mark.fault(19)
@pytest.mark.parametrize("name", [b"b\nad.png", b"b\xe9d.png", b"\x1b[31mred.png"])
def test_a_name_that_fails_is_escaped(command: Command, tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"no picture")
    ran = command.fork("predict", "depth", path, "-o", tmp_path / "out", *command.model)
    assert ran.code == 3
    (failed,) = [line for line in ran.err.splitlines() if line.startswith("dmp: failed: ")]
    assert repr(os.fsdecode(name))[1:-1] in failed
    assert "\x1b" not in ran.err


@pytest.mark.fault(9)
@pytest.mark.parametrize("size", [(64, 6400), (6400, 64), (1, 5000), (1500, 1500)])
def test_what_the_network_sees_is_capped(
    command: Command, tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise(*size), "PNG"))
    ran = command.fork(
        "predict", "depth", tmp_path / "a.png", "-o", tmp_path / "out", *command.model,
        patch=SEEN, SEEN=str(tmp_path / "seen"),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    height, width = map(int, (tmp_path / "seen").read_text().split())
    assert height * width <= 4 * 64 * 64
    assert (height > width) == (size[0] > size[1])


@pytest.mark.slow
@pytest.mark.fault(9)
def test_400_million_pixels(command: Command, tmp_path: Path) -> None:
    rows = zlib.compress(bytes(20_000 * (1 + 2500)), 9)
    (tmp_path / "a.png").write_bytes(png(20_000, 20_000, 1, 0, chunk(b"IDAT", rows)))
    ran = command.predict(tmp_path / "a.png", "-o", tmp_path / "out", "--max-pixels", 400_000_000,
                          "--format", "npy", timeout=280)  # fmt: skip
    assert ran.code == 0, ran.err
    assert np.load(tmp_path / "out/a.depth.npy", mmap_mode="r").shape == (20_000, 20_000)


# Mutations --------------------------------------------------------------------------------

KINDS: dict[str, Callable[[], bytes]] = {
    kind: make for kind, make in SEEDS.items() if kind not in ("LZW float TIFF", "BMP")
}


@pytest.mark.fault(3)
@pytest.mark.parametrize("turns", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_changed_bytes(command: Command, folder: Path, tmp_path: Path, turns: int) -> None:
    """Pictures of ten kinds, each changed `turns` times."""
    assert len(KINDS) == 10
    for kind, make in KINDS.items():
        for turn, data in enumerate(mutations(make(), turns, header=200, seed=len(kind) + turns)):
            (folder / f"{kind} {turn}.png").write_bytes(data)
    ran = command.fork(
        "predict", "depth", folder, "-o", tmp_path / "out", "--json", "--batch", 8,
        "--max-pixels", 1_000_000, *command.model, timeout=280,
    )  # fmt: skip
    assert ran.code == 3, ran.err
    assert "Traceback" not in ran.err
    require_outputs_of_what_is_done(ran, tmp_path / "out")
    assert len(ran.records) == 4 + 10 * turns


def require_outputs_of_what_is_done(ran: Ended, out: Path) -> None:
    """Each input that is done has outputs that open, and no other has one."""
    done = {name for name, record in ran.records.items() if record["status"] == "done"}
    assert {path.name for path in out.rglob("*.png")} == {
        f"{Path(name).stem}.depth.png" for name in done
    }
    for path in out.rglob("*.png"):
        with Image.open(path) as image:
            image.load()


# The same everywhere ----------------------------------------------------------------------

CONSTANT = """
from dmp_cli.backbone import Backbone
decode = Backbone.decode
Backbone.decode = lambda self, latents: decode(self, latents) * 0
"""


@pytest.mark.fault(36)
def test_a_map_that_is_the_same_everywhere(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = command.fork(
        "predict", "depth,shading", folder / "0.png", "-o", out, "--format", "png,npy", "--json",
        *command.model, patch=CONSTANT,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert any("every pixel has the same value" in note for note in ran.records["0.png"]["notes"])
    assert np.ptp(np.load(out / "0.depth.npy")) == 0
    for task in ("depth", "shading"):
        with Image.open(out / f"0.{task}.png") as image:
            assert len(image.getcolors() or []) == 1
