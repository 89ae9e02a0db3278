"""What an import is to make of files: which model, new or known, and with which settings."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dmp_cli import catalogue, store, weights
from dmp_cli.catalogue import SETTINGS, SOURCE, TASK_SETTINGS, Table
from dmp_cli.errors import UsageError
from dmp_cli.importing.recognition import PLAIN, Placed
from dmp_cli.tasks import find
from dmp_cli.weights import Recipe

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_BACKBONES = "name a Stable Diffusion folder in diffusers' layout, or ORG/NAME[@REVISION]"


@dataclass(frozen=True)
class Wish:
    """What was asked for, beside the files."""

    model: str | None = None
    task: str | None = None
    backbone: str | None = None  # a folder, or ORG/NAME[@REVISION]
    licence: str | None = None
    summary: str | None = None
    weights: str | None = None  # a weights file
    settings: Mapping[str, Any] = field(default_factory=dict)  # keys of weights.toml


def check(wish: Wish) -> None:
    """UsageError for what makes no sense, whatever the files are."""
    if wish.task:
        find(wish.task)
    for name, value in (("backbone", wish.backbone), ("summary", wish.summary)):
        if value and not wish.model:
            raise UsageError(f"--{name} is of a model", "name it: --model NAME")
    if wish.backbone:
        backbone(wish.backbone)
    checks = SETTINGS | TASK_SETTINGS
    for key, value in wish.settings.items():
        why = checks[key](value)
        if why:
            raise UsageError(f"--{key} {value!r} {why}")


def check_fitting(wish: Wish, placed: Sequence[Placed]) -> None:
    """UsageError for a setting that is of none of the tasks."""
    for key in wish.settings:
        if not any(counts(key, one.task) for one in placed):
            tasks = ", ".join(sorted({one.task for one in placed}))
            raise UsageError(f"--{key} is not a setting of {tasks}", "leave it out")


def counts(key: str, task: str) -> bool:
    """Whether a setting is one of this task."""
    row = find(task)
    own = dict.fromkeys(("scale", "bright"), row.metres)
    own |= {"normals": row.unit_length, "classes": row.labels}
    return own.get(key, True)


def table(wish: Wish) -> Table:
    """The weights file with the model that was asked for, if it is new or gets a backbone.

    A new model has the backbone of `dmp`, unless another is named.
    """
    found = catalogue.load(wish.weights)
    models = found["models"]
    own = models.get(wish.model, {}).get("backbone", {}).keys() & {"packaged", "made"}
    if own and not wish.backbone:
        raise UsageError(
            f"model {wish.model!r} comes with dmp and keeps its LoRAs",
            "name a model of your own: --model NAME",
        )
    if wish.model and (wish.backbone or wish.model not in models):
        base = backbone(wish.backbone) if wish.backbone else models[PLAIN]["backbone"]
        models[wish.model] = models.get(wish.model, {}) | {"backbone": base}
    return found


def backbone(text: str) -> Table:
    """The source that `--backbone` names, as a weights file states it.

    UsageError for what is neither a folder nor the name of a repository on the Hub.
    """
    folder = store.expanded(text)
    if folder.is_dir():
        return {"path": _encoded(str(folder))}
    named = _REPO.fullmatch(text)
    if not named or text.startswith((".", "/", "~")):
        raise UsageError(f"--backbone {text}: no such folder", _BACKBONES)
    source = {key: value for key, value in named.groupdict().items() if value}
    for key, value in source.items():
        why = SOURCE[key](value)
        if why:
            raise UsageError(f"--backbone {text}: {key} {value!r} {why}", _BACKBONES)
    return source


def _encoded(path: str) -> str:
    """A path that a weights file can hold."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"--backbone {path!r}: a weights file cannot name it: it is not UTF-8",
            "rename the folder",
        ) from error
    return path


def entry(wish: Wish, names: Iterable[str], licences: Iterable[str]) -> Table:
    """What the store's weights file has to say of the model itself: all of a new one.

    `names` and `licences` are those of its files.
    """
    import tomlkit

    if not wish.model:
        return {}
    new = wish.model not in catalogue.load(wish.weights)["models"]
    keys: Table = {"summary": wish.summary} if wish.summary else {}
    if new:
        keys.setdefault("summary", f"imported from {', '.join(names)}")
        terms = set(licences)
        keys |= {"license": terms.pop()} if len(terms) == 1 else {}
    if new or wish.backbone:
        inline = tomlkit.inline_table()
        inline.update(table(wish)["models"][wish.model]["backbone"])
        keys["backbone"] = inline
    return keys


def settings(recipe: Recipe, stated: Mapping[str, Any]) -> Table:
    """What a file is to say of its own use: what is stated of it, and what it was made with.

    `recipe` is how its model would use it; `stated` are keys of weights.toml that win over that.
    """
    others = {key: value for key, value in stated.items() if key != "prompt"}
    whole = replace(recipe, **others, stated=recipe.stated | set(others))
    whole = weights.prompted(whole, stated.get("prompt"))
    keys = {"prediction", "prompt", *stated}
    keys |= {"guidance"} if whole.prompt else set()
    keys |= {key for key in ("scale", "normals") if counts(key, recipe.task)}
    keys |= {"bright"} if recipe.bright != "far" and counts("bright", recipe.task) else set()
    keys |= {"classes"} if recipe.classes != "all" and counts("classes", recipe.task) else set()
    return {key: getattr(whole, key) for key in sorted(keys)}


def overriding(recipe: Recipe, stated: Mapping[str, Any]) -> Table:
    """What the task's entry has to say, since the model's would win over what the file says."""
    return {
        key: value
        for key, value in stated.items()
        if key in recipe.stated and getattr(recipe, key) != value
    }
