"""The LoRA that is being trained: put onto a UNet by PEFT, and taken off it again."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn import Parameter

from dmp_cli.lora import Matrices


def random(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> Matrices:
    """A new LoRA: `down` normal with deviation 1 / rank, `up` zero, so that it changes nothing yet.

    That is how diffusers' own training scripts begin. The same seed gives the same matrices.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        module: (
            torch.randn(rank, inputs, generator=generator) / rank,
            torch.zeros(outputs, rank),
        )
        for module, (outputs, inputs) in sorted(shapes.items())
    }


def grown(matrices: Matrices, rank: int, seed: int) -> Matrices:
    """The same LoRA with a rank of `rank` or more: what is new of it changes nothing yet."""
    new = random({module: (len(up), down.shape[1]) for module, (down, up) in matrices.items()},
                 rank, seed)  # fmt: skip
    return {
        module: (
            torch.cat([down, new[module][0][len(down) :]]),
            torch.cat([up, new[module][1][:, len(down) :]], dim=1),
        )
        for module, (down, up) in matrices.items()
    }


def add(unet: Any, name: str, matrices: Matrices) -> list[Parameter]:
    """Put a LoRA onto a frozen UNet as adapter `name`; its parameters, float32, to be trained."""
    rank = next(iter(matrices.values()))[0].shape[0]
    config = LoraConfig(
        r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=sorted(matrices)
    )
    unet.add_adapter(config, adapter_name=name)
    parameters = []
    held = dict(unet.named_parameters())
    for module, pair in sorted(matrices.items()):
        for side, matrix in zip("AB", pair, strict=True):
            parameter = held[f"{module}.lora_{side}.{name}.weight"]
            parameter.data = matrix.to(parameter.device, torch.float32).clone()
            parameters.append(parameter.requires_grad_(True))
    return parameters


def matrices(unet: Any, name: str) -> Matrices:
    """The matrices of adapter `name`, copied to the CPU in float32."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, parameter in unet.named_parameters():
        for side in "AB":
            module, mark, rest = key.partition(f".lora_{side}.{name}.")
            if mark and rest == "weight":
                found.setdefault(module, {})[side] = parameter.detach().to("cpu", torch.float32)
    return {module: (sides["A"].clone(), sides["B"].clone()) for module, sides in found.items()}
