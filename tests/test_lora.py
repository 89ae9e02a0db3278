"""LoRA files: every layout gives the same matrices, and anything unlike a LoRA is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmp_cli import lora
from dmp_cli.errors import ModelError, UsageError
from tests.conftest import PARITY

OFFICIAL = PARITY / "lora/full/pytorch_lora_weights.safetensors"
State = dict[str, Tensor]


def split(key: str) -> tuple[str, str, str]:
    """(attention, projection, side) of an official key."""
    attention, rest = key.split(".processor.")
    projection, side, _ = rest.split(".")
    return attention, projection.removesuffix("_lora"), side


def module(key: str) -> str:
    attention, projection, _ = split(key)
    return f"{attention}.{projection}" + (".0" if projection == "to_out" else "")


STATE: State = load_file(OFFICIAL)
SHAPES = {
    module(key): (up.shape[0], STATE[key.replace(".up.", ".down.")].shape[1])
    for key, up in STATE.items()
    if ".up." in key
}
STATE_DOWN = {module(key): value for key, value in STATE.items() if ".down." in key}
STATE_UP = {module(key): value for key, value in STATE.items() if ".up." in key}
SIDES = {"down": "A", "up": "B"}
LAYOUTS: dict[str, Callable[[str], str]] = {
    "official": lambda key: key,
    "official below unet": lambda key: f"unet.{key}",
    "diffusers": lambda key: f"unet.{module(key)}.lora_{SIDES[split(key)[2]]}.weight",
    "diffusers, older": lambda key: f"unet.{module(key)}.lora.{split(key)[2]}.weight",
    "peft": lambda key: f"base_model.model.{module(key)}.lora_{SIDES[split(key)[2]]}.weight",
    "peft with its adapter's name": lambda key: (
        f"base_model.model.{module(key)}.lora_{SIDES[split(key)[2]]}.default.weight"
    ),
    "kohya": lambda key: f"lora_unet_{module(key).replace('.', '_')}.lora_{split(key)[2]}.weight",
}


def saved(path: Path, state: State, **metadata: str) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata or None)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_matrices(layout: str, tmp_path: Path) -> None:
    state = {LAYOUTS[layout](key): value for key, value in STATE.items()}
    found = lora.read(saved(tmp_path / "adapter_model.safetensors", state), SHAPES)
    assert set(found) == set(SHAPES)
    for key, value in STATE.items():
        assert torch.equal(found[module(key)][split(key)[2] == "up"], value)


@pytest.mark.parametrize("declared", ["[" * 100_000, '{"unet.lora_alpha": 1%s}' % ("0" * 400)])
def test_a_declared_alpha_beyond_all_limits(declared: str, tmp_path: Path) -> None:
    named = {LAYOUTS["diffusers"](key): value for key, value in STATE.items()}
    path = saved(tmp_path / "a.safetensors", named, lora_adapter_metadata=declared)
    with pytest.raises(ModelError, match="adapter configuration is not valid"):
        lora.read(path, SHAPES)


def test_the_scale_goes_into_the_up_matrices(tmp_path: Path) -> None:
    """PEFT's config file, diffusers' metadata and keys of their own may state an alpha."""
    peft = {LAYOUTS["peft"](key): value for key, value in STATE.items()}
    path = saved(tmp_path / "adapter_model.safetensors", peft)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 4}))
    by_config = lora.read(path, SHAPES)
    inside = json.dumps({"unet.lora_alpha": 8, "unet.r": 4})
    named = {LAYOUTS["diffusers"](key): value for key, value in STATE.items()}
    path = saved(tmp_path / "pytorch_lora_weights.safetensors", named, lora_adapter_metadata=inside)
    by_metadata = lora.read(path, SHAPES)
    alphas = {f"unet.{name}.alpha": torch.tensor(8.0) for name in SHAPES}
    by_keys = lora.read(saved(tmp_path / "keys.safetensors", named | alphas), SHAPES)
    kohya = {LAYOUTS["kohya"](key): value for key, value in STATE.items()}
    kohya |= {f"lora_unet_{name.replace('.', '_')}.alpha": torch.tensor(8.0) for name in SHAPES}
    by_kohya = lora.read(saved(tmp_path / "kohya.safetensors", kohya), SHAPES)
    for key in (key for key in STATE if ".up." in key):
        for found in (by_config, by_metadata, by_keys, by_kohya):
            assert torch.equal(found[module(key)][1], STATE[key] * 2)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    path = saved(tmp_path / "half.safetensors", {key: v.half() for key, v in STATE.items()})
    assert {part.dtype for pair in lora.read(path, SHAPES).values() for part in pair} == {
        torch.float32
    }


def test_another_rank_is_fine(tmp_path: Path) -> None:
    state = {
        key: torch.cat([value, value], dim=1 if ".up." in key else 0)
        for key, value in STATE.items()
    }
    found = lora.read(saved(tmp_path / "rank8.safetensors", state), SHAPES)
    assert {down.shape[0] for down, _ in found.values()} == {8}


# Some of the projections --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "count", "every", "no"),
    [
        ("all", 128, "", "nothing"), ("self", 64, ".attn1.", ".attn2."),
        ("cross", 64, ".attn2.", ".attn1."), ("to_out", 32, ".to_out.0", ".to_q"),
        ("self, to_q", 16, ".attn1.to_q", ".to_k"), ("self,cross,to_q,to_v", 64, ".to_", ".to_k"),
    ],
)  # fmt: skip
def test_targets(targets: str, count: int, every: str, no: str) -> None:
    found = lora.chosen(SHAPES, targets)
    assert len(found) == count
    assert all(every in name and no not in name for name in found)
    assert all(SHAPES[name] == shape for name, shape in found.items())


@pytest.mark.parametrize("targets", ["", "attn1", "all,foo", "to_out.0"])
def test_unknown_targets(targets: str) -> None:
    with pytest.raises(UsageError, match="unknown target") as raised:
        lora.chosen(SHAPES, targets)
    assert "self" in raised.value.hint


def test_targets_that_the_backbone_does_not_have() -> None:
    with pytest.raises(UsageError, match="no projection for targets 'cross'"):
        lora.chosen({"a.attn1.to_q": (2, 2)}, "cross")


def test_a_file_that_declares_its_targets_holds_exactly_these(tmp_path: Path) -> None:
    part = {name: (STATE_DOWN[name], STATE_UP[name]) for name in lora.chosen(SHAPES, "cross,to_q")}
    state = lora.to_state(part)
    path = saved(tmp_path / "a.safetensors", state, **{lora.DECLARED: "cross,to_q"})
    found = lora.read(path, SHAPES)
    assert found.keys() == part.keys()
    with pytest.raises(ModelError, match="its down matrix is missing"):
        lora.read(saved(tmp_path / "b.safetensors", state), SHAPES)
    one = sorted(state)[0]
    less = {key: value for key, value in state.items() if key != one}
    with pytest.raises(ModelError, match="matrix is missing"):
        lora.read(saved(tmp_path / "c.safetensors", less, **{lora.DECLARED: "cross,to_q"}), SHAPES)
    with pytest.raises(ModelError, match="the backbone has no such projection"):
        lora.read(saved(tmp_path / "d.safetensors", state, **{lora.DECLARED: "self"}), SHAPES)
    with pytest.raises(ModelError, match=r"dmp\.targets in its header: unknown target"):
        lora.read(saved(tmp_path / "e.safetensors", state, **{lora.DECLARED: "x"}), SHAPES)


def test_a_kohya_name_that_two_projections_share_is_refused(tmp_path: Path) -> None:
    shapes = {"down.a_b.attn1.to_q": (2, 2), "down.a.b.attn1.to_q": (2, 2)}
    key = "lora_unet_down_a_b_attn1_to_q.lora_down.weight"
    path = saved(tmp_path / "a.safetensors", {key: torch.zeros(1, 2)})
    with pytest.raises(ModelError, match=f"{key}: the backbone has no such projection"):
        lora.read(path, shapes)


FIRST = sorted(STATE)[0]
MODULE = module(FIRST)
UP = FIRST.replace(".down.", ".up.")


def without(state: State) -> None:
    del state[UP]


def one_more(state: State) -> None:
    state[UP.replace("down_blocks.0", "down_blocks.9")] = torch.zeros(2, 2)


def not_a_lora(state: State) -> None:
    state["conv_in.weight"] = torch.zeros(2, 2)


def text_encoder(state: State) -> None:
    state["text_encoder.layers.0.self_attn.to_q.lora_A.weight"] = torch.zeros(2, 2)


def kohya_feed_forward(state: State) -> None:
    at = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"
    state[f"{at}.lora_down.weight"] = torch.zeros(4, 16)


def kohya_text_encoder(state: State) -> None:
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(4, 16)


def kohya_dora(state: State) -> None:
    state[f"lora_unet_{MODULE.replace('.', '_')}.dora_scale"] = torch.zeros(16)


def kohya_twice(state: State) -> None:
    state[LAYOUTS["kohya"](UP)] = state[UP].clone()


def other_base(state: State) -> None:
    state[FIRST] = torch.zeros(4, 999)


def ranks_differ(state: State) -> None:
    state[FIRST] = torch.zeros(3, STATE[FIRST].shape[1])


def rank_zero(state: State) -> None:
    state[FIRST], state[UP] = torch.zeros(0, 16), torch.zeros(16, 0)


def no_matrix(state: State) -> None:
    state[FIRST] = torch.tensor(1.0)


def with_nan(state: State) -> None:
    state[UP] = torch.full_like(state[UP], float("nan"))


def infinite(state: State) -> None:
    state[FIRST] = torch.full_like(state[FIRST], float("inf"))


def twice(state: State) -> None:
    state[LAYOUTS["diffusers"](UP)] = state[UP].clone()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without, f"{MODULE}: its up matrix is missing"),
        (one_more, "down_blocks.9.*the backbone has no such projection"),
        (not_a_lora, "conv_in.weight: no key of a LoRA"),
        (text_encoder, "text_encoder.*no such projection"),
        (kohya_feed_forward, "lora_unet_.*_ff_net_0_proj.*no such projection"),
        (kohya_text_encoder, "lora_te_.*: no key of a LoRA"),
        (kohya_dora, "dora_scale: no key of a LoRA"),
        (kohya_twice, "is there twice"),
        (other_base, rf"{MODULE}: down \[4, 999\] and up .* do not fit"),
        (ranks_differ, r"down \[3, 16\] and up \[16, 4\] do not fit"),
        (rank_zero, r"down \[0, 16\]"),
        (no_matrix, r"down \[\] and up"),
        (with_nan, "up matrix holds values that are not finite"),
        (infinite, "down matrix holds values that are not finite"),
        (twice, "is there twice"),
    ],
)
def test_the_first_difference_is_named(
    damage: Callable[[State], None], message: str, tmp_path: Path
) -> None:
    state = dict(STATE)
    damage(state)
    path = saved(tmp_path / "bad.safetensors", state)
    with pytest.raises(ModelError, match=message) as error:
        lora.read(path, SHAPES)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("alpha", [[float("nan")], [float("inf")], [1.0, 2.0]])
def test_an_alpha_that_is_no_number_is_refused(alpha: list[float], tmp_path: Path) -> None:
    named = {LAYOUTS["diffusers"](key): value for key, value in STATE.items()}
    path = saved(tmp_path / "a.safetensors", named | {f"unet.{MODULE}.alpha": torch.tensor(alpha)})
    with pytest.raises(ModelError, match="its alpha is"):
        lora.read(path, SHAPES)


@pytest.mark.parametrize(
    "declared", ['{"use_dora": true}', '{"rank_pattern": {"to_q": 8}}', "[]", "nonsense"]
)
def test_an_adapter_that_is_no_plain_lora_is_refused(declared: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "adapter_model.safetensors", STATE)
    (tmp_path / "adapter_config.json").write_text(declared)
    with pytest.raises(ModelError, match=r"not supported|not valid"):
        lora.read(path, SHAPES)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\0\0\0\0\0\0\0{}      ",
        b"\xff" * 100,
        (PARITY / "lora/full/pytorch_lora_weights.bin").read_bytes(),
        OFFICIAL.read_bytes()[:-8],
        b"\x3b\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}',
    ],
    ids=["empty", "no tensors", "noise", "pickle", "cut", "false shape"],
)
def test_a_file_that_is_no_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.safetensors"):
        lora.read(path, SHAPES)
