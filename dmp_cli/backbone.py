"""Stable Diffusion with its LoRAs: encode, predict, decode."""

import gc
import json
import warnings
from collections import OrderedDict
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

from dmp_cli import compatibility, lora
from dmp_cli.device import Placement
from dmp_cli.diffusion import Schedule
from dmp_cli.errors import ModelError

_WHOLE = "check that it is whole, and made for Stable Diffusion 1.x or 2.x in diffusers' layout"
_KEPT = 64  # embeddings of texts that were not known beforehand: 231 kB each in float32


# The UNet of Stable Diffusion 1.x, as far as diffusers would build another if nothing is said
_FIRST = {"cross_attention_dim": 768, "sample_size": 64}


class Backbone:
    """One Stable Diffusion on one device, and the LoRAs that are resident on it."""

    def __init__(
        self,
        unet: Any,
        vae: Any,
        schedule: Schedule,
        prompts: dict[str, Tensor],
        placement: Placement,
        texts: "Texts | None" = None,
    ) -> None:
        """Parts in diffusers' classes; `prompts` are embeddings [1, 77, D], "" among them.

        `texts` embeds what is not among them.
        """
        self._texts = texts
        self.schedule = schedule
        self.placement = placement
        self._dtype, self._layout = placement.dtype, _layout(placement.device, placement.dtype)
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
        the empty prompt are embedded; another text brings it back. ModelError names
        the folder and what is wrong in it.
        """
        with as_model_error(folder), quiet():
            compatibility.check(folder)
            schedule = read_schedule(folder)
            embeddings = _embed(folder, sorted({"", *prompts}), variant)
            how = {"variant": variant, "use_safetensors": True, "torch_dtype": placement.dtype}
            unet = _whole(UNet2DConditionModel, folder / "unet", how)
            vae = _whole(AutoencoderKL, folder / "vae", how)
        return cls(
            unet, vae, schedule, embeddings, placement, Texts(folder, variant, placement.device)
        )

    def _placed(self, network: Any) -> Any:
        network.to(self.placement.device).to(memory_format=self._layout)
        return network.eval().requires_grad_(False)

    def _input(self, tensor: Tensor) -> Tensor:
        placed = tensor.to(self.placement.device, self._dtype)
        return placed.to(memory_format=self._layout)

    @contextmanager
    def widened(self) -> Iterator[None]:
        """Within, all is computed in float32, from the same weights.

        They are widened one by one, and back at the end: each half is a float32 exactly, so that
        no bit of them changes. Takes twice their memory for the time.
        """
        kept = self._dtype, self._layout
        exact = self.placement.device.type == "cpu"
        whole = torch.float32, torch.contiguous_format if exact else torch.channels_last
        before = {id(held): held.dtype for held in self._held()}
        try:
            self._dtype, self._layout = whole
            for held in self._held():
                held.data = _as(held.data, *whole)
            yield
        finally:
            self._dtype, self._layout = kept
            for held in self._held():
                held.data = _as(held.data, before[id(held)], self._layout)
            if self.placement.device.type == "cuda":
                torch.cuda.empty_cache()

    def _held(self) -> Iterator[Tensor]:
        """The numbers of both networks, those of LoRAs among them."""
        for network in (self._unet, self._vae):
            for held in (*network.parameters(), *network.buffers()):
                if held.is_floating_point():
                    yield held

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
        if prompt in self._prompts or self._texts is None:
            return self._prompts[prompt].to(self._dtype)
        return self._texts(prompt).to(self.placement.device, self._dtype)

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt has more tokens than the network takes: what is beyond is lost."""
        return self._texts is not None and self._texts.cuts(prompt)

    @property
    def multiple(self) -> int:
        """Pixels per latent: what the sides of a network image must be a multiple of."""
        return int(2 ** (len(self._vae.config.block_out_channels) - 1))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each attention projection: what a LoRA has to fit."""
        return _projections(self._unet)

    def add_lora(self, name: str, path: Path) -> None:
        """Read a LoRA file strictly and keep it on the device as `name`; ModelError if refused."""
        pairs = lora.read(path, self.shapes)
        state: dict[str, Tensor] = {}
        for module, (down, up) in pairs.items():
            state[f"{module}.lora_A.weight"] = down.clone()
            state[f"{module}.lora_B.weight"] = up.clone()
        with as_model_error(path), warnings.catch_warnings():
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

    def predict(
        self, z: Tensor, t: int, prompt: str | Sequence[str] = "", guidance: float = 1.0
    ) -> Tensor:
        """The UNet's output [B, C, h, w] float32 at z and t.

        `prompt` is of all rows, or one of each. A row with a prompt and a guidance g other than 1
        is `empty + g (prompted - empty)`. All is one batch: of B rows, and of those once more.
        """
        prompts = [prompt] * len(z) if isinstance(prompt, str) else list(prompt)
        guided = [row for row, text in enumerate(prompts) if text and guidance != 1.0]
        first = ["" if row in guided else text for row, text in enumerate(prompts)]
        inputs = self._input(torch.cat([z, z[guided]]) if guided else z)
        words = self.words(first + [prompts[row] for row in guided])
        output: Tensor = self._unet(inputs, t, encoder_hidden_states=words).sample.float()
        out, prompted = output[: len(z)], output[len(z) :]
        if guided:
            empty = out[guided]
            out[guided] = empty + guidance * (prompted - empty)
        return out

    def decode(self, latents: Tensor, chunk: int = 1) -> Tensor:
        """Pictures [B, 3, h, w] float32 around [-1, 1] of latents, `chunk` at a time.

        The decoder's memory at full resolution is what bounds a batch, so it takes fewer at once.
        """
        scaled = latents / self._vae.config.scaling_factor
        return torch.cat(
            [self._vae.decode(self._input(part)).sample.float() for part in scaled.split(chunk)]
        )


def _layout(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """channels_last is faster, but on the CPU torch's GroupNorm for it loses up to 1e-3 in fp32."""
    exact = device.type == "cpu" and dtype == torch.float32
    return torch.preserve_format if exact else torch.channels_last


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
        return _projections(UNet2DConditionModel.from_config(how))


