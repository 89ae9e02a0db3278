"""Which prediction belongs to which truth: paths only, nothing is opened."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from dmp_cli.data import IMAGE_FOLDERS, image_folder
from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.jobs import SUFFIXES as IMAGE_SUFFIXES
from dmp_cli.maps import SUFFIXES as MAP_SUFFIXES
from dmp_cli.tasks import TASKS, Task

# Where one map lies there in several formats, the first of these is read: float data before others
ORDER = (".npy", ".npz", ".exr", ".tiff", ".tif", ".16.png", ".png")


@dataclass(frozen=True)
class Match:
    """One comparison; `name` is the path of the truth below its folder, without suffixes."""

    name: str
    prediction: Path
    truth: Path
    mask: Path | None = None
    image: Path | None = None


@dataclass(frozen=True)
class Matched:
    """What was found in two folders."""

    matches: tuple[Match, ...]
    missing: tuple[Path, ...] = ()  # truths without a prediction
    spare: tuple[Path, ...] = ()  # predictions without a truth
    by_name: bool = False  # no path agreed: the files are matched by their names alone


def find(
    prediction: Path,
    truth: Path,
    task: Task,
    mask: Path | None = None,
    images: Path | None = None,
) -> Matched:
    """The pairs of two files, or of two folders in the order of the truth's names.

    A folder is searched to its bottom. Files are matched by their path below it without suffix,
    without `.TASK`, and without the `.16` of 16-bit pictures. If any file of a folder ends in
    `.TASK`, or there is a folder of the task's name in it, only those count: so it may be the root
    of a data set, or hold the maps of other tasks. `mask` is one for all or a folder, `images` a
    file or a folder of the images that the maps are of.

    UsageError for a path that is not there, a file with a folder, a truth without mask or image;
    NoInputError if nothing matches.
    """
    if _is_folder(prediction) != _is_folder(truth):
        raise UsageError(
            f"{prediction} and {truth}: one is a file and the other a folder",
            "give two files or two folders",
        )
    if not truth.is_dir():
        name = _stem(PurePath(truth.name))[0]
        return _with_extras(Matched((Match(name, prediction, truth),)), mask, images)
    found, truths = (_maps(folder, task) for folder in (prediction, truth))
    taken = _match(found, truths)
    if not taken:
        raise NoInputError(
            f"no map of {prediction} has the name of one of {truth}",
            f"there are {_some(found)}, and {_some(truths)}",
        )
    pairs = tuple(Match(name, found[taken[name]], truths[name]) for name in sorted(taken))
    used = set(taken.values())
    matched = Matched(
        pairs,
        tuple(truths[name] for name in sorted(truths) if name not in taken),
        tuple(found[name] for name in sorted(found) if name not in used),
        by_name=not any(_plain(key) == name or key == name for name, key in taken.items()),
    )
    return _with_extras(matched, mask, images)


def _is_folder(path: Path) -> bool:
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder", "check the path")
    return path.is_dir()


def _some(names: Mapping[str, Path]) -> str:
    shown = ", ".join(str(path) for path in list(names.values())[:2])
    return f"{shown}, ..." if len(names) > 2 else shown


def _with_extras(matched: Matched, mask: Path | None, images: Path | None) -> Matched:
    names = [pair.name for pair in matched.matches]
    if images and images.is_dir():
        images = image_folder(images)
    masks = _extras(mask, names, MAP_SUFFIXES, "mask")
    pictures = _extras(images, names, IMAGE_SUFFIXES, "image")
    pairs = tuple(
        Match(pair.name, pair.prediction, pair.truth, masks.get(pair.name), pictures.get(pair.name))
        for pair in matched.matches
    )
    return Matched(pairs, matched.missing, matched.spare, matched.by_name)


def _extras(
    place: Path | None, names: list[str], suffixes: Iterable[str], what: str
) -> dict[str, Path]:
    """The file of each name in a folder; one file serves all names."""
    if place is None:
        return {}
    if not _is_folder(place):
        return dict.fromkeys(names, place)
    found = _best(path for path in _walk(place, suffixes) if not _stem(path)[1])
    files = {name: place / path for name, path in found.items()}
    taken = _match(files, names)
    if absent := [name for name in names if name not in taken]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UsageError(
            f"{place} has no {what} for {absent[0]}{more}",
            "its files must have the names of the truth",
        )
    return {name: files[key] for name, key in taken.items()}


def _maps(folder: Path, task: Task) -> dict[str, Path]:
    """name -> file of each map of the task in a folder, the best format of each."""
    inner = (folder / name for name in (task.name, *task.aliases))
    root = next((path for path in inner if path.is_dir()), folder)
    paths = list(_walk(root, MAP_SUFFIXES))
    words = {path: _stem(path)[1] for path in paths}
    own = [path for path in paths if words[path] == task.name]
    found = _best(own or (path for path in paths if not words[path]))
    if not found:
        raise NoInputError(
            f"{folder} has no maps of {task.name}",
            f"suffixes that are looked for: {' '.join(MAP_SUFFIXES)}",
        )
    if all(PurePath(name).parts[0] in IMAGE_FOLDERS for name in found):  # beside the images
        return {str(PurePath(*PurePath(name).parts[1:])): root / found[name] for name in found}
    return {name: root / path for name, path in found.items()}


def _walk(root: Path, suffixes: Iterable[str]) -> Iterable[PurePath]:
    """Files with one of the suffixes, as paths below `root`; hidden ones are left out."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from error

    known = frozenset(suffixes)
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix.lower() in known and path.is_file():
                yield path.relative_to(root)


def _stem(path: PurePath) -> tuple[str, str]:
    """(path without suffix, `.16` and `.TASK`; the name of that task or "")."""
    bare = str(path.with_suffix(""))
    if path.suffix.lower() == ".png":
        bare = bare.removesuffix(".16")
    for row in TASKS.values():
        for word in (row.name, *row.aliases):
            if bare.endswith(f".{word}"):
                return bare.removesuffix(f".{word}"), row.name
    return bare, ""


def _best(paths: Iterable[PurePath]) -> dict[str, PurePath]:
    """name -> path, of several formats the first in ORDER."""

    def rank(path: PurePath) -> int:
        return next(
            (i for i, end in enumerate(ORDER) if path.name.lower().endswith(end)), len(ORDER)
        )

    best: dict[str, PurePath] = {}
    for path in paths:
        name = _stem(path)[0]
        if name not in best or rank(path) < rank(best[name]):
            best[name] = path
    return best


def _match(found: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """name -> the key of `found` that fits it.

    The same path, or that path with the suffix of an image before `.TASK` (`--keep-suffix`). If no
    path agrees at all, the same name in whatever folder, where there is one on either side.
    """
    keys, names = list(found), list(names)
    plain = _single((_plain(key), key) for key in keys)
    taken = {name: name if name in set(keys) else plain.get(name, "") for name in names}
    taken = {name: key for name, key in taken.items() if key}
    if taken:
        return taken
    here = _single((PurePath(_plain(key)).name, key) for key in keys)
    there = _single((PurePath(name).name, name) for name in names)
    return {there[word]: here[word] for word in sorted(here.keys() & there.keys())}


def _plain(key: str) -> str:
    path = PurePath(key)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else key


def _single(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs whose first word stands for one thing only."""
    listed = list(pairs)
    often = Counter(word for word, _ in listed)
    return {word: value for word, value in listed if often[word] == 1}
