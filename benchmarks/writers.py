"""Which library writes maps best: seconds, bytes, right pixels, waiting threads, full disks.

pip install imagecodecs opencv-python-headless
python benchmarks/writers.py [--repeats 3] [--size 512x512]... [--only EXR]

Prints Markdown tables. Libraries take turns within one run, so a busy machine disturbs all of them
alike: read the ratios.
"""

import argparse
import importlib
import importlib.metadata
import io
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import OpenEXR
import OpenImageIO
import tifffile
from numpy.typing import NDArray
from PIL import Image

from dmp_cli.errors import ResourceError
from dmp_cli.outputs.writers import write_png

tifffile.tifffile.imagecodecs = importlib.import_module("tifffile._imagecodecs")  # as dmp has it

Array = NDArray[Any]
Channels = dict[str, Array]
SIZES = {"512x512": (512, 512), "1080p": (1080, 1920), "12 MP": (3000, 4000)}
PHOTO = Path(__file__).parent.parent / "examples" / "coffee.jpg"
DISTRIBUTIONS = {
    "OpenImageIO": "openimageio",
    "Pillow": "pillow",
    "OpenCV": "opencv-python-headless",
    "OpenEXR": "openexr",
    "tifffile": "tifffile",
    "imagecodecs": "imagecodecs",
    "ISA-L": "isal",
}

# What is written --------------------------------------------------------------------------


def _photo(height: int, width: int) -> Array:
    """float32 [H, W, 3] in [0, 1]: a photograph as a network of 512 pixels would give it back."""
    with Image.open(PHOTO) as image:
        small = image.convert("RGB").resize((768, 512), Image.Resampling.BILINEAR)
        large = small.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(large, np.float32) / 255


def _maps(height: int, width: int) -> dict[str, Array]:
    """Maps such as dmp makes: smooth depth in metres, unit normals, ids, colours."""
    photo = _photo(height, width)
    grey = cv2.GaussianBlur(photo.mean(axis=-1), (0, 0), height / 60)
    depth = np.float32(2) + grey * 3 + np.linspace(4, 0, height, dtype=np.float32)[:, None]
    dy, dx = np.gradient(depth * (height / 12))
    normals = np.dstack([-dx, dy, np.ones_like(dx)]).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    ids = (grey * 40).astype(np.uint8)
    return {"depth": depth, "normals": normals, "ids": ids, "photo": photo, "shading": grey}


def _layers(maps: Mapping[str, Array]) -> Channels:
    """The channels of one file of all five tasks, in the types that dmp gives them."""
    named = {"Z": maps["depth"], "seg.id": maps["ids"].astype(np.uint32)}
    for i, letter in enumerate("XYZ"):
        named[f"N.{letter}"] = maps["normals"][..., i].astype(np.float16)
    for i, letter in enumerate("RGB"):
        named[f"albedo.{letter}"] = maps["photo"][..., i].astype(np.float16)
        named[f"shading.{letter}"] = maps["shading"].astype(np.float16)
    return named


# Who writes it ----------------------------------------------------------------------------


def _oiio(path: Path, values: Array, **attributes: object) -> None:
    values = values[..., None] if values.ndim == 2 else values  # else its pixels are wrong
    height, width, channels = values.shape
    spec = OpenImageIO.ImageSpec(width, height, channels, str(values.dtype).replace("32", ""))
    for name, value in attributes.items():
        spec.attribute(name.replace("__", ":"), value)
    target = OpenImageIO.ImageOutput.create(str(path))
    if not (target.open(str(path), spec) and target.write_image(values) and target.close()):
        raise OSError(target.geterror())


def _oiio_exr(path: Path, channels: Channels, compression: str) -> None:
    first = next(iter(channels.values()))
    kinds = {"float32": "float", "float16": "half", "uint32": "uint"}
    spec = OpenImageIO.ImageSpec(first.shape[1], first.shape[0], len(channels), "float")
    spec.channelnames = tuple(channels)
    spec.channelformats = tuple(
        OpenImageIO.TypeDesc(kinds[str(a.dtype)]) for a in channels.values()
    )
    spec.attribute("compression", compression)
    packed = np.dstack([a.astype(np.float32) for a in channels.values()])
    target = OpenImageIO.ImageOutput.create(str(path))
    if not (target.open(str(path), spec) and target.write_image(packed) and target.close()):
        raise OSError(target.geterror())


def _openexr(path: Path, channels: Channels, compression: str, threads: int = 0) -> None:
    name = f"{compression.upper() if compression != 'none' else 'NO'}_COMPRESSION"
    header = {"compression": getattr(OpenEXR, name), "type": OpenEXR.scanlineimage}
    memory = io.BytesIO()
    OpenEXR.File(header, {k: np.ascontiguousarray(a) for k, a in channels.items()}, threads).write(
        memory
    )
    path.write_bytes(memory.getbuffer())


def _pillow(path: Path, values: Array, **how: Any) -> None:
    image = Image.fromarray(values)
    if path.name.startswith("indexed"):
        image.putpalette(bytes(range(256)) * 3)
    image.save(path, **how)


