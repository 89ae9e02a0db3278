"""Clip -> frames: the right one, upright, in the right colours; a damaged one is named."""

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dmp_cli.errors import ImageError, ResourceError, UsageError
from dmp_cli.inputs import clip, video
from tests.clips import HEIGHT, WIDTH, encode, number, numbered, packets, picture

LIMIT = 1_000_000


def seen(path: Path, numbers: Any = None) -> list[int | None]:
    """Which frame each is; None for an error, which must name it."""
    clips, found = video.Clips(LIMIT), list[int | None]()
    for at in range(clip.describe(path).frames) if numbers is None else numbers:
        try:
            found.append(number(clips.frame(path, at)))
        except ImageError as error:
            found.append(None if f"frame {at + 1} " in str(error) else -1)
    clips.close()
    return found


# The right frame --------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mov": {},
    "faststart.mp4": {"container": {"movflags": "faststart"}},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {},
    "h264.avi": {},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4.m4v": {"codec": "mpeg4", "bf": "2"},
    "vp8.webm": {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "16"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "prores.mov": {"codec": "prores_ks", "pixels": "yuva444p10le"},
    "10 bit.mkv": {"pixels": "yuv420p10le"},
    "grey.mkv": {"codec": "ffv1", "pixels": "gray"},
    "rgb.mkv": {"codec": "libx264rgb", "pixels": "rgb24"},
    "interlaced.mp4": {"flags": "+ildct+ilme"},
    "data:a.mp4": {},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_right_one(tmp_path: Path, name: str) -> None:
    made = numbered(tmp_path / name.replace(":", "_"), **KINDS[name])
    path = made.rename(tmp_path / name)
    assert clip.describe(path) == clip.Clip(40, Fraction(25))
    assert seen(path) == list(range(40))
    first = video.Clips(LIMIT).frame(path, 0).astype(int)
    assert first.shape == (HEIGHT, WIDTH, 3)
    if name != "grey.mkv":
        assert np.abs(first[4:12, 4:20] - (220, 40, 40)).max() < 16
    assert np.abs(first[4:12, 40:90] - 128).max() < 4


def test_rate_that_varies(tmp_path: Path) -> None:
    times = [2 * at if at < 10 else 20 + 5 * at for at in range(30)]
    path = numbered(tmp_path / "a.mp4", 30, times=times)
    assert seen(path) == list(range(30))
    assert clip.describe(path).rate == pytest.approx(25 * 30 / times[-1], rel=0.1)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "open.mp4"])
def test_frames_in_any_order(tmp_path: Path, name: str) -> None:
    options = {"codec": "libx265", "x265-params": "log-level=none"} if "open" in name else {}
    path = numbered(tmp_path / name, 250, **options)
    order = [249, 0, 3, 1, 240, 110, 107, 248, 215, 7, 249, *range(90, 130), 2]
    assert seen(path, order) == order


def test_edit_list_hides_frames(tmp_path: Path) -> None:
    """As a phone trims a clip: the frames before the cut are in the file, and not in the clip."""
    whole, path = numbered(tmp_path / "whole.mp4"), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - 5 * 512, packet.dts - 5 * 512
                packet.stream = stream
                target.mux(packet)
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 40
    assert clip.describe(path).frames == 35
    assert seen(path) == list(range(5, 40))


def test_hidden_frames_of_vp8(tmp_path: Path) -> None:
    whole, path = numbered(tmp_path / "whole.webm", 20, "libvpx"), tmp_path / "a.webm"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for at, packet in enumerate(source.demux(video=0)):
            if packet.size:
                data = bytearray(packet)
                data[0] &= 0xEF if at == 7 else 0xFF
                changed = av.Packet(bytes(data))
                changed.pts, changed.dts = packet.pts, packet.dts
                changed.is_keyframe, changed.time_base = packet.is_keyframe, packet.time_base
                changed.stream = stream
                target.mux(changed)
    assert seen(path) == [at for at in range(20) if at != 7]


