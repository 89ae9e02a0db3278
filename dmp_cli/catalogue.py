"""weights.toml, read strictly: each key known, each value checked, errors with file and line."""

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dmp_cli import store
from dmp_cli.classes import parse_classes
from dmp_cli.errors import UsageError
from dmp_cli.plan import FINALS, PREDICTIONS, SAMPLERS, SPACINGS
from dmp_cli.tasks import BRIGHT, find, parse_axes

Table = dict[str, Any]
Check = Callable[[Any], str | None]  # what is wrong with a value, or None

SOURCES = ("backbone", "lora")
DECODER = "tiny_decoder"  # a source too, which a model need not have
ORIGINS = ("path", "repo", "made")  # `packaged` gets a path when it is read


def _one_of(names: Iterable[str]) -> Check:
    allowed = tuple(names)
    return lambda value: None if value in allowed else f"must be one of {', '.join(allowed)}"


def _whole(low: int) -> Check:
    return lambda value: (
        None if type(value) is int and value >= low else f"must be a whole number, {low} or more"
    )


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be a string"


def _filled(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "must be a string, not empty"


def _plain(value: Any) -> str | None:
    fits = isinstance(value, str) and re.fullmatch("[a-z0-9_-]+", value)
    return None if fits else "must be a plain name"


def _positive(value: Any) -> str | None:
    fits = type(value) in (int, float) and 0 < value < float("inf")
    return None if fits else "must be a number above 0"


def _axes(value: Any) -> str | None:
    try:
        parse_axes(str(value))
    except UsageError as error:
        return f"{error}; {error.hint}"
    return None


def _classes(value: Any) -> str | None:
    try:
        parse_classes(str(value))
    except UsageError as error:
        return f"{error}; {error.hint}"
    return None


def _digest(value: Any) -> str | None:
    fits = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return None if fits else "must be 64 hexadecimal digits"


def _digests(value: Any) -> str | None:
    fits = isinstance(value, dict) and all(
        _inside(name) is None and _digest(digest) is None for name, digest in value.items()
    )
    return None if fits else "must be a table: a file of the folder, 64 hexadecimal digits"


def _inside(value: Any) -> str | None:
    """A name that cannot lead out of the folder that it is looked up in."""
    fits = isinstance(value, str) and value and not {"", ".", ".."} & set(re.split(r"[/\\]", value))
    return None if fits else "must be a name without `..`, not empty or absolute"


def _variant(value: Any) -> str | None:
    fits = isinstance(value, str) and re.fullmatch(r"[\w-]*", value)
    return None if fits else "must be a string, a plain name such as fp16"


SETTINGS: dict[str, Check] = {
    "steps": _whole(1),
    "sampler": _one_of(SAMPLERS),
    "spacing": _one_of(SPACINGS),
    "prediction": _one_of(PREDICTIONS),
    "final": _one_of(FINALS),
    "timestep": _whole(0),
    "size": _whole(0),
    "prompt": _text,
    "guidance": _positive,
}
SOURCE: dict[str, Check] = {
    "path": _text, "repo": _inside, "revision": _inside, "made": _plain, "packaged": _filled,
}  # fmt: skip
_SOURCES = {
    "backbone": SOURCE | {"variant": _variant, "sha256": _digests},
    "lora": SOURCE | {"file": _text, "sha256": _digest},
    DECODER: {key: check for key, check in SOURCE.items() if key != "made"}
    | {"sha256": _digests, "license": _text},
}
TASK_SETTINGS: dict[str, Check] = {
    "scale": _positive, "bright": _one_of(BRIGHT), "normals": _axes, "classes": _classes,
}  # fmt: skip
_MODEL = SETTINGS | {"summary": _text, "license": _text}
_TASK = SETTINGS | TASK_SETTINGS


@dataclass(frozen=True)
class _File:
    """A weights file that is being read: for errors that name the file, the line and the key."""

    path: Path
    text: str

    def error(self, where: tuple[str, ...], key: str, why: str) -> UsageError:
        return UsageError(
            f"{self.path}, line {self._line(where, key)}: {'.'.join((*where, key))} {why}",
            "docs/weights-file.md lists the keys",
        )

    def _line(self, where: tuple[str, ...], key: str) -> int:
        """The line of `key` in table `where`, or of the nearest thing above it that is there."""
        full, nearest = (*where, key), 1
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.text.splitlines(), 1):
            header = re.match(r"\s*\[+\s*([^\]#]+?)\s*\]", line)
            if header:
                table = tuple(part.strip(" \"'") for part in header[1].split("."))
            if table != full[: len(table)]:
                continue
            if table == full:
                return number
            name = re.escape(full[len(table)])
            if header or re.match(rf"\s*[\"']?{name}\b", line):
                nearest = number
                if not header and re.search(rf"\b{re.escape(key)}\b", line):
                    return number
        return nearest


