"""What class ids and their colours mean: labels.json, a picture of it, the classes of a map."""

import json
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dmp_cli import files, marks
from dmp_cli.classes import ade20k
from dmp_cli.outputs.panels import BACKGROUND, INK, cut, font
from dmp_cli.outputs.writers import write_png

Array = NDArray[Any]

CONVENTION = (
    f"{marks.LEGEND}, id 0 is wall. ADE20K's own 0, other, is left out, "
    "so its annotation files are one higher. 255: no class."
)
SUBSET = " This run tells {count} classes apart; {other} stands for all others."
ROWS = 30  # classes below each other before another column begins


def labels(ids: Iterable[int] | None = None) -> dict[str, Any]:
    """What labels.json holds: the convention, and id, name and sRGB colour of each class.

    `ids` are the classes that a run tells apart, None all. What is none of them takes the lowest
    id that is left out (`classes.nearest_class`): that one is listed, as `other`.
    """
    table = ade20k()
    kept = range(len(table.names)) if ids is None else sorted(set(ids))
    rest = sorted(set(range(len(table.names))) - set(kept))
    names = dict(zip(kept, (table.names[i] for i in kept), strict=True))
    names |= {rest[0]: "other"} if rest else {}
    return {
        "convention": CONVENTION + (SUBSET.format(count=len(kept), other=rest[0]) if rest else ""),
        "classes": [
            {"id": i, "name": names[i], "color": table.standard[i].tolist()} for i in sorted(names)
        ],
    }


def seen(ids: Array) -> dict[int, float]:
    """The classes of a map, uint8 [H, W]: id -> share of its pixels, largest first; without 255."""
    counts = np.bincount(ids.reshape(-1), minlength=256)[: len(ade20k().names)]
    order = np.argsort(-counts, kind="stable")
    return {int(i): float(counts[i] / ids.size) for i in order if counts[i]}


def picture(ids: Iterable[int] | None = None) -> Array:
    """uint8 [h, w, 3]: colour, id and name of each class of `labels(ids)`, in columns."""
    rows = labels(ids)["classes"]
    columns = ceil(len(rows) / ROWS)
    deep = ceil(len(rows) / columns)
    size, line, margin = 20, 32, 24
    names = [cut(row["name"], 320, size) for row in rows]
    number = ceil(font(size).getlength("000")) + 14
    across = 48 + 12 + number + ceil(max(font(size).getlength(name) for name in names)) + 2 * margin
    sheet = Image.new("RGB", (margin + across * columns, 2 * margin + line * deep), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        left, top = margin + place // deep * across, margin + place % deep * line
        box = (left, top + 4, left + 48, top + line - 4)
        draw.rectangle(box, tuple(row["color"]), outline=(96, 96, 96))  # or dark ones are lost
        middle = top + line / 2
        draw.text((left + 48 + number, middle), str(row["id"]), INK, font(size), anchor="rm")
        draw.text((left + 60 + number, middle), name, INK, font(size), anchor="lm")
    return np.asarray(sheet)


def write(folder: Path, ids: Iterable[int] | None = None) -> tuple[Path, Path]:
    """Write labels.json and labels.png into a folder; the errors of `files.write`."""
    kept = None if ids is None else tuple(ids)
    table = labels(kept)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in table["classes"])  # a class a line
    text = f'{{"convention": {json.dumps(table["convention"])},\n "classes": [\n{rows}\n]}}\n'
    table_path, picture_path = (folder / name for name in marks.LEGENDS)
    files.write_bytes(table_path, text.encode())
    write_png(picture_path, picture(kept), {"Title": table["convention"]})
    return table_path, picture_path
