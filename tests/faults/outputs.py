"""What lies in an output folder: whole files, their bytes, the lines of the manifest."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from OpenImageIO import ImageBuf
from PIL import Image

MANIFEST = "dmp-manifest.jsonl"


def maps(out: Path) -> dict[str, bytes]:
    """The bytes of each file below a folder, but for manifests and what is hidden."""
    found = {}
    for folder, folders, names in os.walk(out):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith((".", "dmp-manifest")):
                path = Path(folder, name)
                found[str(path.relative_to(out))] = path.read_bytes()
    return found


def require_whole(out: Path) -> int:
    """Open every file below a folder to its last pixel; how many there are."""
    names = maps(out)
    for name in names:
        path = out / name
        if path.suffix == ".npy":
            assert np.isfinite(np.load(path)).all(), path
        elif path.suffix == ".exr":
            pixels = ImageBuf(str(path)).get_pixels()
            assert np.isfinite(np.asarray(pixels)).all(), path
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        else:
            assert path.suffix in (".json", ".html", ".jpg"), path
            assert path.read_bytes(), path
    return len(names)


def inputs_noted(out: Path) -> list[dict[str, Any]]:
    """The records of inputs in the manifest; every line of it is one of JSON."""
    lines = (out / MANIFEST).read_bytes().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "input"]