def _cv2(path: Path, values: Array, *flags: int) -> None:
    if values.ndim == 3:
        values = values[..., ::-1]
    if not cv2.imwrite(str(path), np.ascontiguousarray(values), flags):
        raise OSError("cv2.imwrite")


def _tifffile(path: Path, values: Array, **how: Any) -> None:
    photometric = "rgb" if values.ndim == 3 else "minisblack"
    memory = io.BytesIO()
    tifffile.imwrite(memory, values, photometric=photometric, metadata=None, maxworkers=1, **how)
    path.write_bytes(memory.getbuffer())


def _imagecodecs(path: Path, values: Array, level: int) -> None:
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values), level=level))


def _dmp(path: Path, values: Array, palette: Array | None = None) -> None:
    try:
        write_png(path, values, {}, palette)
    except ResourceError as error:
        raise error.__cause__ or error from None


Writer = Callable[[Path, Any], None]


@dataclass(frozen=True)
class Case:
    """One kind of file, and who can write it: (library, setting) -> how. 1.00 is the first."""

    title: str
    suffix: str
    make: Callable[[Mapping[str, Array]], Any]
    writers: dict[tuple[str, str], Writer] = field(default_factory=dict)


def _pngs(title: str, make: Callable[[Mapping[str, Array]], Any], skip: str = "") -> Case:
    writers: dict[tuple[str, str], Writer] = {}
    for level in (1, 3, 6):
        many: dict[str, Writer] = {
            "Pillow": lambda p, a, level=level: _pillow(p, a, compress_level=level),
            "OpenImageIO": lambda p, a, level=level: _oiio(p, a, png__compressionLevel=level),
            "OpenCV": lambda p, a, level=level: _cv2(p, a, cv2.IMWRITE_PNG_COMPRESSION, level),
            "imagecodecs": lambda p, a, level=level: _imagecodecs(p, a, level),
        }
        writers |= {(name, f"{level}"): how for name, how in many.items() if name != skip}
    writers["ISA-L", "1"] = _dmp
    return Case(title, ".png", make, writers)


def _tiffs(title: str, make: Callable[[Mapping[str, Array]], Any], predictor: int) -> Case:
    flags = (cv2.IMWRITE_TIFF_COMPRESSION, 8, cv2.IMWRITE_TIFF_PREDICTOR, predictor)
    deflate: dict[str, Any] = {"compression": "zlib", "compressionargs": {"level": 1}}
    if predictor == 2:  # tifffile has the one for floats only with imagecodecs
        deflate["predictor"] = 2
    writers: dict[tuple[str, str], Writer] = {
        ("tifffile", "none"): _tifffile,
        ("OpenImageIO", "none"): lambda p, a: _oiio(p, a, compression="none"),
        ("tifffile", "deflate 1"): lambda p, a: _tifffile(p, a, **deflate),
        ("OpenImageIO", "deflate 1"): lambda p, a: _oiio(
            p, a, compression="zip", tiff__zipquality=1
        ),
        ("OpenCV", "deflate 6"): lambda p, a: _cv2(p, a, *flags),
    }
    return Case(title, ".tiff", make, writers)


def _exrs() -> Case:
    writers: dict[tuple[str, str], Writer] = {}
    for how in ("zip", "zips", "piz", "rle", "none"):
        writers["OpenEXR", how] = lambda p, a, how=how: _openexr(p, a, how)
        writers["OpenImageIO", how] = lambda p, a, how=how: _oiio_exr(p, a, how)
    return Case("EXR of five tasks, 11 channels", ".exr", _layers, writers)


def _cases() -> list[Case]:
    indexed = {
        ("Pillow", f"{level}"): (lambda p, a, level=level: _pillow(p, a, compress_level=level))
        for level in (1, 3, 6)
    }
    indexed["ISA-L", "1"] = lambda p, a: _dmp(p, a, np.zeros((256, 3), np.uint8))
    return [
        _pngs("PNG, 8-bit RGB", lambda maps: np.rint(maps["photo"] * 255).astype(np.uint8)),
        Case("indexed PNG", ".png", lambda maps: maps["ids"], indexed),
        _pngs("PNG, 16-bit RGB", lambda maps: _deep(maps["normals"] / 2 + 0.5), skip="Pillow"),
        _pngs("PNG, 16-bit grey", lambda maps: np.rint(maps["depth"] * 1000).astype(np.uint16)),
        _tiffs("TIFF, float32 RGB", lambda maps: maps["normals"], 3),
        _tiffs("TIFF, 16-bit RGB", lambda maps: _deep(maps["normals"] / 2 + 0.5), 2),
        _exrs(),
    ]


def _deep(values: Array) -> Array:
    return np.asarray(np.rint(values * 65535), np.uint16)


# Measuring --------------------------------------------------------------------------------


