"""Which input becomes which output: paths, and of EXR files in the output their first bytes."""

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.plan import Output

PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"}
    | {".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
SUFFIXES = PICTURES | {".exr", ".hdr"}
CLIPS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
EXTENSIONS = {
    "png": "png", "png16": "16.png", "exr": "exr", "npy": "npy", "tiff": "tiff",
    "tiff16": "16.tiff",
}  # fmt: skip
MARK = b"dmp:Task"  # in the header of every EXR file that dmp writes
SIDE_BY_SIDE = "side-by-side"  # stands for a task where a picture shows all of them

Note = Callable[[str], None]  # where a line about something skipped goes


@dataclass(frozen=True)
class Input:
    """A file to predict, and its path below the root that it was found under."""

    path: Path
    below: Path
    frame: int | None = None  # of a clip, from 0 on


@dataclass(frozen=True)
class Job:
    """One input and the file that each (task, format) of it goes to.

    Several tasks can go to one file: the layers of an EXR.
    """

    source: Path
    targets: dict[tuple[str, str], Path]
    frame: int | None = None  # of a clip, from 0 on
    name: str = ""  # the source below the root that it was found under


@dataclass(frozen=True)
class Glance:
    """What a contact sheet shows of an image: small JPEGs of it and its maps, and words on them."""

    pictures: Mapping[str, bytes]
    captions: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[int, float] = field(default_factory=dict)  # class id -> share of the pixels


@dataclass(frozen=True)
class Result:
    """What became of a job. `errors` is empty when every target is made."""

    job: Job
    made: tuple[tuple[str, str], ...] = ()  # the targets that are written, by task and format
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    glance: Glance | None = None  # if the plan asks for thumbnails
    done: bool = True  # False: a sign of life; the job's result comes later

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that are there, each once."""
        return tuple(dict.fromkeys(self.job.targets[key] for key in self.made))

    @property
    def maps(self) -> set[str]:
        """The tasks of which there is at least one file."""
        return {task for task, _ in self.made if task != SIDE_BY_SIDE}


def find(
    inputs: Sequence[str], out: Path, note: Note, recursive: bool = True, tasks: Iterable[str] = ()
) -> list[Input]:
    """Every file that the arguments name: files, folders, and patterns with `*`, `?` or `[`.

    Outputs of dmp (below `out`, named `*.TASK.EXT`) are never inputs. What is passed over goes
    to `note`. UsageError for an argument that is not there, NoInputError if nothing is left.
    """
    found: dict[str, Input] = {}
    own = _own_outputs(out, tasks)
    skipped: list[Path] = []
    passed_over = 0
    for text in inputs:
        for item in _expand(text, recursive, note, skipped):
            if own(item.path):
                passed_over += 1
            else:
                found.setdefault(os.path.abspath(item.path), item)
    if passed_over:
        note(f"passed over {passed_over} outputs of dmp in {out}")
    if skipped:
        names = ", ".join(path.name for path in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        files = "file" if len(skipped) == 1 else "files"
        note(f"skipped {len(skipped)} {files} without an image suffix: {names}")
    if not found:
        raise NoInputError(
            f"no image found in {', '.join(inputs) or 'an empty list'}",
            f"suffixes that are looked for in a folder: {' '.join(sorted(SUFFIXES))}",
        )
    return list(found.values())


def from_list(
    lines: Iterable[str], out: Path, note: Note, tasks: Iterable[str] = ()
) -> list[Input]:
    """The files of a list, one path a line; a relative path keeps its folders below the output.

    A path that is absolute or leaves the working folder keeps only its name. Outputs of dmp in
    `out` are passed over, as `find` does.
    """
    found: dict[str, Input] = {}
    own = _own_outputs(out, tasks)
    for line in lines:
        path = Path(line)
        if line and not own(path) and _regular(path, note):
            inside = not path.is_absolute() and ".." not in path.parts
            below = path if inside else Path(path.name)
            found.setdefault(os.path.abspath(path), Input(path, below))
    if not found:
        raise NoInputError("the list names no file")
    return list(found.values())


def plan_targets(
    inputs: Sequence[Input],
    out: Path,
    tasks: Sequence[str],
    output: Output,
    keep_suffix: bool = False,
) -> list[Job]:
    """A job for each input; UsageError if two would write one file, or one would replace an input.

    The targets of a clip's frame lie in a folder named as the clip.
    """
    jobs, taken = [], dict[str, Path]()
    real = cache(os.path.realpath)
    sources = {(real(item.path.parent), item.path.name) for item in inputs}
    for item in inputs:
        targets = _targets(item, out, tasks, output, keep_suffix)
        for target in dict.fromkeys(targets.values()):
            other = taken.setdefault(str(target).casefold(), item.path)
            if other is not item.path:
                raise UsageError(
                    f"{other} and {item.path} would both be written to {target}",
                    "use --keep-suffix, give the folder above them, or run them into two folders",
                )
            if (real(target.parent), target.name) in sources:
                raise UsageError(f"input {target} would be overwritten", "choose another -o")
        jobs.append(Job(item.path, targets, item.frame, str(item.below)))
    return jobs


def _targets(
    item: Input, out: Path, tasks: Sequence[str], output: Output, keep_suffix: bool
) -> dict[tuple[str, str], Path]:
    folder, name = item.below.parent, item.below.name if keep_suffix else item.below.stem
    if item.frame is not None:
        folder, name = folder / name, f"{item.frame + 1:06d}"
    merged = output.merged and len(tasks) > 1

    def target(task: str, form: str) -> Path:
        middle = "" if merged and form == "exr" else f".{task}"
        return out / folder / f"{name}{middle}.{EXTENSIONS[form]}"

    targets = {(task, form): target(task, form) for task in tasks for form in output.formats}
    if output.side_by_side:
        targets[SIDE_BY_SIDE, "png"] = target(SIDE_BY_SIDE, "png")
    return targets


def _own_outputs(out: Path, tasks: Iterable[str]) -> Callable[[Path], bool]:
    """Whether a file is an output of dmp in `out`, also where `out` is an input folder itself."""
    root = os.path.realpath(out)
    endings = tuple(
        f".{task}.{ext}" for task in (*tasks, SIDE_BY_SIDE) for ext in (*EXTENSIONS.values(), "mp4")
    )
    others = (Path(root, "labels.png"),)  # what a legend is written to

    def own(path: Path) -> bool:
        if not path.name.endswith((*endings, ".exr", ".png")):
            return False
        real = Path(os.path.realpath(path.parent), path.name)
        if not real.is_relative_to(root):
            return False
        return path.name.endswith(endings) or real in others or _holds_layers(path)

    return own


def _holds_layers(path: Path) -> bool:
    """Whether an EXR file was written by dmp: its name alone does not tell."""
    if path.suffix != ".exr":
        return False
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return MARK in file.read(1 << 16)
    except OSError:
        return False


def _expand(text: str, recursive: bool, note: Note, skipped: list[Path]) -> Iterator[Input]:
    path = Path(text)
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise UsageError(f"{text!r}: not a path: {error}") from error
    if there and path.is_dir():
        yield from _walk(path, recursive, note, skipped)
    elif there:
        if _regular(path, note):
            yield Input(path, Path(path.name))
    elif any(mark in text for mark in "*?["):
        yield from _match(text, note, skipped)
    else:
        raise UsageError(f"{text}: no such file or folder", "check the path; quote a pattern")


def _match(text: str, note: Note, skipped: list[Path]) -> Iterator[Input]:
    """Files of a pattern, their root being what stands before its first wildcard."""
    parts = Path(text).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root, rest = Path(*parts[:fixed]), [*parts[fixed:], *(["*"] if parts[-1] == "**" else [])]
    try:  # unlike glob.glob, pathlib follows no links below `**`, which may form a loop
        paths = sorted(root.glob(os.path.join(*rest)))
    except ValueError as error:
        raise UsageError(f"{text}: {error}", "`**` stands alone between slashes") from error
    hidden = any(part.startswith(".") and part != ".." for part in rest)
    for path in paths:
        below = path.relative_to(root)
        if not hidden and any(part.startswith(".") and part != ".." for part in below.parts):
            continue
        image = path.suffix.lower() in SUFFIXES | CLIPS
        if (path.is_dir() and not image) or not _regular(path, note):
            continue
        if image:
            yield Input(path, Path(path.name) if ".." in below.parts else below)
        else:
            skipped.append(path)


def _walk(root: Path, recursive: bool, note: Note, skipped: list[Path]) -> Iterator[Input]:
    """Image files below a folder in sorted order; hidden ones and links to folders are left out."""

    def refuse(error: OSError) -> None:
        if Path(error.filename) == root:
            raise UsageError(f"{root}: cannot be read: {error.strerror}") from error
        note(f"skipped {error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders.sort()
        for name in [name for name in folders if Path(name).suffix.lower() in SUFFIXES]:
            if not name.startswith("."):
                _regular(Path(folder, name), note)
            folders.remove(name)
        folders[:] = [name for name in folders if not name.startswith(".") and recursive]
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in SUFFIXES | CLIPS:
                skipped.append(path)
            elif _regular(path, note):
                yield Input(path, path.relative_to(root))


def _regular(path: Path, note: Note) -> bool:
    """Whether it is a plain file; what is not there counts, so that reading it can say so."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return True
    if not stat.S_ISREG(mode):
        note(f"skipped {path}: not a regular file")
    return stat.S_ISREG(mode)
