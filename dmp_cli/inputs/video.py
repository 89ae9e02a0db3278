"""Clips by path -> their frames, upright and in sRGB, for several threads. No tasks, no tensors."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmp_cli import storage
from dmp_cli.errors import ImageError
from dmp_cli.inputs import clip

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

Array = NDArray[Any]

_OPEN = 4  # clips at a time
_KEPT = 8  # frames of each that were passed, which other threads may yet ask for
_PATIENCE = 2.0  # seconds for a thread that still decodes when all is closed
_FAR = 100  # frames to decode before it is worth looking for a nearer key frame

# ITU-T H.273 numbers of matrices and transfer curves, and what libswscale calls them
_BT709, _BT601, _BT2020, _SRGB = 1, 5, 9, 13
_MATRICES = {1: _BT709, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: _BT2020}
_WIDE = (9, 11, 12)  # primaries: BT.2020, DCI-P3, Display P3
_FULL = 2  # range: 0 to 255


class Clips:
    """Decoders of clips by path, for reader threads that ask for frames in nearly this order."""

    def __init__(self, max_pixels: int) -> None:
        """A clip with frames of more than `max_pixels` is refused before one is decoded."""
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._decoders: OrderedDict[Path, _Decoder] = OrderedDict()
        self._converters = threading.local()  # one for each thread: HDR takes seconds to set up

    def frame(self, path: Path, number: int) -> Array:
        """A frame, from 0 in the order of showing, as uint8 [H, W, 3], upright, sRGB. Any thread.

        A clip is closed with its last frame. ImageError, naming the frame (from 1), for one that
        is not there, that is damaged, or that was predicted from a damaged one, or as
        `clip.require`.
        """
        clip.require()
        import av

        decoder = self._decoder(path)
        try:
            frame = decoder.frame(number)
        finally:
            if decoder.done:
                self._forget(path, decoder)
        try:
            return _turned(_rgb(frame, self._converter()), _display_matrix(frame))
        except (av.FFmpegError, ValueError, MemoryError) as error:
            why = f"{frame.format.name} is not converted: {clip.reason(error)}"
            raise ImageError(f"frame {number + 1}: {why}") from error

    def _converter(self) -> "VideoReformatter":
        from av.video.reformatter import VideoReformatter

        if not hasattr(self._converters, "own"):
            self._converters.own = VideoReformatter()
        own: VideoReformatter = self._converters.own
        return own

    def _forget(self, path: Path, decoder: "_Decoder") -> None:
        with self._lock:
            if self._decoders.get(path) is decoder:
                del self._decoders[path]

    def _decoder(self, path: Path) -> "_Decoder":
        with self._lock:
            decoder = self._decoders.setdefault(path, _Decoder(path, self._max_pixels))
            self._decoders.move_to_end(path)
            if len(self._decoders) <= _OPEN:
                return decoder
            _, longest_unused = self._decoders.popitem(last=False)
        longest_unused.close()
        return decoder

    def close(self) -> None:
        """Close every clip; one that is asked for again is opened again."""
        with self._lock:
            decoders = list(self._decoders.values())
            self._decoders.clear()
        for decoder in decoders:
            decoder.close()


class _Decoder:
    """An open clip and where it stands; the last few frames that it passed are kept, as coded."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.done = False  # the last frame is reached, and no frame before it is kept
        self._path, self._max_pixels = path, max_pixels
        self._file: Path | None = None  # that path, or what is fetched of it
        self._lock = threading.Lock()
        self._index: clip.Index | None = None
        self._kept: OrderedDict[int, VideoFrame | None] = OrderedDict()
        self._container: InputContainer | None = None
        self._frames: Iterator[tuple[int, VideoFrame | None]] = iter(())
        self._next = 0  # the frame that they give next

    def frame(self, number: int) -> "VideoFrame":
        """The decoded frame; ImageError as `Clips.frame`."""
        with self._lock:
            file = self._file = self._file or storage.hold(self._path)
            index = self._index = self._index or clip.survey(file, self._max_pixels)
            if not 0 <= number < index.count:
                raise ImageError(f"frame {number + 1}: the clip has {index.count}")
            found = self._kept.pop(number) if number in self._kept else self._reach(number, index)
            if self._next == index.count:
                self._stop()
                self.done = not self._kept
                if self.done:
                    self._let_go()
        if found is None:
            raise ImageError(f"frame {number + 1} cannot be decoded: the clip is damaged there")
        return found

    def close(self) -> None:
        """Give back the file and the frames, unless a thread hangs while it reads them."""
        if not self._lock.acquire(timeout=_PATIENCE):
            return
        try:
            self._stop()
            self._kept.clear()
            self._let_go()
        finally:
            self._lock.release()

    def _let_go(self) -> None:
        if self._file:
            storage.release(self._path)
        self._file = None

    def _reach(self, number: int, index: clip.Index) -> "VideoFrame | None":
        """Decode on to a frame; one that is behind, or far ahead, from the key frame before it."""
        far = not 0 <= number - self._next <= _FAR
        start = number if far and number > _FAR else 0
        if self._container is None or far:
            self._start(start, index)
        found = self._advance(number)
        if found is None and far and start:  # the key frame may be one that is shown after it
            self._start(0, index)
            found = self._advance(number)
        return found

    def _start(self, number: int, index: clip.Index) -> None:
        self._stop()
        self._container = clip.opened(self._file or self._path)
        # against a size that grows within the clip; decoders ask with both sides rounded up
        options = {"max_pixels": str(2 * self._max_pixels + 2**16)}
        clip.video(self._container).codec_context.options = options
        self._frames, self._next = clip.frames(self._container, index, number), 0

    def _stop(self) -> None:
        if self._container:
            self._container.close()
        self._container, self._frames = None, iter(())

    def _advance(self, number: int) -> "VideoFrame | None":
        for at, frame in self._frames:
            self._next = at + 1
            if at >= number:
                return frame if at == number else None
            self._kept[at] = frame
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return None


