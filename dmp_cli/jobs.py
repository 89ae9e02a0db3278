"""Which input becomes which output: paths, and of files in the output their first bytes."""

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dmp_cli import marks
from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.inputs import clip
from dmp_cli.plan import Output

PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"}
    | {".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
SUFFIXES = PICTURES | {".exr", ".hdr"}
CLIPS = clip.SUFFIXES
EXTENSIONS = {
    "png": "png", "png16": "16.png", "exr": "exr", "npy": "npy", "tiff": "tiff",
    "tiff16": "16.tiff",
}  # fmt: skip
MARK = marks.MARK
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
    prompt: str | None = None  # of this image alone, "" for none; None: the one of the run


@dataclass(frozen=True)
class Movie:
    """The pictures of a task, of one clip or of one folder, and the file that shows them in turn.

    `source` is the clip, or the folder that the first of the pictures is made from.
    """

    task: str
    target: Path
    source: Path
    pictures: tuple[Path, ...]
    is_clip: bool


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
    passed: list[Path] = []
    named: list[Path] = []  # of those, the ones that an argument names
    for text in inputs:
        for item in _expand(text, recursive, note, skipped):
            if not own(item.path):
                found.setdefault(os.path.abspath(item.path), item)
            elif item.path == Path(text):
                named.append(item.path)
            else:
                passed.append(item.path)
    if found:
        _tell_passed(passed, named, out, note)
    if skipped:
        files = "file" if len(skipped) == 1 else "files"
        note(f"skipped {len(skipped)} {files} without an image suffix: {_names(skipped)}")
    if not found and (passed or named):
        raise NoInputError(
            f"{', '.join(inputs)}: no image but outputs of dmp in {out}", "choose another -o"
        )
    if not found:
        raise NoInputError(
            f"no image found in {', '.join(inputs) or 'an empty list'}",
            f"suffixes that are looked for in a folder: {' '.join(sorted(SUFFIXES | CLIPS))}",
        )
    return list(found.values())


def _tell_passed(passed: list[Path], named: list[Path], out: Path, note: Note) -> None:
    if passed:
        outputs = "output" if len(passed) == 1 else "outputs"
        note(f"passed over {len(passed)} {outputs} of dmp in {out}")
    if named:
        what = "an output" if len(named) == 1 else "outputs"
        note(
            f"passed over {_names(named)}: {what} of dmp in {out}; "
            "choose another -o to predict from what dmp wrote"
        )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")


def from_list(
    lines: Iterable[str], out: Path, note: Note, tasks: Iterable[str] = ()
) -> list[Input]:
    """The files of a list, one path a line; a relative path keeps its folders below the output.

    A path that is absolute or leaves the working folder keeps only its name. Outputs of dmp in
    `out` are passed over, as `find` does. NoInputError if nothing is left.
    """
    found: dict[str, Input] = {}
    own = _own_outputs(out, tasks)
    named: list[Path] = []
    for line in filter(None, lines):
        path = Path(line)
        if own(path):
            named.append(path)
        elif _regular(path, note):
            inside = not path.is_absolute() and ".." not in path.parts
            below = path if inside else Path(path.name)
            found.setdefault(os.path.abspath(path), Input(path, below))
    if found:
        _tell_passed([], named, out, note)
    if not found and named:
        raise NoInputError(
            f"the list names no image but outputs of dmp in {out}", "choose another -o"
        )
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

    So it does if layers would replace a file that dmp did not write, for their name says nothing.
    The targets of a clip's frame lie in a folder named as the clip.
    """
    jobs = []
    how = "use --keep-suffix, give the folder above them, or run them into two folders"
    claim = _claims((item.path for item in inputs), how)
    for item in inputs:
        targets = _targets(item, out, tasks, output, keep_suffix)
        for target in dict.fromkeys(targets.values()):
            claim(item.path, target)
        if _has_layers(output, tasks) and marks.foreign(layers := targets[tasks[0], "exr"]):
            raise UsageError(
                f"{layers} would be overwritten, and dmp did not write it",
                "choose another -o, or use --exr-per-task",
            )
        jobs.append(Job(item.path, targets, item.frame, str(item.below)))
    return jobs


def plan_movies(todo: Sequence[Job], out: Path, tasks: Sequence[str]) -> list[Movie]:
    """A movie of each task for each clip and each folder of pictures.

    UsageError if two would be written to one file, or one would replace an input.
    """
    groups: dict[tuple[Path, Path | None], list[Job]] = {}
    for job in todo:
        clip_of_it = None if job.frame is None else job.source
        folder = job.targets[tasks[0], "png"].parent
        groups.setdefault((folder, clip_of_it), []).append(job)
    claim = _claims((job.source for job in todo), "run them into two folders")
    movies = []
    for (folder, clip_of_it), members in groups.items():
        source = clip_of_it or members[0].source.parent
        base = out / "sequence" if folder == out else folder
        for task in tasks:
            target = base.with_name(f"{base.name}.{task}.mp4")
            claim(source, target)
            pictures = tuple(job.targets[task, "png"] for job in members)
            movies.append(Movie(task, target, source, pictures, clip_of_it is not None))
    return movies


def _claims(inputs: Iterable[Path], how: str) -> Callable[[Path, Path], None]:
    """What gives a source its target; UsageError if another has it, or an input lies there.

    An input lies in the way too where a folder of the target would need its name.
    """
    taken: dict[str, Path] = {}
    real = cache(os.path.realpath)
    sources = {(real(path.parent), path.name) for path in inputs}

    @cache
    def input_among(folder: Path) -> Path | None:
        places = (folder, *folder.parents)
        return next((at for at in places if (real(at.parent), at.name) in sources), None)

    def claim(source: Path, target: Path) -> None:
        other = taken.setdefault(str(target).casefold(), source)
        if other is not source:
            raise UsageError(f"{other} and {source} would both be written to {target}", how)
        if (real(target.parent), target.name) in sources:
            raise UsageError(f"input {target} would be overwritten", "choose another -o")
        if file := input_among(target.parent):
            raise UsageError(
                f"{target} cannot be written: input {file} is no folder", "choose another -o"
            )

    return claim


def _has_layers(output: Output, tasks: Sequence[str]) -> bool:
    """Whether one EXR file holds the maps of several tasks, so that its name tells none."""
    return output.merged and len(tasks) > 1 and "exr" in output.formats


def _targets(
    item: Input, out: Path, tasks: Sequence[str], output: Output, keep_suffix: bool
) -> dict[tuple[str, str], Path]:
    folder, name = item.below.parent, item.below.name if keep_suffix else item.below.stem
    if item.frame is not None:
        folder, name = folder / name, f"{item.frame + 1:06d}"
    layers = _has_layers(output, tasks)

    def target(task: str, form: str) -> Path:
        middle = "" if layers and form == "exr" else f".{task}"
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

    def own(path: Path) -> bool:
        if not path.name.endswith((*endings, ".exr", *marks.LEGENDS)):
            return False
        if not Path(os.path.realpath(path.parent), path.name).is_relative_to(root):
            return False
        return path.name.endswith(endings) or bool(marks.layers(path)) or marks.is_legend(path)

    return own


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
