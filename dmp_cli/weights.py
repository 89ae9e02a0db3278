"""Which model, with which settings, from which verified local files. Loads no tensors."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dmp_cli import header
from dmp_cli.catalogue import ORIGINS, SETTINGS, SOURCES, Table, load
from dmp_cli.classes import parse_classes
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.plan import Plan, Settings
from dmp_cli.tasks import parse_axes

LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_CONFIGS = (
    "scheduler/scheduler_config.json",
    "tokenizer/*",
    *(f"{part}/config.json" for part in _PARTS),
)


@dataclass(frozen=True)
class Source:
    """Where a file or folder comes from: a path, a Hub repository, or made by dmp itself."""

    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    variant: str | None = None
    sha256: str | None = None
    made: str | None = None
    packaged: str | None = None  # a path inside the package; `path` is where that is

    def __str__(self) -> str:
        if self.packaged:
            return f"packaged {self.packaged}"
        if self.repo:
            return f"{self.repo}{'/' + self.file if self.file else ''}@{self.revision or 'main'}"
        return str(self.path) if self.path else f"made by dmp ({self.made})"


@dataclass(frozen=True)
class Recipe:
    """All that a task needs of its model: one entry of weights.toml with the flags applied."""

    model: str
    task: str
    backbone: Source
    lora: Source
    steps: int = 5
    sampler: str = "ddim"
    spacing: str = "leading"
    prediction: str = "v_prediction"
    final: str = "z"
    timestep: int = 1
    size: int = 512
    prompt: str = ""
    guidance: float = 1.0  # unless stated, 2 with a prompt, as in the official code
    scale: float = 8.0
    normals: str = "opengl"
    classes: str = "all"  # segmentation only
    summary: str = ""
    license: str = ""
    stated: frozenset[str] = frozenset()  # the keys that win over what the LoRA file says

    @property
    def settings(self) -> str:
        """What decides the result, beside the weights, in one line."""
        names = ["sampler", "prediction", "final", "size"]
        names[1:1] = ["timestep"] if self.sampler == "onepass" else ["steps", "spacing"]
        names += ["prompt", "guidance"] if self.prompt else []
        return " ".join(f"{name}={getattr(self, name)!r}" for name in names)


# The choice -------------------------------------------------------------------------------


def recipes(plan: Plan) -> list[Recipe]:
    """The recipe of each task of a plan, all that can be refused without torch being refused."""
    parse_axes(plan.axes)
    parse_classes(plan.classes or "all")
    return resolve(load(plan.weights), plan.tasks, plan.model, plan.settings)


def resolve(
    table: Table,
    tasks: Sequence[str],
    model: str | None = None,
    settings: Settings | None = None,
) -> list[Recipe]:
    """The recipes of one model for all the tasks: the maps of a run come from one backbone.

    The model is `model`, `$DMP_MODEL`, or the first of the default list with sources for them all.
    UsageError for a model that is not known, ModelError for one that has no source.
    """
    models: Table = table.get("models", {})
    name = model or os.environ.get("DMP_MODEL") or None
    if name is None:
        defaults = [one for one in table.get("default", []) if one in models]
        name = next((one for one in defaults if not _without(models[one], tasks)), None)
        if name is None:
            first = defaults[0] if defaults else "(no default)"
            raise _no_source(first, _without(models.get(first, {}), tasks))
    if name not in models:
        raise UsageError(f"unknown model {name!r}", f"known: {', '.join(models)}")
    if _without(models[name], tasks):
        raise _no_source(name, _without(models[name], tasks))
    chosen = _flags(settings)
    return [_recipe(name, models[name], task, chosen) for task in tasks]


def stands_in_for(table: Table, model: str, asked: str | None) -> str | None:
    """The first model of the default list, if `model` was taken because that one has no weights."""
    first = next((one for one in table.get("default", []) if one in table["models"]), None)
    named = asked or os.environ.get("DMP_MODEL")
    return None if named or first == model else first


def _flags(settings: Settings | None) -> Table:
    given = asdict(settings or Settings())
    chosen = {key: value for key, value in given.items() if value is not None}
    for key, value in chosen.items():
        why = SETTINGS[key](value)
        if why:
            raise UsageError(f"{key} {value!r} {why}")
    return chosen


def _recipe(name: str, model: Table, task: str, chosen: Table) -> Recipe:
    entry = model | model.get("tasks", {}).get(task, {}) | chosen
    keys = {key: entry[key] for key in Recipe.__dataclass_fields__ if key in entry}
    sources = {key: _source(entry.get(key, {})) for key in SOURCES}
    if sources["lora"].made and not sources["backbone"].made:
        raise UsageError(
            f"model {name!r}, {task}: a lora made by dmp fits only the backbone made by dmp",
            "docs/weights.md lists the keys",
        )
    # what a LoRA was trained to predict is no choice of the entry: of `prediction` only a flag wins
    stated = frozenset(keys) - ({"prediction"} - chosen.keys())
    whole = keys | sources | {"model": name, "task": task, "stated": stated}
    return _guided(Recipe(**whole))


def _guided(recipe: Recipe) -> Recipe:
    """With a prompt and nothing said of its guidance, that of the official code."""
    if recipe.prompt and "guidance" not in recipe.stated:
        return replace(recipe, guidance=2.0)
    return recipe


def completed(recipe: Recipe) -> Recipe:
    """A recipe with what neither flag nor weights file states taken from the LoRA file itself.

    Its `prediction` is taken even if the weights file states another. Fetches the file if it
    is on the Hub. ModelError for one that is not to be had, states a value that does not fit, or
    was trained for another task.
    """
    if recipe.lora.made:
        return recipe
    told = header.settings(lora_file(recipe.lora), recipe.task)
    new = {key: value for key, value in told.items() if key not in recipe.stated}
    return _guided(replace(recipe, **new, stated=recipe.stated | set(new)))


def to_train(
    table: Table, task: str, model: str | None = None, settings: Settings | None = None,
    folder: Path | None = None,
) -> Recipe:  # fmt: skip
    """The recipe of a LoRA that is yet to be trained: a backbone and settings, its `lora` empty.

    The model is `model`, `$DMP_MODEL`, or the first of the default list with a backbone. `folder`
    is a backbone that takes the place of the model's; alone, it comes with the official settings.
    UsageError for a model that is not known, ModelError for one without a backbone.
    """
    models: Table = table.get("models", {})
    name = model or os.environ.get("DMP_MODEL") or None
    if name is None and folder is None:
        defaults = [one for one in table.get("default", []) if _has_backbone(models.get(one, {}))]
        name = defaults[0] if defaults else None
        if name is None:
            raise ModelError("no model of the default list has a backbone", "name one: --backbone")
    if name is not None and name not in models:
        raise UsageError(f"unknown model {name!r}", f"known: {', '.join(models)}")
    entry = dict(models[name]) if name else {}
    own = dict(entry.get("tasks", {}).get(task, {}))
    own.pop("lora", None)
    entry["tasks"] = {task: own}
    if folder is not None:
        entry["backbone"] = {"path": str(folder)}
    if not _has_backbone(entry):
        raise ModelError(
            f"model {name!r} has no backbone", "give a Stable Diffusion folder with --backbone"
        )
    return _recipe(name or "", entry, task, _flags(settings))


def _has_backbone(model: Table) -> bool:
    return bool(set(model.get("backbone", {})) & set(ORIGINS))


def _source(table: Table) -> Source:
    return Source(**(table | ({"path": Path(table["path"])} if "path" in table else {})))


def sources(table: Table, model: str) -> dict[str, list[Source]]:
    """Backbone and LoRA of each task that a model has sources for, there or not."""
    entry = table["models"][model]
    return {
        task: [_source(found[key]) for key in SOURCES]
        for task, found in ((task, entry | own) for task, own in entry.get("tasks", {}).items())
        if not _without(entry, [task])
    }


def _without(model: Table, tasks: Sequence[str]) -> list[str]:
    """The tasks for which a model has no source."""
    entries = {task: model | model.get("tasks", {}).get(task, {}) for task in tasks}
    return [
        task
        for task, entry in entries.items()
        if task not in model.get("tasks", {})
        or not all(set(entry.get(key, {})) & set(ORIGINS) for key in SOURCES)
    ]


def _no_source(model: str, tasks: Sequence[str]) -> ModelError:
    return ModelError(
        f"model {model!r} has no weights for {', '.join(tasks)}: "
        "no public repository is known to hold them",
        "name a backbone and LoRA files in a weights file and give it with --weights "
        "(docs/weights.md);\nto see dmp at work without them, use --model demo",
    )


# The files --------------------------------------------------------------------------------


def store() -> Path:
    """The folder of what dmp keeps: `$DMP_HOME`, or the platform's data folder."""
    import platformdirs

    home = os.environ.get("DMP_HOME")
    return Path(home) if home else platformdirs.user_data_path("dmp", appauthor=False)


