"""A clip's file: what it promises, and its frames as coded, each at its place. No colours.

Through PyAV itself and not through imageio's plugin for it, which was measured to be wrong in what
is promised here (imageio 2.38.1, av 18.1): it leaves phone clips on their side, takes HD clips
without a tag for BT.601 (off by up to 23 of 255 from what players show), shows HDR as it is coded
(white at 143 of 255), ends at the first damaged packet though the rest can be read, and follows a
text file named .mp4 that lists other files.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from dmp_cli.errors import ImageError, ResourceError, UsageError

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273

# Only these containers, from this one file: others (concat, hls) name further files to read
_OPTIONS = {"format_whitelist": "avi,matroska,webm,mov", "protocol_whitelist": "file"}
_PYAV = 18  # the first that can be told how exactly to convert colours
_TAIL = 0.5  # seconds that sound may go on after the last frame


def require(writing: bool = False) -> None:
    """ImageError unless clips can be read: pictures beside them can.

    With `writing`, UsageError, and ResourceError if no movie can be encoded.
    """
    kind, hint = UsageError if writing else ImageError, "pip install 'av>=18,<19'"
    try:
        import av
    except ImportError as error:
        raise kind(f"video needs PyAV, which cannot be loaded: {error}", hint) from error
    if int(av.__version__.partition(".")[0]) < _PYAV:
        raise kind(f"video needs PyAV {_PYAV}, not {av.__version__}", hint)
    if writing and "libx264" not in av.codecs_available:
        raise ResourceError(
            "this build of PyAV has no H.264 encoder (libx264)",
            "pip install --force-reinstall --only-binary av av",
        )


# What a clip promises ---------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """How many frames a clip has, how many a second, and what a user may want to know of it."""

    frames: int
    rate: Fraction
    notes: tuple[str, ...] = ()


def describe(path: Path) -> Clip:
    """What a clip holds, without decoding it. ImageError if it is no clip or has no picture.

    The frames are those of its index (MP4, MOV), else its packets are counted, which reads the
    file. What an edit list hides does not count. Of a rate that varies, `rate` is the mean.
    """
    require()
    with opened(path) as container:
        stream = video(container)
        count, torn = _extent(container, stream)
        notes = tuple(_notes(stream, torn))
        rates = (stream.average_rate, stream.guessed_rate)
        rate = next((Fraction(rate) for rate in rates if rate), Fraction(25))
    if not count:
        raise ImageError("a clip without a frame")
    return Clip(count, rate, notes)


def opened(path: Path) -> "InputContainer":
    """The container of a clip; ImageError if it cannot be read or is none that dmp knows."""
    import av

    try:  # the prefix, or a name such as `data:x.mp4` is an address
        container: InputContainer = av.open(
            f"file:{path}", options=_OPTIONS, metadata_errors="replace"
        )
        return container
    except (av.FFmpegError, ValueError) as error:  # ValueError: no name of a file
        if isinstance(error, av.FFmpegError) and not isinstance(error, OSError):
            if path.stat().st_size == 0:
                raise ImageError("empty: the file has no bytes") from error
            kinds = ", ".join(sorted(SUFFIXES))
            raise ImageError(f"damaged, or not a clip that dmp reads ({kinds})") from error
        raise ImageError(f"cannot be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an error of PyAV says, without the path that it repeats."""
    return getattr(error, "strerror", None) or str(error)