def load(extra: str | Path | None = None) -> Table:
    """The packaged weights file; over it the store's, `$DMP_WEIGHTS` and `extra` are merged.

    Entries merge key by key; a source (`backbone`, `lora`, `tiny_decoder`) is replaced as a
    whole. UsageError names file, line and key of what is not understood, or a default that is no
    model.
    """
    merged: Table = {}
    for path in files(extra):
        merged = _merge(merged, _read(path))
    models = merged.get("models", {})
    for name in merged.get("default", []):
        if name not in models:
            raise UsageError(
                f"the weights files' `default` names {name!r}, and there is no such model",
                f"known: {', '.join(models)}",
            )
    return merged


def packaged() -> Table:
    """The packaged weights file alone."""
    return _read(files()[0])


def files(extra: str | Path | None = None) -> list[Path]:
    """The weights files in the order they are read; an editable install has no packaged copy."""
    packaged = Path(str(resources.files("dmp_cli"))) / "weights.toml"
    if not packaged.exists():
        packaged = packaged.parent.parent / "weights.toml"
    kept = [store.weights_file()] if store.weights_file().is_file() else []
    given = [Path(path) for path in (os.environ.get("DMP_WEIGHTS"), extra) if path]
    return [packaged, *kept, *given]


def _merge(below: Table, above: Table) -> Table:
    out = dict(below)
    for key, value in above.items():
        tables = isinstance(value, dict) and isinstance(out.get(key), dict)
        deeper = tables and key not in _SOURCES
        out[key] = _merge(out[key], value) if deeper else value
    return out


def _read(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", "check --weights") from error
    return parse(path, text)


def parse(path: Path, text: str) -> Table:
    """What a weights file at `path` with this text says. UsageError as that of `load`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    file = _File(path, text)
    _check_keys(file, (), table, {"default", "models"})
    default = table.get("default", [])
    if not isinstance(default, list) or not all(isinstance(name, str) for name in default):
        raise file.error((), "default", "must be a list of names of models")
    models = _subtable(file, (), table, "models")
    for name in models:
        at = ("models", name)
        model = _subtable(file, at[:1], models, name)
        _check_values(file, at, model, _MODEL, {"backbone", DECODER, "tasks"})
        tasks = _subtable(file, at, model, "tasks")
        for task in tasks:
            _known_task(file, (*at, "tasks"), task)
            entry = _subtable(file, (*at, "tasks"), tasks, task)
            _check_values(file, (*at, "tasks", task), entry, _TASK, {"lora"})
    return table


def _known_task(file: _File, at: tuple[str, ...], task: str) -> None:
    try:
        known = find(task).name == task
    except UsageError:
        known = False
    if not known:
        raise file.error(at, task, "is not the name of a task")


def _subtable(file: _File, at: tuple[str, ...], table: Table, key: str) -> Table:
    found = table.get(key, {})
    if not isinstance(found, dict):
        raise file.error(at, key, "must be a table")
    return found


def _check_keys(file: _File, at: tuple[str, ...], table: Table, known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            raise file.error(at, key, f"is unknown; known here: {', '.join(sorted(known))}")


def _check_values(
    file: _File,
    at: tuple[str, ...],
    table: Table,
    checks: Mapping[str, Check],
    tables: set[str],
) -> None:
    _check_keys(file, at, table, {*checks, *tables})
    for key, value in table.items():
        why = checks[key](value) if key in checks else None
        if why:
            raise file.error(at, key, why)
        if key in _SOURCES:
            source = table[key] = _subtable(file, at, table, key)
            _check_values(file, (*at, key), source, _SOURCES[key], set())
            _check_source(file, at, key, source)


def _check_source(file: _File, at: tuple[str, ...], key: str, source: Table) -> None:
    """One origin only; paths become absolute, relative to the file that names them."""
    if sum(origin in source for origin in (*ORIGINS, "packaged")) > 1:
        raise file.error(at, key, "must have only one of path, repo, packaged and made")
    if "packaged" in source:
        inside = source["packaged"]
        if inside.startswith("/") or ".." in Path(inside).parts:
            raise file.error((*at, key), "packaged", "must be a path inside the package")
        source["path"] = str(Path(str(resources.files("dmp_cli"))) / inside)
    if "path" in source:
        try:
            path = Path(source["path"]).expanduser()
        except RuntimeError as error:  # a `~user` that is not there
            raise file.error((*at, key), "path", f"is not a path: {error}") from error
        source["path"] = str(file.path.absolute().parent / path)
    name = source.get("file", "")
    if name.startswith("/") or ".." in Path(name).parts:
        raise file.error((*at, key), "file", "must be a path inside the repository")
    if key == "lora" and "repo" in source and not name.endswith(".safetensors"):
        raise file.error((*at, key), "file", "must name a .safetensors file of the repository")
