"""What of a model may be passed on: its LoRA files, checked, their licences, its entry as text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmp_cli import header
from dmp_cli.catalogue import DECODER, Table
from dmp_cli.digests import sha256
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.header import NOT_STATED
from dmp_cli.sources import LORA_NAMES, lora_file
from dmp_cli.weights import Recipe, completed, resolve, sources

BACKBONE_FOLDER = "FOLDER_OF_THE_BACKBONE"  # stands for a folder in what others read


@dataclass(frozen=True)
class Adapter:
    """The LoRA of one task: a file of this machine and what is known of it."""

    recipe: Recipe  # with what the file itself states
    path: Path
    sha256: str
    rank: str  # "4", or "4 to 16" where layers differ
    prefix: str | None  # of its keys: diffusers has to be told
    license: str  # empty: none is stated
    stated: dict[str, str]  # by its header

    @property
    def task(self) -> str:
        """The name of its task."""
        return self.recipe.task

    @property
    def file(self) -> str:
        """Its path in a repository."""
        return f"{self.task}/{LORA_NAMES[0]}"


@dataclass(frozen=True)
class Release:
    """A model as it goes to the repository ORG/NAME of the Hub."""

    model: str
    repo: str
    branch: str
    entry: Table  # of the model in the weights files that were read
    adapters: tuple[Adapter, ...]

    @property
    def license(self) -> str:
        """The licence of all its files; empty if they differ, or none is stated."""
        found = {adapter.license for adapter in self.adapters}
        return found.pop() if len(found) == 1 else ""

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(adapter.path.stat().st_size for adapter in self.adapters)


def default_model(table: Table) -> str:
    """The first model of the default list with LoRA files that do not come with dmp.

    ModelError if there is none.
    """
    with_files = [name for name in table["models"] if _has_own_files(table, name)]
    for name in table.get("default", []):
        if name in with_files:
            return str(name)
    raise ModelError(
        "no model of the default list has LoRA files of its own",
        "import some first: dmp weights import PATH"
        + (f"; or name a model that has: {', '.join(with_files)}" if with_files else ""),
    )


def tasks_of(table: Table, model: str) -> list[str]:
    """The tasks that a model has LoRA files for. UsageError for one that is unknown or has none."""
    if model not in table["models"]:
        raise UsageError(f"unknown model {model!r}", f"known: {', '.join(table['models'])}")
    found = list(sources(table, model))
    if not found:
        raise UsageError(
            f"model {model!r} has no LoRA file to publish",
            f"import one first: dmp weights import PATH --model {model}",
        )
    return found


def _has_own_files(table: Table, model: str) -> bool:
    loras = [lora for _, lora in sources(table, model).values()]
    return any(not lora.packaged and not lora.made for lora in loras)


def gather(
    table: Table, model: str, tasks: Sequence[str], repo: str, branch: str = "main"
) -> Release:
    """A model's LoRA files for these tasks, each hashed and its sha256 compared where one is known.

    A file of a Hub repository that is not here yet is fetched. UsageError for a file that dmp
    makes itself or whose layout must be converted, ModelError for one that is not to be had, is
    damaged, or was trained for another task.
    """
    recipes = resolve(table, tasks, model)
    if any(recipe.lora.made for recipe in recipes):
        raise UsageError(
            f"the LoRAs of model {model!r} are made by dmp itself, of random numbers",
            "publish another model: --model",
        )
    entry = table["models"][model]
    found = tuple(_adapter(recipe) for recipe in recipes)
    return Release(model, repo, branch, entry, found)


def _adapter(recipe: Recipe) -> Adapter:
    path = lora_file(recipe.lora)
    rank, prefix = _layout(path, recipe)
    stated = header.read(path)
    # a file that says "not stated" has said it: the entry tells of files that say nothing
    terms = _terms(stated.get("license", "").strip() or recipe.license)
    return Adapter(completed(recipe), path, sha256(path), rank, prefix, terms, stated)


def _terms(text: str) -> str:
    """A licence, or nothing if the text says that none is known."""
    text = text.strip()
    return "" if text.lower() == "unknown" or text.lower().startswith(NOT_STATED) else text


def _layout(path: Path, recipe: Recipe) -> tuple[str, str | None]:
    """(rank, prefix) of a LoRA file that diffusers reads without loss."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read as safetensors: {error}", "fetch or copy the file again"
        ) from error
    downs = [shape for key, shape in shapes.items() if ".lora_A." in key or "lora.down." in key]
    ranks = sorted({shape[0] for shape in downs if shape})
    beside = path.name == LORA_NAMES[1] and path.with_name("adapter_config.json").exists()
    plain = not any(key.startswith("base_model.") or key.endswith(".alpha") for key in shapes)
    if not ranks or beside or not plain:
        raise UsageError(
            f"{path}: not in a layout that diffusers reads by itself",
            "convert it, then publish that:\n"
            f"dmp weights import {path} --model {recipe.model} --task {recipe.task}",
        )
    below = all(key.startswith("unet.") for key in shapes)
    return " to ".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1]))), (
        "unet" if below else None
    )


