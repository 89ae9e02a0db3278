"""Which prediction belongs to which truth: paths only, nothing is opened."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from dmp_cli import jobs, naming
from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.mapfiles import SUFFIXES
from dmp_cli.tasks import Task


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

    Files are matched by their names, as naming.py has them. A folder is the root of a data set, or
    holds the maps of one task or several. `mask` is one for all or a folder, `images` a file or a
    folder of the images that the maps are of.

    UsageError for a path that is not there, a file with a folder, a truth without mask or image;
    ImageError for two files of one name; NoInputError if nothing matches.
    """
    if _is_folder(prediction) != _is_folder(truth):
        raise UsageError(
            f"{prediction} and {truth}: one is a file and the other a folder",
            "give two files or two folders",
        )
    if not truth.is_dir():
        one = Match(naming.bare(truth), prediction, truth)
        return _with_extras(Matched((one,)), mask, images)
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
    masks = _extras(mask, names, naming.masks, "mask")
    pictures = _extras(images, names, naming.images, "image")
    pairs = tuple(
        Match(pair.name, pair.prediction, pair.truth, masks.get(pair.name), pictures.get(pair.name))
        for pair in matched.matches
    )
    return Matched(pairs, matched.missing, matched.spare, matched.by_name)


def _extras(
    place: Path | None, names: list[str], search: Callable[[Path], naming.Named], what: str
) -> dict[str, Path]:
    """The file of each name in a folder; one file serves all names."""
    if place is None:
        return {}
    if not _is_folder(place):
        return dict.fromkeys(names, place)
    files = naming.one_each(search(place))
    taken = _match(files, names)
    if absent := [name for name in names if name not in taken]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UsageError(
            f"{place} has no {what} for {absent[0]}{more}",
            "its files must have the names of the truth",
        )
    return {name: files[key] for name, key in taken.items()}


def _maps(folder: Path, task: Task) -> dict[str, Path]:
    """name -> file of each map of the task in a folder."""
    found = naming.maps(folder, task) or naming.loose_maps(folder, task)
    if not found:
        raise NoInputError(
            f"{folder} has no maps of {task.name}",
            f"looked for {task.name}/NAME, NAME.{task.name}, and NAME outside of folders of "
            f"images or other tasks, ending in {' '.join(SUFFIXES)}",
        )
    return naming.one_each(found)


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
    return str(path.with_suffix("")) if path.suffix.lower() in jobs.SUFFIXES else key


def _single(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs whose first word stands for one thing only."""
    listed = list(pairs)
    often = Counter(word for word, _ in listed)
    return {word: value for word, value in listed if often[word] == 1}
