"""Parts of networks that take turns on a device: what does not compute waits in host memory."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Module, Parameter


class Turns:
    """Several parts, of which one at a time is on the device.

    A part that enters has copies of its parameters and buffers in their place; when it leaves, the
    ones that waited are back, the very same. Weights never change, so nothing is copied back.
    """

    def __init__(
        self, parts: Mapping[str, Sequence[Module]], copied: Callable[[Tensor], Tensor]
    ) -> None:
        """Parts by name, all waiting; `copied` gives what computes in place of a tensor."""
        self._parts, self._copied = parts, copied
        self._waiting: list[tuple[Module, str, Tensor]] = []
        self.inside: str | None = None  # the part that is on the device

    def enter(self, name: str) -> None:
        """Bring a part in, after `leave`. If that fails, out of memory, no part is inside."""
        try:
            # as all parameters are: one that is made in inference mode takes no other data later
            with torch.inference_mode(mode=False), torch.no_grad():
                for network in self._parts[name]:
                    for module in network.modules():
                        self._replace(module)
        except BaseException:
            self.leave()
            raise
        self.inside = name

    def _replace(self, module: Module) -> None:
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, held in own:
            copy = self._copied(held)
            self._waiting.append((module, name, held))
            if isinstance(held, Parameter):
                copy = Parameter(copy, requires_grad=False)
            setattr(module, name, copy)

    def leave(self) -> None:
        """Have all wait, if any part is inside."""
        for module, name, held in self._waiting:
            setattr(module, name, held)
        self._waiting.clear()
        self.inside = None
