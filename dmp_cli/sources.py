"""Where weights come from -> verified files on this machine. Loads no tensors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from glob import escape
from pathlib import Path

from dmp_cli import digests, hub, store
from dmp_cli.download import Moved
from dmp_cli.errors import ModelError

LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_CONFIGS = ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in _PARTS))
_FOLDERS = ("tokenizer",)  # all that is in them


@dataclass(frozen=True)
class Source:
    """Where a file or folder comes from: a path, a Hub repository, or made by dmp itself."""

    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    variant: str | None = None
    sha256: str | None = None  # of a LoRA
    digests: Mapping[str, str] = field(default_factory=dict, hash=False)  # sha256s in a folder
    files: tuple[str, ...] = ()  # a folder with these, if it is no backbone: a tiny decoder
    made: str | None = None
    packaged: str | None = None  # a path inside the package; `path` is where that is
    license: str | None = field(default=None, compare=False)  # of a tiny decoder
    asked: str = field(default="", compare=False)  # what follows `dmp weights pull`

    def __str__(self) -> str:
        if self.packaged:
            return f"packaged {self.packaged}"
        if self.repo:
            return f"{self.repo}{'/' + self.file if self.file else ''}@{self.revision or 'main'}"
        return str(self.path) if self.path else f"made by dmp ({self.made})"

    @property
    def repository(self) -> hub.Repository:
        """Its repository, for a source on the Hub."""
        return hub.Repository(
            self.repo or "", self.revision, f"dmp weights pull {self.asked}".strip()
        )


# On this machine --------------------------------------------------------------------------


def lora_file(source: Source) -> Path:
    """The local safetensors file of a LoRA, fetched if need be, its hash checked where known.

    ModelError names what is missing or differs, and what to do.
    """
    if missing(source):
        Fetch.of([source], half=False).run()
    check(source, lora_stated(source))
    return _lora_here(source)


def backbone_folder(source: Source, half: bool) -> tuple[Path, str | None]:
    """(folder, variant) of a backbone whose files are all there, fetched if need be.

    With `half` the files of `source.variant` are taken if there are any, else the plain ones;
    without it the other way round, since a half-precision file has lost what float32 keeps.
    What is in the Hub's cache already is taken before a server is asked. Hashes are not checked.
    """
    if missing(source):
        Fetch.of([source], half).run()
    found = _backbone_here(source, half)
    if found is None:
        raise _not_whole(source, _lacking(source.path or Path(), None)[0])
    return found


def weight_file(folder: Path, part: str, variant: str | None) -> Path:
    """The file with the weights of a part (unet, vae, text_encoder) of a backbone's folder."""
    return folder / part / f"{_PARTS[part]}{f'.{variant}' if variant else ''}.safetensors"


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits."""
    return digests.sha256(path)


def missing(source: Source) -> str | None:
    """The first file of a source on the Hub that the cache lacks, for a branch as it was last."""
    if not source.repo:
        return None
    if source.file:
        return None if hub.cached(source.repository, source.file) else source.file
    if source.files:
        here = partial(hub.cached, source.repository)
        return next((name for name in source.files if not here(name)), None)
    if _backbone_here(source, half=False):
        return None
    folder = hub.snapshot(source.repository, [])
    absent = _lacking(folder, source.variant) if folder else []
    return absent[0] if absent else _names(None)[0]


def lora_stated(source: Source) -> dict[Path, list[str]]:
    """The file of a LoRA on this machine, with the hashes that are known of it.

    They are those of the weights file and of the Hub's cache. Empty if it has to be fetched or
    made; ModelError for a path at which there is none.
    """
    if source.made or missing(source):
        return {}
    path = _lora_here(source)
    return {path: known(source, path, source.sha256)}


def backbone_stated(source: Source, half: bool) -> dict[Path, list[str]]:
    """The files of a backbone on this machine, with the hashes that are known of each.

    Empty if it has to be fetched or made; ModelError for a folder that is not whole.
    """
    if source.made or missing(source):
        return {}
    folder, variant = backbone_folder(source, half)
    names = [*_names(variant), *_inside(folder)]
    return {folder / name: known(source, folder / name, source.digests.get(name)) for name in names}


def lora_remains(source: Source) -> dict[Path, list[str]]:
    """The file of a LoRA that was here and is lost, if so; no hash of it is needed."""
    if not source.repo:
        return {} if source.made else {source.path or Path(): []}
    folder = hub.snapshot(source.repository, [])
    path = folder / (source.file or "") if folder else Path()
    return {path: []} if path.is_symlink() else {}  # to nowhere


def backbone_remains(source: Source) -> dict[Path, list[str]]:
    """The files of a backbone of which some are lost, with the hashes that are known of the rest.

    Empty if none of its weights is here: then it was not fetched yet.
    """
    folder = hub.snapshot(source.repository, []) if source.repo else source.path
    if source.made or folder is None:
        return {}

    def there(variant: str | None) -> int:
        return sum(weight_file(folder, part, variant).is_file() for part in _PARTS)

    variant = max(_variants(source, half=False), key=there)
    if source.repo and not there(variant):
        return {}
    names = [*_names(variant), *_inside(folder)]
    if not _lacking(folder, variant) or not _inside(folder):
        names += _FOLDERS  # it lacks a file of the tokenizer, which one is not known
    return {folder / name: known(source, folder / name, source.digests.get(name)) for name in names}


def known(source: Source, path: Path, entry: str | None) -> list[str]:
    """The hashes that are known of a file of a source: of its `entry`, and of the Hub's cache."""
    of_cache = hub.digest_of(path) if source.repo else None
    return list(dict.fromkeys(filter(None, (entry, of_cache))))


