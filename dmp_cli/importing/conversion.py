"""A LoRA file of others -> one canonical safetensors. The only room that opens pickles."""

import hashlib
import json
import pickletools
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save
from torch import Tensor

from dmp_cli import header, lora
from dmp_cli.errors import ModelError

LARGEST = 1 << 30  # bytes; a LoRA of rank 4 has 3 MB, one of rank 128 has 100

_SAFE = ".safetensors"
_KEPT = (torch.float16, torch.bfloat16, torch.float32)
_PICKLES = 5  # in a file of torch's format before 1.6; then come bare numbers
_MOST_STEPS, _MOST_TUPLES = 1_000_000, 30_000  # a LoRA of 256 tensors takes 8,000 and 1,300
_PUTS = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")
_GETS = ("BINGET", "LONG_BINGET", "GET")
_PROTOCOL = b"\x80"  # what every pickle of torch.save begins with
# What a pickled tensor is made of. torch itself lets more through; some of that takes memory
_TENSORS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor(_v2)?|parameter)|torch\.Size|"
    r"torch\.(storage\.)?\w*Storage|torch\.b?float\d*|torch\.(double|half)"
)
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True)
class Converted:
    """A LoRA as dmp keeps it."""

    data: bytes
    rank: str  # "4", or "4 to 8" if the projections differ
    parameters: int
    dtype: str

    @property
    def sha256(self) -> str:
        """Of the file that `data` will be."""
        return hashlib.sha256(self.data).hexdigest()


# Reading ----------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and its metadata; what it is, is told by its content.

    A pickle is read with torch's `weights_only`, after what it names was looked at: nothing of it
    is run. ModelError names the file and what in it is no tensor, or why it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise _refused(path, f"{size / 1e9:.1f} GB are more than a LoRA has")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", "check the file") from error
    if start[8:] == b"{":
        return lora.load(path)
    if path.suffix.lower() == _SAFE:
        raise _refused(path, "named safetensors, but it is none", _kind(start))
    return _unpickled(path, start), {}


def _refused(path: Path, why: str, kind: str = "") -> ModelError:
    return ModelError(
        f"{path}: {why}{kind and f' ({kind})'}",
        "fetch the file again, or ask who made it for a safetensors file",
    )


def _kind(start: bytes) -> str:
    """What a file is that should have been a LoRA, by its first bytes."""
    known = {
        b"PK": "a zip, as torch.save makes it", _PROTOCOL: "a pickle",
        b"\x93NUMPY": "a numpy array", b"<": "a web page: Google Drive sends one when it refuses",
    }  # fmt: skip
    named = (text for begin, text in known.items() if start.lstrip().startswith(begin))
    return next(named, "") if start else "empty"


def _unpickled(path: Path, start: bytes) -> dict[str, Tensor]:
    zipped = zipfile.is_zipfile(path)
    if not zipped and not start.startswith(_PROTOCOL):
        raise _refused(path, "not a file of torch.save", _kind(start))
    try:
        stranger = next((n for n in _named(path, zipped) if not _TENSORS.fullmatch(n)), None)
        if stranger:
            raise _hostile(path, stranger)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on its own old formats
            held = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # torch and the unpickler raise nearly every kind
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise _hostile(path, named[1]) from error
        raise _refused(path, "not a whole file of torch.save") from error
    return _flat(path, held)


def _hostile(path: Path, name: str) -> ModelError:
    return ModelError(
        f"{path}: refused: it holds {name}, which is no tensor; nothing of it was run",
        "a LoRA holds tensors alone: do not use this file; ask who made it for a safetensors one",
    )


def _named(path: Path, zipped: bool) -> Iterator[str]:
    """The functions and classes that a pickle names. ModelError for a zip that claims too much."""
    if not zipped:
        with path.open("rb") as file:
            for _ in range(_PICKLES):
                yield from _globals(file)
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise _refused(path, "claims to hold more bytes than it has")
        pickles = [member for member in members if member.filename.lower().endswith(".pkl")]
        if not pickles:
            raise _refused(path, "a zip, but not of torch.save")
        for member in pickles:
            with archive.open(member) as inside:
                yield from _globals(inside)


