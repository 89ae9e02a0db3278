"""What a command fetches before it begins: checked, told with its size, and shown as it comes."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from dmp_cli import connection, decoders, digests, hub
from dmp_cli.commands.report import Talk, count
from dmp_cli.download import Moved
from dmp_cli.files import in_words
from dmp_cli.sources import Fetch, Source, backbone_stated, lora_stated, missing


def half_of(device: str, dtype: str) -> bool | None:
    """Whether a run takes half precision, as far as that is known without torch."""
    if dtype == "auto":
        return None if device == "auto" else device.startswith("cuda")
    return dtype == "fp16"


def ready(backbone: Source, others: Sequence[Source], half: bool | None, offline: bool) -> None:
    """ModelError if a file is neither here nor to be had, within two seconds and without torch.

    `others` are LoRAs, and a tiny decoder. What is here begins to be hashed, beside the imports
    that follow; where `half` is not known, of the backbone only what is needed either way.
    """
    if offline:
        connection.go_offline()
    here = [*map(_stated, others), _backbone_stated(backbone, half)]  # refuses wrong paths
    for source in (backbone, *others):
        absent = missing(source)
        if absent:
            hub.require(source.repository, absent)
    for stated in here:
        digests.start(stated)


def _stated(source: Source) -> dict[Path, list[str]]:
    return decoders.stated(source) if source.files else lora_stated(source)


def _backbone_stated(backbone: Source, half: bool | None) -> dict[Path, list[str]]:
    if half is not None:
        return backbone_stated(backbone, half)
    full, reduced = (backbone_stated(backbone, each) for each in (False, True))
    return {path: full[path] for path in full.keys() & reduced.keys()}


def fetch(sources: Sequence[Source], half: bool, talk: Talk) -> None:
    """Fetch what is not on this machine. ModelError, ResourceError for a disk without room."""
    absent = [source for source in dict.fromkeys(sources) if missing(source)]
    if absent:
        bring(Fetch.of(absent, half), talk)


def bring(wanted: Fetch, talk: Talk) -> None:
    """Say how much has to come, and show it as it comes."""
    files = sum(map(len, wanted.lacking))
    if files:
        names = ", ".join(dict.fromkeys(one.repository.name for one in wanted.listings))
        talk.note(
            f"fetching {count(files, 'file')}, {in_words(wanted.to_come)}, "
            f"of {names} into {hub.cache()}"
        )
    with byte_bar(wanted.to_come, talk) as moved:
        wanted.run(moved)


@contextmanager
def byte_bar(total: int, talk: Talk) -> Iterator[Moved]:
    """A bar of bytes, and what moves it; hidden if none have to come."""
    hidden = None if talk.progress and not talk.quiet and total else True
    with tqdm(
        total=total, unit="B", unit_scale=True, file=sys.stderr, disable=hidden,
        dynamic_ncols=True,
    ) as bar:  # fmt: skip
        yield bar.update
