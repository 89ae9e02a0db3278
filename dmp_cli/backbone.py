"""Stable Diffusion with its LoRAs: encode, predict, decode."""

import gc
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dmp_cli import lora
from dmp_cli.device import Placement
from dmp_cli.diffusion import Schedule
from dmp_cli.errors import ModelError


class Backbone:
    """One Stable Diffusion on one device, and the LoRAs that are resident on it."""

    def __init__(
        self,
        unet: Any,
        vae: Any,
        schedule: Schedule,
        prompts: dict[str, Tensor],
        placement: Placement,
    ) -> None:
        """Parts in diffusers' classes; `prompts` are embeddings [1, 77, D], "" among them."""
        self.schedule = schedule
        self.placement = placement
        # channels_last is faster, but on the CPU torch's GroupNorm for it loses up to 1e-3 in fp32
        exact = placement.device.type == "cpu" and placement.dtype == torch.float32
        self._layout = torch.preserve_format if exact else torch.channels_last
        self._unet = self._placed(unet)
        self._vae = self._placed(vae)
        self._prompts = {
            text: embedding.to(placement.device, placement.dtype)
            for text, embedding in prompts.items()
        }

    @classmethod
    def load(
        cls,
        folder: Path,
        placement: Placement,
        prompts: Iterable[str] = (),
        variant: str | None = None,
    ) -> "Backbone":
        """From a folder in diffusers' layout, safetensors only.

        `variant` names the files (`fp16`) to take. The text encoder is let go once `prompts` and
        the empty prompt are embedded. ModelError names the folder and what is wrong in it.
        """
        with _as_model_error(folder), quiet():
            schedule = read_schedule(folder)
            embeddings = _embed(folder, sorted({"", *prompts}), variant)
            how = {"variant": variant, "use_safetensors": True, "torch_dtype": placement.dtype}
            unet = _whole(UNet2DConditionModel, folder / "unet", how)
            vae = _whole(AutoencoderKL, folder / "vae", how)
        _check_channels(folder, unet, vae)
        return cls(unet, vae, schedule, embeddings, placement)

    def _placed(self, network: Any) -> Any:
        network.to(self.placement.device).to(memory_format=self._layout)
        return network.eval().requires_grad_(False)

    def _input(self, tensor: Tensor) -> Tensor:
        placed = tensor.to(self.placement.device, self.placement.dtype)
        return placed.to(memory_format=self._layout)

    @property
    def unet(self) -> Any:
        """The UNet in diffusers' class, with its LoRAs: for training."""
        return self._unet

    def words(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, 77, D] of prompts that were given to `load`, as the UNet takes them."""
        return torch.cat([self._prompts[prompt] for prompt in prompts])

    @property
    def multiple(self) -> int:
        """Pixels per latent: what the sides of a network image must be a multiple of."""
        return int(2 ** (len(self._vae.config.block_out_channels) - 1))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each attention projection: what a LoRA has to fit."""
        found: dict[str, tuple[int, int]] = {}
        for name, module in self._unet.named_modules():
            if name.endswith(tuple(f".{to}" for to in lora.PROJECTIONS)):
                layer = getattr(module, "base_layer", module)
                found[name] = (layer.out_features, layer.in_features)
        return found

    def add_lora(self, name: str, path: Path) -> None:
        """Read a LoRA file strictly and keep it on the device as `name`; ModelError if refused."""
        pairs = lora.read(path, self.shapes)
        state: dict[str, Tensor] = {}
        for module, (down, up) in pairs.items():
            state[f"{module}.lora_A.weight"] = down.clone()
            state[f"{module}.lora_B.weight"] = up.clone()
        with _as_model_error(path), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            self._unet.load_lora_adapter(state, prefix=None, adapter_name=name)
        held = dict(self._unet.named_parameters())
        for module, pair in pairs.items():
            for side, matrix in zip("AB", pair, strict=True):
                there = held.get(f"{module}.lora_{side}.{name}.weight")
                if there is None or not torch.equal(there.cpu(), matrix.to(there.dtype)):
                    raise ModelError(f"{path}: {module} did not arrive on the backbone")
        self._unet.requires_grad_(False)

    def use_lora(self, name: str) -> None:
        """Switch to a LoRA that was added."""
        self._unet.set_adapters(name)

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, C, h/m, w/m] float32 of images [B, 3, h, w] in [-1, 1].

        The mode of the posterior, times the scaling factor: a sample would change with the seed.
        """
        latents: Tensor = self._vae.encode(self._input(images.contiguous())).latent_dist.mode()
        return latents.float().mul(self._vae.config.scaling_factor).contiguous()

    def predict(self, z: Tensor, t: int, prompt: str = "", guidance: float = 1.0) -> Tensor:
        """The UNet's output [B, C, h, w] float32 at z and t.

        With a prompt and a guidance g other than 1: `empty + g (prompted - empty)`, as one batch.
        """
        inputs = self._input(z)
        words = self.words([prompt]).expand(len(z), -1, -1)
        if not prompt or guidance == 1.0:
            only: Tensor = self._unet(inputs, t, encoder_hidden_states=words).sample
            return only.float()
        both = torch.cat([self.words([""]).expand(len(z), -1, -1), words])
        output: Tensor = self._unet(
            torch.cat([inputs, inputs]), t, encoder_hidden_states=both
        ).sample
        empty, prompted = output.float().chunk(2)
        return empty + guidance * (prompted - empty)

    def decode(self, latents: Tensor, chunk: int = 1) -> Tensor:
        """Pictures [B, 3, h, w] float32 around [-1, 1] of latents, `chunk` at a time.

        The decoder's memory at full resolution is what bounds a batch, so it takes fewer at once.
        """
        scaled = latents / self._vae.config.scaling_factor
        return torch.cat(
            [self._vae.decode(self._input(part)).sample.float() for part in scaled.split(chunk)]
        )


@contextmanager
def _as_model_error(path: Path) -> Iterator[None]:
    """What diffusers and transformers raise on files that are missing, broken or of other shape."""
    try:
        yield
    except (ModelError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # these libraries raise nearly every kind
        first = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{path}: cannot be loaded: {type(error).__name__}: {first}",
            "check that it is whole, and made for Stable Diffusion 1.x in diffusers' layout",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' bars and remarks on loading out of the user's terminal."""
    bars, level = transformers_logging.is_progress_bar_enabled(), diffusers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _whole(model: Any, folder: Path, how: dict[str, Any]) -> Any:
    """`from_pretrained`, but a weight that is missing is an error instead of a random one."""
    loaded, report = model.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **how
    )
    if report["missing_keys"]:
        raise ModelError(f"{folder}: weight {sorted(report['missing_keys'])[0]} is missing")
    return loaded


