"""LoRA files of others -> the store: recognised, checked, converted, named. All or none."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmp_cli import __version__, catalogue, files, header, hub, sources, store, weights
from dmp_cli.catalogue import Table
from dmp_cli.errors import DmpError, ModelError, UsageError
from dmp_cli.importing import archives, bases, drive, licences, recognition, wishes
from dmp_cli.importing.recognition import FETCHED, PLAIN, PROMPTED, Found, Placed
from dmp_cli.importing.wishes import Wish
from dmp_cli.sources import Source
from dmp_cli.tasks import TASKS, find

_UNET = "unet/config.json"


@dataclass(frozen=True)
class Imported:
    """A file that is in the store now, and what is known of it."""

    file: str  # as the user knows it
    source_sha256: str
    model: str
    also: tuple[str, ...]  # other models that take it too
    task: str
    rank: str
    parameters: int
    dtype: str
    license: str
    path: Path
    sha256: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Ready:
    """A file that has passed every check, converted in the staging folder."""

    placed: Placed
    path: Path
    keys: Table  # of its task's entry
    facts: Mapping[str, Any]  # what Imported says of it


def run(paths: Sequence[Path], wish: Wish, download: str | None = None) -> list[Imported]:
    """Import files, folders and zip files, or the Google Drive folder at `download`.

    UsageError for what cannot be told from the names, with the commands to type; ModelError names
    the file and the first thing in it that is not as it should be. Nothing is stored then.
    """
    wishes.check(wish)
    with store.staging() as folder:
        if not download:
            return _import(paths, wish, folder)
        fetched = folder / "drive"
        with _as_fetched(fetched, download):
            drive.fetch(download, fetched)
            return _import([fetched], wish, folder, fetched)


def _import(
    paths: Sequence[Path], wish: Wish, folder: Path, fetched: Path | None = None
) -> list[Imported]:
    """Import files; `folder` is for what is made on the way, `fetched` what came from Drive."""
    if fetched:
        paths = [fetched, *sorted(filter(archives.is_archive, fetched.rglob("*")))]
    zipped = [path for path in paths if archives.is_archive(path) and path.is_file()]
    unpacked = archives.unpack(zipped, folder / "zip", recognition.is_wanted)
    roots = [path for path in paths if path not in zipped] + list(unpacked)
    with _as_given(unpacked):
        found = _of_drive(fetched, unpacked) if fetched else recognition.find(roots, unpacked)
        placed = recognition.place(found, wish.model, find(wish.task).name if wish.task else None)
        wishes.check_fitting(wish, placed)
        table = wishes.table(wish)
        ready = [
            _ready(one, wish, table, folder / f"{number}.safetensors")
            for number, one in enumerate(placed)
        ]
    names = [one.name for one in found]
    entry = wishes.entry(wish, names, [one.facts["license"] for one in ready])
    ready.sort(key=lambda one: (one.placed.model, list(TASKS).index(one.placed.task)))
    with store.changes(catalogue.parse) as made:
        return [_keep(made, one, entry, _also(one.placed, placed, wish, table)) for one in ready]


def backbone_missing(model: str, weights_file: str | None) -> bool:
    """Whether files of a model's backbone have yet to be fetched from the Hub."""
    table = catalogue.load(weights_file)
    task = next(iter(table["models"][model]["tasks"]))
    return bool(sources.missing(weights.to_train(table, task, model).backbone))


# The files --------------------------------------------------------------------------------


def _of_drive(fetched: Path, unpacked: Mapping[Path, Path]) -> list[Found]:
    """The LoRAs in a folder of Google Drive and in its archives, of which some may hold none."""
    roots = [root for root in (fetched, *unpacked) if recognition.holds_any(root)]
    origins = {root: FETCHED / path.relative_to(fetched) for root, path in unpacked.items()}
    found = recognition.find(roots or [*unpacked, fetched], {**origins, fetched: FETCHED})
    each = {
        (sources.sha256(one.path), one.understood, one.plain, one.official): one
        for one in reversed(found)  # of the same file in a folder and in an archive the first
    }
    return [one for one in found if one in each.values()]


@contextmanager
def _as_given(origins: Mapping[Path, Path]) -> Iterator[None]:
    """Errors name the archive that the user knows, not the folder that it was unpacked into."""
    try:
        yield
    except DmpError as error:
        text = str(error)
        for folder, archive in origins.items():
            text = text.replace(str(folder), f"{archive}: {folder.name}")
        raise type(error)(text, error.hint) from error


@contextmanager
def _as_fetched(folder: Path, url: str) -> Iterator[None]:
    """Errors name the folder of Google Drive, not that of the store that goes with them."""
    try:
        yield
    except DmpError as error:
        text = str(error).replace(f"{folder}/", f"{url}: ").replace(str(folder), url)
        hint = error.hint
        if isinstance(error, UsageError) and str(FETCHED) in hint:
            hint = drive.choosing(url, hint)
        raise type(error)(text, hint) from error


