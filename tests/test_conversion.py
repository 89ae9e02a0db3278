"""Files of others -> one canonical file: the same numbers, the same bytes, and nothing run."""

import ast
import builtins
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from dmp_cli import backbone, header, lora
from dmp_cli.errors import ModelError
from dmp_cli.importing import conversion
from tests.conftest import PARITY

BIN = PARITY / "lora/full/pytorch_lora_weights.bin"
SAFE = PARITY / "lora/full/pytorch_lora_weights.safetensors"
SHAPES = backbone.shapes_of(PARITY / "sd-tiny/unet/config.json")
STATE = load_file(SAFE)
State = dict[str, Tensor]


def packed(held: object, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(held, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def convert(path: Path, **entries: object) -> conversion.Converted:
    return conversion.convert(path, *conversion.read(path), SHAPES, entries)


# What comes out ---------------------------------------------------------------------------


def test_a_pickle_and_a_safetensors_give_the_same_numbers(tmp_path: Path) -> None:
    expected = lora.read(SAFE, SHAPES)
    for source in (BIN, SAFE):
        done = convert(source, task="depth")
        path = tmp_path / "out.safetensors"
        path.write_bytes(done.data)
        found = lora.read(path, SHAPES)
        assert all(
            torch.equal(one, other)
            for name, pair in expected.items()
            for one, other in zip(pair, found[name], strict=True)
        )
        assert (done.rank, done.dtype) == ("4", "float32")
        assert done.parameters == sum(tensor.numel() for tensor in STATE.values())


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "held",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE},
        {key: torch.nn.Parameter(value) for key, value in STATE.items()},
    ],
    ids=["dict", "ordered", "below state_dict", "parameters"],
)
def test_pickles_of_torch(held: dict[str, Any], new: bool, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(packed(held, new))
    assert convert(tmp_path / "a.pt").sha256 == convert(SAFE).sha256


def test_a_safetensors_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(SAFE.read_bytes())
    assert convert(tmp_path / "a.bin").sha256 == convert(SAFE).sha256


def test_equal_input_gives_equal_bytes() -> None:
    entries = dict.fromkeys(("task", "prompt", "source", "license", "b", "a", "z"), "x" * 9)
    assert len({convert(SAFE, **entries).data for _ in range(8)}) == 1
    other = convert(SAFE, **entries | {"a": "y"})
    assert other.sha256 != convert(SAFE, **entries).sha256


def test_what_the_header_says(tmp_path: Path) -> None:
    done = convert(SAFE, task="depth", scale=4.0, prompt="ein \u00dcbel\udcff", license="mit")
    (tmp_path / "a.safetensors").write_bytes(done.data)
    assert header.settings(tmp_path / "a.safetensors", "depth") == {
        "scale": 4.0,
        "prompt": "ein \u00dcbel\\udcff",
    }
    assert header.read(tmp_path / "a.safetensors")["rank"] == "4"
    (length,) = struct.unpack("<Q", done.data[:8])
    assert length % 8 == 0
    assert sorted(load(done.data)) == sorted(lora.to_state(lora.read(SAFE, SHAPES)))


DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({key: value.to(dtype) for key, value in STATE.items()}, tmp_path / "a.safetensors")
    done = convert(tmp_path / "a.safetensors")
    assert {tensor.dtype for tensor in load(done.data).values()} == {dtype}
    assert done.dtype == str(dtype).removeprefix("torch.")


def test_double_precision_becomes_single(tmp_path: Path) -> None:
    save_file({key: value.double() for key, value in STATE.items()}, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors").data == convert(SAFE).data


def with_alpha(alpha: float, dtype: torch.dtype) -> State:
    state = {key: value.to(dtype) for key, value in STATE.items()}
    diffusers = {}
    for key, value in state.items():
        at, rest = key.split(".processor.")
        to, side, _ = rest.split(".")
        to = to.removesuffix("_lora") + (".0" if "to_out" in to else "")
        diffusers[f"unet.{at}.{to}.lora.{side}.weight"] = value
        diffusers[f"unet.{at}.{to}.alpha"] = torch.tensor(alpha)
    return diffusers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [8.0, 3.3])
def test_an_alpha_is_folded_in_without_loss(
    alpha: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(with_alpha(alpha, dtype), path)
    expected = lora.read(path, SHAPES)
    done = convert(path)
    (tmp_path / "b.safetensors").write_bytes(done.data)
    found = lora.read(tmp_path / "b.safetensors", SHAPES)
    for name, (down, up) in expected.items():
        assert torch.equal(down, found[name][0])
        assert torch.equal(up, found[name][1])
    kept = {tensor.dtype for tensor in load(done.data).values()}
    assert kept == ({dtype} if alpha == 8 else {dtype, torch.float32})


def test_peft_s_configuration_counts_beside_a_pickle_too(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(packed(STATE))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 4}))
    twice = load(convert(tmp_path / "adapter_model.bin").data)
    once = load(convert(SAFE).data)
    assert all(torch.equal(twice[key], once[key] * (2 if "lora_B" in key else 1)) for key in once)


