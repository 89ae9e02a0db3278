"""LoRAs worked into the weights of a UNet: its attention projections, once for each LoRA."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmp_cli.lora import PROJECTIONS, Matrices

Read = Callable[[str], Tensor]  # the name of a projection -> its weight without a LoRA


class WeightSets:
    """Which LoRA the projections of a UNet hold.

    `W + up down` is computed in float32 from the weights as they are stored and rounded once, so
    that it is nearer to the exact product than two layers beside each other, and costs nothing
    later. Switching puts other tensors into the layers: nothing is computed, nothing drifts.
    """

    def __init__(self, unet: Any, base: Read, device: torch.device) -> None:
        """The sets wait on `device`; `base` is asked when a LoRA is added, and not later."""
        self._layers = projections(unet)
        self._base, self._device = base, device
        self._sets: dict[str, dict[str, Tensor]] = {}
        self._used: str | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each projection: what a LoRA has to fit."""
        return shapes(self._layers)

    def add(self, name: str, matrices: Matrices) -> None:
        """Work a LoRA into the weights and keep them as `name`, in the dtype of each layer."""
        touched = {module for one in self._sets.values() for module in one}
        self._sets[name] = {
            module: self._kept(module, self._base(module).float() + up @ down)
            for module, (down, up) in matrices.items()
        }
        for one in self._sets.values():  # every set has all that any of them changes
            for module in (touched | set(matrices)) - set(one):
                one[module] = self._kept(module, self._base(module))

    def _kept(self, module: str, weight: Tensor) -> Tensor:
        return weight.to(self._device, self._layers[module].weight.dtype)

    def use(self, name: str) -> None:
        """Have the layers compute with the LoRA that was added as `name`, and with no other."""
        if name != self._used:
            self._put(name)
            self._used = name

    def again(self) -> None:
        """Put the tensors of the set in use into the layers once more, should they hold copies."""
        if self._used is not None:
            self._put(self._used)

    def _put(self, name: str) -> None:
        for module, held in self._sets[name].items():
            parameter = self._layers[module].weight
            # a copy of the same kind: one that is made in inference mode does not fit the others
            with torch.inference_mode(parameter.is_inference()):
                parameter.data = held.to(parameter.device, parameter.dtype)


def projections(unet: Any) -> dict[str, Any]:
    """The linear layers of the attentions of a UNet, by name."""
    return {
        name: getattr(module, "base_layer", module)  # below a LoRA that is being trained
        for name, module in unet.named_modules()
        if name.endswith(tuple(f".{to}" for to in PROJECTIONS))
    }


def shapes(layers: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer."""
    return {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
