"""What training leaves: a LoRA file that says how to use it, and a weights file that names it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from dmp_cli import files, header, lora
from dmp_cli.errors import UsageError
from dmp_cli.lora import Matrices
from dmp_cli.sources import LORA_NAMES, Source, sha256
from dmp_cli.tasks import Task
from dmp_cli.weights import Recipe

WEIGHTS = "weights.toml"


def declared(recipe: Recipe, task: Task) -> dict[str, Any]:
    """The settings for inference that a LoRA file states: those that count for its task."""
    keys = ["prediction", "sampler", "final", "size"]
    keys += ["timestep"] if recipe.sampler == "onepass" else ["steps", "spacing"]
    keys += ["prompt", "guidance"] if recipe.prompt else ["prompt"]
    keys += ["scale"] if task.metres else []
    keys += ["bright"] if task.metres and recipe.bright != "far" else []
    keys += ["normals"] if task.unit_length else []
    keys += ["classes"] if task.labels else []
    return {"task": task.name} | {key: getattr(recipe, key) for key in keys}


def packed(matrices: Matrices, entries: Mapping[str, Any]) -> bytes:
    """A LoRA as a safetensors file in diffusers' layout, its header saying `entries`."""
    return save(lora.to_state(matrices), {"format": "pt"} | header.text(entries))


def write(output: Path, lora_file: bytes, recipe: Recipe, name: str, summary: str) -> Path:
    """Write the LoRA and OUT/weights.toml with a model `name` of it; the path of the LoRA."""
    path = output / LORA_NAMES[0]
    files.write_bytes(path, lora_file)
    lines = [
        f"# dmp predict {recipe.task} IMAGES -o OUT --weights THIS_FILE --model {name}",
        "# Size, steps, prompt and the like stand in the LoRA file; a key given here wins over it.",
        "",
        f"default = [{quoted(name)}]",
        "",
        f"[models.{name}]",
        f"summary = {quoted(summary)}",
        f"backbone = {inline(recipe.backbone)}",
        "",
        f"[models.{name}.tasks.{recipe.task}]",
        f"lora = {{ path = {quoted(path.name)}, sha256 = {quoted(sha256(path))} }}",
        "",
    ]
    files.write_bytes(output / WEIGHTS, "\n".join(lines).encode())
    return path


def inline(source: Source) -> str:
    """A backbone as weights.toml states it, a folder by its full path; UsageError if it cannot."""
    stated = {
        "packaged": source.packaged,
        "path": str(source.path.absolute()) if source.path and not source.packaged else None,
        "repo": source.repo,
        "revision": source.revision,
        "variant": source.variant,
        "made": source.made,
    }
    keys = [f"{key} = {quoted(value)}" for key, value in stated.items() if value]
    return f"{{ {', '.join(keys)} }}"


def quoted(text: str) -> str:
    """A basic string of TOML: JSON's escapes are among TOML's. UsageError for broken bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{text!r} is not UTF-8, as weights files and safetensors need it", "rename the folder"
        ) from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
