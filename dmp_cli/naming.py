"""Which file of a folder is which image or map: by place and name, for maps of dmp by their mark.

A name is the path below the folder of images or maps, without suffix, without `.TASK` and, behind
that, the `.16` of 16-bit pictures: `sub/a` of depth/sub/a.png and of images/sub/a.depth.16.png.
"""

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath

from dmp_cli import jobs, marks
from dmp_cli.errors import ImageError, UsageError
from dmp_cli.mapfiles import SUFFIXES
from dmp_cli.tasks import TASKS, Task

IMAGE_FOLDERS = ("images", "image", "rgb")
# Where one map lies in a folder in several formats, the first of these is read: data before
# pictures, and last `.TASK.png`, which `dmp predict` writes to look at
ORDER = (
    ".npy", ".npz", ".exr", ".tiff", ".tif", ".16.tiff", ".16.tif", ".16.png", ".png",
)  # fmt: skip

Named = dict[str, list[Path]]  # several files of one name: it is not told which of them is meant


def image_folder(root: Path) -> Path:
    """Where the images of a data set lie; UsageError if there is no such folder."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "no such folder"
        raise UsageError(f"{root}: {what}", "give the folder that holds images and maps")
    return next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root)


def images(root: Path) -> Named:
    """The images of a data set; maps beside them are left out."""
    folder = image_folder(root)
    return _named(folder, jobs.PICTURES, ("",), _task_folders() if folder == root else ())


def maps(root: Path, task: Task) -> Named:
    """The maps of a task in a data set: in its folders, by name or alias, else beside the images.

    What lies beside the images has `.TASK` before its suffix; in a folder of the task it may.
    """
    own = [root / name for name in words(task) if (root / name).is_dir()]
    marks = ("", task.name) if own else (task.name,)
    folder = image_folder(root)
    found: Named = {}
    for base in own or [folder]:
        leave_out = _task_folders() if base == root else ()
        for name, files in _named(base, SUFFIXES, marks, leave_out).items():
            found.setdefault(name, []).extend(files)
        _add_layers(found, base, task, leave_out)
    return {name: _meant(files) for name, files in found.items()}


def _add_layers(found: Named, folder: Path, task: Task, leave_out: Collection[str]) -> None:
    """Add the EXR files in which dmp wrote the map as a layer, where no data of it lie beside.

    An EXR file of that name may as well be the photograph: its header tells.
    """
    for name, files in _named(folder, (".exr",), ("",), leave_out).items():
        there = found.get(name, [])
        if all(map(is_picture, there)):
            layers = [path for path in files if task.name in marks.layers(path)]
            found |= {name: there + layers} if layers else {}


def loose_maps(folder: Path, task: Task) -> Named:
    """The maps of a task in a folder that is no data set: those that say so, else those unmarked.

    Whatever is in a folder of images or of another task is none.
    """
    leave_out = {*IMAGE_FOLDERS, *_task_folders()} - {*words(task)}
    found = _named(folder, SUFFIXES, (task.name,), leave_out)
    _add_layers(found, folder, task, leave_out)
    found = found or _named(folder, SUFFIXES, ("",), leave_out)
    return {name: _meant(files) for name, files in found.items()}


def masks(folder: Path) -> Named:
    """The files of a folder that may be masks: of any kind that maps have, without a mark."""
    return {name: _meant(files) for name, files in _named(folder, SUFFIXES, ("",)).items()}


def one_each(found: Named) -> dict[str, Path]:
    """The file of each name; ImageError for the first name that has several."""
    for files in found.values():
        if len(files) > 1:
            raise same_name(*files[:2])
    return {name: files[0] for name, files in found.items()}


def words(task: Task) -> tuple[str, ...]:
    """The names that a task has in files and folders."""
    return (task.name, *task.aliases)


def bare(path: PurePath) -> str:
    """The name of a file in its folder."""
    return _parts(path)[0]


def is_picture(path: PurePath) -> bool:
    """Whether it is called `a.TASK.png`, as pictures to look at are."""
    _, mark = _parts(path)
    return bool(mark) and path.suffix.lower() == ".png" and not path.stem.endswith(".16")


def same_name(first: Path, second: Path) -> ImageError:
    """The error of two files that have one name."""
    return ImageError(f"{second}: {first} has the same name", "keep one of them")


def _task_folders() -> set[str]:
    return {word for task in TASKS.values() for word in words(task)}


def _parts(path: PurePath) -> tuple[str, str]:
    """(`a`, `depth`) of a.depth.npy and a.depth.16.png; (`a`, "") of a.npy."""
    stem = path.stem.removesuffix(".16")
    for task in TASKS.values():
        for word in words(task):
            if stem.endswith(f".{word}") and stem != f".{word}":
                return stem.removesuffix(f".{word}"), task.name
    return path.stem, ""


def _named(
    folder: Path, suffixes: Collection[str], marks: Collection[str], leave_out: Collection[str] = ()
) -> Named:
    """Files below a folder by name that have one of `marks`: the name of a task, or "", none."""
    found: Named = {}
    for path in _walk(folder, suffixes, leave_out):
        stem, mark = _parts(path)
        if mark in marks:
            name = (path.relative_to(folder).parent / stem).as_posix()
            found.setdefault(name, []).append(path)
    return found


def _meant(files: list[Path]) -> list[Path]:
    """The first in ORDER of the formats of a map; with it those that are no other format of it."""
    best = min(files, key=_rank)
    doubles = (path for path in files if path.parent != best.parent or _rank(path) == _rank(best))
    return [best, *(path for path in doubles if path != best)]


def _rank(path: Path) -> int:
    if is_picture(path):
        return len(ORDER)
    ends = (end for end in ORDER if path.name.lower().endswith(end))
    return ORDER.index(max(ends, key=len))


def _walk(folder: Path, suffixes: Collection[str], leave_out: Collection[str]) -> Iterator[Path]:
    """Files below a folder, sorted, but for hidden ones and folders of the names to leave out.

    Nor those that dmp writes beside maps: pictures of all maps of an image, and legends.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for above, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in leave_out
        )
        for name in sorted(names):
            path = Path(above, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes or not _is_file(path):
                continue
            if not (path.stem.endswith(f".{jobs.SIDE_BY_SIDE}") or marks.is_legend(path)):
                yield path


def _is_file(path: Path) -> bool:
    """Whether it may be opened: a FIFO would wait for ever.

    A link to nothing counts: whoever reads it says what is wrong.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
