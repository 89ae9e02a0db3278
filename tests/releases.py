"""Releases of small models, for tests."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from dmp_cli import catalogue
from dmp_cli.publishing import release
from dmp_cli.publishing.release import Release
from tests.conftest import PARITY, write_weights

LORA = PARITY / "lora" / "full" / "pytorch_lora_weights.safetensors"
SHA256 = hashlib.sha256(LORA.read_bytes()).hexdigest()
DEPTH = "depth/pytorch_lora_weights.safetensors"


def lora(
    path: Path, entries: dict[str, str], name: str = "unet.a.attn1.to_q.lora_A.weight"
) -> Path:
    """A safetensors file of one small matrix, with `entries` in its header."""
    tensor = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
    header = json.dumps({"__metadata__": entries, name: tensor}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
    return path


def load(path: Path, text: str) -> dict[str, Any]:
    path.write_text(text)
    return catalogue.load(path)


def one(folder: Path, license: str = "", header: dict[str, str] | None = None) -> Release:
    """A release of model `one`: depth alone, its backbone on the Hub."""
    source = lora(folder / "one.safetensors", header or {})
    text = f"""
        [models.one]
        license = {json.dumps(license)}
        backbone = {{ repo = "CompVis/stable-diffusion-v1-4", revision = "133a221b" }}
        [models.one.tasks.depth]
        lora = {{ path = {json.dumps(str(source))} }}
    """
    return release.gather(load(folder / "one.toml", text), "one", ["depth"], "org/one")


def tiny(folder: Path, *tasks: str, extra: str = 'license = "mit"\nsize = 64') -> Release:
    """A release of the model of tests/parity."""
    table = catalogue.load(write_weights(folder / "tiny.toml", extra, tasks or ("depth",)))
    return release.gather(table, "tiny", tasks or ("depth",), "org/tiny")