def hub_cache() -> Path:
    """The folder in which the Hub's client keeps its downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def lora_file(source: Source) -> Path:
    """The local safetensors file of a LoRA, its sha256 checked where one is stated.

    ModelError names what is missing or differs, and what to do.
    """
    if source.repo:
        path = Path(
            _from_hub(source, lambda hub, how: hub.hf_hub_download(filename=source.file, **how))
        )
    else:
        path = _lora_in(source.path or Path())
    if source.sha256 and sha256(path) != source.sha256:
        raise ModelError(
            f"{path}: wrong sha256: expected {source.sha256}, found {sha256(path)}",
            "the file is damaged or another one: fetch it again, or correct the weights file",
        )
    return path


def weight_file(folder: Path, part: str, variant: str | None) -> Path:
    """The file with the weights of a part (unet, vae, text_encoder) of a backbone's folder."""
    return folder / part / f"{_PARTS[part]}{f'.{variant}' if variant else ''}.safetensors"


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lora_in(path: Path) -> Path:
    if path.is_dir():
        for name in LORA_NAMES:
            if (path / name).is_file():
                return path / name
        raise ModelError(
            f"{path}: holds none of {', '.join(LORA_NAMES)}",
            "a pickle (.bin) has to be converted to safetensors first: docs/weights.md",
        )
    if not path.is_file():
        raise ModelError(f"{path}: no such LoRA file", "correct `path` in the weights file")
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path}: only safetensors files are read, never a pickle",
            "convert it first: docs/weights.md",
        )
    return path


