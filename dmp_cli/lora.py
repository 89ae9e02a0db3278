"""LoRA files: any of the layouts in use -> checked matrices per attention projection.

Layouts, told by their keys and read to the same matrices:

    official   {attention}.processor.to_q_lora.down.weight         (also below `unet.`)
    diffusers  unet.{attention}.to_q.lora_A.weight, unet.{attention}.to_q.lora.down.weight
    PEFT       base_model.model.{attention}.to_q.lora_A.weight     (adapter_config.json beside it)
    kohya      lora_unet_{attention}_to_q.lora_down.weight, .alpha (underscores in place of dots)
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dmp_cli.errors import ModelError, UsageError

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
ATTENTIONS = {"self": "attn1", "cross": "attn2"}
DECLARED = "dmp.targets"  # the entry of a file's header that says which projections it holds

_PREFIX = re.compile(r"^(base_model\.model\.)?(unet\.)?")
_KEYS = (
    re.compile(r"(?P<at>.+)\.processor\.(?P<to>to_[a-z]+)_lora\.(?P<side>down|up)\.weight"),
    re.compile(r"(?P<at>.+\.to_[a-z]+(\.0)?)\.lora\.(?P<side>down|up)\.weight"),
    re.compile(r"(?P<at>.+\.to_[a-z]+(\.0)?)\.lora_(?P<side>[AB])(\.default)?\.weight"),
    re.compile(r"(?P<at>.+\.to_[a-z]+(\.0)?)\.(?P<side>alpha)"),
)
_KOHYA = re.compile(r"lora_unet_(?P<at>\w+)\.(lora_(?P<side>down|up)\.weight|alpha)")
_SIDES = {"down": "down", "A": "down", "up": "up", "B": "up", "alpha": "alpha"}

Matrices = dict[str, tuple[Tensor, Tensor]]


def read(path: Path, shapes: Mapping[str, tuple[int, int]]) -> Matrices:
    """The (down [r, in], up [out, r]) float32 pair of each projection, the LoRA's scale in `up`.

    `shapes` gives (out, in) of every projection that the file must hold, and no other, unless its
    header declares that it holds some of them only. ModelError names the file and the first thing
    in it that is not so: a key missing or one too many, a shape of another base model, a value
    that is not finite, a file that is no safetensors.
    """
    return check(path, *load(path), shapes)


def check(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    shapes: Mapping[str, tuple[int, int]],
) -> Matrices:
    """What `read` gives, of tensors in memory; `path` is where they came from."""
    try:
        shapes = chosen(shapes, metadata.get(DECLARED, "all"))
    except UsageError as error:
        raise _refused(path, f"{DECLARED} in its header: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {}
    dotted = _dotted(shapes)
    for key in sorted(tensors):
        module, side = _place(path, key, dotted)
        if module not in shapes:
            raise _refused(path, f"{key}: the backbone has no such projection")
        if side in parts.setdefault(module, {}):
            raise _refused(path, f"{key}: {module} is there twice, in two layouts")
        parts[module][side] = tensors[key].to(torch.float32)
    alpha = _declared_alpha(path, metadata)
    return {
        module: _pair(path, module, parts.get(module, {}), shape, alpha)
        for module, shape in shapes.items()
    }


def chosen(
    shapes: Mapping[str, tuple[int, int]], targets: str = "all"
) -> dict[str, tuple[int, int]]:
    """The projections that `targets` names: `all`, or words with commas.

    `self` and `cross` keep these attentions only, `to_q`, `to_k`, `to_v` and `to_out` these
    projections only: `cross,to_q,to_v` is two matrices of each cross-attention. UsageError for
    another word, or if nothing is left.
    """
    words = {word.strip() for word in targets.split(",")} - {"all"}
    projections = {to.removesuffix(".0"): to for to in PROJECTIONS}
    unknown = sorted(words - set(ATTENTIONS) - set(projections))
    if unknown:
        raise UsageError(
            f"unknown target {unknown[0]!r}",
            f"use all, or some of {', '.join([*ATTENTIONS, *projections])}, with commas",
        )
    at = [f".{ATTENTIONS[word]}." for word in words & set(ATTENTIONS)] or [""]
    to = tuple(f".{projections[word]}" for word in words & set(projections)) or PROJECTIONS
    kept = {
        name: shape
        for name, shape in shapes.items()
        if name.endswith(to) and any(part in name for part in at)
    }
    if not kept:
        raise UsageError(f"the backbone has no projection for targets {targets!r}", "use all")
    return kept


def to_state(matrices: Matrices) -> dict[str, Tensor]:
    """Matrices in diffusers' layout, below `unet.`, as dmp writes them."""
    state = {}
    for module, (down, up) in sorted(matrices.items()):
        state[f"unet.{module}.lora_A.weight"] = down.contiguous()
        state[f"unet.{module}.lora_B.weight"] = up.contiguous()
    return state


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path}: not a LoRA for this backbone: {why}",
        "check that the file is whole and was trained on this backbone",
    )


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, unchecked; ModelError if it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read as safetensors: {error}",
            "fetch or copy the file again; a pickle (.bin, .pt) is for `dmp weights import`",
        ) from error