def test_another_rank(tmp_path: Path) -> None:
    state = {
        key: torch.cat([value] * 2, dim=1 if ".up." in key else 0) for key, value in STATE.items()
    }
    save_file(state, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors").rank == "8"


def test_targets_that_a_file_declares_are_kept(tmp_path: Path) -> None:
    part = lora.chosen(SHAPES, "cross")
    state = lora.to_state({name: lora.read(SAFE, SHAPES)[name] for name in part})
    save_file(state, tmp_path / "a.safetensors", {lora.DECLARED: "cross"})
    (tmp_path / "b.safetensors").write_bytes(convert(tmp_path / "a.safetensors").data)
    assert set(lora.read(tmp_path / "b.safetensors", SHAPES)) == set(part)


# Shapes -----------------------------------------------------------------------------------


def official(shapes: dict[str, tuple[int, int]], rank: int = 4) -> State:
    """A LoRA in the layout of the paper's authors."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (outputs, inputs) in shapes.items():
        at, to = name.removesuffix(".0").rsplit(".", 1)
        for side, size in (("down", (rank, inputs)), ("up", (outputs, rank))):
            key = f"{at}.processor.{to}_lora.{side}.weight"
            state[key] = torch.rand(size, generator=generator) / 100
    return state


def test_the_shape_of_stable_diffusion_1() -> None:
    """As the paper says: rank 4 on all projections of all attentions are 797,184 numbers."""
    shapes = backbone.shapes_of(None)
    state = official(shapes)
    assert (len(shapes), len(state)) == (128, 256)
    assert shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"] == (320, 768)
    assert shapes["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"] == (1280, 1280)
    done = conversion.convert(Path("x"), state, {}, shapes, {})
    assert done.parameters == 797_184
    assert len(load(done.data)) == 256


def test_shapes_of_a_configuration(tmp_path: Path) -> None:
    assert SHAPES.keys() == backbone.shapes_of(None).keys()
    assert SHAPES["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"] == (16, 32)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be loaded"):
        backbone.shapes_of(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("width", "named"), [(1024, "Stable Diffusion 2.x"), (2048, "Stable Diffusion XL"), (64, "")]
)
def test_a_lora_of_another_backbone(width: int, named: str) -> None:
    wide = {
        name: (outputs, width if "attn2.to_k" in name or "attn2.to_v" in name else inputs)
        for name, (outputs, inputs) in SHAPES.items()
    }
    with pytest.raises(ModelError, match=rf"\[4, {width}\].* do not fit") as raised:
        conversion.convert(Path("x"), official(wide), {}, SHAPES, {})
    assert named in raised.value.hint
    assert bool(named) == ("--backbone" in raised.value.hint)


def without(state: State) -> None:
    del state[max(state)]


def one_more(state: State) -> None:
    state["conv_in.weight"] = torch.zeros(2, 2)


def with_nan(state: State) -> None:
    state[max(state)][0, 0] = float("nan")


def too_large(state: State) -> None:
    state[max(state)] = torch.full_like(state[max(state)], 1e300, dtype=torch.float64)


def rank_zero(state: State) -> None:
    state.update({key: t[:, :0] if ".up." in key else t[:0] for key, t in state.items()})


def whole_numbers(state: State) -> None:
    state[max(state)] = torch.ones(state[max(state)].shape, dtype=torch.int8)


def complex_numbers(state: State) -> None:
    state[max(state)] = state[max(state)].to(torch.complex64)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (without, "matrix is missing"), (one_more, "conv_in.weight: no key of a LoRA"),
        (with_nan, "not finite"), (too_large, "not finite"), (rank_zero, r"down \[0, "),
        (whole_numbers, "holds int8, no floats"), (complex_numbers, "holds complex64, no floats"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_the_first_difference_is_named(
    damage: Callable[[State], None], why: str, suffix: str, tmp_path: Path
) -> None:
    state = {key: value.clone() for key, value in STATE.items()}
    damage(state)
    state = {key: value.contiguous() for key, value in state.items()}
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed(state) if suffix == ".bin" else save(state))
    with pytest.raises(ModelError, match=why) as raised:
        convert(path)
    assert str(path) in str(raised.value)


# Hostile pickles --------------------------------------------------------------------------


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, call: Callable[..., object], *words: object) -> None:
        self.call = call, words

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def touch(flag: Path) -> dict[str, tuple[Runs, str]]:
    """Ways to make a file, and what of each must be named."""
    code = f"open({str(flag)!r}, 'w').close()"
    return {
        "os.system": (Runs(os.system, f"touch {flag}"), "posix.system"),
        "eval": (Runs(builtins.eval, code), "eval"),
        "exec": (Runs(builtins.exec, code), "exec"),
        "popen": (Runs(subprocess.Popen, ["touch", str(flag)]), ".Popen"),
        "open": (Runs(builtins.open, str(flag), "w"), "open"),
        "torch.load": (Runs(torch.load, str(flag)), "torch.serialization.load"),
        "getattr": (Runs(builtins.getattr, STATE, "clear"), "getattr"),
    }


WAYS = list(touch(Path()))


def member(data: bytes, name: str, content: bytes) -> bytes:
    """A zip with a member more."""
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def tar(content: bytes) -> bytes:
    """As torch wrote before 0.1.10."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            archive.addfile(facts, io.BytesIO(content))
    return file.getvalue()


def array(held: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([held], dtype=object), allow_pickle=True)
    return file.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "zip": packed,
    "legacy": lambda held: packed(held, new=False),
    "zip, nested": lambda held: packed({**STATE, "x": {"y": [(held,)]}}),
    "legacy, nested": lambda held: packed({**STATE, "x": {"y": [(held,)]}}, new=False),
    "state_dict": lambda held: packed({"state_dict": {**STATE, "x": held}}),
    "pickle 0": lambda held: pickle.dumps(held, 0),
    "pickle 2": lambda held: pickle.dumps(held, 2),
    "pickle 4": lambda held: pickle.dumps(held, 4),
    "pickle 5, nested": lambda held: pickle.dumps({"a": [held]}, 5),
    "second pickle": lambda held: pickle.dumps({}, 2) + pickle.dumps(held, 2),
    "zip, another member": lambda held: member(
        packed(STATE), "archive/constants.pkl", pickle.dumps(held, 2)
    ),
    "zip, capitals": lambda held: member(packed(STATE), "archive/DATA.PKL", pickle.dumps(held, 2)),
    "tar": lambda held: tar(pickle.dumps(held, 2)),
    "numpy": array,
}
UNNAMED = ("pickle 0", "tar", "numpy")  # refused before what they hold is looked at


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_a_hostile_file_is_run(way: str, form: str, suffix: str, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    held, name = touch(flag)[way]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(FORMS[form](held))
    with pytest.raises(ModelError) as raised:
        conversion.read(path)
    assert not flag.exists()
    text = f"{raised.value}\n{raised.value.hint}"
    assert str(path) in text
    assert "weights_only" not in text
    assert "pytorch.org" not in text
    if suffix == ".bin" and form not in UNNAMED:
        assert f"{name}, which is no tensor; nothing of it was run" in text


@pytest.mark.parametrize("way", ["os.system", "eval"])
def test_the_payloads_would_run(way: str, tmp_path: Path) -> None:
    """So that the test above is one: a reader that trusts them makes the file."""
    flag = tmp_path / "flag"
    pickle.loads(FORMS["pickle 2"](touch(flag)[way][0]))
    assert flag.exists()


def test_a_torchscript_archive(tmp_path: Path) -> None:
    class Adds(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch may call it deprecated
        torch.jit.save(torch.jit.script(Adds()), str(tmp_path / "a.pt"))
    with pytest.raises(ModelError, match="__torch__"):
        conversion.read(tmp_path / "a.pt")


# What is no LoRA --------------------------------------------------------------------------


def rezipped(edit: Callable[[str, bytes], bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with a member changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed(STATE))) as old, zipfile.ZipFile(file, "w", how) as new:
        for one in old.infolist():
            new.writestr(one.filename, edit(one.filename, old.read(one)))
    return file.getvalue()


def bomb(levels: int) -> bytes:
    """A pickle of a dict whose key is a tuple of twice the tuple before: 2 ** levels to hash."""
    return b"\x80\x02N\x85q\0" + b"h\0h\0\x86q\0" * levels + b"}h\0Ns."


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a file of torch.save \\(empty\\)"),
        (b"<!DOCTYPE html>quota", "a web page: Google Drive"),
        (b"\x93NUMPY\x01\x00v\x00", "a numpy array"),
        (np.random.default_rng(0).bytes(100).replace(b"\x80", b"x"), "not a file of torch.save"),
        (b"\x80\x02", "not a whole file"),
        (b"\x80\x02}.", "not a whole file"),
        (packed(STATE)[:-30], "not a file of torch.save|not a whole file"),
        (packed(STATE, new=False)[:-30], "not a whole file"),
        (packed([torch.zeros(2)]), "holds a list, not tensors by name"),
        (packed(torch.zeros(2)), "holds a Tensor, not tensors by name"),
        (packed({"a": 1.0}), "'a' is a float, not a tensor"),
        (packed({1: torch.zeros(2)}), "a key is a int, no name"),
        (bomb(45), "not a whole file"),
        (b"\x80\x02}N" + b"\x85" * 3_000_000 + b"Ns.", "not a whole file"),
        (b"\x80\x02" + b"N0" * 600_000 + b"}.", "not a whole file"),
        (packed({"state_dict": STATE, "epoch": 3}), "'state_dict' is a dict|'epoch' is a int"),
        (packed({"state_dict": {"state_dict": STATE}}), "is a dict, not a tensor"),
        (packed({"a": torch.zeros(1).expand(10**9)}), "claim to hold more bytes than it has"),
        (packed({"a": torch.zeros(10**9, device="meta")}), "_rebuild_meta_tensor"),
        (packed({"a": torch.eye(3).to_sparse()}), "_rebuild_sparse_tensor|get_layout"),
        (packed({"a": bytearray(9)}), "bytearray, which is no tensor"),
        (packed({"a": {1, 2}}), "set, which is no tensor"),
        (rezipped(lambda _, data: data, zipfile.ZIP_DEFLATED), "claims to hold more bytes"),
        (rezipped(lambda name, data: data[:4] if "/data/" in name else data), "not a whole file"),
    ],
)
def test_what_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=why) as raised:
        conversion.read(path)
    assert str(path) in str(raised.value)
    assert "weights_only" not in f"{raised.value}{raised.value.hint}"


