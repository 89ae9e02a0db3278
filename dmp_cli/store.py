"""What dmp keeps on this machine: LoRA files that were imported, and a weights file naming them.

$DMP_HOME/weights.toml                          read after the packaged one, before the user's
$DMP_HOME/loras/MODEL/TASK-<8 hex>.safetensors  one for each content: never written over
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmp_cli import files
from dmp_cli.errors import ImageError, ResourceError, UsageError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

Check = Callable[[Path, str], object]  # of a weights file and its text; raises what is wrong

_HELD = ".held"  # in a staging folder: locked as long as its process lives
_ELSEWHERE = "set $DMP_HOME to a folder that can be written"
_HEAD = "Written by `dmp weights`; the files that it names lie beside it. docs/weights.md"


def home() -> Path:
    """The folder of what dmp keeps: `$DMP_HOME`, or the platform's data folder."""
    import platformdirs

    named = os.environ.get("DMP_HOME")
    path = Path(named) if named else platformdirs.user_data_path("dmp", appauthor=False)
    return expanded(path)


def expanded(path: str | Path) -> Path:
    """An absolute path; `~` is the user's folder. One of a user who is not there stays a name."""
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 (pathlib's raises then)


def weights_file() -> Path:
    """The weights file of the store; it need not be there."""
    return home() / "weights.toml"


@contextmanager
def staging() -> Iterator[Path]:
    """A hidden folder in the store for files on their way into it; gone afterwards.

    What a process that was killed left of its own goes too. ResourceError if the store cannot be
    written.
    """
    from filelock import FileLock

    try:
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / ".lock"):
            _sweep()
            folder = files.hidden_folder(home())
            held = FileLock(folder / _HELD)
            held.acquire()
    except (OSError, ResourceError) as error:
        raise ResourceError(f"the store {home()} cannot be written: {error}", _ELSEWHERE) from error
    try:
        yield folder
    finally:
        held.release()
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Delete the staging folders that no process holds."""
    from filelock import FileLock, Timeout

    for folder in filter(Path.is_dir, home().glob(".dmp-*")):
        held = FileLock(folder / _HELD)
        try:
            held.acquire(timeout=0)
        except Timeout:
            continue
        held.release()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Changes:
    """What is to become of the store; until the end of `changes` nothing of it is done."""

    table: Any  # the weights file
    moves: dict[Path, Path] = field(default_factory=dict)  # where a file will lie: where it is
    replaced: list[Path] = field(default_factory=list)  # what an entry named before
    dropped: set[Path] = field(default_factory=set)  # what went in the end

    def add(
        self,
        model: str,
        task: str,
        staged: Path,
        digest: str,
        keys: Mapping[str, Mapping[str, Any]],
    ) -> Path:
        """Take a staged LoRA file and name it in the weights file; where it will lie.

        `digest` is its sha256. `keys` are further entries, `model` and `task` of them: what the
        model and its task say in the weights file. What was there for this task goes.
        """
        kept = _folder(model) / f"{task}-{digest[:8]}.safetensors"
        self.moves[kept] = staged
        self.share(model, task, kept, digest)
        for key, value in keys.get("model", {}).items():
            self.table["models"][model][key] = _text(value)
        for key, value in keys.get("task", {}).items():
            self.table["models"][model]["tasks"][task][key] = _text(value)
        return kept

    def share(self, model: str, task: str, kept: Path, digest: str) -> None:
        """Name a file of the store for a model, maybe another; what it had there goes."""
        entry = _sub(self.table, "models", model, "tasks", task)
        self._gone(entry)
        entry["lora"] = _source(kept, digest)

    def held(self, model: str, task: str) -> Path | None:
        """The file of the store that is named for a task, if there is one."""
        models = self.table.get("models", {})
        return _file_of(models.get(model, {}).get("tasks", {}).get(task, {}))

    def remove(self, model: str, task: str) -> Path | None:
        """Take a task's LoRA out of the weights file; the file of the store that it named."""
        tasks = _sub(self.table, "models", model, "tasks")
        before = self._gone(tasks.pop(task, {}))
        if not tasks:  # what else it says of the model is of no use without a LoRA
            self.table["models"].pop(model)
        return before

    def _gone(self, entry: Mapping[str, Any]) -> Path | None:
        before = _file_of(entry)
        self.replaced += [before] if before else []
        return before


def remove(model: str, task: str) -> Path | None:
    """Take a task's LoRA out of the weights file; the file that went, if nothing else names it.

    ResourceError if the store cannot be written, UsageError if its weights file is broken.
    """
    with changes() as made:
        before = made.remove(model, task)
    return before if before in made.dropped else None


@contextmanager
def changes(check: Check | None = None) -> Iterator[Changes]:
    """Changes of the store, all made on leaving, or none. One process at a time.

    `check` is given the path and the new text of the weights file and raises what is wrong with
    it: what is imported comes from others. ResourceError if the store cannot be written,
    UsageError if its weights file is broken.
    """
    import tomlkit
    from filelock import FileLock

    try:
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / ".lock"):
            made = Changes(_read())
            yield made
            text = tomlkit.dumps(made.table)
            if check:
                check(weights_file(), text)
            _make(made, text.encode())
    except (OSError, ImageError) as error:
        raise ResourceError(f"the store {home()} cannot be written: {error}", _ELSEWHERE) from error


def _make(made: Changes, text: bytes) -> None:
    """Move the files, then write the weights file; what it does not name in the end goes.

    So if it is cut short, the new files go, and else the old ones.
    """
    try:
        for kept, staged in made.moves.items():
            kept.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(kept)
        files.write_bytes(weights_file(), text)
    finally:
        made.dropped.update(path for path in (*made.moves, *made.replaced) if _drop(path))


def _folder(model: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", model, re.ASCII):
        raise UsageError(
            f"{model!r} cannot be the name of a model", "use letters, digits, `-`, `_` and `.`"
        )
    return home() / "loras" / model


def _drop(kept: Path) -> bool:
    """Delete a file of the store, and its folder if that is empty then, unless it is named."""
    models = _read().get("models", {}).values()
    if any(_file_of(entry) == kept for row in models for entry in row.get("tasks", {}).values()):
        return False
    kept.unlink(missing_ok=True)
    if kept.parent.is_dir() and not any(kept.parent.iterdir()):
        kept.parent.rmdir()
    return True


def _text(value: Any) -> Any:
    """A value as a weights file takes it."""
    return files.utf_8(value) if isinstance(value, str) else value


def _source(kept: Path, digest: str) -> Any:
    import tomlkit

    source = tomlkit.inline_table()
    source.update({"path": kept.relative_to(home()).as_posix(), "sha256": digest})
    return source


def _file_of(entry: Mapping[str, Any]) -> Path | None:
    """The file of the store that an entry names; None if it names none, or one elsewhere."""
    name = entry.get("lora", {}).get("path")
    path = home() / name if name else None
    inside = path and path.resolve().is_relative_to((home() / "loras").resolve())
    return path if inside else None


def _sub(table: Any, *names: str) -> Any:
    import tomlkit

    for name in names:
        table = table.setdefault(name, tomlkit.table(is_super_table=name in ("models", "tasks")))
    return table


def _read() -> "TOMLDocument":
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path = weights_file()
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        table = tomlkit.document()
        table.add(tomlkit.comment(_HEAD))
        return table
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise UsageError(
            f"{path}: cannot be read: {error}", "mend or remove it, then import the weights again"
        ) from error