# Licences ---------------------------------------------------------------------------------


def licensed(release: Release, license: str | None, right: bool) -> Release:
    """A release under `license`, else under what its files and its weights file state.

    UsageError names the tasks for which nothing is stated, or something else than `license`,
    unless the person who publishes says that they have the `right` to.
    """
    if not right:
        _refuse_unlicensed(release, license)
    if not license:
        return release
    adapters = (replace(adapter, license=license) for adapter in release.adapters)
    return replace(release, adapters=tuple(adapters))


def _refuse_unlicensed(release: Release, license: str | None) -> None:
    says = "say with --i-have-the-right that you may publish them"
    unknown = [adapter for adapter in release.adapters if not adapter.license]
    silent = [adapter.task for adapter in unknown]
    if silent and not license:
        stated_by_entry = release.entry.get("license") or NOT_STATED
        words = {adapter.stated.get("license") or stated_by_entry for adapter in unknown}
        known = ", ".join(sorted(words))
        raise UsageError(
            f"model {release.model!r}: no licence is stated for {', '.join(silent)} ({known})",
            "who may pass them on is for their authors to say (for the official weights they "
            f"state nothing):\nname the licence with --license ID, or {says}",
        )
    stated = {adapter.license for adapter in release.adapters if adapter.license}
    others = sorted(one for one in stated if license and one.lower() != license.lower())
    if others:
        raise UsageError(
            f"model {release.model!r}: --license {license}, but its files are under "
            f"{', '.join(others)}",
            f"leave --license out, or {says}",
        )


# A weights file ---------------------------------------------------------------------------


def stanza(release: Release, revision: str, folders: bool = True) -> str:
    """The model as tables of a weights file, its LoRAs from the Hub at `revision`.

    Every key that its entry states stands in it: one left out could be taken from a LoRA file.
    Without `folders` the folder of a backbone of this machine is not named.
    """
    import tomlkit

    model = tomlkit.table()
    model.update(
        {key: value for key, value in release.entry.items() if key not in ("tasks", DECODER)}
    )
    model.update(_license(release))
    model["backbone"] = _inline(_backbone(release.entry["backbone"], folders))
    model.update(_decoder(release.entry.get(DECODER, {}), folders))
    tasks = tomlkit.table(is_super_table=True)
    for adapter in release.adapters:
        stated = dict(release.entry["tasks"][adapter.task])
        source = {"repo": release.repo, "file": adapter.file, "revision": revision}
        tasks[adapter.task] = tomlkit.table()
        tasks[adapter.task].update(stated | {"lora": _inline(source | {"sha256": adapter.sha256})})
    model["tasks"] = tasks
    models = tomlkit.table(is_super_table=True)
    models[release.model] = model
    document = tomlkit.document()
    document["models"] = models
    return tomlkit.dumps(document)


def _license(release: Release) -> Table:
    """What the entry has to say, if it is not what it says already."""
    if release.license:
        return {"license": release.license}
    silent = not any(adapter.license for adapter in release.adapters)
    return {"license": NOT_STATED} if silent and _terms(release.entry.get("license", "")) else {}


def _backbone(stated: Table, folders: bool) -> Table:
    """A backbone's source as a weights file elsewhere may state it."""
    if "packaged" in stated:
        return {key: value for key, value in stated.items() if key != "path"}
    return stated if folders or "path" not in stated else stated | {"path": BACKBONE_FOLDER}


def _decoder(stated: Table, folders: bool) -> Table:
    """The key of a tiny decoder, if a weights file elsewhere may state it."""
    if "packaged" in stated:
        stated = {key: value for key, value in stated.items() if key != "path"}
    return {DECODER: _inline(stated)} if stated and (folders or "path" not in stated) else {}


def _inline(table: Table) -> Any:
    import tomlkit

    inline = tomlkit.inline_table()
    inline.update(table)
    return inline
