"""Stable Diffusion and its LoRAs, on the tiny backbone."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmp_cli import lora
from dmp_cli.backbone import Backbone
from dmp_cli.device import choose
from dmp_cli.errors import ModelError
from dmp_cli.networks.text_encoder import Texts
from tests.conftest import PARITY
from tests.test_lora import LAYOUTS, STATE, saved

SD, OFFICIAL = PARITY / "sd-tiny", PARITY / "lora/full/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def plain() -> Backbone:
    return Backbone.load(SD, choose("cpu", "fp32"), ["a room"])


@pytest.fixture
def backbone(plain: Backbone) -> Backbone:
    return copy.deepcopy(plain)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SD, tmp_path / "sd"))


def z(count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_a_lora_does_what_adding_its_product_to_the_weights_does(backbone: Backbone) -> None:
    merged = copy.deepcopy(backbone)
    layers = dict(merged._unet.named_modules())
    for name, (down, up) in lora.read(OFFICIAL, merged.shapes).items():
        layers[name].weight += up @ down
    untouched = backbone.predict(z(), 401)
    backbone.add_lora("depth", OFFICIAL)
    backbone.use_lora("depth")
    found, expected = backbone.predict(z(), 401), merged.predict(z(), 401)
    assert float((found - expected).norm() / expected.norm()) < 2e-6
    assert float((found - untouched).norm() / expected.norm()) > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_layouts_give_identical_outputs(backbone: Backbone, layout: str, tmp_path: Path) -> None:
    state = {LAYOUTS[layout](key): value for key, value in STATE.items()}
    backbone.add_lora("official", OFFICIAL)
    backbone.add_lora("other", saved(tmp_path / "adapter_model.safetensors", state))
    backbone.use_lora("official")
    expected = backbone.predict(z(), 401)
    backbone.use_lora("other")
    assert torch.equal(backbone.predict(z(), 401), expected)


@torch.inference_mode()
def test_loras_of_several_ranks_switch_exactly(backbone: Backbone, tmp_path: Path) -> None:
    double = {k: torch.cat([v, v], dim=1 if ".up." in k else 0) for k, v in STATE.items()}
    files = {"one": OFFICIAL, "two": saved(tmp_path / "rank8.safetensors", double)}
    alone = {}
    for name, path in files.items():
        only = copy.deepcopy(backbone)
        only.add_lora(name, path)
        only.use_lora(name)
        alone[name] = only.predict(z(), 201)
        backbone.add_lora(name, path)
    for name in ("one", "two", "one"):
        backbone.use_lora(name)
        assert torch.equal(backbone.predict(z(), 201), alone[name])
    assert not torch.equal(alone["one"], alone["two"])


def test_a_refused_lora_leaves_the_backbone_as_it_was(backbone: Backbone, tmp_path: Path) -> None:
    broken = dict(STATE)
    del broken[sorted(broken)[0]]
    with torch.inference_mode():
        before = backbone.predict(z(), 401)
        with pytest.raises(ModelError, match="is missing"):
            backbone.add_lora("depth", saved(tmp_path / "bad.safetensors", broken))
        assert torch.equal(backbone.predict(z(), 401), before)


@torch.inference_mode()
def test_guidance_is_official_and_only_with_a_prompt(backbone: Backbone) -> None:
    empty = backbone.predict(z(), 601)
    prompted = backbone.predict(z(), 601, "a room", 1.0)
    assert not torch.equal(prompted, empty)
    expected = empty + 2.0 * (prompted - empty)
    torch.testing.assert_close(
        backbone.predict(z(), 601, "a room", 2.0), expected, atol=1e-5, rtol=1e-4
    )
    assert torch.equal(backbone.predict(z(), 601, "", 2.0), empty)


@torch.inference_mode()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_each_row_may_have_its_own_prompt(backbone: Backbone, guidance: float) -> None:
    texts = ["a room", "", "a hall", "a room"]
    together = backbone.predict(z(4), 601, texts, guidance)
    alone = [backbone.predict(z(4)[i : i + 1], 601, text, guidance) for i, text in enumerate(texts)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(
        backbone.predict(z(), 601, "a hall", guidance), backbone.predict(z(), 601, "", guidance)
    )


@torch.inference_mode()
def test_one_prompt_for_each_row_is_one_for_all(backbone: Backbone) -> None:
    same = backbone.predict(z(2), 601, ["a room"] * 2, 2.0)
    assert torch.equal(same, backbone.predict(z(2), 601, "a room", 2.0))


def test_a_text_that_was_not_known_is_embedded_as_one_that_was(backbone: Backbone) -> None:
    later = Backbone.load(SD, choose("cpu", "fp32"))
    assert torch.equal(later.words([""]), backbone.words([""]))
    assert later._texts._encoder is None  # let go, and not needed yet
    assert torch.equal(later.words(["a room"]), backbone.words(["a room"]))
    assert later._texts._encoder is not None


def test_embeddings_of_texts_are_bounded(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmp_cli.networks.text_encoder._KEPT", 2)
    texts = Texts(SD, None, torch.device("cpu"))
    first = texts("one")
    for text in ("two", "one", "three"):
        texts(text)
    assert list(texts._kept) == ["one", "three"]
    assert texts("one") is first


@pytest.mark.parametrize(("text", "cut"), [("a room", False), ("room " * 200, True)])
def test_a_prompt_beyond_the_tokens_is_cut(backbone: Backbone, text: str, cut: bool) -> None:
    assert backbone.cuts(text) is cut
    assert backbone.words([text]).shape[1] == 77


@torch.inference_mode()
def test_encoding_is_deterministic_and_decoding_in_chunks_changes_nothing(
    backbone: Backbone,
) -> None:
    images = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = backbone.encode(images)
    assert latents.shape == (3, 4, 8, 6)
    assert torch.equal(backbone.encode(images), latents)
    whole = backbone.decode(latents, chunk=3)
    assert whole.shape == images.shape
    torch.testing.assert_close(backbone.decode(latents, chunk=2), whole, atol=1e-5, rtol=1e-5)


def test_the_text_encoder_is_let_go(backbone: Backbone) -> None:
    kinds = {type(value).__name__ for value in vars(backbone).values()}
    assert "CLIPTextModel" not in kinds
    assert set(backbone._texts._known) == {"", "a room"}
    assert backbone._texts._encoder is None


@torch.inference_mode()
def test_bf16_is_near_fp32(plain: Backbone) -> None:
    half = Backbone.load(SD, choose("cpu", "bf16"))
    assert half._unet.mid_block.resnets[0].conv1.weight.dtype == torch.bfloat16
    exact = plain.predict(z(), 401)
    assert 0 < float((half.predict(z(), 401) - exact).norm() / exact.norm()) < 0.03


def test_the_half_precision_files_are_taken_by_their_variant(folder: Path) -> None:
    """The plain files are made wrong, so that only the variant's can give the right output."""
    for name in (
        "unet/diffusion_pytorch_model",
        "vae/diffusion_pytorch_model",
        "text_encoder/model",
    ):
        state = load_file(folder / f"{name}.safetensors")
        half = {key: v.half() if v.is_floating_point() else v for key, v in state.items()}
        save_file(half, folder / f"{name}.fp16.safetensors", {"format": "pt"})
        zero = {key: torch.zeros_like(value) for key, value in state.items()}
        save_file(zero, folder / f"{name}.safetensors", {"format": "pt"})
    with torch.inference_mode():
        found = Backbone.load(folder, choose("cpu", "fp32"), variant="fp16").predict(z(), 401)
        exact = Backbone.load(SD, choose("cpu", "fp32")).predict(z(), 401)
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.01