def _check_channels(folder: Path, unet: Any, vae: Any) -> None:
    """An inpainting or editing model has the same attentions, but takes more channels."""
    latents = vae.config.latent_channels
    if (unet.config.in_channels, unet.config.out_channels) != (latents, latents):
        raise ModelError(
            f"{folder}: its UNet takes {unet.config.in_channels} channels and gives "
            f"{unet.config.out_channels}, its VAE has {latents}",
            "a plain text-to-image Stable Diffusion is needed, not one for inpainting or editing",
        )


def read_schedule(folder: Path) -> Schedule:
    """The noise schedule of a backbone folder; ModelError if there is none."""
    with _as_model_error(folder):
        return Schedule.from_config(
            json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        )


def _embed(folder: Path, prompts: Sequence[str], variant: str | None) -> dict[str, Tensor]:
    """Embeddings [1, 77, D] float32 of the prompts; what made them is freed on return."""
    encoder = TextEncoder(folder, variant)
    embeddings = {text: encoder([text]) for text in prompts}
    del encoder
    gc.collect()
    return embeddings


class TextEncoder:
    """The text encoder of a backbone in float32: for texts that are not known beforehand."""

    def __init__(
        self, folder: Path, variant: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """From a backbone's folder; ModelError names the folder and what is wrong in it."""
        how = {"variant": variant, "use_safetensors": True, "dtype": torch.float32}
        with _as_model_error(folder), quiet():
            self._tokenizer = CLIPTokenizer.from_pretrained(
                folder / "tokenizer", local_files_only=True
            )
            self._encoder = _whole(CLIPTextModel, folder / "text_encoder", how).eval().to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, 77, D] float32; what is longer than 77 tokens is cut."""
        tokens = self._tokenizer(
            list(texts), padding="max_length", max_length=self._tokenizer.model_max_length,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        embeddings: Tensor = self._encoder(tokens.input_ids.to(self._device))[0]
        return embeddings