@dataclass
class Waits:
    """A thread that wants to run every millisecond, and how long it had to wait."""

    gaps: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        last = time.perf_counter()
        while not self._over.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            self.gaps.append(now - last)
            last = now

    def share(self, call: Callable[[], None]) -> tuple[float, float]:
        """Seconds of a call, and the share of them in which other threads stood still."""
        thread = threading.Thread(target=self.run)
        thread.start()
        time.sleep(0.01)
        self.gaps.clear()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        time.sleep(0.002)
        self._over.set()
        thread.join()
        return seconds, min(sum(gap for gap in self.gaps if gap > 0.015) / seconds, 1.0)


@dataclass(frozen=True)
class Cost:
    """Of one file: the median of several runs."""

    seconds: float
    megabytes: float
    waited: float  # share of the time in which other threads stood still


def measure(
    case: Case, maps: Mapping[str, Array], path: Path, repeats: int
) -> dict[tuple[str, str], Cost]:
    """What each library needs, in turns."""
    values = case.make(maps)
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in case.writers}
    sizes = {}
    for _ in range(repeats):
        for key, write in case.writers.items():
            times[key].append(Waits().share(lambda w=write: w(path, values)))
            sizes[key] = path.stat().st_size / 1e6
            path.unlink()
    return {
        key: Cost(statistics.median(s for s, _ in runs), sizes[key],
                  statistics.median(share for _, share in runs))
        for key, runs in times.items()
    }  # fmt: skip


def _odd(values: Array) -> dict[str, Array]:
    """The same kind of pixels in layouts that are not contiguous."""
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if values.ndim == 3 else values
    return {
        "slice": values[::2, 1::3],
        "reversed": values[::-1],
        "transposed": values.swapaxes(0, 1),
        "CHW view": np.moveaxis(planes, 0, -1) if values.ndim == 3 else planes,
    }


def _read(path: Path, writer: str) -> Array:
    """By another library than the one that wrote it."""
    if writer == "OpenCV":
        source = OpenImageIO.ImageInput.open(str(path))
        return np.asarray(source.read_image(source.spec().format)).squeeze()
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return found[..., ::-1] if found.ndim == 3 else found


def wrong(case: Case, key: tuple[str, str], maps: Mapping[str, Array], folder: Path) -> str:
    """The layouts that a library writes wrongly; "right" if none."""
    if case.suffix == ".exr" or case.title.startswith("indexed"):
        return "copied before"
    failed = []
    for layout, values in _odd(case.make(maps)).items():
        path = folder / f"a{case.suffix}"
        try:
            case.writers[key](path, values)
            if not np.array_equal(_read(path, key[0]), values):
                failed.append(layout)
        except Exception as error:  # each library has its own kinds
            failed.append(f"{layout} ({type(error).__name__})")
    return ", ".join(failed) or "right"


def on_a_full_disk(write: Callable[[], None], path: Path) -> str:
    """Whether a library tells that the last byte of its file could not be written."""
    write()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size - 1, limits[1]))
    try:
        write()
    except OSError as error:
        return "told" if error.errno else "told, not why"
    except Exception:  # each library has its own kinds
        return "told, not why"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        path.unlink()
    return "silent"


def main() -> None:
    """Measure every case at every size, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", action="append", choices=list(SIZES))
    parser.add_argument("--only", default="", help="a part of the title of a table")
    asked = parser.parse_args()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    print("| library | version | installed, MB |\n|---|---|---:|")
    for name, distribution in DISTRIBUTIONS.items():
        found = importlib.metadata.distribution(distribution)
        paths = [Path(str(file.locate())) for file in found.files or []]
        size = sum(path.stat().st_size for path in paths if path.exists())
        print(f"| {name} | {found.version} | {size / 1e6:.0f} |")
    with tempfile.TemporaryDirectory() as name:
        for case in (case for case in _cases() if asked.only in case.title):
            _table(case, asked.size or list(SIZES), asked.repeats, Path(name))


def _table(case: Case, sizes: list[str], repeats: int, folder: Path) -> None:
    small = _maps(64, 96)
    path = folder / f"{'indexed' if case.title.startswith('indexed') else 'a'}{case.suffix}"
    costs = [measure(case, _maps(*SIZES[size]), path, repeats) for size in sizes]
    columns = " | ".join(f"{size}, s | ratio | MB" for size in sizes)
    print(f"\n{case.title}\n")
    print(f"| library | setting | {columns} | others wait | odd layouts | full disk |")
    print(f"|---|---|{'---:|' * (3 * len(sizes) + 1)}---|---|")
    for key, write in case.writers.items():
        full = on_a_full_disk(lambda w=write: w(path, case.make(small)), path)
        cells = [*key]
        for cost in costs:
            ratio = cost[key].seconds / cost[next(iter(case.writers))].seconds
            cells += [f"{cost[key].seconds:.3f}", f"{ratio:.2f}", f"{cost[key].megabytes:.2f}"]
        cells.append(f"{max(cost[key].waited for cost in costs):.0%}")
        print(f"| {' | '.join([*cells, wrong(case, key, small, folder), full])} |", flush=True)


if __name__ == "__main__":
    main()