def test_a_large_file_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(conversion.LARGEST + 1)
    for name in ("a.bin", "b.safetensors"):
        path = (tmp_path / "a.bin").rename(tmp_path / name)
        with pytest.raises(ModelError, match=r"1\.1 GB are more than a LoRA has"):
            conversion.read(path)
        path.rename(tmp_path / "a.bin")


def legacy(numbers: int) -> bytes:
    """A file that claims a tensor of so many numbers."""
    data = packed({"a": torch.zeros(1000)}, new=False)
    return data.replace(b"M\xe8\x03", b"\x8a\x06" + numbers.to_bytes(6, "little"))


def grown(numbers: int) -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(packed({"a": torch.zeros(1000)}))) as old,
        zipfile.ZipFile(file, "w") as new,
    ):
        for one in old.infolist():
            claimed = b"\x8a\x06" + numbers.to_bytes(6, "little")
            new.writestr(one.filename, old.read(one).replace(b"M\xe8\x03", claimed))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        legacy(10**9), legacy(10**12), grown(10**9), grown(10**12),
        packed({"a": Runs(bytearray, 2 * 10**9)}),
        packed({"a": torch.zeros(1).expand(10**10)}),
    ],
    ids=["legacy", "legacy, more", "zip", "zip, more", "bytearray", "expanded"],
)  # fmt: skip
def test_memory_is_bounded(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        conversion.read(tmp_path / "a.bin")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


# Hostile safetensors ----------------------------------------------------------------------


def headed(text: str, data: bytes = b"\0\0\0\0") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


def tensor(name: str = "a", **changed: object) -> str:
    """A tensor of a header, and what of it is not as it should be."""
    facts = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return f'"{name}":{json.dumps(facts | changed)}'


HEADERS = {
    "empty": b"",
    "short": b"\x08\0\0",
    "length beyond the file": struct.pack("<Q", 1 << 40) + b"{}",
    "no object": headed("[]"),
    "no JSON": headed("{nonsense}"),
    "not UTF-8": struct.pack("<Q", 4) + b'{"\xff"',
    "duplicate keys": headed(f"{{{tensor()},{tensor()}}}"),
    "overlapping": headed(f"{{{tensor()},{tensor('b')}}}"),
    "beyond the data": headed(f"{{{tensor(data_offsets=[0, 400])}}}"),
    "backwards": headed(f"{{{tensor(data_offsets=[4, 0])}}}"),
    "negative": headed(f"{{{tensor(data_offsets=[-4, 0])}}}"),
    "shape too large": headed(f"{{{tensor(shape=[10**11])}}}"),
    "shape overflows": headed(f"{{{tensor(shape=[2**32, 2**32])}}}"),
    "unknown dtype": headed(f"{{{tensor(dtype='F99')}}}"),
    "a hole": headed(f"{{{tensor(data_offsets=[4, 8])}}}", bytes(8)),
    "more data": headed(f"{{{tensor()}}}", bytes(400)),
    "metadata of numbers": headed(f'{{"__metadata__":{{"dmp.task":1}},{tensor()}}}'),
    "deep": headed("[" * 100_000),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_hostile_headers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(HEADERS[kind])
    with pytest.raises(ModelError) as raised:
        convert(path)
    assert str(path) in str(raised.value)


def mutate(good: bytes, seed: int) -> bytes:
    """Up to five bytes changed; of every second file among those that say what is in it."""
    rng = np.random.default_rng(seed)
    data = bytearray(good)
    start = 20_000 if seed % 2 else len(data)
    for at in rng.integers(0, start, rng.integers(1, 6)):
        data[at] = rng.integers(256)
    return bytes(data)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_changed_bytes_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    """Whatever is wrong with a file is a ModelError, not a crash of a library."""
    whole = {"zip": packed(STATE), "legacy": packed(STATE, new=False), "safetensors": save(STATE)}
    outcomes = set()
    for seed in range(40):
        (tmp_path / "a.bin").write_bytes(mutate(whole[kind], seed))
        try:
            convert(tmp_path / "a.bin")
            outcomes.add("taken")
        except ModelError:
            outcomes.add("refused")
    assert "refused" in outcomes


# The house --------------------------------------------------------------------------------


def test_no_other_room_opens_pickles() -> None:
    """But training, which reads the optimizer that it wrote itself, and the processes of a cluster.

    Those read what other processes of the same run sent them, never a file.
    """
    root = Path(conversion.__file__).parent.parent
    opening = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if _opens(node)
    }
    cluster = {"engines/ray_data.py", "engines/ray_work.py"}
    assert opening - cluster == {"importing/conversion.py", "train/checkpoints.py"}
    for name in opening - cluster:
        source = (root / name).read_text()
        assert source.count("torch.load(") == source.count("weights_only=True") == 1


def _opens(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(one.name.split(".")[0].endswith(("pickle", "pickletools")) for one in node.names)
    if isinstance(node, ast.ImportFrom):
        return "pickle" in (node.module or "") or (
            node.module == "torch" and any(one.name == "load" for one in node.names)
        )
    return isinstance(node, ast.Attribute) and ast.unparse(node) in (
        "torch.load", "torch.jit.load", "torch.serialization.load",
    )  # fmt: skip