def check(source: Source, stated: Mapping[Path, Sequence[str]]) -> None:
    """ModelError for the first file of a source that has not the hashes that are stated of it."""
    _refuse(source, digests.wrong(stated))


def _refuse(source: Source, wrong: Mapping[Path, tuple[str, str]]) -> None:
    for path, (expected, found) in wrong.items():
        kind = "sha256" if len(expected) == 64 else "hash"
        raise ModelError(
            f"{path}: wrong {kind}: expected {expected}, found {found}", remedy(source)
        )


def remedy(source: Source) -> str:
    """What to do about a damaged file."""
    if source.repo:
        return f"it is damaged or another one: run: dmp weights verify {source.asked} --repair"
    if source.packaged:
        return "the installed package is damaged: install dmp again"
    if source.path and source.path.is_relative_to(store.home()):
        return f"import its file again: dmp weights import FILE --model {source.asked or 'NAME'}"
    return "it is damaged or another one: get it again, or correct the weights file"


def _lora_here(source: Source) -> Path:
    if not source.repo:
        return _lora_in(source)
    found = hub.cached(source.repository, source.file or "")
    if found is None:
        raise ModelError(f"{source}: is not in the Hub's cache", source.repository.command)
    return found


def _lora_in(source: Source) -> Path:
    path = source.path or Path()
    if path.is_dir():
        for name in LORA_NAMES:
            if (path / name).is_file():
                return path / name
        raise ModelError(
            f"{path}: holds none of {', '.join(LORA_NAMES)}",
            f"if there is a pickle (.bin), take it in with: dmp weights import {path}",
        )
    if not path.is_file():
        raise ModelError(f"{path}: no such LoRA file", remedy(source))
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path}: only safetensors files are read, never a pickle",
            f"take it in with: dmp weights import {path}",
        )
    return path


def _backbone_here(source: Source, half: bool) -> tuple[Path, str | None] | None:
    for variant in _variants(source, half):
        wanted = [*_names(variant), *(f"{name}/*" for name in _FOLDERS)]
        folder = hub.snapshot(source.repository, wanted) if source.repo else source.path
        if folder and not _lacking(folder, variant):
            return folder, variant
    return None


def _variants(source: Source, half: bool) -> list[str | None]:
    variants = (source.variant, None) if half else (None, source.variant)
    return list(dict.fromkeys(variants))


def _names(variant: str | None) -> list[str]:
    """The files that a backbone must have, beside those of its tokenizer."""
    return [*(weight_file(Path(), part, variant).as_posix() for part in _PARTS), *_CONFIGS]


def _inside(folder: Path) -> list[str]:
    found = (path for name in _FOLDERS for path in (folder / name).glob("*"))
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _lacking(folder: Path, variant: str | None) -> list[str]:
    absent = [name for name in _names(variant) if not (folder / name).is_file()]
    return absent or ([] if _inside(folder) else [f"{_FOLDERS[0]}/*"])


def _not_whole(source: Source, first: str) -> ModelError:
    if source.path and source.path.is_file():
        return ModelError(
            f"{source}: a backbone is a folder in diffusers' layout, not one file",
            "write it as a folder with diffusers, and name that:\n"
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)",
        )
    return ModelError(
        f"{source}: not a whole backbone: {first} is missing",
        "a backbone is a Stable Diffusion 1.x or 2.x folder in diffusers' layout, with "
        "safetensors files",
    )


