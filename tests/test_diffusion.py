"""The equations, against diffusers to the last bit and against what they must do."""

import json
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from dmp_cli.diffusion import Sampling, Schedule, estimate, mix, sample, velocity
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.plan import PREDICTIONS, SPACINGS
from tests.conftest import PARITY

CONFIG = json.loads((PARITY / "sd-tiny/scheduler/scheduler_config.json").read_text())
STEPS = (1, 2, 3, 5, 7, 10, 25, 50)


def reference(**changes: Any) -> DDIMScheduler:
    settings = {key: value for key, value in CONFIG.items() if not key.startswith("_")}
    settings = settings | {"clip_sample": False} | changes
    settings.pop("skip_prk_steps", None)
    return DDIMScheduler(**settings)


def noise(seed: int) -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def network(z: Tensor, t: int) -> Tensor:
    """Anything that depends on all of its input and on t."""
    return torch.tanh(z * 1.7 + t / 1000) - 0.3 * z.flip(-1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"set_alpha_to_one": True, "steps_offset": 0},
        {"trained_betas": [0.01 + i / 5000 for i in range(200)], "num_train_timesteps": 200},
    ],
    ids=["sd", "linear", "alpha one", "trained"],
)
def test_the_schedule_is_that_of_diffusers(changes: dict[str, Any]) -> None:
    schedule, other = Schedule.from_config(CONFIG | changes), reference(**changes)
    assert torch.equal(schedule.alphas, other.alphas_cumprod)
    assert torch.equal(schedule.final_alpha, other.final_alpha_cumprod)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ModelError, match="squaredcos"):
        Schedule.from_config(CONFIG | {"beta_schedule": "squaredcos_cap_v2"})


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_equals_diffusers_to_the_last_bit(steps: int, spacing: str, prediction: str) -> None:
    other = reference(timestep_spacing=spacing, prediction_type=prediction)
    other.set_timesteps(steps)
    z = noise(0)
    for t in other.timesteps:
        z = other.step(network(z, int(t)), t, z).prev_sample
    schedule = Schedule.from_config(CONFIG)
    assert schedule.timesteps(Sampling("ddim", steps, spacing)) == other.timesteps.tolist()
    how = Sampling("ddim", steps, spacing, prediction)
    assert torch.equal(sample(network, noise(0), schedule, how), z)


def test_mix_and_velocity_equal_diffusers_to_the_last_bit() -> None:
    schedule, other, y, x = Schedule.from_config(CONFIG), reference(), noise(1), noise(2)
    for t in (0, 1, 106, 500, 763, 999):
        when = torch.tensor([t, t])
        assert torch.equal(mix(y, x, schedule.alphas[t]), other.add_noise(y, x, when))
        assert torch.equal(velocity(y, x, schedule.alphas[t]), other.get_velocity(y, x, when))


def test_the_official_steps() -> None:
    schedule = Schedule.from_config(CONFIG)
    assert schedule.timesteps(Sampling()) == [801, 601, 401, 201, 1]
    assert schedule.timesteps(Sampling(steps=1, spacing="trailing")) == [999]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_there_are_as_many_steps_as_asked_for(spacing: str) -> None:
    schedule = Schedule.from_config(CONFIG)
    for steps in range(1, 1000):
        found = schedule.timesteps(Sampling("ddim", steps, spacing))
        assert len(set(found)) == steps
        assert found == sorted(found, reverse=True)
        assert 0 <= min(found) <= max(found) <= 999


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_estimate_finds_map_and_image_from_a_perfect_output(prediction: str) -> None:
    y, x, alpha = noise(1), noise(2), Schedule.from_config(CONFIG).alphas[401]
    target = {"v_prediction": velocity(y, x, alpha), "epsilon": x, "sample": y}[prediction]
    y0, e = estimate(target, mix(y, x, alpha), alpha, prediction)
    torch.testing.assert_close(y0, y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(e, x, atol=1e-5, rtol=1e-5)


def perfect_error(how: Sampling) -> float:
    """Error, in standard deviations, that a perfect v-predictor of these two is left with."""
    schedule, y, x = Schedule.from_config(CONFIG), noise(1), noise(2)

    def predict(z: Tensor, t: int) -> Tensor:
        # It knows y, and takes whatever else z holds for the image.
        a = schedule.alphas[t]
        return velocity(y, (z - a**0.5 * y) / (1 - a) ** 0.5, a)

    return float((sample(predict, x, schedule, how) - y).std())


def test_the_last_estimate_leaves_no_image_in_the_map() -> None:
    assert perfect_error(Sampling(final="z")) == pytest.approx(0.029, abs=0.003)
    assert perfect_error(Sampling(final="y0")) < 1e-4
    assert perfect_error(Sampling("oracle", spacing="trailing", steps=1, final="y0")) < 1e-4


def test_oracle_puts_the_real_image_back() -> None:
    schedule, x = Schedule.from_config(CONFIG), noise(3)
    seen: list[Tensor] = []

    def predict(z: Tensor, t: int) -> Tensor:
        seen.append(z)
        return network(z, t)

    sample(predict, x, schedule, Sampling("oracle", 2))
    y0, _ = estimate(network(x, 501), x, schedule.alphas[501], "v_prediction")
    assert torch.equal(seen[1], mix(y0, x, schedule.alphas[1]))


def test_onepass_is_one_call() -> None:
    schedule, x, calls = Schedule.from_config(CONFIG), noise(3), []

    def predict(z: Tensor, t: int) -> Tensor:
        calls.append(t)
        return network(z, t)

    out = sample(predict, x, schedule, Sampling("onepass", prediction="sample", timestep=7))
    assert calls == [7]
    assert torch.equal(out, network(x, 7))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Sampling(steps=0), "steps must be from 1 to 1000"),
        (Sampling(steps=1001), "steps must be from 1 to 1000"),
        (Sampling(steps=1000), "start past the schedule's last"),
        (Sampling("onepass", timestep=1000), "timestep must be from 0 to 999"),
    ],
)
def test_steps_that_are_not_there_are_refused(how: Sampling, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sample(network, noise(0), Schedule.from_config(CONFIG), how)
