"""Files of others: which of them are LoRAs, and for which task and model, by their names."""

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmp_cli import header
from dmp_cli.errors import UsageError
from dmp_cli.tasks import TASKS

PLAIN, PROMPTED = "dmp", "dmp-paper"  # the models that the official files belong to
FETCHED = Path("NAME")  # stands for a folder of Google Drive in what is to be typed

_OFFICIAL = "pytorch_lora_weights"
_NAMED = (_OFFICIAL, "adapter_model")
SAFE = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHERS = re.compile(  # what training or a whole backbone leaves beside LoRAs
    r"(optimizer|scheduler|random_states|rng_state|scaler|training_args|"
    r"diffusion_pytorch_model|pytorch_model)|model$"
)
_CHECKPOINT = re.compile(r"checkpoints|(checkpoint|step|epoch)[-_](\d+)")
BESIDE = re.compile(r"adapter_config\.json|readme\.md|(licen[cs]e|copying)(\.\w+)?", re.IGNORECASE)
_WORDS = {
    word: task.name
    for task in TASKS.values()
    for name in (task.name, *task.aliases)
    for word in (name, f"{name}s")
} | {"semantic": "segmentation", "semseg": "segmentation", "reflectance": "albedo"}


@dataclass(frozen=True)
class Found:
    """A file that is, by its name, a LoRA."""

    path: Path
    root: Path  # what was asked to be imported: the file itself or a folder above it
    archive: Path | None  # the zip file that the folder was unpacked from; FETCHED: none was
    understood: tuple[str, ...]  # tasks that its name, or its header, may mean; one if it is clear
    plain: bool = False  # made for use without a prompt
    official: bool = False  # named as the paper's authors name theirs, in a folder
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its path as a person knows it: in the archive, or from the folder that was given on."""
        if self.archive:
            return str(self.path.relative_to(self.root))
        known = self.path == self.root and self.path.stem not in _NAMED
        above = self.root.parent.parent if self.path == self.root else self.root.parent
        return self.path.name if known else str(self.path.relative_to(above))


@dataclass(frozen=True)
class Placed:
    """A file, and what it becomes: the LoRA of a task of a model."""

    found: Found
    model: str
    task: str


def is_wanted(name: str) -> bool:
    """Whether a file of an archive is worth unpacking: a LoRA by its name, or what tells of one."""
    return _is_lora(Path(name)) or bool(BESIDE.fullmatch(name))


def _is_lora(path: Path) -> bool:
    known = path.suffix.lower() in (SAFE, *_PICKLES)
    return known and not path.name.startswith(".") and not _OTHERS.match(path.stem)


# The files --------------------------------------------------------------------------------


def find(roots: Sequence[Path], archives: Mapping[Path, Path]) -> list[Found]:
    """The LoRAs among files and folders of any nesting. UsageError names what holds none.

    `archives` says of a folder which zip file it was unpacked from, or that it was FETCHED.

    In a folder, those with a known name (`pytorch_lora_weights`, `adapter_model`) before any
    other, a safetensors before a pickle of the same name, and a checkpoint of training, the last
    one, only if nothing better stands above it. ModelError for a safetensors that cannot be read.
    """
    found: dict[Path, Found] = {}
    for root in (Path(os.path.abspath(root)) for root in roots):
        for path in _files(root):
            found.setdefault(path, _understood(path, root, archives.get(root)))
    safe = {path.with_suffix("") for path in found if path.suffix.lower() == SAFE}
    return [
        one
        for path, one in found.items()
        if path.suffix.lower() == SAFE or path.with_suffix("") not in safe
    ]


def holds_any(folder: Path) -> bool:
    """Whether there is a LoRA in a folder or below it."""
    return bool(_below(folder))


def _files(root: Path) -> list[Path]:
    """The LoRAs in a folder, or the file itself."""
    if not root.exists():
        raise UsageError(f"{root}: no such file or folder", "check the path")
    if root.is_dir():
        try:
            files = _below(root)
        except OSError as error:
            why = f"{error.filename}: cannot be read: {error.strerror}"
            raise UsageError(why, "check its permissions") from error
        if not files:
            raise _nothing(root)
        return files
    if not root.is_file():
        raise UsageError(f"{root}: neither a file nor a folder", "check the path")
    if root.suffix.lower() not in (SAFE, *_PICKLES):
        raise UsageError(
            f"{root}: not the name of a LoRA file",
            f"known are {', '.join((SAFE, *_PICKLES))}, and .zip files that hold such",
        )
    return [root]


def _nothing(root: Path) -> UsageError:
    archives = sorted(root.glob("*.zip"))
    if archives:
        return UsageError(
            f"{root}: holds no LoRA, but archives",
            f"import them: dmp weights import {shlex.join(map(str, archives))}",
        )
    return UsageError(
        f"{root}: holds no LoRA",
        f"looked for {' and '.join(_NAMED)}, else for any {', '.join((SAFE, *_PICKLES))} "
        "that is not of an optimizer or a whole network",
    )


def _below(folder: Path) -> list[Path]:
    """The LoRAs in a folder and below it."""
    if (folder / "model_index.json").exists():  # a whole backbone
        return []
    inside = sorted(one for one in folder.iterdir() if not one.name.startswith((".", "__MACOSX")))
    files = _best([one for one in inside if one.is_file() and _is_lora(one)])
    folders = [one for one in inside if one.is_dir() and not one.is_symlink()]
    files += [
        path for one in folders if not _CHECKPOINT.fullmatch(one.name) for path in _below(one)
    ]
    last_first = sorted(folders, key=lambda one: _step(one.name), reverse=True)
    checkpoints = (_below(one) for one in last_first if _CHECKPOINT.fullmatch(one.name))
    return files or next((inner for inner in checkpoints if inner), [])


def _step(name: str) -> int:
    number = _CHECKPOINT.fullmatch(name)
    return int(number[2] or 0) if number else -1


def _best(files: list[Path]) -> list[Path]:
    """Of the files of one folder those with a known name, and no pickle beside a safetensors."""
    files = [one for one in files if one.stem in _NAMED] or files
    safe = {one.stem for one in files if one.suffix.lower() == SAFE}
    return [one for one in files if one.suffix.lower() == SAFE or one.stem not in safe]


# The tasks --------------------------------------------------------------------------------


def _understood(path: Path, root: Path, archive: Path | None) -> Found:
    told = _told(path)
    parts = _parts(path, root)
    named = next(filter(None, map(_tasks_of, parts)), ())
    beside = [path.with_suffix(one).name for one in _PICKLES if path.with_suffix(one).exists()]
    notes = []
    if path.suffix.lower() == SAFE and beside:
        notes.append(f"{beside[0]} beside it was not opened")
    elif path.suffix.lower() != SAFE and path.with_suffix(SAFE).exists():
        notes.append(f"{path.with_suffix(SAFE).name} lies beside it: no pickle would be needed")
    official = root.is_dir() and path.stem == _OFFICIAL and told is None
    plain = any(re.search(r"no[-_]?text", part.lower()) for part in parts)
    tasks = (told,) if told in TASKS else named
    return Found(path, root, archive, tasks, plain, official, tuple(notes))


def _told(path: Path) -> str | None:
    """The task that a header names. What only has the name of a safetensors is read later."""
    if path.suffix.lower() != SAFE or not header.begins(path):
        return None
    return header.read(path).get("task")


def _parts(path: Path, root: Path) -> list[str]:
    """The names that may tell the task, nearest first: from the file up to what was given.

    Of a file that was given, or of a checkpoint, the folder that it lies in counts too.
    """
    names = [path.stem, *(folder.name for folder in path.parents)]
    reach = len(path.relative_to(root.parent).parts) + root.is_file()
    while reach < len(names) and _CHECKPOINT.fullmatch(names[reach - 1]):
        reach += 1
    return names[:reach]


def _tasks_of(name: str) -> tuple[str, ...]:
    """The tasks that the words of a name mean: `normal-scene100`, `surfaceNormals`, `my_seg`."""
    words = re.findall("[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return tuple(dict.fromkeys(_WORDS[word] for word in words if word in _WORDS))


# The models -------------------------------------------------------------------------------


def place(found: Sequence[Found], model: str | None, task: str | None) -> list[Placed]:
    """Which model and task each file is for; `model` and `task` are what was asked for.

    Without a model, the paper's own: `dmp-paper` for files that are named as the official ones
    with a prompt are, `dmp` for all else. UsageError if the task of a file is not clear, or if two
    are for one task of a model, with the commands to type.
    """
    if task and len(found) > 1:
        raise UsageError(
            f"--task {task}: there are {len(found)} files", "import one file: " + _list(found)
        )
    placed = [
        Placed(one, model or _model_of(one), task or (one.understood[0] if one.understood else ""))
        for one in found
    ]
    if not task and any(len(one.understood) != 1 for one in found):
        raise _unclear(placed)
    _check_doubles(placed)
    return placed


def _model_of(found: Found) -> str:
    return PROMPTED if found.official and not found.plain else PLAIN


def _list(found: Sequence[Found]) -> str:
    return ", ".join(one.name for one in found)


def command(placed: Placed, task: str) -> str:
    """What to type to import one file as the LoRA of a task."""
    found, unpack = placed.found, ""
    path = found.path
    if found.archive == FETCHED:
        path = FETCHED / found.path.relative_to(found.root)
    elif found.archive:
        path = Path("unpacked") / found.path.relative_to(found.root)
        unpack = f"unzip -n {shlex.quote(str(found.archive))} -d unpacked && "
    words = f"dmp weights import {shlex.quote(str(path))} --model {placed.model} --task {task}"
    return unpack + words


def _unclear(placed: Sequence[Placed]) -> UsageError:
    lines = [
        f"{one.found.name}: {' or '.join(one.found.understood) or 'unknown'}" for one in placed
    ]
    commands = [
        command(one, one.task if len(one.found.understood) == 1 else "TASK") for one in placed
    ]
    return UsageError(
        "which task is each file for? What their names say:\n  " + "\n  ".join(lines),
        f"import them one by one; TASK is {', '.join(TASKS)}:\n" + "\n".join(commands),
    )


def _check_doubles(placed: Sequence[Placed]) -> None:
    by_goal: dict[tuple[str, str], list[Placed]] = defaultdict(list)
    for one in placed:
        by_goal[one.model, one.task].append(one)
    for (model, task), several in by_goal.items():
        if len(several) > 1:
            raise UsageError(
                f"{len(several)} files for {task} of model {model}: "
                + _list([one.found for one in several]),
                "import one of them:\n" + "\n".join(command(one, task) for one in several),
            )