def _dotted(modules: Iterable[str]) -> dict[str, str]:
    """Modules by their names in kohya's layout; names that two of them share are left out."""
    found: dict[str, list[str]] = {}
    for module in modules:
        found.setdefault(module.replace(".", "_"), []).append(module)
    return {flat: same[0] for flat, same in found.items() if len(same) == 1}


def _place(path: Path, key: str, dotted: Mapping[str, str]) -> tuple[str, str]:
    """(module, side) of a key of any layout."""
    kohya = _KOHYA.fullmatch(key)
    if kohya:
        return dotted.get(kohya["at"], kohya["at"]), kohya["side"] or "alpha"
    for pattern in _KEYS:
        found = pattern.fullmatch(_PREFIX.sub("", key))
        if found:
            parts = found.groupdict()
            module = parts["at"] + (f".{parts['to']}" if "to" in parts else "")
            module += ".0" if module.endswith(".to_out") else ""
            return module, _SIDES[parts["side"]]
    raise _refused(path, f"{key}: no key of a LoRA on attention projections")


def _declared_alpha(path: Path, metadata: Mapping[str, str]) -> float | None:
    """`lora_alpha` as PEFT writes it beside the file, or diffusers into it; None: the rank."""
    config = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            declared = json.loads(metadata["lora_adapter_metadata"])
            declared = {key.removeprefix("unet."): value for key, value in declared.items()}
        elif path.stem == "adapter_model" and config.exists():
            declared = json.loads(config.read_text())
        else:
            return None
        if declared.get("use_dora") or declared.get("use_rslora"):
            raise _refused(path, "DoRA and rank-stabilised LoRA are not supported")
        if declared.get("alpha_pattern") or declared.get("rank_pattern"):
            raise _refused(path, "a rank or alpha for each layer is not supported")
        alpha = declared.get("lora_alpha")
        return None if alpha is None else float(alpha)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise _refused(path, f"its adapter configuration is not valid: {error}") from error


def _pair(
    path: Path, module: str, sides: Mapping[str, Tensor], shape: tuple[int, int],
    alpha: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    for side in ("down", "up"):
        if side not in sides:
            raise _refused(path, f"{module}: its {side} matrix is missing")
        if not torch.isfinite(sides[side]).all():
            raise _refused(path, f"{module}: its {side} matrix holds values that are not finite")
    down, up = sides["down"], sides["up"]
    rank, (outputs, inputs) = down.shape[0] if down.ndim else 0, shape
    expected = ((rank, inputs), (outputs, rank))
    if rank == 0 or (tuple(down.shape), tuple(up.shape)) != expected:
        raise _refused(
            path, f"{module}: down {list(down.shape)} and up {list(up.shape)} "
            f"do not fit its {inputs} inputs and {outputs} outputs",
        )  # fmt: skip
    if "alpha" in sides and sides["alpha"].numel() == 1:
        alpha = float(sides["alpha"])
    elif "alpha" in sides:
        raise _refused(path, f"{module}: its alpha is no single number")
    if alpha is not None and not math.isfinite(alpha):
        raise _refused(path, f"{module}: its alpha is {alpha}")
    return down, up if alpha is None else up * (alpha / rank)
