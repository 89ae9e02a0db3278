"""What the verbs of `dmp weights` share: options, and which parts of which model they mean."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from dmp_cli import decoders, sources, weights
from dmp_cli.catalogue import DECODER, Table
from dmp_cli.commands import options as opt
from dmp_cli.commands import parse
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.inventory import BACKBONE, FOLDERS, Part, parts_of
from dmp_cli.sources import Source

IMPORT = (
    "take in files that you have: dmp weights import PATH\n"
    "or name a source in a weights file of your own: docs/weights-file.md"
)

Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Name of a model in weights.toml.",
                   autocompletion=opt.complete_models),
]  # fmt: skip
Task = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Only these tasks of the model, with commas.",
                 autocompletion=opt.complete_tasks),
]  # fmt: skip
Dtype = Annotated[
    str,
    typer.Option(metavar="auto|fp16|fp32", help="Of the backbone, where both are to be had; auto: "
                 "as a run takes it here.", autocompletion=lambda: ("auto", "fp16", "fp32")),
]  # fmt: skip
TinyDecoder = Annotated[bool, typer.Option("--tiny-decoder", help="Also the model's tiny decoder.")]


@dataclass(frozen=True)
class Chosen:
    """A model, and those of its parts that are meant."""

    model: str
    parts: list[Part]

    @property
    def backbone(self) -> Part:
        """Its backbone."""
        return next(part for part in self.parts if part.name == BACKBONE)

    def of_run(self, tiny_decoder: bool) -> "Chosen":
        """What a run takes of them: the tiny decoder only if that is asked for.

        ModelError if it is, and the model has none.
        """
        if not tiny_decoder:
            return Chosen(self.model, [part for part in self.parts if part.name != DECODER])
        if not any(part.name == DECODER for part in self.parts):
            raise weights.no_tiny_decoder(self.model)
        return Chosen(self.model, [replace(part, source=_beside(part)) for part in self.parts])


def _beside(part: Part) -> Source | None:
    """The source of a part, whose errors name the command that fetches the tiny decoder too."""
    if part.source is None or part.name == DECODER:
        return part.source
    return replace(part.source, asked=f"{part.source.asked} {weights.TINY}")


def choose(model: str | None, task: str | None, file: str | None) -> Chosen:
    """The parts of a model, or of the one that a run takes; its LoRAs, or those of the tasks named.

    `file` is the weights file that was given. A tiny decoder is among them if the model has one.

    UsageError for a model or task that is not known. ModelError if a part that was asked for has
    no source, or no model has one.
    """
    from dmp_cli import catalogue
    from dmp_cli.tasks import TASKS, find_several

    table = catalogue.load(file)
    names = [row.name for row in find_several(task)] if task else []
    model = model or os.environ.get("DMP_MODEL") or _default(table, names)
    if model not in table["models"]:
        raise UsageError(f"unknown model {model!r}", f"known: {', '.join(table['models'])}")
    wanted = {*FOLDERS, *(names or TASKS)}
    parts = [part for part in parts_of(table, model, file) if part.name in wanted]
    bare = sorted(set(names) - {part.name for part in parts if part.source})
    if bare or not any(part.source for part in parts if part.name != DECODER):
        raise ModelError(
            f"model {model!r} names no source of {', '.join(bare) or 'its weights'}", IMPORT
        )
    return Chosen(model, parts)


def _default(table: Table, tasks: list[str]) -> str:
    """The first model of the default list with sources for these tasks, or for any."""
    for name in table.get("default", []):
        found = weights.sources(table, name) if name in table["models"] else {}
        if found and found.keys() >= set(tasks):
            return str(name)
    raise ModelError(f"no model has weights for {', '.join(tasks) or 'any task'}", IMPORT)


def half(dtype: str, backbone: Source | None) -> bool:
    """Whether a run would take half precision; asks torch only where that matters."""
    parse.one_of("--dtype", dtype, ("auto", "fp16", "fp32"))
    if dtype != "auto" or not (backbone and backbone.variant):
        return dtype == "fp16"
    from dmp_cli.device import choose as choose_device

    return choose_device("auto", "auto").dtype_name == "fp16"


def places(chosen: Chosen, half: bool) -> list[Path]:
    """The folders of backbone and tiny decoder and the files of the LoRAs that are here."""
    found: list[Path] = []
    for part in chosen.parts:
        if part.source is None or part.source.made:
            found += part.files[:1]
        elif part.name == BACKBONE:
            found.append(sources.backbone_folder(part.source, half)[0])
        elif part.name == DECODER:
            found.append(decoders.folder(part.source))
        else:
            found.append(sources.lora_file(part.source))
    return found
