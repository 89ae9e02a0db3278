"""What the trainings of the recipe share: a learning rate, and a state that a run goes on from."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer


def rate(step: int, steps: int, highest: float, warmup: int = 50) -> float:
    """Rises over `warmup` steps, then half a cosine down to a fiftieth."""
    warm = min(1.0, (step + 1) / warmup)
    return highest * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))


class Course:
    """A network, its running average and its optimizer, kept in a file every `every` steps."""

    def __init__(self, path: Path, network: Module, average: Module, optimizer: Optimizer) -> None:
        """Goes on from `path` if it is there."""
        self.path, self.network, self.average, self.optimizer = path, network, average, optimizer
        self.step = 0
        self._start, self._losses = time.monotonic(), list[dict[str, float]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            state = torch.load(path, weights_only=True, map_location="cpu")
            network.load_state_dict(state["network"])
            average.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    @torch.no_grad()
    def update(self, losses: dict[str, float], decay: float) -> None:
        """Step the optimizer on the gradients that are there, and the average after it."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.step += 1
        kept = min(decay, self.step / (self.step + 9))
        for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(new, 1 - kept)
        self._losses.append(losses)

    def save(self, **more: Any) -> None:
        """Write the state, and a line of JSON about the steps since the last."""
        names = self._losses[0] if self._losses else {}
        told = {name: sum(row[name] for row in self._losses) / len(self._losses) for name in names}
        told = {name: round(value, 4) for name, value in told.items()}
        told |= {"step": self.step, "seconds": round(time.monotonic() - self._start)}
        print(json.dumps(told | more), flush=True)
        self._losses.clear()
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)
