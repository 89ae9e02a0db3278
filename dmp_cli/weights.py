"""Which model, with which settings and from which sources. Loads no tensors."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dmp_cli import decoders, header
from dmp_cli.catalogue import DECODER, ORIGINS, SETTINGS, SOURCES, Table, load
from dmp_cli.classes import parse_classes
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.plan import FAST, Plan, Settings
from dmp_cli.sources import Source, lora_file
from dmp_cli.tasks import parse_axes

TINY = "--tiny-decoder"  # with it `dmp weights pull` fetches a model's tiny decoder too


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
    bright: str = "far"
    normals: str = "opengl"
    classes: str = "all"  # segmentation only
    summary: str = ""
    license: str = ""
    stated: frozenset[str] = frozenset()  # the keys that win over what the LoRA file says
    fast: bool = False  # asked for; what it stands for is put in once the sampler is known
    decoder: Source | None = None  # the tiny one, if it is asked for in place of the VAE's

    @property
    def settings(self) -> str:
        """What decides the result, beside the weights, in one line."""
        names = ["sampler", "prediction", "final", "size"]
        names[1:1] = ["timestep"] if self.sampler == "onepass" else ["steps", "spacing"]
        names += ["prompt", "guidance"] if self.prompt else []
        stated = {name: getattr(self, name) for name in names}
        stated |= {DECODER: True} if self.decoder else {}
        return " ".join(f"{name}={value!r}" for name, value in stated.items())


# The choice -------------------------------------------------------------------------------


def recipes(plan: Plan) -> list[Recipe]:
    """The recipe of each task of a plan, all that can be refused without torch being refused."""
    parse_axes(plan.axes)
    parse_classes(plan.classes or "all")
    found = resolve(load(plan.weights), plan.tasks, plan.model, plan.settings)
    return [fetched_by(recipe, asked(recipe.model, plan.tasks, plan.weights)) for recipe in found]


def asked(model: str, tasks: Sequence[str], weights: str | None) -> str:
    """What to give `dmp weights pull` for tasks of a model, as a shell takes it."""
    words = [model, *(["--task", ",".join(tasks)] if tasks else [])]
    return shlex.join(words + (["--weights", str(weights)] if weights else []))


def fetched_by(recipe: Recipe, words: str) -> Recipe:
    """A recipe whose errors name the command that fetches its files: `words` are of `asked`."""
    both = f"{words} {TINY}" if recipe.decoder else words
    backbone, lora = replace(recipe.backbone, asked=both), replace(recipe.lora, asked=words)
    decoder = recipe.decoder and replace(recipe.decoder, asked=both)
    return replace(recipe, backbone=backbone, lora=lora, decoder=decoder)


def beside(recipes: Sequence[Recipe]) -> list[Source]:
    """What recipes of one model need beside their backbone: each LoRA, and its decoder if tiny."""
    tiny = [recipe.decoder for recipe in recipes[:1] if recipe.decoder]
    return [*(recipe.lora for recipe in recipes), *tiny]


def resolve(
    table: Table,
    tasks: Sequence[str],
    model: str | None = None,
    settings: Settings | None = None,
) -> list[Recipe]:
    """The recipes of one model for all the tasks: the maps of a run come from one backbone.

    The model is `model`, `$DMP_MODEL`, or the first of the default list with sources for them all.
    UsageError for a model that is not known, ModelError for one that has no source, or none of a
    tiny decoder that is asked for.
    """
    models: Table = table.get("models", {})
    name = model or os.environ.get("DMP_MODEL") or None
    if name is None:
        defaults = [one for one in table.get("default", []) if one in models]
        name = next((one for one in defaults if not _without(models[one], tasks)), None)
        if name is None:
            if not defaults:
                raise ModelError(
                    f"no model is taken by default: there are no weights for {', '.join(tasks)}",
                    "name one with --model",
                )
            first = defaults[0]
            raise _no_source(first, _without(models.get(first, {}), tasks))
    if name not in models:
        raise UsageError(f"unknown model {name!r}", f"known: {', '.join(models)}")
    if _without(models[name], tasks):
        raise _no_source(name, _without(models[name], tasks))
    chosen, flags = _flags(settings), settings or Settings()
    decoder = tiny_decoder(name, models[name]) if flags.tiny_decoder else None
    found = [_recipe(name, models[name], task, chosen) for task in tasks]
    return [replace(recipe, fast=flags.fast, decoder=decoder) for recipe in found]


def has_tiny_decoder(model: Table) -> bool:
    """Whether the entry of a model names the source of a tiny decoder."""
    return bool(set(model.get(DECODER, {})) & set(ORIGINS))


def no_tiny_decoder(name: str) -> ModelError:
    """What is raised for a model whose entry names none."""
    return ModelError(
        f"model {name!r} has no tiny decoder",
        f"name one in a weights file (docs/weights-file.md):\n[models.{name}]\n"
        f'{DECODER} = {{ path = "FOLDER" }}, or {{ repo = "ORG/NAME" }}',
    )


def tiny_decoder(name: str, model: Table) -> Source:
    """The source of the tiny decoder of a model; ModelError if its entry names none."""
    if not has_tiny_decoder(model):
        raise no_tiny_decoder(name)
    return _source(model[DECODER], decoders.FILES)


def stands_in_for(table: Table, model: str, asked: str | None) -> str | None:
    """The first model of the default list, if `model` was taken because that one has no weights."""
    first = next((one for one in table.get("default", []) if one in table["models"]), None)
    named = asked or os.environ.get("DMP_MODEL")
    return None if named or first == model else first


def _flags(settings: Settings | None) -> Table:
    given = asdict(settings or Settings())
    fast, _ = given.pop("fast"), given.pop("tiny_decoder")  # not of an entry's keys
    chosen = {key: value for key, value in given.items() if value is not None}
    against = [f"{key} {chosen[key]!r}" for key in (*FAST, "sampler") if key in chosen]
    if fast and against:
        stands_for = ", ".join(f"{key} {value!r}" for key, value in FAST.items())
        raise UsageError(
            f"fast contradicts {', '.join(against)}",
            f"fast is {stands_for}, whatever the sampler: leave it out, or what contradicts it",
        )
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
            "docs/weights-file.md lists the keys",
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


def prompted(recipe: Recipe, prompt: str | None) -> Recipe:
    """The recipe of an image with a prompt of its own, "" for none; for None as it is."""
    if prompt in (None, recipe.prompt):
        return recipe
    return _guided(replace(recipe, prompt=prompt))


def completed(recipe: Recipe) -> Recipe:
    """A recipe with what neither flag nor weights file states taken from the LoRA file itself.

    Its `prediction` is taken even if the weights file states another. Fetches the file if it
    is on the Hub. ModelError for one that is not to be had, states a value that does not fit, or
    was trained for another task.
    """
    if recipe.lora.made:
        return _hastened(recipe)
    told = header.settings(lora_file(recipe.lora), recipe.task)
    new = {key: value for key, value in told.items() if key not in recipe.stated}
    return _hastened(_guided(replace(recipe, **new, stated=recipe.stated | set(new))))


def _hastened(recipe: Recipe) -> Recipe:
    """With the settings of FAST if they were asked for, but for a model of one pass as it is."""
    if not recipe.fast or recipe.sampler == "onepass":
        return recipe
    return replace(recipe, **FAST)  # type: ignore[arg-type]


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


def _source(table: Table, files: tuple[str, ...] = ()) -> Source:
    stated = dict(table)
    if "path" in stated:
        stated["path"] = Path(stated["path"])
    if isinstance(stated.get("sha256"), dict):  # of a folder: by file
        stated["digests"] = stated.pop("sha256")
    return Source(**stated, files=files)


def sources(table: Table, model: str) -> dict[str, list[Source]]:
    """Backbone and LoRA of each task that a model has sources for, there or not."""
    entry = table["models"][model]
    return {
        task: [_source(found[key]) for key in SOURCES]
        for task, found in ((task, entry | own) for task, own in entry.get("tasks", {}).items())
        if not _without(entry, [task])
    }


def parts(table: Table, model: str, weights: str | None = None) -> dict[str, Source | None]:
    """The source of a model's backbone (`backbone`) and of each task's LoRA; None: none is named.

    And of its tiny decoder (`tiny_decoder`), if its entry names one. `weights` is the file that was
    given for this, for the commands that errors name.
    """
    entry = table["models"][model]
    tables = {"backbone": entry.get("backbone", {})}
    tables |= {DECODER: entry[DECODER]} if has_tiny_decoder(entry) else {}
    tables |= {task: own.get("lora", {}) for task, own in entry.get("tasks", {}).items()}
    found: dict[str, Source | None] = {}
    for part, stated in tables.items():
        named = set(stated) & set(ORIGINS)
        words = asked(model, [part] if part in entry.get("tasks", {}) else [], weights)
        files = decoders.FILES if part == DECODER else ()
        words = f"{words} {TINY}" if files else words
        found[part] = replace(_source(stated, files), asked=words) if named else None
    return found


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
    how = f"import LoRA files that you have: dmp weights import PATH --model {model}"
    if model.startswith("dmp"):  # the paper's
        how = (
            "import the authors' files: dmp weights import --download, or: dmp weights import PATH"
        )
    return ModelError(
        f"model {model!r} has no weights for {', '.join(tasks)}",
        f"{how}\n(docs/weights.md); to see dmp at work without them, use --model demo",
    )