def test_cover_picture_is_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", 44100)
        cover = file.add_stream("mjpeg", 1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture(0), format="rgb24")
        file.mux(cover.encode(frame.reformat(format="yuvj420p")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "f4"), "fltp", "mono")
        silence.sample_rate = 44100
        file.mux(sound.encode(silence))
        file.mux(sound.encode())
    with pytest.raises(ImageError, match="no video stream"):
        clip.describe(path)


# Several threads, bounded memory ----------------------------------------------------------


def open_files() -> int:
    gc.collect()  # what other tests left open is not of a clip
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_and_several_clips(tmp_path: Path) -> None:
    paths = [numbered(tmp_path / f"{at}.mp4") for at in range(3)]
    clips = video.Clips(LIMIT)
    before = open_files()
    jobs = [(path, at) for path in paths for at in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: number(clips.frame(*job)), jobs))
    assert found == [at for _, at in jobs]
    assert open_files() <= before, "a clip is closed with its last frame"


def test_frames_that_are_not_asked_for_are_not_kept(tmp_path: Path) -> None:
    path, clips = numbered(tmp_path / "a.mp4", 90), video.Clips(LIMIT)
    assert number(clips.frame(path, 80)) == 80
    assert len(clips._decoders[path]._kept) == video._KEPT
    assert [number(clips.frame(path, at)) for at in (75, 79, 3)] == [75, 79, 3]


def test_few_clips_are_open(tmp_path: Path) -> None:
    paths = [numbered(tmp_path / f"{at}.mp4", 3) for at in range(9)]
    clips, before = video.Clips(LIMIT), open_files()
    for at in range(2):
        for path in paths:
            assert number(clips.frame(path, at)) == at
            assert open_files() <= before + video._OPEN
    clips.close()
    assert open_files() <= before
    assert number(clips.frame(paths[0], 2)) == 2


def test_closing_while_it_is_read(tmp_path: Path) -> None:
    path, clips = numbered(tmp_path / "a.mp4"), video.Clips(LIMIT)
    found = list[int]()
    thread = threading.Thread(
        target=lambda: found.extend(number(clips.frame(path, at)) for at in range(40))
    )
    thread.start()
    for _ in range(20):
        clips.close()
    thread.join(20)
    assert found == list(range(40))


def test_a_far_frame_is_reached_by_a_key_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, given = numbered(tmp_path / "a.mp4", 250), list[int]()
    frames = clip.frames

    def counted(*arguments: Any) -> Any:
        for at, frame in frames(*arguments):
            given.append(at)
            yield at, frame

    monkeypatch.setattr(clip, "frames", counted)
    assert number(video.Clips(LIMIT).frame(path, 245)) == 245
    assert len(given) <= 12


# Upright ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_rotation(tmp_path: Path, name: str, rotation: int, flip: bool) -> None:
    """A display matrix turns counter-clockwise by `rotation`, as av_display_rotation_get has it."""
    path = numbered(tmp_path / name, 2, rotation=rotation, flip=flip)
    shown = video.Clips(LIMIT).frame(path, 0).astype(int)
    with av.open(str(path)) as file:
        coded = next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    expected = np.rot90(coded, rotation // 90)
    if flip:  # libavutil mirrors after it turns
        expected = expected[:, ::-1]
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 3
    assert np.abs(expected - expected[::-1]).mean() > 10, "so that a wrong turn is seen"


# Colours ----------------------------------------------------------------------------------

RGB = np.array(
    [[200, 30, 40], [20, 180, 60], [30, 50, 210], [128, 128, 128],
     [240, 240, 240], [10, 10, 10], [220, 200, 30], [90, 140, 160]]
)  # fmt: skip
KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # H.273


def coded(rgb: Any, matrix: int, full: bool) -> Any:
    """Y', Cb, Cr of coded R'G'B' in [0, 255], 8 bits in full or limited range (BT.709, BT.601)."""
    kr, kb = KR_KB[matrix]
    red, green, blue = np.transpose(rgb) / 255
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))
    if full:
        return luma * 255, *(128 + 255 * part for part in chroma)
    return 16 + 219 * luma, *(128 + 224 * part for part in chroma)


