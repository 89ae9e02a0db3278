"""The ways that against.py compares: each loads a model once, then turns images into map files.

`Official` is the algorithm of the paper as its equations say it, on current libraries and without
any care for speed; `Marigold` is diffusers' own pipeline; `Dmp` is dmp.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    MarigoldDepthPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dmp_cli import decoders, images, jobs, lora, sources, weights
from dmp_cli.device import DTYPES, choose
from dmp_cli.engines import flow, local
from dmp_cli.host import Again, Drawn, Prepared
from dmp_cli.plan import Plan, Settings
from dmp_cli.predict import find_backbone
from dmp_cli.tasks import TASKS

Array = NDArray[Any]
Pictures = dict[str, Array]  # what a network drew, [h, w, 3] in levels of 255, by image and task


@dataclass(frozen=True)
class Spec:
    """What a way is to load. Plain values: it is sent to a process as JSON."""

    way: str
    dtype: str  # fp32, half (fp16 on CUDA, else bf16), or what dmp knows
    tasks: tuple[str, ...]
    model: str | None
    weights: str | None
    device: str
    settings: dict[str, Any]  # as Settings of dmp
    reference: bool = False  # float32 with no short cut: the output that others are held against

    def plan(self) -> Plan:
        """The same, as dmp is told it."""
        return Plan(
            self.tasks, self.model, self.weights, Settings(**self.settings), self.device,
            dtype="auto" if self.dtype == "half" else self.dtype,
        )  # fmt: skip


class Way(Protocol):
    """A model that is loaded."""

    where: str

    def run(self, paths: Sequence[Path], out: Path, keep: int) -> tuple[list[float], Pictures]:
        """Write the maps of images into `out`.

        Gives the seconds of each image, and what the network drew of the first `keep`.
        """


def load(spec: Spec) -> Way:
    """The way that a spec names."""
    if spec.way == "dmp":
        return Dmp(spec)
    return Official(spec) if spec.way == "official" else Marigold(spec)


def shape(spec: Spec) -> dict[str, Any]:
    """The short side that the network sees, and the channels of the UNet's blocks from the top."""
    recipe = weights.recipes(spec.plan())[0]
    folder, _ = find_backbone(recipe.backbone, half=False)
    config = json.loads((folder / "unet/config.json").read_text())
    return {"network_size": recipe.size, "channels": config["block_out_channels"]}


# What the first two share -----------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """A backbone's networks in diffusers' and transformers' classes, where they run."""

    vae: Any
    words: Any
    tokenizer: Any
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    folder: Path
    variant: str | None
    tiny: Any = None  # an AutoencoderTiny, if it is to draw

    def draw(self, latents: Tensor) -> Tensor:
        """Pictures of latents as the UNet gives them."""
        vae = self.tiny or self.vae
        drawn: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
        return drawn

    @property
    def where(self) -> str:
        names = {dtype: name for name, dtype in DTYPES.items()}
        return f"{names[self.dtype]} on {self.device.type}"


def _parts(spec: Spec, recipe: weights.Recipe) -> _Parts:
    device = choose(spec.device).device
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    dtype = half if spec.dtype == "half" else torch.float32
    if spec.reference:  # convolutions may otherwise round their inputs to 10 bits
        torch.backends.cudnn.allow_tf32 = False
    folder, variant = find_backbone(recipe.backbone, half=False)
    how = {"variant": variant, "use_safetensors": True}
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype, **how)
    words = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, **how)
    scheduler = DDIMScheduler.from_pretrained(
        folder / "scheduler", prediction_type=recipe.prediction,
        timestep_spacing=recipe.spacing, clip_sample=False,
    )  # fmt: skip
    tiny = None
    if recipe.decoder:
        place = decoders.folder(recipe.decoder)
        tiny = AutoencoderTiny.from_pretrained(place, torch_dtype=dtype).to(device).eval()
    return _Parts(
        vae.to(device).eval(), words.to(device).eval(),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"), scheduler, device, dtype, folder,
        variant, tiny,
    )  # fmt: skip


def _opened(path: Path, size: int, multiple: int) -> tuple[Image.Image, tuple[int, int]]:
    """A picture at the size that dmp's network sees too, and its own (width, height)."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    high, wide = images.fitted_size(picture.height, picture.width, size, multiple)
    return picture.resize((wide, high), Image.Resampling.BILINEAR), picture.size


def _save(levels: Array, size: tuple[int, int], path: Path) -> None:
    """Levels [h, w] or [h, w, 3] as a PNG of (width, height), as Pillow writes it by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(levels.round().astype(np.uint8))
    picture.resize(size, Image.Resampling.BILINEAR).save(path)


