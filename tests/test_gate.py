"""What is fast is also right: every fast way against float32, one image at a time, on the demo."""

import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray

import dmp_cli
from dmp_cli import adapters, lora
from dmp_cli.host import Prepared
from dmp_cli.networks import winograd
from dmp_cli.predict import Predictor
from dmp_cli.scenes.write import Order, frame
from dmp_cli.tasks import TASKS, Coding

Array = NDArray[Any]
DEMO = Path(dmp_cli.__file__).parent / "demo"
MEAN, MOST = 0.5, 3.0  # of 255 levels: the mean, the 99.9th percentile
DTYPES = ("bf16", "fp32")
DEPTH = 0.005  # the mean of the relative difference


@pytest.fixture(scope="module")
def exact() -> Predictor:
    """The networks as diffusers and PEFT compute them: LoRAs beside the layers, nothing folded."""
    made = fast_one("fp32")
    backbone = made._backbone
    unet = UNet2DConditionModel.from_pretrained(DEMO / "unet", torch_dtype=torch.float32).eval()
    for task in TASKS:
        path = DEMO / f"loras/{task}.safetensors"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            adapters.add(unet.requires_grad_(False), task, lora.read(path, backbone.shapes))
    vae = AutoencoderKL.from_pretrained(DEMO / "vae", torch_dtype=torch.float32).eval()
    backbone._unet, backbone._vae = unet, vae
    backbone._sets = SimpleNamespace(use=unet.set_adapter)  # type: ignore[assignment]
    return made


def fast_one(dtype: str, tiny: bool = False) -> Predictor:
    how: Any = {"model": "demo", "dtype": dtype, "device": "cpu", "tiny_decoder": tiny}
    return Predictor(",".join(TASKS), **how, batch=1)


@pytest.fixture(scope="module")
def prepared(exact: Predictor) -> list[Prepared]:
    """Scenes of the kind that the demo learnt: of others it is not sure, and a class may flip."""
    order = Order(8, seed=20002, size=192)
    return [exact.host.prepare(frame(order, index)[0].image) for index in range(order.count)]


@pytest.fixture(scope="module")
def wanted(exact: Predictor, prepared: list[Prepared]) -> list[Mapping[str, Array]]:
    return drawn_by(exact, prepared, 1)


def drawn_by(
    predictor: Predictor, prepared: Sequence[Prepared], at_once: int
) -> list[Mapping[str, Array]]:
    """The network's pictures [h, w, 3] by task, of images in batches of equal shape."""
    found: dict[int, Mapping[str, Array]] = {}
    shapes = sorted({one.shape for one in prepared})
    for shape in shapes:
        same = [index for index, one in enumerate(prepared) if one.shape == shape]
        for start in range(0, len(same), at_once):
            part = same[start : start + at_once]
            found |= zip(part, predictor.draw([prepared[i] for i in part]), strict=True)
    return [found[index] for index in range(len(prepared))]


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("task", TASKS)
def test_a_fast_way_holds_the_gate(
    task: str,
    dtype: str,
    at_once: int,
    fast: dict[tuple[str, int], list[Mapping[str, Array]]],
    wanted: list[Mapping[str, Array]],
) -> None:
    levels = levels_apart(fast[dtype, at_once], wanted, task)
    assert levels.mean() <= MEAN
    assert np.quantile(levels, 0.999) <= MOST
    if task == "depth":
        assert relative(fast[dtype, at_once], wanted) <= DEPTH


@pytest.fixture(scope="module")
def fast(prepared: list[Prepared]) -> dict[tuple[str, int], Any]:
    return {
        (dtype, at_once): drawn_by(predictor, prepared, at_once)
        for dtype, predictor in ((dtype, fast_one(dtype)) for dtype in ("fp32", "bf16"))
        for at_once in (1, 4)
    }


def test_the_tiny_decoder_in_bf16_holds_it_against_itself(prepared: list[Prepared]) -> None:
    found, wanted = (drawn_by(fast_one(dtype, tiny=True), prepared, 1) for dtype in DTYPES)
    for task in TASKS:
        levels = levels_apart(found, wanted, task)
        assert 0 < levels.mean() <= MEAN
        assert np.quantile(levels, 0.999) <= MOST


def test_half_the_products_are_as_exact(
    monkeypatch: pytest.MonkeyPatch, prepared: list[Prepared], wanted: list[Mapping[str, Array]]
) -> None:
    """In all layers: the demo has none as wide as those where it is taken."""
    monkeypatch.setattr(winograd, "_CHANNELS", 1)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    predictor = fast_one("fp32")
    vae = predictor._backbone._vae
    fast = [layer for layer in vae.modules() if isinstance(layer, winograd.WinogradConv)]
    assert len(fast) > 20
    found = drawn_by(predictor, prepared[:3], 1)
    for task in TASKS:
        levels = levels_apart(found, wanted[:3], task)
        assert levels.mean() < 0.001
        assert np.quantile(levels, 0.999) < 0.05


def test_the_gate_sees_a_coarser_way(
    wanted: list[Mapping[str, Array]], fast: dict[tuple[str, int], Any]
) -> None:
    """Six bits in place of eight cross it, and bf16 is not the same as float32."""
    coarse = [{task: np.rint(picture * 32) / 32 for task, picture in one.items()} for one in wanted]
    assert levels_apart(coarse, wanted, "albedo").mean() > MEAN
    assert levels_apart(fast["bf16", 1], wanted, "albedo").mean() > 0.01
    assert 0 < levels_apart(fast["fp32", 1], wanted, "albedo").mean() < 0.01


def levels_apart(
    found: Sequence[Mapping[str, Array]], wanted: Sequence[Mapping[str, Array]], task: str
) -> Array:
    """|difference| of what is drawn, in levels of 8 bits, all images and channels as one list."""
    pairs = zip(found, wanted, strict=True)
    return np.concatenate(
        [
            np.abs(np.clip(here[task], -1, 1) - np.clip(there[task], -1, 1)).ravel() * 127.5
            for here, there in pairs
        ]
    )


def relative(found: Sequence[Mapping[str, Array]], wanted: Sequence[Mapping[str, Array]]) -> float:
    depth = TASKS["depth"]
    errors = []
    for here, there in zip(found, wanted, strict=True):
        near, truth = (depth.decode(one["depth"], Coding(8.0)) for one in (here, there))
        errors.append((np.abs(near - truth) / np.maximum(truth, 0.01)).mean())
    return float(np.mean(errors))
