"""Under which licence a file of others stands, as far as what lies beside it says so."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dmp_cli import header
from dmp_cli.header import NOT_STATED
from dmp_cli.importing.recognition import BESIDE, Found


def stated(found: Found, metadata: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """What a file's header, or a README.md above it, states as its licence; and notes on it."""
    for key in (f"{header.PREFIX}license", "license", "modelspec.license"):
        if metadata.get(key, NOT_STATED) != NOT_STATED:
            return metadata[key], ()
    texts = []
    for path in _told_by(found):
        if path.name.lower() == "readme.md":
            stated = _front_matter(path)
            if stated:
                return stated, (f"licence from {path.name}",)
        else:
            texts.append(path.name)
    return NOT_STATED, tuple(f"{name} lies there; dmp does not read it" for name in texts[:1])


def _told_by(found: Found) -> Iterator[Path]:
    """Model cards and licences beside a file and above it, up to what was given."""
    last = found.root.parent if found.root == found.path else found.root
    for folder in found.path.parents:
        beside = (one for one in folder.iterdir() if BESIDE.fullmatch(one.name) and one.is_file())
        yield from sorted(one for one in beside if one.suffix.lower() != ".json")
        if folder == last:
            return


def _front_matter(path: Path) -> str | None:
    """The `license` of a model card, as the Hub writes it between two lines of dashes."""
    with path.open("rb") as file:
        text = file.read(100_000).decode(errors="replace").replace("\r\n", "\n")
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    stated = dict(
        re.findall(r"^(license|license_name):[ \t]*(?:\n[ \t]*-[ \t]*)?([^\n]+)$", head[1], re.M)
        if head
        else ()
    )
    name = stated.get("license_name") if stated.get("license") == "other" else None
    return (name or stated.get("license", "")).strip(" \"'") or None
