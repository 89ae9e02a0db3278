"""What there is of each model on this machine. Opens no socket and loads no tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmp_cli import decoders, header, sources, store
from dmp_cli.catalogue import DECODER, Table
from dmp_cli.errors import DmpError, ModelError
from dmp_cli.header import NOT_STATED
from dmp_cli.sources import Source
from dmp_cli.tasks import TASKS
from dmp_cli.weights import parts, resolve

BACKBONE = "backbone"
FOLDERS = (BACKBONE, DECODER)  # the parts that are not LoRAs


@dataclass(frozen=True)
class Part:
    """Backbone, tiny decoder or LoRA of a model: where it comes from and whether it is here."""

    model: str
    name: str  # a task, `backbone` or `tiny_decoder`
    license: str  # of its files; of a tiny decoder what its source states
    source: Source | None  # None: no source is named, it has to be imported
    files: tuple[Path, ...]  # those that are here, if all are
    absent: str  # the first that is not here, or why it cannot be used
    taken: bool  # by a run that names no model

    @property
    def here(self) -> bool:
        """Whether a run would find it."""
        return bool(self.source) and not self.absent

    @property
    def bytes(self) -> int | None:
        """Of its files; None if they are not here."""
        return sum(path.stat().st_size for path in self.files) if self.files else None


def parts_of(table: Table, model: str | None = None, weights: str | None = None) -> list[Part]:
    """The parts of a model, or of all that a table names; `weights` is the file given for it."""
    names = [model] if model else list(table["models"])
    return [part for name in names for part in _parts(table, name, weights)]


def _parts(table: Table, model: str, weights: str | None) -> Iterator[Part]:
    tasks = _taken(table).get(model, [])
    entry = str(table["models"][model].get("license", NOT_STATED))
    for name, source in parts(table, model, weights).items():
        files, absent = _found(source, name) if source else ((), "no source")
        used = bool(tasks) if name == BACKBONE else name in tasks
        terms = _license(name, source, files) or entry
        yield Part(model, name, terms, source, files, absent, used)


def _license(name: str, source: Source | None, files: tuple[Path, ...]) -> str | None:
    """The licence of a part if it is not, or may not be, that of its model."""
    if name == DECODER:
        stated = source.license if source else None
        return stated or (None if source and source.packaged else NOT_STATED)
    if name == BACKBONE or not files:
        return None
    try:
        return header.read(files[0]).get("license")
    except ModelError:  # damaged: what uses it says so
        return None


def _taken(table: Table) -> dict[str, list[str]]:
    """The tasks that each model is taken for if none is named."""
    found: dict[str, list[str]] = {}
    for task in TASKS:
        try:
            found.setdefault(resolve(table, [task])[0].model, []).append(task)
        except DmpError:  # no model is taken for it: a run would say why
            continue
    return found


def _found(source: Source, name: str) -> tuple[tuple[Path, ...], str]:
    """The files of a source, or what is missing of it."""
    if source.made:
        folder = store.home() / "untrained"
        return tuple(folder.rglob("*.safetensors")) if name == BACKBONE else (), ""
    try:
        return tuple(stated(source, name)), sources.missing(source) or ""
    except ModelError as error:
        return (), str(error)


def stated(source: Source, name: str, half: bool = False) -> dict[Path, list[str]]:
    """The files of a part on this machine with the hashes that are known of them.

    Empty if it has to be fetched or made; ModelError for a path at which it is not.
    """
    if name == BACKBONE:
        return sources.backbone_stated(source, half)
    return decoders.stated(source) if name == DECODER else sources.lora_stated(source)


def remains(source: Source, name: str) -> dict[Path, list[str]]:
    """The files of a part that was here and is not whole any more, with what is known of each."""
    if name == BACKBONE:
        return sources.backbone_remains(source)
    return decoders.remains(source) if name == DECODER else sources.lora_remains(source)
