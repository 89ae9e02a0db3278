"""The networks of a backbone, changed to what a device computes fastest."""

from typing import Any

import torch

from dmp_cli.device import Placement
from dmp_cli.networks import folding, mixed, winograd
from dmp_cli.networks.tiny_decoder import TinyDecoder


def speed_up(unet: Any, vae: Any, placement: Placement) -> torch.dtype:
    """Change the layers of a UNet and a VAE. Returns the dtype of what they take in then.

    What they give is the same but for rounding, which on a CPU in bf16 is that of a mixture.
    """
    tiny = isinstance(vae.decoder, TinyDecoder)
    if not tiny:
        folding.fold(vae.decoder)
    if placement.device.type == "cpu":
        winograd.replace(vae.encoder)
        if placement.dtype == torch.float32 and not tiny:
            winograd.replace(vae.decoder)
    if not mixed.suits(placement.device, placement.dtype):
        return placement.dtype
    # the encoder's error is in every task's map; of a tiny decoder what leads from block to block
    # stays too: with it in bf16, its error was nine times as large
    for network in (unet, *(vae.decoder.blocks if tiny else [vae.decoder])):
        mixed.mix(network)
    return torch.float32