def _globals(file: IO[bytes]) -> Iterator[str]:
    """The names in one pickle; the file is left where it ends.

    ValueError for what no tensor needs and would keep the unpickler busy, or end the process: very
    many steps or tuples, and tuples that are used again. A few hundred bytes of those, as the key
    of a dict, take years to hash.
    """
    texts, tuples, steps, before = ["", ""], set[object](), Counter[str](), ""
    for opcode, argument, _ in pickletools.genops(file):
        kind = opcode.name.rstrip("123")
        steps[kind] += 1
        if kind in _PUTS and before == "TUPLE":
            tuples.add(argument if argument is not None else sum(steps[put] for put in _PUTS) - 1)
        if (opcode.name in _GETS and argument in tuples) or kind == "DUP":
            raise ValueError("it uses a tuple twice")
        if steps["TUPLE"] > _MOST_TUPLES or steps.total() > _MOST_STEPS:
            raise ValueError("it takes more steps than the tensors of a LoRA")
        before = kind
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts)
        elif isinstance(argument, str):
            texts = [texts[1], argument]


def _flat(path: Path, held: Any) -> dict[str, Tensor]:
    """Tensors by name, as they are, or one level below `state_dict`; ModelError for all else."""
    if isinstance(held, dict) and list(held) == ["state_dict"]:
        held = held["state_dict"]
    if not isinstance(held, dict):
        raise _refused(path, f"holds a {type(held).__name__}, not tensors by name")
    tensors, total = {}, 0
    for key, value in held.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            why = (
                f"{key[:80]!r} is a {_kind_of(value)}"
                if isinstance(key, str)
                else (f"a key is a {_kind_of(key)}, no name")
            )
            raise _refused(path, f"{why}, not a tensor")
        total += value.numel() * value.element_size()
        tensors[key] = value.detach()
    if total > path.stat().st_size:
        raise _refused(path, "its tensors claim to hold more bytes than it has")
    return tensors


def _kind_of(value: object) -> str:
    return type(value).__name__


# Writing ----------------------------------------------------------------------------------


def convert(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
    shapes: Mapping[str, tuple[int, int]], entries: Mapping[str, Any],
) -> Converted:  # fmt: skip
    """Check tensors as `lora.read` does, and pack them: equal input gives equal bytes.

    `shapes` gives (outputs, inputs) of each projection of the backbone. The LoRA's scale is folded
    in. Matrices keep the dtype of the source, or have float32 where that would lose something.
    ModelError names the first difference.
    """
    whole = [key for key, tensor in tensors.items() if not tensor.is_floating_point()]
    strange = [key for key in whole if not key.endswith(".alpha")]
    if strange:
        raise _refused(path, f"{strange[0]} holds {_plain(tensors[strange[0]].dtype)}, no floats")
    try:
        matrices = lora.check(path, tensors, metadata, shapes)
    except ModelError as error:
        raise ModelError(str(error), _hint(tensors, error.hint)) from error
    dtype = _common(tensors)
    ranks = sorted({down.shape[0] for down, _ in matrices.values()})
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    state = lora.to_state({name: _narrow(pair, dtype) for name, pair in matrices.items()})
    told = {"format": "pt"} | header.text({**entries, "rank": rank})
    if lora.DECLARED in metadata:
        told[lora.DECLARED] = metadata[lora.DECLARED]
    return Converted(
        _sorted(save(state, told)),
        rank, sum(tensor.numel() for tensor in state.values()), _plain(dtype),
    )  # fmt: skip


def _hint(tensors: Mapping[str, Tensor], otherwise: str) -> str:
    """Which Stable Diffusion a LoRA is for, by the width of the text that it takes."""
    wide = {
        tensor.shape[1]
        for key, tensor in tensors.items()
        if "attn2" in key and re.search("to_[kv]", key) and tensor.ndim == 2
    }
    known = [_WIDTHS[width] for width in wide if width in _WIDTHS]
    if not known or known[0] == _WIDTHS[768]:
        return otherwise
    return f"by its shapes it is for {known[0]}: name such a backbone with --backbone"


def _common(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds all of them; float32 for what no LoRA is kept in."""
    dtypes = {tensor.dtype for key, tensor in tensors.items() if not key.endswith(".alpha")}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(_KEPT) else torch.float32


def _narrow(pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A pair in `dtype`, where that loses nothing: the scale in `up` may not fit."""
    down, up = (
        narrow if torch.equal((narrow := matrix.to(dtype)).float(), matrix) else matrix
        for matrix in pair
    )
    return down, up


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sorted(data: bytes) -> bytes:
    """A safetensors file with its header in order: the library writes metadata in any."""
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    text = json.dumps(head, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
