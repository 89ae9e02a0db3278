"""A tiny decoder in place of a VAE's: that of diffusers' AutoencoderTiny, as TAESD is one."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors import safe_open
from torch import Tensor
from torch.nn import Module

from dmp_cli.errors import ModelError
from dmp_cli.networks.loading import as_model_error

_CLASS, _PART = "AutoencoderTiny", "decoder."
_HINT = "name another tiny decoder in the weights file, or run without --tiny-decoder"


class TinyDecoder(Module):
    """Latents [B, C, h, w] as a UNet gives them -> pictures [B, 3, mh, mw] around [-1, 1]."""

    def __init__(self, decoder: Module, factor: float) -> None:
        """`factor` is what latents are divided by first, 1 in all that are known."""
        super().__init__()
        self.decoder: Any = decoder
        self.factor = factor

    @property
    def blocks(self) -> list[Module]:
        """Its residual blocks: all of its products but for those that lead from size to size."""
        return [layer for layer in self.decoder.layers if any(True for _ in layer.children())]

    def forward(self, latents: Tensor) -> Tensor:
        """The pictures of latents."""
        pictures: Tensor = self.decoder(latents / self.factor)
        return pictures


def replace(vae: Any, folder: Path) -> None:
    """Give a VAE the decoder of a folder; its own, and what leads to that, are let go.

    ModelError names the file that cannot be read, or is not for this VAE.
    """
    config = _config(folder / "config.json")
    _check_fit(folder / "config.json", config, vae.config)
    given = next(vae.decoder.parameters()).dtype
    decoder = _decoder(folder, config).to(given)
    vae.decoder, vae.post_quant_conv = TinyDecoder(decoder, config["scaling_factor"]), None


def _config(path: Path) -> dict[str, Any]:
    """A configuration, with the defaults of the class for what it leaves out."""
    with as_model_error(path, _HINT):
        stated: Any = json.loads(path.read_text())
        if not isinstance(stated, dict):
            raise ModelError(f"{path}: is not the configuration of a network", _HINT)
        found = stated.get("_class_name", _CLASS)
        if found != _CLASS:
            raise ModelError(f"{path}: its class is {found}, not {_CLASS}", _HINT)
        with torch.device("meta"):
            return dict(AutoencoderTiny.from_config(stated).config)


def _check_fit(path: Path, tiny: dict[str, Any], vae: Any) -> None:
    """That a decoder draws what the VAE's own would, of the same latents."""
    with as_model_error(path, _HINT):  # a number may stand as a text, or none at all
        enlarged = tiny["upsampling_scaling_factor"] ** (len(tiny["num_decoder_blocks"]) - 1)
        divided = 0 < tiny["scaling_factor"] < math.inf
    facts = {
        "latents of {} channels": (tiny["latent_channels"], vae.latent_channels),
        "pictures of {} channels": (tiny["out_channels"], 3),
        "{} pixels to a latent": (enlarged, 2 ** (len(vae.block_out_channels) - 1)),
        "latents shifted by {}": (tiny.get("shift_factor") or 0.0, 0.0),
    }
    for words, (here, needed) in facts.items():
        if here != needed:
            raise ModelError(
                f"{path}: not for this backbone: it has {words.format(here)}, not {needed}", _HINT
            )
    if not divided:
        raise ModelError(
            f"{path}: scaling_factor must be a number above 0, not {tiny['scaling_factor']}", _HINT
        )


def _decoder(folder: Path, config: dict[str, Any]) -> Module:
    """The decoder's half of the weights in a folder; each that it needs, and no other."""
    path = folder / "diffusion_pytorch_model.safetensors"
    with as_model_error(path, _HINT):
        with torch.device("meta"):
            decoder: Module = AutoencoderTiny.from_config(config).decoder
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_PART)]  # noqa: SIM118
            found = {name.removeprefix(_PART): file.get_tensor(name) for name in names}
        needed = {name: tuple(held.shape) for name, held in decoder.state_dict().items()}
        for name in sorted(needed.keys() ^ found.keys()):
            what = "is missing" if name in needed else "is unknown"
            raise ModelError(f"{path}: weight {_PART}{name} {what}", _HINT)
        for name, shape in needed.items():
            here = tuple(found[name].shape)
            if here != shape:
                raise ModelError(f"{path}: weight {_PART}{name} is {here}, not {shape}", _HINT)
        decoder.load_state_dict(found, assign=True)
    return decoder