def _projections(unet: Any) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, module in unet.named_modules():
        if name.endswith(tuple(f".{to}" for to in lora.PROJECTIONS)):
            layer = getattr(module, "base_layer", module)
            found[name] = (layer.out_features, layer.in_features)
    return found


@contextmanager
def as_model_error(path: Path, hint: str = _WHOLE) -> Iterator[None]:
    """What diffusers and transformers raise on files that are missing, broken or of other shape."""
    try:
        yield
    except (ModelError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # these libraries raise nearly every kind
        first = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{path}: cannot be loaded: {type(error).__name__}: {first}", hint
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
        raise ModelError(f"{folder}: weight {sorted(report['missing_keys'])[0]} is missing", _WHOLE)
    return loaded


def read_schedule(folder: Path) -> Schedule:
    """The noise schedule of a backbone folder; ModelError names its file and what is wrong."""
    path = folder / "scheduler" / "scheduler_config.json"
    with as_model_error(folder):
        config = json.loads(path.read_text())
        try:
            return Schedule.from_config(config)
        except ModelError as error:
            raise ModelError(f"{path}: {error}", error.hint) from error


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
        with as_model_error(folder), quiet():
            self._tokenizer = _tokenizer(folder)
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


def _tokenizer(folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


class Texts:
    """Embeddings of texts as they come, the latest of them kept. The encoder waits for the first.

    Each text is embedded alone, so that what it gives does not depend on the texts beside it.
    """

    def __init__(self, folder: Path, variant: str | None, device: torch.device) -> None:
        """Of a backbone's folder; what is wrong in it is told when the first text comes."""
        self._open = folder, variant, device
        self._encoder: TextEncoder | None = None
        self._tokenizer: Any = None
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, text: str) -> Tensor:
        """The embedding [1, 77, D] of a text, float32."""
        if text not in self._kept:
            self._kept[text] = self._loaded()([text])
        self._kept.move_to_end(text)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[text]

    def cuts(self, text: str) -> bool:
        """Whether a text is longer than 77 tokens. Needs the tokenizer alone."""
        if self._tokenizer is None:
            folder = self._open[0]
            with as_model_error(folder), quiet():
                self._tokenizer = _tokenizer(folder)
        tokens = self._tokenizer(text, verbose=False).input_ids
        return len(tokens) > int(self._tokenizer.model_max_length)

    def _loaded(self) -> TextEncoder:
        self._encoder = self._encoder or TextEncoder(*self._open)
        return self._encoder
