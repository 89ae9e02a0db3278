"""The tiny decoder that a model may have beside its VAE's: its files here, and what they are."""

from pathlib import Path

from dmp_cli import digests, hub, sources
from dmp_cli.errors import ModelError
from dmp_cli.sources import Source

CONFIG, WEIGHTS = FILES = ("config.json", "diffusion_pytorch_model.safetensors")
_FOLDER = (
    f"a tiny decoder is a folder with {' and '.join(FILES)}, as diffusers' AutoencoderTiny has it"
)


def folder(source: Source) -> Path:
    """Its folder on this machine, fetched if need be, its hashes checked where known.

    ModelError names what is missing or differs, and what to do.
    """
    if sources.missing(source):
        sources.Fetch.of([source], half=False).run()
    sources.check(source, stated(source))
    return _here(source)


def stated(source: Source) -> dict[Path, list[str]]:
    """Its files on this machine, with the hashes that are known of each.

    Empty if it has to be fetched; ModelError for a folder that is not whole.
    """
    if sources.missing(source):
        return {}
    return _known(source, _here(source))


def remains(source: Source) -> dict[Path, list[str]]:
    """Its files of which one is lost, with the hashes that are known of the other.

    Empty if its weights were not fetched yet, and where a folder has none of them: most runs do
    without. Of a packaged one all are meant to be there.
    """
    there = hub.snapshot(source.repository, []) if source.repo else source.path
    if there is None:
        return {}
    names = [WEIGHTS] if source.repo else FILES
    begun = any((there / name).is_symlink() or (there / name).is_file() for name in names)
    return _known(source, there) if begun or source.packaged else {}


def identity(source: Source) -> tuple[str, ...]:
    """The sha256 of each of its files in the order of FILES, as stated, or else as they are.

    ModelError as `folder`.
    """
    if all(name in source.digests for name in FILES):
        return tuple(source.digests[name] for name in FILES)
    here = folder(source)
    return tuple(source.digests.get(name) or digests.sha256(here / name) for name in FILES)


def _known(source: Source, there: Path) -> dict[Path, list[str]]:
    return {
        there / name: sources.known(source, there / name, source.digests.get(name))
        for name in FILES
    }


def _here(source: Source) -> Path:
    if source.repo:
        found = hub.cached(source.repository, WEIGHTS)
        if found is None:
            raise ModelError(f"{source}: is not in the Hub's cache", source.repository.command)
        return found.parent
    path = source.path or Path()
    if path.is_file():
        raise ModelError(f"{path}: is a file, not the folder of a tiny decoder", _FOLDER)
    for name in FILES:
        if not (path / name).is_file():
            raise ModelError(
                f"{path}: not a whole tiny decoder: {name} is missing",
                sources.remedy(source) if source.packaged else _FOLDER,
            )
    return path
