"""What is done with the networks so that they are fast, against what it stands for."""

import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import Conv2d, GroupNorm, Linear, Module
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from dmp_cli import adapters, allocation, lora
from dmp_cli.backbone import Backbone
from dmp_cli.device import choose
from dmp_cli.networks import attention, winograd
from dmp_cli.networks.attention import attend
from dmp_cli.networks.folding import EnlargedConv, fold
from dmp_cli.networks.fused import WeightSets
from dmp_cli.networks.mixed import mix
from dmp_cli.networks.winograd import WinogradConv
from tests.conftest import PARITY, apart
from tests.test_lora import STATE, saved

SD, OFFICIAL = PARITY / "sd-tiny", PARITY / "lora/full/pytorch_lora_weights.safetensors"
RNG = torch.Generator().manual_seed(0)


def loaded(dtype: str = "fp32") -> Backbone:
    return Backbone.load(SD, choose("cpu", dtype))


def z(count: int = 2) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3))


# fused --------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_fused_lora_is_what_peft_computes_beside_the_weights() -> None:
    fused, beside = loaded(), loaded()
    fused.add_lora("depth", OFFICIAL)
    fused.use_lora("depth")
    adapters.add(beside.unet, "depth", lora.read(OFFICIAL, beside.shapes))
    expected = beside.predict(z(), 401)
    assert apart(fused.predict(z(), 401).numpy(), expected.numpy()) < 2e-6
    assert apart(loaded().predict(z(), 401).numpy(), expected.numpy()) > 1e-2