# Colours and orientation ------------------------------------------------------------------


def _rgb(frame: "VideoFrame", converter: "VideoReformatter") -> Array:
    """uint8 [H, W, 3] in sRGB of a frame in any format. Video is taken for display-referred.

    Without a tag, the matrix is BT.709 from HD on and else BT.601, as players have it. HDR and
    wide gamut are brought to sRGB by libswscale (ITU-R BT.2408: diffuse white at 203 cd/m²).
    """
    from av.video.reformatter import Interpolation as How

    options = {
        "src_colorspace": None if frame.format.is_rgb else _matrix(frame),
        "src_color_range": frame.color_range,
        "dst_color_range": _FULL,
        "interpolation": How.BILINEAR | How.ACCURATE_RND | How.FULL_CHR_H_INT,
        "threads": 1,
    }
    hdr = frame.color_trc in clip.HDR
    if not hdr and frame.color_primaries not in _WIDE:
        sdr: Array = converter.reformat(frame, format="rgb24", **options).to_ndarray()
        return sdr
    if hdr and frame.color_primaries not in _WIDE:
        frame.color_primaries = _BT2020
    elif not hdr:
        frame.color_trc = _SRGB
    # to 16 bits: on the way to 8, colours were off by up to 139 of 255 (av 18.1)
    options |= {"dst_color_trc": _SRGB, "dst_color_primaries": _BT709}
    deep = converter.reformat(frame, format="rgb48le", **options).to_ndarray()
    return np.asarray((deep.astype(np.uint32) + 128) // 257, np.uint8)


def _matrix(frame: "VideoFrame") -> int:
    if frame.colorspace in _MATRICES:
        return _MATRICES[frame.colorspace]
    if frame.color_primaries == _BT2020:
        return _BT2020
    return _BT709 if frame.width >= 1280 or frame.height > 576 else _BT601


def _display_matrix(frame: "VideoFrame") -> Array | None:
    """The matrix [3, 3] by which (x, y, 1) is shown, as a row times it (ISO 14496-12, 6.2.2)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(matrix, np.int32).reshape(3, 3)


def _turned(pixels: Array, matrix: Array | None) -> Array:
    """Pixels turned by quarters and mirrored as a display matrix says; other angles are rounded."""
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix[:2, :2].astype(float)
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
