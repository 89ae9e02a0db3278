"""The equations of DMP: a deterministic path from image to map, and the way back along it.

Letters are the paper's: x the latents of the image, y those of the map, a_t `alphas_cumprod[t]`.
Source: Lee, Tseng, Lee, Yang, "Exploiting Diffusion Prior for Generalizable Dense Prediction",
CVPR 2024, arXiv 2311.18832; DDIM: Song, Meng, Ermon, arXiv 2010.02502, with eta = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmp_cli.errors import ModelError, UsageError

_KNOWN = "dmp takes betas as stated: beta_schedule linear or scaled_linear, or trained_betas"


def _no_schedule(config: dict[str, Any]) -> str | None:
    """Why a scheduler's configuration describes no schedule a_t that dmp has, or None."""
    kind = config.get("beta_schedule")
    listed = config.get("trained_betas") is not None
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return "it is of a flow model"
    if not listed and kind not in ("linear", "scaled_linear"):
        return f"its beta_schedule is {kind!r}" if kind else "it states no beta_schedule"
    if not listed and not {"beta_start", "beta_end"} <= set(config):
        return "it states no beta_start and beta_end"
    if config.get("rescale_betas_zero_snr"):
        return "rescale_betas_zero_snr changes its betas"
    if config.get("timestep_type", "discrete") != "discrete":
        return f"its timestep_type is {config['timestep_type']!r}"
    return None


def _betas(config: dict[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    start, end = config["beta_start"], config["beta_end"]
    count = config.get("num_train_timesteps", 1000)
    if config["beta_schedule"] == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2


@dataclass(frozen=True)
class Schedule:
    """The noise schedule of a backbone: a_t for each t, [T] float32, and what stands past t = 0."""

    alphas: Tensor
    final_alpha: Tensor
    offset: int = 0

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        """Read a diffusers `scheduler_config.json` as its DDIMScheduler does.

        Of any scheduler class that trains with betas: what a configuration says of sampling
        (`prediction_type`, `timestep_spacing`, `clip_sample`, `use_karras_sigmas`, ...) is the
        LoRA's to say, or plays no part. ModelError names what cannot be taken.
        """
        why = _no_schedule(config)
        if why:
            name = config.get("_class_name", "scheduler")
            raise ModelError(f"a {name} that is not supported: {why}", _KNOWN)
        betas = _betas(config)
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ModelError("its betas are not all in (0, 1)", _KNOWN)
        alphas = torch.cumprod(1.0 - betas, dim=0)
        final = torch.tensor(1.0) if config.get("set_alpha_to_one", True) else alphas[0]
        return cls(alphas, final, config.get("steps_offset", 0))

    def timesteps(self, how: "Sampling") -> list[int]:
        """The t of each call: `leading` descends to the offset, `trailing` starts at T-1.

        UsageError where the schedule has no such steps.
        """
        count, steps = len(self.alphas), how.steps
        if how.sampler == "onepass":
            if not 0 <= how.timestep < count:
                raise UsageError(f"timestep must be from 0 to {count - 1}, not {how.timestep}")
            return [how.timestep]
        if not 1 <= steps <= count:
            raise UsageError(f"steps must be from 1 to {count}, not {steps}")
        if how.spacing == "leading":
            chosen = np.arange(steps)[::-1] * float(count // steps) + self.offset
        else:
            chosen = np.round(count - np.arange(steps) * count / steps) - 1
        if chosen[0] >= count:
            raise UsageError(
                f"{steps} steps with leading spacing start past the schedule's last, {count - 1}",
                f"use fewer steps: {count // 2} or less",
            )
        return [int(t) for t in chosen]


@dataclass(frozen=True)
class Sampling:
    """How a map is sampled; `plan.py` names the choices."""

    sampler: str = "ddim"
    steps: int = 5
    spacing: str = "leading"
    prediction: str = "v_prediction"
    timestep: int = 1  # onepass only
    final: str = "z"  # "z": what the last step leaves (official); "y0": its estimate of y


def mix(y: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    """y_t, the point on the way from map y to image x: `sqrt(a_t) y + sqrt(1 - a_t) x`."""
    return alpha**0.5 * y + (1 - alpha) ** 0.5 * x


def velocity(y: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    """v_t, the training target of v-prediction: `sqrt(a_t) x - sqrt(1 - a_t) y`."""
    return alpha**0.5 * x - (1 - alpha) ** 0.5 * y


def target(y: Tensor, x: Tensor, alpha: Tensor, prediction: str) -> Tensor:
    """What the network is trained to say at y_t: the velocity, the image (epsilon) or the map."""
    if prediction == "v_prediction":
        return velocity(y, x, alpha)
    return x if prediction == "epsilon" else y


def estimate(output: Tensor, z: Tensor, alpha: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """(y0, e): the map and the image that the network's output at z stands for."""
    near, far = alpha**0.5, (1 - alpha) ** 0.5
    if prediction == "v_prediction":
        return near * z - far * output, near * output + far * z
    if prediction == "epsilon":
        return (z - far * output) / near, output
    return output, (z - near * output) / far


def sample(
    predict: Callable[[Tensor, int], Tensor], x: Tensor, schedule: Schedule, how: Sampling
) -> Tensor:
    """Latents of the map from those of the image, both [B, C, h, w] float32.

    `predict(z, t)` is the network. DDIM with eta 0 starts at z = x; `oracle` puts the real x in
    place of the estimated one at each step; `onepass` is one call at `how.timestep`, and its y0.
    """
    z = y0 = x
    for t in schedule.timesteps(how):
        y0, e = estimate(predict(z, t), z, schedule.alphas[t], how.prediction)
        before = t - len(schedule.alphas) // how.steps  # diffusers' rule, also between its t
        alpha = schedule.alphas[before] if before >= 0 else schedule.final_alpha
        z = mix(y0, x if how.sampler == "oracle" else e, alpha)
    return y0 if how.final == "y0" or how.sampler == "onepass" else z