def patches(
    path: Path,
    planes: Any,
    tags: dict[str, int],
    size: tuple[int, int] = (64, 128),
    depth: int = 8,
    **options: str,
) -> Path:
    """A clip of eight vertical patches given as Y', Cb, Cr (8 bits), with tags of H.273."""
    height, width = size
    form, kind = ("yuv420p", "u1") if depth == 8 else ("yuv420p10le", "u2")
    frame = av.VideoFrame(width, height, form)
    for plane, values in zip(frame.planes, planes, strict=True):
        line = np.repeat(np.rint(values * (1 if depth == 8 else 4)), plane.width // 8).astype(kind)
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
        rows[:, : plane.width] = line
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", 25, options={"qp": "1", **options})
        stream.width, stream.height, stream.pix_fmt = width, height, form
        for key, value in tags.items():
            setattr(stream.codec_context, key, value)
            setattr(frame, key, value)
        for frame.pts in range(2):
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def colours(path: Path) -> Any:
    pixels = video.Clips(10**8).frame(path, 1).astype(int)
    height, width = pixels.shape[:2]
    return pixels[height // 2, width // 16 :: width // 8]


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("matrix", KR_KB)
def test_colours_of_a_tagged_clip(tmp_path: Path, matrix: int, name: str, full: bool) -> None:
    tags = {"colorspace": matrix, "color_range": 2 if full else 1, "color_primaries": 1}
    path = patches(tmp_path / name, coded(RGB, matrix, full), tags)
    assert np.abs(colours(path) - RGB).max() <= 3


@pytest.mark.parametrize(
    ("size", "matrix"), [((64, 128), 5), ((576, 720), 5), ((720, 1280), 1), ((1280, 720), 1)]
)
def test_colours_of_a_clip_without_tags(tmp_path: Path, size: tuple[int, int], matrix: int) -> None:
    path = patches(tmp_path / "a.mp4", coded(RGB, matrix, False), {}, size)
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).colorspace == 2, "so it has no tag"
    assert np.abs(colours(path) - RGB).max() <= 3


def linear(rgb: Any) -> Any:
    values = rgb / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


TO_2020 = np.array(  # ITU-R BT.2087
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)


def pq(light: Any) -> Any:
    """ITU-R BT.2100, of 1.0 at 203 cd/m²."""
    powered = (light * 203 / 10_000) ** (2610 / 16384)
    top = 3424 / 4096 + 2413 / 128 * powered
    return (top / (1 + 2392 / 128 * powered)) ** (2523 / 32)


def hlg(light: Any) -> Any:
    """ITU-R BT.2100, of 1.0 at 203 cd/m² on a display of 1000: its OOTF undone, then its OETF."""
    shown = light * 203 / 1000
    luminance = shown @ (0.2627, 0.678, 0.0593)
    scene = shown * (luminance ** (-0.2 / 1.2))[:, None]
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(12 * scene - b + 1e-9) + c)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # in the branch not taken
@pytest.mark.parametrize(("curve", "transfer", "name"), [(pq, 16, "PQ"), (hlg, 18, "HLG")])
def test_hdr_is_brought_to_srgb(tmp_path: Path, curve: Any, transfer: int, name: str) -> None:
    signal = curve(linear(RGB) @ TO_2020.T) * 255
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": transfer, "color_range": 1}
    path = patches(tmp_path / "a.mp4", coded(signal, 9, False), tags, depth=10)
    found = colours(path)
    assert np.abs(found - RGB).max() <= 3
    assert np.abs(signal - RGB).max() > 60, "so that it matters"
    (note,) = clip.describe(path).notes
    assert f"HDR ({name})" in note


