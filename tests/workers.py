"""A stand-in for a network in worker processes: it draws at once, and fails as a prompt says."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dmp_cli.errors import DeviceError, ModelError, ResourceError, UsageError
from dmp_cli.host import Drawn, Host, Prepared, completed
from dmp_cli.plan import Plan

Note = Callable[[str], None]


@dataclass
class StandIn:
    """A network that draws its input."""

    host: Host
    batch: int
    at_once: int = 1

    def draw(self, batch: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Drawn]]:
        for prompt in {one.prompt for one in batch}:
            _happen(prompt)
        return [
            {name: (one.pictures[64] / 127.5 - 1).astype(np.float32) for name in names}
            for one in batch
        ]

    def cuts(self, prompt: str) -> bool:
        return False


def _happen(prompt: str | None) -> None:
    if prompt == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif prompt == "lost":
        raise DeviceError("the accelerator failed: it fell off the bus")
    elif prompt == "full":
        raise ResourceError("out/a.png cannot be written: No space left", "free some space")
    elif prompt == "bug":
        raise ZeroDivisionError("a bug")
    elif prompt == "slow":
        time.sleep(0.15)


def load(plan: Plan, note: Note, among: int) -> StandIn:
    """A stand-in whose results say which process they come from."""
    note(f"shared by {among}")
    host = completed(plan).ran_on(f"process {os.getpid()}", "fp32")
    digests = dict.fromkeys(host.recipes, "0" * 64)
    return StandIn(Host(plan, host.recipes, 8, digests, host.device, host.dtype), plan.batch or 1)


def no_model(plan: Plan, note: Note, among: int) -> StandIn:
    raise ModelError("model x is not to be had", "dmp weights pull x")


def no_device(plan: Plan, note: Note, among: int) -> StandIn:
    raise ResourceError("the model cannot be loaded on cuda:1: out of memory", "free it")


def wrong(plan: Plan, note: Note, among: int) -> StandIn:
    raise UsageError("fp16 is not for the CPU", "use --dtype fp32")


def killed(plan: Plan, note: Note, among: int) -> StandIn:
    os.kill(os.getpid(), signal.SIGKILL)
    return load(plan, note, among)


def broken(plan: Plan, note: Note, among: int) -> StandIn:
    raise ZeroDivisionError("a bug")
