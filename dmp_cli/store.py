"""What dmp keeps on this machine: LoRA files that were imported, and a weights file naming them.

$DMP_HOME/weights.toml                          read after the packaged one, before the user's
$DMP_HOME/loras/MODEL/TASK-<8 hex>.safetensors  one for each content: never written over
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmp_cli import files
from dmp_cli.errors import ImageError, ResourceError, UsageError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

_HEAD = "Written by `dmp weights`; the files that it names lie beside it. docs/weights.md"


def home() -> Path:
    """The folder of what dmp keeps: `$DMP_HOME`, or the platform's data folder."""
    import platformdirs

    named = os.environ.get("DMP_HOME")
    return Path(named) if named else platformdirs.user_data_path("dmp", appauthor=False)


def weights_file() -> Path:
    """The weights file of the store; it need not be there."""
    return home() / "weights.toml"


@contextmanager
def staging() -> Iterator[Path]:
    """A hidden folder in the store for files on their way into it; gone afterwards.

    ResourceError if the store cannot be written.
    """
    try:
        folder = files.hidden_folder(home())
    except ResourceError as error:
        raise ResourceError(str(error), "set $DMP_HOME to a folder that can be written") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def add(
    model: str, task: str, staged: Path, digest: str, keys: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Take a staged LoRA file into the store and name it in the weights file; its path.

    `digest` is its sha256. `keys` are further entries, `model` and `task` of them: what the model
    and its task say in the weights file. What was there for this task goes. ResourceError if the
    store cannot be written, UsageError if its weights file is broken.
    """
    kept = _folder(model) / f"{task}-{digest[:8]}.safetensors"
    with _table() as table:
        entry = _sub(_sub(_sub(table, "models"), model), "tasks", task)
        before = _file_of(entry)
        kept.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(kept)
        _sub(table, "models", model).update(keys.get("model", {}))
        entry.update(keys.get("task", {}))
        entry["lora"] = _source(kept, digest)
    if before and before != kept:
        _drop(before)
    return kept


def share(model: str, task: str, kept: Path, digest: str) -> None:
    """Name a file that the store holds for another model too; what it had there goes."""
    with _table() as table:
        entry = _sub(table, "models", model, "tasks", task)
        before = _file_of(entry)
        entry["lora"] = _source(kept, digest)
    if before and before != kept:
        _drop(before)


def remove(model: str, task: str) -> Path | None:
    """Take a task's LoRA out of the weights file; the file that went, if nothing else names it."""
    with _table() as table:
        tasks = _sub(table, "models", model, "tasks")
        kept = _file_of(tasks.pop(task, {}))
        if not tasks:  # what else it says of the model is of no use without a LoRA
            table["models"].pop(model)
    return kept if kept and _drop(kept) else None


def _folder(model: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", model, re.ASCII):
        raise UsageError(
            f"{model!r} cannot be the name of a model", "use letters, digits, `-`, `_` and `.`"
        )
    return home() / "loras" / model


def _drop(kept: Path) -> bool:
    """Delete a file of the store, unless the weights file still names it."""
    models = _read().get("models", {}).values()
    if any(_file_of(entry) == kept for row in models for entry in row.get("tasks", {}).values()):
        return False
    kept.unlink(missing_ok=True)
    return True


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


@contextmanager
def _table() -> Iterator["TOMLDocument"]:
    """The weights file to change; written on leaving. One process at a time."""
    import tomlkit
    from filelock import FileLock

    hint = "set $DMP_HOME to a folder that can be written"
    try:
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / ".lock"):
            table = _read()
            yield table
            files.write_bytes(weights_file(), tomlkit.dumps(table).encode())
    except (OSError, ImageError) as error:
        raise ResourceError(f"the store {home()} cannot be written: {error}", hint) from error