def test_wide_gamut_is_brought_to_srgb(tmp_path: Path) -> None:
    light = linear(RGB) @ TO_2020.T
    signal = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 14, "color_range": 1}
    found = colours(patches(tmp_path / "a.mp4", coded(signal, 9, False), tags, depth=10))
    assert np.abs(found - RGB).max() <= 3
    assert np.abs(signal - RGB).max() > 60


# What is no clip, or a damaged one --------------------------------------------------------

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"hello\n" * 99, "damaged, or not a clip"),
        (bytes(5000), "damaged, or not a clip"),
        (b"ffconcat version 1.0\nfile good.mp4\n", "damaged, or not a clip"),
        (PLAYLIST.encode(), "damaged, or not a clip"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "damaged"),
    ],
    ids=["empty", "text", "zeros", "concat", "playlist", "header"],
)
def test_no_clip(tmp_path: Path, data: bytes, why: str) -> None:
    numbered(tmp_path / "good.mp4", 2)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    for ask in (clip.describe, lambda path: video.Clips(LIMIT).frame(path, 0)):
        with pytest.raises(ImageError, match=why):
            ask(path)


@pytest.mark.parametrize("name", ["absent.mp4", "folder", "a\0b.mp4", "n" * 300, "cut.mp4"])
def test_unreadable_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut.mp4").write_bytes(numbered(tmp_path / "a.mp4").read_bytes()[:-3000])
    with pytest.raises(ImageError, match=r"cannot be read|damaged") as refused:
        clip.describe(tmp_path / name)
    assert str(tmp_path) not in str(refused.value), "the command names the file"


def test_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    path.write_bytes(numbered(tmp_path / "a.mp4", 3).read_bytes())
    assert seen(path) == [0, 1, 2]


def test_metadata_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "cafe-cafe"
        stream = file.add_stream("mpeg4", 25)
        stream.width, stream.height = WIDTH, HEIGHT
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        file.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"cafe-cafe", b"caf\xe9-caf\xe9"))
    assert seen(path) == [0]


def test_too_many_pixels(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.mp4", 2)
    assert video.Clips(HEIGHT * WIDTH).frame(path, 0).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match=r"frames of 96x64 are more than --max-pixels 6143"):
        video.Clips(HEIGHT * WIDTH - 1).frame(path, 0)


@pytest.mark.parametrize("at", [-1, 40, 10**9])
def test_frame_that_is_not_there(tmp_path: Path, at: int) -> None:
    path = numbered(tmp_path / "a.mp4")
    with pytest.raises(ImageError, match=f"frame {at + 1}: the clip has 40"):
        video.Clips(LIMIT).frame(path, at)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_torn_clip(tmp_path: Path, codec: str, part: float) -> None:
    """Its index is whole: frames before the tear are whole, all others are told as missing."""
    path = numbered(tmp_path / "a.mp4", codec=codec, container={"movflags": "faststart"})
    data, order = path.read_bytes(), packets(path)
    start, size, _ = order[int(part * 40)]
    path.write_bytes(data[: start + size // 2])
    found = seen(path)
    assert len(found) == 40
    whole = found.index(None)
    assert found[:whole] == list(range(whole))
    assert set(found[whole:]) == {None}
    assert int(part * 40) - 5 <= whole <= int(part * 40), "those held back are lost, not more"


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_torn_clip_without_an_index(tmp_path: Path, name: str) -> None:
    path = numbered(tmp_path / name, 100, "libvpx" if name == "a.webm" else "libx264")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    about = clip.describe(path)
    assert 10 < about.frames < 90
    assert "may have been cut off" in about.notes[0]
    found = seen(path)
    whole = found.index(None) if None in found else about.frames
    assert found == [*range(whole), *[None] * (about.frames - whole)]
    assert about.frames - whole <= 4, "those of which the order is not known"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize("how", ["noise", "zeros"])
def test_damage_within_a_clip(tmp_path: Path, name: str, how: str) -> None:
    """What rests on a damaged packet is an error, up to the key frame; all else is whole."""
    codec, bframes = ("mpeg4", "0") if name == "a.avi" else ("libx264", "2")
    closed = (
        {"sc_threshold": "1000000000"}
        if codec == "mpeg4"
        else {"flags": "+cgop", "sc_threshold": "0"}
    )
    path = numbered(tmp_path / name, codec=codec, bf=bframes, **closed)
    data, order = bytearray(path.read_bytes()), packets(path)
    start, size, time = order[15]  # in the second group of 12
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    data[start : start + size] = bytes(size) if how == "zeros" else noise
    path.write_bytes(data)
    found = seen(path)
    assert [at for at in found if at is not None] == [
        at for at in range(40) if found[at] is not None
    ], "no frame takes the place of another"
    assert found[:12] == list(range(12))
    assert found[24:] == list(range(24, 40))
    assert found[sorted(time for _, _, time in order).index(time)] is None


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi"])
def test_random_damage(tmp_path: Path, name: str) -> None:
    """No crash, no hang, nothing but ImageErrors, and never more frames than are promised."""
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mpeg4"}.get(name, "libx264")
    good = numbered(tmp_path / name, 16, codec).read_bytes()
    path, rng = tmp_path / f"b{name}", np.random.default_rng(len(name) + ord(name[-1]))
    frames = errors = 0
    for round_ in range(40):
        data = bytearray(good)
        for at in rng.integers(0, len(data) if round_ % 2 else 1500, 1 + round_ % 9):
            data[at % len(data)] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data))] if round_ % 5 == 0 else data)
        try:
            count = min(clip.describe(path).frames, 30)
        except ImageError:
            errors += 1
            continue
        clips = video.Clips(LIMIT)
        for at in range(count):
            try:
                assert clips.frame(path, at).dtype == np.uint8
                frames += 1
            except ImageError:
                errors += 1
    assert frames > 100
    assert errors > 10