# One file ---------------------------------------------------------------------------------


def _ready(placed: Placed, wish: Wish, table: Table, target: Path) -> _Ready:
    """Check and convert one file."""
    from dmp_cli.importing import conversion  # with torch: what the names say is refused before

    path, task = placed.found.path, placed.task
    recipe = weights.to_train(table, task, placed.model)
    tensors, metadata = conversion.read(path)
    own = header.read(path) if metadata else {}
    told = header.settings(path, task) if metadata else {}
    given = {key: value for key, value in wish.settings.items() if wishes.counts(key, task)}
    stated = told | given
    terms, notes = licences.stated(placed.found, metadata)
    facts = {"source_sha256": sources.sha256(path), "license": files.utf_8(wish.licence or terms)}
    entries = own | wishes.settings(recipe, stated) | facts
    entries |= {
        "task": task,
        "base": bases.stated(path, metadata) or _base(recipe.backbone, bool(wish.backbone)),
        "source": _named(placed.found),
        "version": __version__,
    }
    config = _config(recipe.backbone)
    with _assuming(recipe.backbone, config, table):
        converted = conversion.convert(path, tensors, metadata, _shapes(config), entries)
    files.write_bytes(target, converted.data)
    found = {key: getattr(converted, key) for key in ("rank", "parameters", "dtype", "sha256")}
    found["notes"] = (*placed.found.notes, *notes)
    return _Ready(placed, target, wishes.overriding(recipe, stated), facts | found)


def _named(found: Found) -> str:
    """A file in a folder with the name of its own folder, which tells most; the same from a zip."""
    path = found.path
    return f"{path.parent.name}/{path.name}" if found.root.is_dir() else path.name


def _base(backbone: Source, named: bool) -> str:
    """The backbone of the model; unless it was `named`, only shapes say that the file fits it."""
    folder = backbone.path.name if backbone.path else backbone.made
    return (backbone.repo or str(folder)) + ("" if named else header.ASSUMED)


def _config(backbone: Source) -> Path | None:
    """The configuration of a backbone's UNet, if it is on this machine."""
    if backbone.repo:
        return hub.cached(backbone.repository, _UNET)
    config = (backbone.path or store.home() / "untrained") / _UNET
    return config if config.is_file() else None


def _shapes(config: Path | None) -> dict[str, tuple[int, int]]:
    from dmp_cli import backbone

    return backbone.shapes_of(config)


@contextmanager
def _assuming(backbone: Source, config: Path | None, table: Table) -> Iterator[None]:
    """Where shapes had to be assumed of a backbone that may have others, a refusal says so."""
    try:
        yield
    except ModelError as error:
        if config or backbone.repo == table["models"][PLAIN]["backbone"].get("repo"):
            raise
        how = f"hf download {backbone.repo} {_UNET}" if backbone.repo else f"look for {_UNET}"
        raise ModelError(
            str(error),
            f"{backbone} is not on this machine, so the shapes of Stable Diffusion 1.x were "
            f"taken; if it has others, first: {how}",
        ) from error


# The store --------------------------------------------------------------------------------


def _keep(made: store.Changes, one: _Ready, entry: Table, also: tuple[str, ...]) -> Imported:
    placed, digest = one.placed, one.facts["sha256"]
    keys = {"model": entry, "task": one.keys}
    before = made.held(placed.model, placed.task)
    facts = dict(one.facts) | {"notes": (*one.facts["notes"], *_replaced(before, placed, digest))}
    kept = made.add(placed.model, placed.task, one.path, digest, keys)
    for other in also:
        made.share(other, placed.task, kept, digest)
    name, task = placed.found.name, placed.task
    return Imported(file=name, model=placed.model, also=also, task=task, path=kept, **facts)


def _replaced(before: Path | None, placed: Placed, digest: str) -> tuple[str, ...]:
    """What is to be said of a file of the store that makes room."""
    if before is None or not before.is_file() or sources.sha256(before) == digest:
        return ()
    try:
        origin = header.read(before).get("source", before.name)
    except ModelError:  # damaged: a reason to import it again
        origin = before.name
    return (f"takes the place of {origin} as {placed.task} of model {placed.model}",)


def _also(one: Placed, placed: Sequence[Placed], wish: Wish, table: Table) -> tuple[str, ...]:
    """`dmp` too, if a LoRA with a prompt comes for a task for which it has none without."""
    if wish.model or one.model != PROMPTED:
        return ()
    if any((other.model, other.task) == (PLAIN, one.task) for other in placed):
        return ()
    lora = table["models"][PLAIN].get("tasks", {}).get(one.task, {}).get("lora", {})
    shared = store.home() / "loras" / PROMPTED
    free = not lora or Path(lora.get("path", "")).parent == shared
    return (PLAIN,) if free else ()