def video(container: "InputContainer") -> "VideoStream":
    """The first video stream that is no cover picture; ImageError if there is none."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if stream.codec_context and not stream.disposition & Disposition.attached_pic:
            return stream
    if not container.streams:
        why = "an MP4 or MOV that was cut off, or is not whole yet, has no index"
        raise ImageError("damaged: the file names no stream", why)
    raise ImageError("has no video stream that dmp can decode")


def _extent(container: "InputContainer", stream: "VideoStream") -> tuple[int, str]:
    """How many frames a clip has by its index, else by its packets; and whether those end early.

    That they do is told by a remark, for only the file's own duration hints at it.
    """
    if "mov" in container.format.name and stream.frames:
        return sum(not entry.is_discard for entry in stream.index_entries), ""
    count = last = 0
    for packet in filter(_shown, _packets(container, stream)):
        count, last = count + 1, max(last, (packet.pts or 0) + (packet.duration or 0))
    end, duration = float(last * (stream.time_base or 0)), (container.duration or 0) / 1e6
    if end > duration - _TAIL:
        return count, ""
    return count, f"its video ends at {end:.1f} s of {duration:.1f} s: it may have been cut off"


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[Packet[VideoStream]]":
    """The packets of a stream, to its end or to where the file cannot be read on.

    Without empty ones: a decoder takes one for the end, and AVI has them where a frame is repeated.
    """
    import av

    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.FFmpegError:  # what is missing is told frame by frame, when it is asked for
        return


def _shown(packet: "Packet[VideoStream]") -> bool:
    """Whether a packet holds a frame to be shown: not one hidden by an edit list or in VP8."""
    if packet.stream.codec_context.name == "vp8":  # show_frame of RFC 6386, section 9.1
        return bool(memoryview(packet)[0] & 0x10)
    return not packet.is_discard


def _notes(stream: "VideoStream", torn: str) -> Iterator[str]:
    if torn:
        yield torn
    if stream.codec_context.color_trc in HDR:
        kind = HDR[stream.codec_context.color_trc]
        yield f"HDR ({kind}): brought to sRGB with white at 203 cd/m², what is brighter is cut"


# Its frames -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """How many frames a clip has, and the times at which those that are there are shown, sorted."""

    count: int
    times: Sequence[int] | None  # None: the container keeps none, so frames are counted


def survey(path: Path, max_pixels: int) -> Index:
    """The index of a clip, from its packets alone. ImageError for frames above `max_pixels`."""
    with opened(path) as container:
        stream = video(container)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise ImageError(
                f"frames of {width}x{height} are more than --max-pixels {max_pixels}",
                "raise --max-pixels if the file is to be trusted",
            )
        promised, torn = _extent(container, stream)
        timed = "avi" not in container.format.name  # what libavformat gives there is made up
    with opened(path) as container:
        shown = [(p.pts, p.dts) for p in _packets(container, video(container)) if _shown(p)]
    count = max(promised, len(shown))
    times = sorted({pts for pts, _ in shown if pts is not None})
    if not timed or len(times) < len(shown):
        return Index(count, None)
    if len(times) < count or torn:  # what is missing may be shown from the last decoding on
        last = max((dts for _, dts in shown if dts is not None), default=0)
        times = [time for time in times if time <= last]
    return Index(count, times)


def frames(
    container: "InputContainer", index: Index, start: int = 0
) -> "Iterator[tuple[int, VideoFrame | None]]":
    """Number and frame of each from `start` on, or from the key frame before it, without a gap.

    None stands for a frame that is not there, is damaged, or was predicted from a damaged one.
    """
    sought = start > 0 and index.times is not None and start < len(index.times)
    if sought and index.times is not None:
        container.seek(index.times[start], stream=video(container))
    expected = None if sought else 0
    for number, frame in _sound(container, index):
        missing = range(number if expected is None else expected, number)
        yield from ((gap, None) for gap in missing)
        if expected is None or number >= expected:  # or it is shown before one that was given
            yield number, frame
            expected = number + 1
    yield from ((gap, None) for gap in range(start if expected is None else expected, index.count))


def _sound(container: "InputContainer", index: Index) -> "Iterator[tuple[int, VideoFrame]]":
    """Number and frame of those that can be trusted, in the order of showing.

    Without times, the number is a count in which a packet that cannot be decoded takes part.
    """
    import av

    stream, damage, given = video(container), _Damage(), 0
    for order, packet in enumerate(chain(_packets(container, stream), (None,))):
        sent = packet.pts if packet and index.times is not None else order
        if packet and sent is not None:
            damage.follow(sent, packet.is_keyframe)
            if packet.is_corrupt:  # known to be cut short
                damage.spread(sent)
        try:
            decoded = stream.decode(packet)  # None: what it still holds back
        except av.FFmpegError:
            damage.lose(sent)
            continue
        for frame in decoded:
            while given in damage.lost:
                given += 1
            time = given if index.times is None else frame.pts
            number = given if index.times is None else _position(index.times, frame.pts)
            given += 1
            if frame.is_corrupt:
                damage.spread(time)
            if number is not None and time not in damage.doubtful:
                yield number, frame


def _position(times: Sequence[int], time: int | None) -> int | None:
    """Where a time stands in sorted times; None if it does not."""
    at = len(times) if time is None else bisect_left(times, time)
    return at if at < len(times) and times[at] == time else None


class _Damage:
    """Which frames rest on one that could not be decoded: those decoded from it to a key frame."""

    def __init__(self) -> None:
        self.doubtful: set[int] = set()  # frames by their times
        self.lost: set[int] = set()
        self._sent: list[int] = []  # since the last key frame, in the order of decoding
        self._until = -math.inf  # frames that are shown before this time rest on damage

    def follow(self, time: int, key: bool) -> None:
        """A packet goes to the decoder. What is shown from a key frame on rests on it alone."""
        if key:
            self._sent, self._until = [], min(self._until, time)
        self._sent.append(time)
        if time < self._until:
            self.doubtful.add(time)

    def lose(self, time: int | None) -> None:
        """The packet that was sent last gave an error and no frame."""
        if time is not None:
            self.lost.add(time)
            self.spread(time)

    def spread(self, time: int | None) -> None:
        """The frame of this time is damaged, and so is what was decoded after it."""
        if time in self._sent:
            self.doubtful.update(self._sent[self._sent.index(time) :])
            self._until = math.inf
        elif time is not None:
            self.doubtful.add(time)