def remove_weight(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_in.weight"]
    save_file(state, path, {"format": "pt"})


def cut(folder: Path) -> None:
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def only_pickle(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def no_scheduler(folder: Path) -> None:
    (folder / "scheduler/scheduler_config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{")


def no_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def no_text_weight(folder: Path) -> None:
    path = folder / "text_encoder/model.safetensors"
    state = load_file(path)
    del state[next(key for key in state if key.endswith("final_layer_norm.weight"))]
    save_file(state, path, {"format": "pt"})


def other_shape(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 48}))


def test_a_model_for_inpainting_is_refused(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_in.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(state, path, {"format": "pt"})
    config = folder / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    with pytest.raises(ModelError, match="takes 9 channels and gives 4, its VAE has 4"):
        Backbone.load(folder, choose("cpu", "fp32"))


@pytest.mark.parametrize(
    "damage",
    [remove_weight, cut, only_pickle, no_scheduler, broken_config, no_tokenizer, no_text_weight,
     other_shape],
)  # fmt: skip
def test_a_backbone_that_is_not_whole_is_refused(damage: object, folder: Path) -> None:
    assert callable(damage)
    damage(folder)
    with pytest.raises(ModelError) as error:
        Backbone.load(folder, choose("cpu", "fp32"))
    assert str(folder) in str(error.value)


def test_shapes_are_those_of_the_official_lora(plain: Backbone) -> None:
    assert len(plain.shapes) == 128
    assert plain.multiple == 8
    sizes = [outputs * 4 + inputs * 4 for outputs, inputs in plain.shapes.values()]
    assert sum(sizes) == sum(np.prod(value.shape) for value in STATE.values())
