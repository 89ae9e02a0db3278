"""Stable Diffusion with its LoRAs: encode, predict, decode."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from dmp_cli import compatibility, lora, sources
from dmp_cli.device import Placement
from dmp_cli.diffusion import Schedule
from dmp_cli.errors import ModelError
from dmp_cli.networks import fused, mixed, tiny_decoder
from dmp_cli.networks.fused import WeightSets
from dmp_cli.networks.loading import as_model_error, quiet, whole
from dmp_cli.networks.offload import Turns
from dmp_cli.networks.speedup import speed_up
from dmp_cli.networks.text_encoder import Texts, embed
from dmp_cli.networks.tiny_decoder import TinyDecoder

# The UNet of Stable Diffusion 1.x, as far as diffusers would build another if nothing is said
_FIRST = {"cross_attention_dim": 768, "sample_size": 64}


class Backbone:
    """One Stable Diffusion on one device, and the LoRAs that are resident on it."""

    def __init__(
        self,
        unet: Any,
        vae: Any,
        schedule: Schedule,
        texts: Texts,
        placement: Placement,
        stored: Path,
    ) -> None:
        """Parts in diffusers' classes, and what embeds texts.

        `stored` is the file of the UNet's weights: LoRAs are added to them as they are there.
        """
        self._texts = texts
        self.schedule = schedule
        self.placement = placement
        self._sets = WeightSets(unet, partial(_stored, stored), placement.waiting)
        self._dtype = speed_up(unet, vae, placement)  # of what goes in
        self._unet, self._vae, self._wide = self._placed(unet), self._placed(vae), False
        for network in (self._unet, self._vae):
            network.to(memory_format=self._layout)
        self._turns = Turns(_parts(unet, vae), self._copied) if placement.in_turns else None

    @classmethod
    def load(
        cls,
        folder: Path,
        placement: Placement,
        prompts: Iterable[str] = (),
        variant: str | None = None,
        tiny: Path | None = None,
    ) -> "Backbone":
        """From a folder in diffusers' layout, safetensors only.

        `variant` names the files (`fp16`) to take. `tiny` is the folder of a decoder that takes the
        place of the VAE's, which is not kept then. The text encoder is let go once `prompts` and
        the empty prompt are embedded; another text brings it back. ModelError names
        the folder and what is wrong in it.
        """
        with as_model_error(folder), quiet():
            compatibility.check(folder)
            schedule = read_schedule(folder)
            embeddings = embed(folder, sorted({"", *prompts}), variant)
            mixes = mixed.suits(placement.device, placement.dtype)
            dtype = torch.float32 if mixes else placement.dtype
            how = {"variant": variant, "use_safetensors": True, "torch_dtype": dtype}
            unet = whole(UNet2DConditionModel, folder / "unet", how)
            vae = whole(AutoencoderKL, folder / "vae", how)
            if tiny:
                tiny_decoder.replace(vae, tiny)
        texts = Texts(folder, variant, placement.waiting, embeddings)
        stored = sources.weight_file(folder, "unet", variant)
        return cls(unet, vae, schedule, texts, placement, stored)

    def _placed(self, network: Any) -> Any:
        return network.to(self.placement.waiting).eval().requires_grad_(False)

    @property
    def _layout(self) -> torch.memory_format:
        """channels_last is faster, but on the CPU torch's GroupNorm for it loses up to 1e-3."""
        exact = self._wide or self.placement.dtype == torch.float32
        on_cpu = self.placement.device.type == "cpu"
        return torch.contiguous_format if exact and on_cpu else torch.channels_last

    def _bring(self, part: str) -> None:
        """Have a part on the device if parts take turns there: the others wait.

        It stays until another is asked for, so that the steps of all tasks find the UNet there.
        """
        if self._turns and self._turns.inside != part:
            self._settle()
            self._turns.enter(part)

    def _copied(self, held: Tensor) -> Tensor:
        """What computes in place of a tensor that waits, in float32 within `widened`."""
        wide = self._wide and held.is_floating_point()
        copy = held.to(self.placement.device, copy=True)  # the dtype is changed over there
        return copy.to(torch.float32) if wide else copy

    def _settle(self) -> None:
        """After a change of what the layers hold: none in its turn, the LoRA in use in them."""
        if self._turns:
            self._turns.leave()
        self._sets.again()
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def widened(self) -> Iterator[None]:
        """Within, all is computed in float32, from the same weights.

        They are widened one by one, and back at the end: each half is a float32 exactly, so that
        no bit of them changes. Takes twice their memory for the time; LoRAs that wait stay as they
        are. Where parts take turns, they wait as they are, and each is widened as it comes.
        """
        resident = [] if self._turns else list(self._held())
        kept, before = self._dtype, [held.dtype for held in resident]
        if self._turns:
            self._settle()
        try:
            self._dtype, self._wide = torch.float32, True
            for held in resident:
                held.data = _as(held.data, torch.float32, self._layout)
            yield
        finally:
            self._dtype, self._wide = kept, False
            for held, dtype in zip(resident, before, strict=True):
                held.data = _as(held.data, dtype, self._layout)
            self._settle()

    def _held(self) -> Iterator[Tensor]:
        """The numbers of both networks."""
        for network in (self._unet, self._vae):
            for held in (*network.parameters(), *network.buffers()):
                if held.is_floating_point():
                    yield held

    def _input(self, tensor: Tensor) -> Tensor:
        placed = tensor.to(self.placement.device, self._dtype)
        # where float32 is exact, as it came: tests/test_parity.py has pictures in both layouts
        if self._layout == torch.channels_last:
            return placed.to(memory_format=torch.channels_last)
        return placed

    @property
    def unet(self) -> Any:
        """The UNet in diffusers' class, with its LoRAs: for training."""
        return self._unet

    def words(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, 77, D] of prompts, as the UNet takes them.

        Those that `load` was given are there; the first other one loads the text encoder again.
        """
        return torch.cat([self._words(prompt) for prompt in prompts])

    def _words(self, prompt: str) -> Tensor:
        return self._texts(prompt).to(self.placement.device, self._dtype)

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt has more tokens than the network takes: what is beyond is lost."""
        return self._texts.cuts(prompt)

    @property
    def multiple(self) -> int:
        """Pixels per latent: what the sides of a network image must be a multiple of."""
        return int(2 ** (len(self._vae.config.block_out_channels) - 1))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each attention projection: what a LoRA has to fit."""
        return self._sets.shapes

    def add_lora(self, name: str, path: Path) -> None:
        """Read a LoRA file strictly and keep it on the device as `name`; ModelError if refused."""
        self._sets.add(name, lora.read(path, self.shapes))

    def use_lora(self, name: str) -> None:
        """Switch to a LoRA that was added."""
        self._sets.use(name)

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, C, h/m, w/m] float32 of images [B, 3, h, w] in [-1, 1].

        The mode of the posterior, times the scaling factor: a sample would change with the seed.
        """
        self._bring("encoder")
        inputs = self._input(images.contiguous())
        latents: Tensor = self._vae.encode(inputs).latent_dist.mode()
        return latents.float().mul(self._vae.config.scaling_factor).contiguous()

    def predict(
        self, z: Tensor, t: int, prompt: str | Sequence[str] = "", guidance: float = 1.0
    ) -> Tensor:
        """The UNet's output [B, C, h, w] float32 at z and t.

        `prompt` is of all rows, or one of each. A row with a prompt and a guidance g other than 1
        is `empty + g (prompted - empty)`. All is one batch: of B rows, and of those once more.
        """
        self._bring("unet")
        prompts = [prompt] * len(z) if isinstance(prompt, str) else list(prompt)
        guided = [row for row, text in enumerate(prompts) if text and guidance != 1.0]
        first = ["" if row in guided else text for row, text in enumerate(prompts)]
        inputs = self._input(torch.cat([z, z[guided]]) if guided else z)
        words = self.words(first + [prompts[row] for row in guided])
        # made there: a number of this side would have diffusers wait for the device
        when = torch.full((), t, device=inputs.device)
        output: Tensor = self._unet(inputs, when, encoder_hidden_states=words).sample.float()
        out, prompted = output[: len(z)], output[len(z) :]
        if guided:
            empty = out[guided]
            out[guided] = empty + guidance * (prompted - empty)
        return out

    def decode(self, latents: Tensor, chunk: int = 1) -> Tensor:
        """Pictures [B, 3, h, w] around [-1, 1] of latents, `chunk` at a time, in the dtype in use.

        The decoder's memory at full resolution is what bounds a batch, so it takes fewer at once.
        """
        self._bring("decoder")
        tiny = isinstance(self._vae.decoder, TinyDecoder)  # takes them as the UNet gives them
        scaled = latents if tiny else latents / self._vae.config.scaling_factor
        parts = (self._input(part) for part in scaled.split(chunk))
        return torch.cat([self._vae.decode(part).sample for part in parts])


