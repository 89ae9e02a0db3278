"""The loss of DMP, its weights, and the learning rate of a step."""

import math
from collections.abc import Callable

from torch import Tensor

from dmp_cli.diffusion import Schedule, mix, target
from dmp_cli.train.settings import Course


def losses(
    predict: Callable[[Tensor, Tensor], Tensor],
    pair: tuple[Tensor, Tensor],
    t: Tensor,
    schedule: Schedule,
    prediction: str = "v_prediction",
    min_snr: float | None = None,
) -> Tensor:
    """The loss of each sample, [B] float32, for latents `pair` = (y, x) [B, C, h, w] at t [B].

    Mean squared error between the network's output at y_t and its target; `predict(z, t)` is the
    network. With `min_snr`, times `weights`.
    """
    y, x = pair
    alpha = schedule.alphas.to(y.device)[t].view(-1, 1, 1, 1)
    output = predict(mix(y, x, alpha), t)
    wanted = target(y, x, alpha, prediction)
    squared = ((output.float() - wanted.float()) ** 2).mean(dim=(1, 2, 3))
    if min_snr is None:
        return squared
    return squared * weights(alpha.view(-1), prediction, min_snr)


def map_losses(drawn: Tensor, truth: Tensor, metres: bool = False) -> Tensor:
    """The loss of each sample, [B] float32, of pictures [B, 3, h, w] in [-1, 1].

    The mean squared error; of depth (`metres`, bright is far) the relative one, |d - d*| / d*,
    which is what is measured. What is nearer than an eightieth of what white stands for is weighed
    as if it was there, and no pixel counts more than 3.
    """
    if not metres:
        return (drawn - truth).square().mean(dim=(1, 2, 3))
    depth, wanted = (picture.mean(dim=1) / 2 + 0.5 for picture in (drawn, truth))
    relative = (depth - wanted).abs() / wanted.clamp(min=1 / 80)
    return relative.clamp(max=3).mean(dim=(1, 2))


def weights(alpha: Tensor, prediction: str, gamma: float) -> Tensor:
    """Min-SNR weights of Hang et al., arXiv 2303.09556, for a_t of any shape.

    The signal-to-noise ratio of a_t is `a_t / (1 - a_t)`. In DMP the map y is the signal, and the
    image x, whose latents have about the same variance, stands for the noise. The squared error of
    y weighs min(snr, gamma). That of epsilon is snr times the error of y it stands for, that of v
    snr + 1 times: so their weights are divided by snr and by snr + 1.
    """
    snr = alpha / (1 - alpha)
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1)  # min(snr, gamma) / snr, also where snr is 0
    return snr.clamp(max=gamma)


def learning_rate(step: int, course: Course) -> float:
    """Of a step, counted from 0: rises linearly over the warm-up, then half a cosine down to 0."""
    if step < course.warmup:
        return course.learning_rate * (step + 1) / course.warmup
    if course.schedule == "constant":
        return course.learning_rate
    done = (step - course.warmup) / max(course.steps - course.warmup, 1)
    return course.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