def backbone_folder(source: Source, half: bool) -> tuple[Path, str | None]:
    """(folder, variant) of a backbone whose files are all there.

    With `half` the files of `source.variant` are taken if there are any, else the plain ones;
    without it the other way round, since a half-precision file has lost what float32 keeps.
    What is in the Hub's cache already is taken before a server is asked.
    """
    variants = list(dict.fromkeys([source.variant, None] if half else [None, source.variant]))
    for online in (False, True) if source.repo else (False,):
        for variant in variants:
            folder = _snapshot(source, variant, online) if source.repo else source.path
            if folder and not _missing(folder, variant):
                return folder, variant
    first = _missing(folder, None)[0] if folder else "everything"
    raise ModelError(
        f"{source}: not a whole backbone: {first} is missing",
        "a backbone is a Stable Diffusion 1.x folder in diffusers' layout, with safetensors files",
    )


def _patterns(variant: str | None) -> list[str]:
    middle = f".{variant}" if variant else ""
    names = [f"{part}/{name}{middle}.safetensors" for part, name in _PARTS.items()]
    return [*names, *_CONFIGS]


def _missing(folder: Path, variant: str | None) -> list[str]:
    return [name for name in _patterns(variant) if not any(folder.glob(name))]


def _snapshot(source: Source, variant: str | None, online: bool) -> Path | None:
    """The folder of the Hub's cache, filled if `online`; None if it holds nothing of this."""

    def fetch(hub: Any, how: dict[str, Any]) -> str:
        try:
            return str(
                hub.snapshot_download(
                    allow_patterns=_patterns(variant), local_files_only=not online, **how
                )
            )
        except hub.errors.LocalEntryNotFoundError:
            if online:
                raise
            return ""

    found = _from_hub(source, fetch)
    return Path(found) if found else None


def _from_hub(source: Source, fetch: Callable[[Any, dict[str, Any]], str]) -> str:
    """Run a download; whatever goes wrong names repository, file and revision."""
    import huggingface_hub as hub

    try:
        return fetch(hub, {"repo_id": source.repo, "revision": source.revision})
    except Exception as error:  # of the HTTP library too, which the Hub's client changes
        reason = error.__cause__ or error  # what the client says itself names no cause
        first = str(reason).strip().split("\n")[0]
        hint = (
            "HF_HUB_OFFLINE is set and there is no copy here: unset it and run the command again"
            if hub.constants.HF_HUB_OFFLINE
            else "check the connection, the name and the revision, and for a private or gated "
            "repository run `hf auth login`; then run the same command again"
        )
        raise ModelError(
            f"{source.repo}: {source.file or 'backbone'} at revision {source.revision or 'main'} "
            f"is not to be had: {type(reason).__name__}: {first}",
            hint,
        ) from error