def _parts(unet: Any, vae: Any) -> dict[str, list[Any]]:
    """What can take turns on a device, each with all that it computes with."""
    drawing = (vae.post_quant_conv, vae.decoder)  # a tiny decoder has nothing that leads to it
    return {
        "encoder": [vae.encoder, vae.quant_conv],
        "unet": [unet],
        "decoder": [part for part in drawing if part is not None],
    }


def _as(tensor: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """A tensor in a dtype, and if it has four axes in a layout."""
    return tensor.to(dtype, memory_format=layout if tensor.ndim == 4 else torch.preserve_format)


def shapes_of(config: Path | None) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each attention projection of the UNet with this config.json.

    None stands for Stable Diffusion 1.x. No memory is taken for weights. ModelError for a file
    that is not the configuration of a UNet.
    """
    with as_model_error(config or Path()), torch.device("meta"), quiet():
        how = json.loads(config.read_text()) if config else _FIRST
        return fused.shapes(fused.projections(UNet2DConditionModel.from_config(how)))


def _stored(file: Path, module: str) -> Tensor:
    """The weight of a layer as a file has it."""
    with as_model_error(file), safe_open(file, framework="pt") as weights:
        weight: Tensor = weights.get_tensor(f"{module}.weight")
        return weight


def read_schedule(folder: Path) -> Schedule:
    """The noise schedule of a backbone folder; ModelError names its file and what is wrong."""
    path = folder / "scheduler" / "scheduler_config.json"
    with as_model_error(folder):
        config = json.loads(path.read_text())
        try:
            return Schedule.from_config(config)
        except ModelError as error:
            raise ModelError(f"{path}: {error}", error.hint) from error
