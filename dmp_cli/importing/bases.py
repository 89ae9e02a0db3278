"""Which base model a LoRA of others was trained on, as far as the file says so."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from dmp_cli import header
from dmp_cli.errors import ModelError

_KEYS = (f"{header.PREFIX}base", "base_model", "ss_base_model_version")
_PEFT = ("base_model_name_or_path", "base_model")  # of adapter_config.json


def stated(path: Path, metadata: Mapping[str, str]) -> str:
    """The base model that a file's header, or an adapter_config.json beside it, names; or nothing.

    Of a path on somebody's machine only its last name is taken.
    """
    for key in _KEYS:
        word = metadata.get(key, "").strip()
        if word and not word.endswith(header.ASSUMED):
            return _name(word)
    config = path.with_name("adapter_config.json")
    try:
        told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{config}: cannot be read: {error}", "fetch it again, or take it away"
        ) from error
    words = (told.get(key) for key in _PEFT) if isinstance(told, dict) else ()
    return next((_name(word) for word in words if isinstance(word, str) and word.strip()), "")


def _name(text: str) -> str:
    """A repository or a version as it is; the last name of a path."""
    text = text.strip()
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and not text.startswith("."):
        return text
    names = [name for name in re.split(r"[/\\]", text) if name]
    return names[-1] if names and re.search(r"[/\\]", text) else text