def test_size_that_grows_within_a_clip(tmp_path: Path) -> None:
    """Each frame of Motion JPEG has a size of its own; a bomb among them is not decoded."""
    path = tmp_path / "a.mkv"
    sizes = [(HEIGHT, WIDTH)] * 3 + [(128, 192), (2048, 2048), (HEIGHT, WIDTH)]
    coded = list[bytes]()
    for at, (height, width) in enumerate(sizes):
        one = encode(tmp_path / f"{at}.avi", [picture(at, height, width)], "mjpeg", "yuvj420p")
        with av.open(str(one)) as file:
            coded.append(next(bytes(p) for p in file.demux(video=0)))
    with av.open(str(path), "w") as target, av.open(str(tmp_path / "0.avi")) as source:
        stream = target.add_stream_from_template(source.streams.video[0])
        for at, data in enumerate(coded):
            packet = av.Packet(data)
            packet.pts = packet.dts = at
            packet.time_base, packet.stream = Fraction(1, 25), stream
            packet.is_keyframe = True
            target.mux(packet)
    assert seen(path) == [0, 1, 2, 3, None, 5]
    assert video.Clips(LIMIT).frame(path, 3).shape == (128, 192, 3)


# Without PyAV -----------------------------------------------------------------------------


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = numbered(tmp_path / "a.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    clips = video.Clips(LIMIT)
    for ask in (lambda: clip.describe(path), clip.require, lambda: clips.frame(path, 0)):
        with pytest.raises(ImageError, match="video needs PyAV") as refused:
            ask()
        assert refused.value.hint == "pip install 'av>=18,<19'"
    with pytest.raises(UsageError, match="video needs PyAV"):  # before anything is predicted
        clip.require(writing=True)


def test_pyav_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "__version__", "17.1.0")
    with pytest.raises(ImageError, match=r"video needs PyAV 18, not 17\.1\.0"):
        clip.require()


def test_without_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"h264"})
    clip.require()
    with pytest.raises(ResourceError, match="libx264"):
        clip.require(writing=True)


def test_clips_are_known_without_loading_pyav() -> None:
    code = (
        "import sys; from dmp_cli.inputs import clip, video\n"
        "from dmp_cli.outputs import movie; sys.exit('av' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