# From the Hub -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What is wanted of a source: some files of a repository at a revision."""

    source: Source
    place: hub.Repository
    names: tuple[str, ...]

    def stated(self, folder: Path) -> dict[Path, list[str]]:
        """The files in a folder of the cache, with the hashes that are known of each."""
        source = self.source
        return {
            folder / name: known(
                source, folder / name, source.sha256 if source.file else source.digests.get(name)
            )
            for name in self.names
        }


@dataclass(frozen=True)
class Fetch:
    """What the Hub has for some sources, as its server lists it."""

    wishes: tuple[Wish, ...]
    listings: tuple[hub.Listing, ...]  # one for each repository and revision

    @classmethod
    def of(cls, sources: Iterable[Source], half: bool) -> "Fetch":
        """Ask the server for the files of sources; those that are not on the Hub are passed over.

        ModelError if they are not to be had, at once if there is no connection.
        """
        full: dict[hub.Repository, hub.Listing] = {}
        wishes: list[Wish] = []
        for source in sources:
            if not source.repo:
                continue
            place = source.repository
            if place not in full:
                first = missing(source) or source.file or (*source.files, *_names(None))[0]
                hub.require(place, first)
                full[place] = hub.listing(place, first)
            wishes.append(Wish(source, place, tuple(_listed(source, full[place], half))))
        return cls(tuple(wishes), tuple(_wanted(one, wishes) for one in full.values()))

    @classmethod
    def again(cls, source: Source, paths: Sequence[Path]) -> "Fetch":
        """Ask the server for files of a source in the cache, at the commit that they are of.

        A folder stands for what is in it. ModelError if one is not to be had.
        """
        folder = hub.snapshot(source.repository, []) or Path()
        place = replace(source.repository, revision=folder.name)
        lost = [path.relative_to(folder).as_posix() for path in paths]
        hub.require(place, lost[0])
        full = hub.listing(place, lost[0])
        names: list[str] = []
        for name in lost:
            found = [one.name for one in full.files if f"{one.name}/".startswith(f"{name}/")]
            if not found:
                raise _not_there(source, name)
            names += found
        wish = Wish(source, place, tuple(names))
        return cls((wish,), (_wanted(full, [wish]),))

    @cached_property
    def lacking(self) -> tuple[dict[hub.File, int], ...]:
        """Of each listing the files that the cache lacks, with the bytes that have to come."""
        return tuple(hub.lacking(one) for one in self.listings)

    @property
    def to_come(self) -> int:
        """The bytes that have to come."""
        return sum(sum(files.values()) for files in self.lacking)

    def run(self, moved: Moved = lambda _: None) -> None:
        """Bring them into the cache, tell `moved` of bytes as they come, and check their hashes.

        ModelError, or ResourceError for a disk that is too small; a file whose hash is not that
        of the weights file is deleted again.
        """
        hub.check_room(self.to_come)
        lacking = self.lacking  # before they come
        folders = {one.repository: hub.fetch(one, moved) for one in self.listings}
        came = {
            folders[one.repository] / file.name
            for one, files in zip(self.listings, lacking, strict=True)
            for file in files
        }
        for wish in self.wishes:
            wrong = digests.wrong(wish.stated(folders[wish.place]))
            for path in came & wrong.keys():
                hub.drop(path)
            _refuse(wish.source, wrong)


def _wanted(full: hub.Listing, wishes: Iterable[Wish]) -> hub.Listing:
    """Those files of a listing that somebody wishes."""
    names = [name for wish in wishes if wish.place == full.repository for name in wish.names]
    return full.matching(map(escape, names))


def _not_there(source: Source, name: str) -> ModelError:
    what = "`file` in the weights file" if source.file else "the weights file"
    return ModelError(
        f"{source.repo}: {name} at revision {source.repository.at} is not to be had: the "
        "repository has no such file",
        f"correct {what}, then run: {source.repository.command}",
    )


def _listed(source: Source, full: hub.Listing, half: bool) -> list[str]:
    """The names of the files of a source in a listing; ModelError if one is not there."""
    there = {file.name for file in full.files}
    if named := [source.file] if source.file else list(source.files):
        for name in named:
            if name not in there:
                raise _not_there(source, name)
        return named
    for variant in _variants(source, half):
        names = _names(variant)
        inside = [name for name in there if name.startswith(tuple(f"{one}/" for one in _FOLDERS))]
        if inside and there.issuperset(names):
            return [*names, *inside]
    absent = [name for name in _names(None) if name not in there]
    raise _not_whole(source, absent[0] if absent else f"{_FOLDERS[0]}/*")