class Layers(Module):
    """Two projections of an attention, as a UNet names them."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Module()
        self.attn1.to_q = Linear(4, 4, bias=False)
        self.attn1.to_k = Linear(4, 4, bias=False)
        self.requires_grad_(False)


def test_a_projection_without_lora_gets_its_own_weight_back() -> None:
    unet = Layers()
    plain = {name: held.clone() for name, held in unet.state_dict().items()}
    sets = WeightSets(unet, lambda module: plain[f"{module}.weight"], torch.device("cpu"))
    pair = torch.ones(1, 4), torch.ones(4, 1)
    sets.add("q", {"attn1.to_q": pair})
    sets.add("both", {"attn1.to_q": pair, "attn1.to_k": pair})
    for name, changed in (("both", (1, 1)), ("q", (1, 0)), ("both", (1, 1)), ("q", (1, 0))):
        sets.use(name)
        for module, added in zip(("to_q", "to_k"), changed, strict=True):
            held = unet.state_dict()[f"attn1.{module}.weight"]
            assert torch.equal(held, plain[f"attn1.{module}.weight"] + added)


@torch.inference_mode()
def test_in_half_precision_the_sum_is_rounded_once(tmp_path: Path) -> None:
    """Weights are added to as they are stored, not as they are held."""
    small = {key: value * (1e-3 if ".up." in key else 1) for key, value in STATE.items()}
    half = loaded("bf16")
    half.add_lora("small", saved(tmp_path / "small.safetensors", small))
    half.use_lora("small")
    exact = loaded()
    layers, wide = dict(half.unet.named_modules()), dict(exact.unet.named_modules())
    for module, (down, up) in lora.read(tmp_path / "small.safetensors", half.shapes).items():
        wanted = (wide[module].weight + up @ down).to(torch.bfloat16)
        assert torch.equal(layers[module].weight, wanted)


@torch.inference_mode()
def test_after_all_was_widened_the_sets_are_the_layers_again() -> None:
    half = loaded("bf16")
    half.add_lora("a", OFFICIAL)
    half.add_lora("b", OFFICIAL)
    half.use_lora("a")
    before = half.predict(z(), 401)
    with half.widened():
        half.use_lora("b")
        wide = half.predict(z(), 401)
    held = {name: layer.weight.data_ptr() for name, layer in half._sets._layers.items()}
    assert held == {name: one.data_ptr() for name, one in half._sets._sets["b"].items()}
    half.use_lora("a")
    assert torch.equal(half.predict(z(), 401), before)
    assert apart(wide.numpy(), before.numpy()) > 0


# folding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("high", "wide"), [(5, 8), (1, 1), (2, 3)])
def test_the_fold_is_enlarging_and_then_convolving(high: int, wide: int, bias: bool) -> None:
    conv = Conv2d(6, 4, 3, padding=1, bias=bias).requires_grad_(False)
    picture = torch.randn(2, 6, high, wide, generator=RNG)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = picture.to(memory_format=layout)
        folded = EnlargedConv(conv).to(memory_format=layout)(given)
        expected = conv(interpolate(given, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(folded, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_decoder_is_folded_throughout_and_draws_the_same() -> None:
    vae = AutoencoderKL.from_pretrained(SD / "vae").eval()
    before = vae.decode(z()).sample
    fold(vae.decoder)
    layers = [layer for block in vae.decoder.up_blocks for layer in block.upsamplers or ()]
    assert layers
    assert all(isinstance(layer, EnlargedConv) for layer in layers)
    torch.testing.assert_close(vae.decode(z()).sample, before, atol=1e-5, rtol=1e-4)


# winograd -----------------------------------------------------------------------------------

SIZES = [(1, 1), (4, 8), (5, 3), (9, 4), (10, 2), (23, 9)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("high", "wide"), SIZES)
@torch.inference_mode()
def test_half_the_products_give_the_same_picture(
    monkeypatch: pytest.MonkeyPatch, high: int, wide: int, bias: bool, layout: torch.memory_format
) -> None:
    conv = Conv2d(16, 12, 3, padding=1, bias=bias)
    picture = torch.randn(2, 16, high, wide, generator=RNG).to(memory_format=layout)
    fast = WinogradConv(conv).to(memory_format=layout)
    expected = deepcopy(conv).double()(picture.double()).float()
    torch.testing.assert_close(fast(picture), expected, atol=1e-5, rtol=1e-5)
    assert fast(picture).is_contiguous(memory_format=layout)
    monkeypatch.setattr(winograd, "_NUMBERS", 2 * 6 * 2 * wide * 16)  # two tiles at once
    torch.testing.assert_close(fast(picture), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_it_rounds_about_as_the_direct_way() -> None:
    torch.manual_seed(0)
    conv, picture = Conv2d(256, 32, 3, padding=1), torch.randn(1, 256, 24, 24, generator=RNG)
    exact = deepcopy(conv).double()(picture.double())
    ours, direct = ((way(picture) - exact).abs().mean() for way in (WinogradConv(conv), conv))
    assert ours < 1.8 * direct  # with 1 and 2 as points, 2.1 times


def test_a_gradient_passes_through() -> None:
    """dmp train --loss map decodes what it predicts."""
    conv = Conv2d(6, 4, 3, padding=1).requires_grad_(False)
    given = [torch.randn(2, 6, 10, 7, generator=RNG).requires_grad_() for _ in range(2)]
    given[1].data = given[0].data.clone()
    for way, picture in zip((conv, WinogradConv(conv).requires_grad_(False)), given, strict=True):
        way(picture).square().sum().backward()
    torch.testing.assert_close(given[1].grad, given[0].grad, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_products_are_half_as_many() -> None:
    conv, picture = Conv2d(8, 8, 3, padding=1), torch.zeros(1, 8, 24, 24)
    fast = WinogradConv(conv)
    with FlopCounterMode(display=False) as direct:
        conv(picture)
    with FlopCounterMode(display=False) as halved:
        fast(picture)
    assert halved.get_total_flops() * 2 == direct.get_total_flops() > 0


def wide_vae(folder: Path, channels: int) -> AutoencoderKL:
    """A VAE with so many channels, in place of the one in a folder of a backbone."""
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(block_out_channels=(channels,), mid_block_add_attention=False, **kinds)
    vae.save_pretrained(folder / "vae")
    return vae.eval()


@pytest.mark.parametrize(
    ("dtype", "processor", "channels", "replaced"),
    [
        ("fp32", "x86_64", 128, ["decoder", "encoder"]),
        ("fp32", "x86_64", 96, []),
        ("fp32", "arm64", 128, []),
        ("bf16", "AMD64", 128, ["encoder"]),
    ],
)
@torch.inference_mode()
def test_wide_convolutions_in_float32_are_computed_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    dtype: str, processor: str, channels: int, replaced: list[str],
) -> None:  # fmt: skip
    folder = tmp_path / "backbone"
    shutil.copytree(SD, folder, ignore=shutil.ignore_patterns("vae"))
    vae = wide_vae(folder, channels)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    backbone = Backbone.load(folder, choose("cpu", dtype))
    layers = dict(backbone._vae.named_modules())
    fast = [name for name, layer in layers.items() if isinstance(layer, WinogradConv)]
    assert sorted({name.partition(".")[0] for name in fast}) == replaced
    assert not any(name.endswith(("conv_in", "conv_out")) for name in fast)
    picture = torch.rand(1, 3, 16, 16, generator=RNG) * 2 - 1
    expected = vae.encode(picture).latent_dist.mode()
    latents = backbone.encode(picture)
    assert apart(latents.numpy(), (expected * vae.config.scaling_factor).numpy()) < 1e-4
    drawn, wanted = backbone.decode(latents), vae.decode(expected).sample
    assert apart(drawn.float().numpy(), wanted.numpy()) < (1e-4 if dtype == "fp32" else 5e-2)


# mixed --------------------------------------------------------------------------------------


def test_products_are_in_bf16_and_what_is_summed_up_is_not() -> None:
    backbone = loaded("bf16")
    half, wide = torch.bfloat16, torch.float32
    assert backbone._vae.post_quant_conv.weight.dtype == wide
    for network in (backbone.unet, backbone._vae.decoder):
        assert network.conv_in.weight.dtype == network.conv_out.weight.dtype == wide
        kinds = {
            (type(layer).__name__, layer.weight.dtype)
            for name, layer in network.named_modules()
            if isinstance(layer, Conv2d | Linear | GroupNorm)
            and name.rpartition(".")[2] not in ("conv_in", "conv_out", "conv_shortcut")
        }
        assert kinds == {("Conv2d", half), ("Linear", half), ("GroupNorm", wide)}
    assert {held.dtype for held in backbone._vae.encoder.parameters()} == {wide}


@torch.inference_mode()
def test_in_bf16_the_encoder_is_that_of_float32_but_for_the_layout() -> None:
    images = torch.rand(1, 3, 64, 64, generator=RNG) * 2 - 1
    exact = loaded().encode(images)
    assert apart(loaded("bf16").encode(images).numpy(), exact.numpy()) < 3e-3
    rounded = loaded("bf16")
    mix(rounded._vae.encoder)
    assert apart(rounded.encode(images).numpy(), exact.numpy()) > 6e-3


def test_what_is_rounded_lets_the_mapped_file_go(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = []
    monkeypatch.setattr(allocation, "let_go", lambda address, size: gone.append((address, size)))
    vae = AutoencoderKL.from_pretrained(SD / "vae", torch_dtype=torch.float32).eval()
    held = [(one.data_ptr(), one.nbytes) for one in vae.decoder.parameters()]
    mix(vae.decoder)
    assert gone == held
    assert not {one.data_ptr() for one in vae.decoder.parameters()} & {start for start, _ in held}


# attention ----------------------------------------------------------------------------------


def heads(count: int, known: int, wide: int, by: float = 1.0) -> list[Tensor]:
    """A query, a key and a value of two pictures and three heads, laid out as diffusers does."""
    sizes = (count, known, known)
    drawn = [torch.randn(2, size, 3, wide, generator=RNG) for size in sizes]
    drawn[0] *= by
    return [one.to(torch.bfloat16).transpose(1, 2) for one in drawn]


@pytest.mark.parametrize("by", [1.0, 30.0])  # of large scores, one key has nearly all
@pytest.mark.parametrize(("count", "known"), [(300, 300), (70, 257), (3000, 2500), (64, 77)])
@torch.inference_mode()
def test_attention_by_heads_is_as_near_to_the_exact_one_as_that_of_torch(
    count: int, known: int, by: float
) -> None:
    given = heads(count, known, 16, by)
    exact = scaled_dot_product_attention(*(one.double() for one in given))
    near, other = attend(*given), scaled_dot_product_attention(*given)
    assert near.shape == exact.shape
    assert near.dtype == torch.bfloat16
    ours, theirs = ((one.double() - exact).abs().mean() for one in (near, other))
    assert ours < 1.5 * theirs  # with scores in bf16, four times


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_attention_is_that_of_torch_where_it_is_trained_or_exact(trained: int) -> None:
    given = heads(300, 300, 16)
    wide = [one.float() for one in given]
    assert torch.equal(attend(*wide), scaled_dot_product_attention(*wide))
    given[trained].requires_grad_(True)
    attend(*given).sum().backward()
    assert given[trained].grad is not None


@torch.inference_mode()
def test_products_of_float32_are_exact_again_after_attention() -> None:
    left, right = torch.randn(64, 64, generator=RNG), torch.randn(64, 64, generator=RNG)
    before = left @ right
    given = heads(300, 300, 16)
    with ThreadPoolExecutor(4) as threads:  # some of them overlap
        list(threads.map(lambda _: attend(*given), range(32)))
    assert torch.equal(left @ right, before)


@pytest.mark.parametrize(
    "named",
    [{"is_causal": True}, {"scale": 0.5}, {"attn_mask": torch.ones(300, 300).tril().bool()}],
)
@torch.inference_mode()
def test_attention_with_more_to_it_is_left_to_torch(named: dict[str, Any]) -> None:
    given = heads(300, 300, 16)

    def processor(*_: Any) -> Tensor:
        return scaled_dot_product_attention(*given, **named)

    assert torch.equal(attention._Processor(processor)(None, given[0]), processor())


@torch.inference_mode()
def test_mixed_networks_attend_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(attention, "attend", lambda *given: seen.append(1) or attend(*given))
    monkeypatch.setattr(attention, "multiplies_bf16", lambda: "amx_bf16")
    loaded("bf16").predict(z(), 401)
    assert not seen
    monkeypatch.setattr(attention, "multiplies_bf16", lambda: "avx512_bf16")
    backbone = loaded("bf16")
    backbone.predict(z(), 401)
    in_unet = len(seen)
    backbone.decode(backbone.encode(torch.zeros(1, 3, 64, 64)))
    blocks = [
        name for name, _ in backbone.unet.named_modules() if name.endswith((".attn1", ".attn2"))
    ]
    assert in_unet == len(blocks) > 0
    assert len(seen) == in_unet + 1  # in the middle of the decoder