# (a) --------------------------------------------------------------------------------------


class Official:
    """The paper's sampling, written plainly: one task after the other, one image after the other.

    For each map: the text encoder, the VAE's encoder, DDIM by diffusers' scheduler, the decoder, a
    PNG. LoRAs are PEFT adapters beside the layers; of a reference they are added to the weights.
    """

    def __init__(self, spec: Spec) -> None:
        self._recipes = {one.task: one for one in weights.recipes(spec.plan())}
        first = next(iter(self._recipes.values()))
        if first.sampler != "ddim" or first.prompt or first.lora.made:
            raise SystemExit("take a model of files that is sampled by ddim and without a prompt")
        self._parts, self._fused = _parts(spec, first), spec.reference
        self.where = self._parts.where
        unet = UNet2DConditionModel.from_pretrained(
            self._parts.folder / "unet",
            torch_dtype=self._parts.dtype,
            use_safetensors=True,
            variant=self._parts.variant,
        )
        self._layers = {
            name: layer for name, layer in unet.named_modules() if name.endswith(lora.PROJECTIONS)
        }
        shapes = {
            name: (layer.out_features, layer.in_features) for name, layer in self._layers.items()
        }
        self._loras = {
            task: lora.read(sources.lora_file(one.lora), shapes)
            for task, one in self._recipes.items()
        }
        self._unet = unet.to(self._parts.device).eval()
        self._plain = {name: layer.weight.data for name, layer in self._layers.items()}
        if not self._fused:
            for task, matrices in self._loras.items():
                unet.load_lora_adapter(_as_peft(matrices), prefix=None, adapter_name=task)
            unet.to(self._parts.device, self._parts.dtype)

    def _switch(self, task: str) -> None:
        if not self._fused:
            self._unet.set_adapters([task])
            return
        for name, (down, up) in self._loras[task].items():
            plain = self._plain[name]
            self._layers[name].weight.data = plain + (up @ down).to(plain.device)

    def run(self, paths: Sequence[Path], out: Path, keep: int) -> tuple[list[float], Pictures]:
        """As Way says; an image's seconds are those of all its tasks together."""
        seconds = [0.0] * len(paths)
        pictures: Pictures = {}
        for task, recipe in self._recipes.items():
            self._switch(task)
            for index, path in enumerate(paths):
                start = time.perf_counter()
                multiple = _multiple(self._parts.vae)
                picture, size = _opened(path, recipe.size, multiple)
                levels = self._draw(recipe, picture)
                shown = levels.mean(-1) if task == "depth" else levels
                _save(shown, size, out / f"{path.stem}.{task}.png")
                seconds[index] += time.perf_counter() - start
                if index < keep:
                    pictures[f"{index} {task}"] = levels
        return seconds, pictures

    @torch.no_grad()
    def _draw(self, recipe: weights.Recipe, picture: Image.Image) -> Array:
        """What the network draws, float32 [h, w, 3] in levels of 255."""
        parts = self._parts
        tokens = parts.tokenizer(
            "", padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        words = parts.words(tokens.input_ids.to(parts.device))[0]
        x = parts.vae.encode(_pixels(picture, parts)).latent_dist.mode()
        z = x * parts.vae.config.scaling_factor
        parts.scheduler.set_timesteps(recipe.steps, device=parts.device)
        for t in parts.scheduler.timesteps:
            output = self._unet(z, t, encoder_hidden_states=words).sample
            step = parts.scheduler.step(output, t, z)
            z = step.prev_sample
        y = step.pred_original_sample if recipe.final == "y0" else z
        drawn = parts.draw(y)
        shown = (drawn / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
        levels: Array = shown.cpu().float().numpy() * 255
        return levels


def _multiple(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _pixels(picture: Image.Image, parts: _Parts) -> Tensor:
    values = np.asarray(picture, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(values).permute(2, 0, 1)[None].to(parts.device, parts.dtype)


def _as_peft(matrices: lora.Matrices) -> dict[str, Tensor]:
    """A LoRA by the keys that PEFT gives its matrices."""
    sides = {"lora_A": 0, "lora_B": 1}
    return {
        f"{module}.{side}.weight": pair[index].contiguous()
        for module, pair in matrices.items()
        for side, index in sides.items()
    }


# (b) --------------------------------------------------------------------------------------


class Marigold:
    """diffusers' pipeline for depth on the same VAE and a UNet of random weights for two latents.

    Of several tasks it runs once for each: there is a checkpoint for each, of equal cost.
    """

    def __init__(self, spec: Spec) -> None:
        self._recipe = weights.recipes(spec.plan())[0]
        self._tasks, self._parts = spec.tasks, _parts(spec, self._recipe)
        self.where = self._parts.where
        shape = UNet2DConditionModel.load_config(self._parts.folder / "unet")
        self._channels = int(shape["out_channels"])
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config({**shape, "in_channels": 2 * self._channels})
        self._pipeline = MarigoldDepthPipeline(
            unet.to(self._parts.device, self._parts.dtype).eval(), self._parts.vae,
            self._parts.scheduler, self._parts.words, self._parts.tokenizer,
            prediction_type="depth",
        )  # fmt: skip
        self._pipeline.set_progress_bar_config(disable=True)
        # its first call embeds the empty text, and keeps that: this is loading
        side = 8 * _multiple(self._parts.vae)
        self._pipeline(Image.new("RGB", (side, side)), 1, processing_resolution=0)

    def run(self, paths: Sequence[Path], out: Path, keep: int) -> tuple[list[float], Pictures]:
        """As Way says."""
        seconds, pictures = [], {}
        for index, path in enumerate(paths):
            start = time.perf_counter()
            for task in self._tasks:
                multiple = _multiple(self._parts.vae)
                picture, size = _opened(path, self._recipe.size, multiple)
                noise = self._noise(picture.height // multiple, picture.width // multiple)
                made = self._pipeline(
                    picture, num_inference_steps=self._recipe.steps, processing_resolution=0,
                    match_input_resolution=False, latents=noise,
                )  # fmt: skip
                levels = made.prediction[0, ..., 0] * 255
                _save(levels, size, out / f"{path.stem}.{task}.png")
                if index < keep:
                    pictures[f"{index} {task}"] = levels
            seconds.append(time.perf_counter() - start)
        return seconds, pictures

    def _noise(self, high: int, wide: int) -> Tensor:
        """The start of the sampling, the same in each dtype."""
        drawn = torch.Generator().manual_seed(0)
        noise = torch.randn((1, self._channels, high, wide), generator=drawn)
        return noise.to(self._parts.device, self._parts.dtype)


# (c) --------------------------------------------------------------------------------------


class Dmp:
    """The path of `dmp predict` once it has loaded: readers, the network, writers."""

    def __init__(self, spec: Spec) -> None:
        self._network = local.load(spec.plan(), lambda _: None)
        placement = self._network.placement
        self.where = f"{placement.dtype_name} on {placement.device.type}"
        self._draw = self._network.draw
        self._kept: dict[int, tuple[Prepared, dict[str, Drawn]]] = {}

    def run(self, paths: Sequence[Path], out: Path, keep: int) -> tuple[list[float], Pictures]:
        """As Way says; the seconds of an image are those from one that is done to the next."""
        plan = self._network.plan
        found = jobs.find([str(path) for path in paths], out, lambda _: None, False, tuple(TASKS))
        todo = jobs.plan_targets(found, out, plan.tasks, plan.output)
        self._kept.clear()
        put = self._keeping(keep) if keep else self._draw
        setattr(self._network, "draw", put)  # noqa: B010  (mypy: a method)
        start, ends = time.perf_counter(), []
        for result in flow.stream(self._network, todo):
            if result.errors:
                raise SystemExit(f"{result.job.source}: {result.errors[0]}")
            ends.append(time.perf_counter() - start)
        pictures = {
            f"{index} {task}": _levels(picture)
            for index, (_, drawn) in enumerate(self._kept.values())
            for task, picture in drawn.items()
        }
        return self._between(ends), pictures

    def _keeping(self, keep: int) -> Any:
        """`draw` that keeps what it gives of the first images; in the order in which they come."""

        def draw(batch: Sequence[Prepared], *names: Any) -> list[dict[str, Drawn]]:
            for image in batch[: max(keep - len(self._kept), 0)]:
                self._kept[id(image)] = image, {}  # its place: a later batch may be done before
            drawn = self._draw(batch, *names)
            for image, pictures in zip(batch, drawn, strict=True):
                if id(image) in self._kept:
                    self._kept[id(image)] = image, pictures
            return drawn

        return draw

    def _between(self, ends: Sequence[float]) -> list[float]:
        """Seconds from image to image; those of a batch, which end together, share its time."""
        batch = min(self._network.batch, len(ends))
        last = np.asarray([0.0, *ends[batch - 1 :: batch]])
        return [float(each) for each in np.diff(last) / batch]


def _levels(drawn: Drawn) -> Array:
    """What the network drew, in levels of 255."""
    picture = drawn.picture if isinstance(drawn, Again) else drawn
    if not isinstance(picture, np.ndarray):
        raise SystemExit(f"nothing was drawn: {picture}")
    whole: Array = (picture / 2 + 0.5).clip(0, 1) * 255
    return whole
