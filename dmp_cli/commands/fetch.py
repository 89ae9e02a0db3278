"""What a command fetches before it begins: checked, told with its size, and shown as it comes."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from dmp_cli import connection, digests, hub
from dmp_cli.commands.report import Talk, count
from dmp_cli.sources import Fetch, Source, backbone_stated, lora_stated, missing


def ready(backbone: Source, loras: Sequence[Source], half: bool, offline: bool) -> None:
    """ModelError if a file is neither here nor to be had, within two seconds and without torch.

    What is here begins to be hashed, beside the imports that follow; `half` is a guess.
    """
    if offline:
        connection.go_offline()
    here = [*map(lora_stated, loras), backbone_stated(backbone, half)]  # refuses paths that are not
    for source in (backbone, *loras):
        absent = missing(source)
        if absent:
            hub.require(source.repository, absent)
    for stated in here:
        digests.start(stated)


def fetch(sources: Sequence[Source], half: bool, talk: Talk) -> None:
    """Fetch what is not on this machine. ModelError, ResourceError for a disk without room."""
    absent = [source for source in dict.fromkeys(sources) if missing(source)]
    if absent:
        bring(Fetch.of(absent, half), talk)


def bring(wanted: Fetch, talk: Talk) -> None:
    """Say how much has to come, and show it as it comes."""
    to_come = sum(wanted.lacking.values())
    if wanted.lacking:
        names = ", ".join(dict.fromkeys(one.repository.name for one in wanted.listings))
        talk.note(
            f"fetching {count(len(wanted.lacking), 'file')}, {size(to_come)}, "
            f"of {names} into {hub.cache()}"
        )
    hidden = None if talk.progress and not talk.quiet and to_come else True
    with tqdm(
        total=to_come, unit="B", unit_scale=True, file=sys.stderr, disable=hidden,
        dynamic_ncols=True,
    ) as bar:  # fmt: skip
        wanted.run(bar.update)


def size(number: int) -> str:
    """Bytes in words, `3.44 GB`, as the Hub counts them."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= each:
            return f"{number / each:.2f} {unit}"
    return f"{number} bytes"
