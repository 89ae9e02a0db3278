"""Which input becomes which output: paths, and of files in the output their first bytes."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dmp_cli import finding, marks, storage
from dmp_cli.digests import Stamp
from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.plan import Output
from dmp_cli.urls import place, shown, url_of

PICTURES, SUFFIXES, CLIPS = finding.PICTURES, finding.SUFFIXES, finding.CLIPS
EXTENSIONS = {
    "png": "png", "png16": "16.png", "exr": "exr", "npy": "npy", "tiff": "tiff",
    "tiff16": "16.tiff",
}  # fmt: skip
MARK = marks.MARK
_AT_ONCE = 16  # requests
SIDE_BY_SIDE = "side-by-side"  # stands for a task where a picture shows all of them

Input = finding.Input
Note = finding.Note


@dataclass(frozen=True, slots=True, eq=False)
class Targets(Mapping[tuple[str, str], Path]):
    """The files of one job by (task, format): paths only when asked for, since jobs are many."""

    stem: str  # what the paths of all begin with
    endings: Mapping[tuple[str, str], str]  # one for all jobs of a run

    def __getitem__(self, key: tuple[str, str]) -> Path:
        return Path(self.stem + self.endings[key])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.endings)

    def __len__(self) -> int:
        return len(self.endings)


@dataclass(frozen=True, slots=True)
class Job:
    """One input and the file that each (task, format) of it goes to.

    Several tasks can go to one file: the layers of an EXR.
    """

    source: Path
    targets: Mapping[tuple[str, str], Path]
    frame: int | None = None  # of a clip, from 0 on
    name: str = ""  # the source below the root that it was found under
    prompt: str | None = None  # of this image alone, "" for none; None: the one of the run
    there: Mapping[tuple[str, str], Path] = field(default_factory=dict)  # made by a run before

    @property
    def folder(self) -> Path:
        """Where its targets go."""
        return next(iter(self.targets.values())).parent

    def tasks(self, plan: Sequence[str]) -> tuple[str, ...]:
        """The tasks of a plan that are needed for its targets, in the plan's order."""
        wanted = {task for task, _ in self.targets}
        return tuple(name for name in plan if name in wanted or SIDE_BY_SIDE in wanted)


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
    again: bool = False  # the errors are of the moment: the next run is to try it again
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    glance: Glance | None = None  # if the plan asks for thumbnails
    done: bool = True  # False: a sign of life; the job's result comes later
    kept: bool = False  # nothing was done: its targets were there already, or failed before
    read: Stamp | None = None  # of the input, if it could be read
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)  # of the files that are written
    device: str = ""  # where the network ran
    dtype: str = ""

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
    own = own_outputs(out, tasks)
    skipped: list[Path] = []
    passed: list[Path] = []
    named: list[Path] = []  # of those, the ones that an argument names
    for text in inputs:
        for item in finding.expand(text, recursive, note, skipped):
            if not own(item.path):
                found.setdefault(os.path.abspath(item.path), item)
            elif item.path == place(text):
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
            f"{', '.join(inputs)}: no image but outputs of dmp in {shown(out)}", "choose another -o"
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
        note(f"passed over {len(passed)} {outputs} of dmp in {shown(out)}")
    if named:
        what = "an output" if len(named) == 1 else "outputs"
        note(
            f"passed over {_names(named)}: {what} of dmp in {shown(out)}; "
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
    own = own_outputs(out, tasks)
    named: list[Path] = []
    for line in filter(None, lines):
        path = place(line)
        if own(path):
            named.append(path)
        elif finding.regular(path, note):
            inside = not path.is_absolute() and ".." not in path.parts
            below = path if inside else Path(path.name)
            found.setdefault(os.path.abspath(path), Input(path, below))
    if found:
        _tell_passed([], named, out, note)
    if not found and named:
        raise NoInputError(
            f"the list names no image but outputs of dmp in {shown(out)}", "choose another -o"
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
    endings = _endings(tasks, output)
    for item in inputs:
        targets = Targets(_stem(item, out, keep_suffix), endings)
        claim(item.path, targets)
        jobs.append(Job(item.path, targets, item.frame, str(item.below)))
    if _has_layers(output, tasks):
        _refuse_foreign(out, [job.targets[tasks[0], "exr"] for job in jobs])
    return jobs


def _refuse_foreign(out: Path, layers: Sequence[Path]) -> None:
    """UsageError if an EXR of several tasks would replace a file that dmp did not write."""
    if url_of(out) is None:
        foreign = next(filter(marks.foreign, layers), None)
    else:  # a request each, but only for those that are there, and several at once
        there = storage.listing(out)
        layers = [path for path in layers if path in there]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = zip(layers, pool.map(marks.foreign, layers), strict=True)
            foreign = next((path for path, strange in found if strange), None)
    if foreign:
        raise UsageError(
            f"{shown(foreign)} would be overwritten, and dmp did not write it",
            "choose another -o, or use --exr-per-task",
        )


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
            files = Targets(str(base), {(task, "mp4"): f".{task}.mp4"})
            claim(source, files)
            pictures = tuple(job.targets[task, "png"] for job in members)
            movies.append(Movie(task, files[task, "mp4"], source, pictures, clip_of_it is not None))
    return movies


def _claims(inputs: Iterable[Path], how: str) -> Callable[[Path, Targets], None]:
    """What gives a source its targets; UsageError if another has one, or an input lies there.

    An input lies in the way too where a folder of the targets would need its name.
    """
    taken: dict[str, Path] = {}
    real = cache(os.path.realpath)
    names: dict[str, set[str]] = {}  # of inputs, by folder
    for path in inputs:
        folder, name = os.path.split(path)
        names.setdefault(real(folder), set()).add(name)

    @cache
    def input_among(folder: str) -> Path | None:
        places = (Path(folder), *Path(folder).parents)
        return next((at for at in places if at.name in names.get(real(str(at.parent)), ())), None)

    def claim(source: Path, targets: Targets) -> None:
        # By stem: no ending is the end of another, so files are one only where their stems are
        other = taken.setdefault(targets.stem.casefold(), source)
        folder = os.path.dirname(targets.stem)  # noqa: PTH120  pathlib takes seconds for 100,000
        beside = names.get(real(folder), ())
        if other is not source:
            both = f"{shown(other)} and {shown(source)} would both be written to"
            raise UsageError(f"{both} {_first(targets)}", how)
        if beside and (lost := next((at for at in targets.values() if at.name in beside), None)):
            raise UsageError(f"input {shown(lost)} would be overwritten", "choose another -o")
        if file := input_among(folder):
            raise UsageError(
                f"{_first(targets)} cannot be written: input {shown(file)} is no folder",
                "choose another -o",
            )

    return claim


def _first(targets: Targets) -> str:
    return shown(next(iter(targets.values())))


def _has_layers(output: Output, tasks: Sequence[str]) -> bool:
    """Whether one EXR file holds the maps of several tasks, so that its name tells none."""
    return output.merged and len(tasks) > 1 and "exr" in output.formats


def _stem(item: Input, out: Path, keep_suffix: bool) -> str:
    """What the paths of all targets of an input begin with."""
    stem = os.path.join(out, item.below)
    if not keep_suffix:
        stem = stem.removesuffix(item.below.suffix)
    return stem if item.frame is None else os.path.join(stem, f"{item.frame + 1:06d}")


def _endings(tasks: Sequence[str], output: Output) -> dict[tuple[str, str], str]:
    """What comes after the stem."""
    layers = _has_layers(output, tasks)

    def ending(task: str, form: str) -> str:
        middle = "" if layers and form == "exr" else f".{task}"
        return f"{middle}.{EXTENSIONS[form]}"

    endings = {(task, form): ending(task, form) for task in tasks for form in output.formats}
    if output.side_by_side:
        endings[SIDE_BY_SIDE, "png"] = ending(SIDE_BY_SIDE, "png")
    return endings


def own_outputs(out: Path, tasks: Iterable[str]) -> Callable[[Path], bool]:
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
