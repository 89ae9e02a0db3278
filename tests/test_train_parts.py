"""The parts of training, each by itself: draws, loss and weights, rates, checkpoints, log."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmp_cli import files, tasks
from dmp_cli.diffusion import Schedule, estimate, mix, target
from dmp_cli.errors import ModelError, ResourceError, UsageError
from dmp_cli.maps import Reading
from dmp_cli.sources import Source
from dmp_cli.train import checkpoints, job, journal, objective, result
from dmp_cli.train.checkpoints import State
from dmp_cli.train.draws import Chances, draws
from dmp_cli.train.journal import Journal
from dmp_cli.train.settings import Course, check, parse_timesteps
from tests.training import training

SCHEDULE = Schedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
PREDICTIONS = ("v_prediction", "epsilon", "sample")


# Draws ------------------------------------------------------------------------------------

CHANCES = Chances(3, 10, 4, range(1000), True, 0.25)


def test_draws_are_a_function_of_seed_and_step() -> None:
    assert draws(7, CHANCES) == draws(7, CHANCES)
    assert draws(7, CHANCES) != draws(8, CHANCES)
    assert draws(7, CHANCES) != draws(7, replace(CHANCES, seed=4))


def test_every_pair_comes_once_before_any_comes_again() -> None:
    seen = [one.pair for step in range(10) for one in draws(step, CHANCES)]
    assert [sorted(seen[i : i + 10]) for i in range(0, 40, 10)] == [list(range(10))] * 4
    assert seen[:10] != seen[10:20]


def test_more_images_than_pairs() -> None:
    few = replace(CHANCES, pairs=1, images=5)
    assert [one.pair for one in draws(0, few)] == [0] * 5


def test_chances_are_as_stated() -> None:
    seen = [one for step in range(500) for one in draws(step, CHANCES)]
    assert 0.45 < sum(one.flip for one in seen) / len(seen) < 0.55
    assert 0.20 < sum(one.empty for one in seen) / len(seen) < 0.30
    assert min(one.t for one in seen) < 20
    assert max(one.t for one in seen) > 980
    assert not any(one.flip for one in draws(0, replace(CHANCES, flip=False, images=99)))
    last = replace(CHANCES, timesteps=[499, 999], images=99)
    assert set(Counter(one.t for one in draws(0, last))) == {499, 999}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("uniform", list(range(1000))), ("900-999", list(range(900, 1000))), ("999", [999]),
     ("199,399", [199, 399]), ("0-0", [0])],
)  # fmt: skip
def test_timesteps(text: str, expected: list[int]) -> None:
    assert parse_timesteps(text, 1000) == expected


@pytest.mark.parametrize("text", ["", "1000", "9-1", "1-", "a", "-1", "1,,2", "900-1000", "1.5"])
def test_timesteps_that_are_not_there(text: str) -> None:
    with pytest.raises(UsageError, match="--timesteps"):
        parse_timesteps(text, 1000)


# The loss ---------------------------------------------------------------------------------


def latents(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_network_that_says_the_target_has_no_loss_and_finds_the_map(prediction: str) -> None:
    y, x, t = latents(1), latents(2), torch.tensor([5, 400, 999])
    alpha = SCHEDULE.alphas[t].view(-1, 1, 1, 1)
    said = target(y, x, alpha, prediction)

    def network(z: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        assert torch.equal(z, mix(y, x, alpha))
        assert torch.equal(at, t)
        return said

    assert torch.equal(objective.losses(network, (y, x), t, SCHEDULE, prediction), torch.zeros(3))
    y0, image = estimate(said, mix(y, x, alpha), alpha, prediction)
    torch.testing.assert_close(y0, y, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(image, x, atol=1e-2, rtol=1e-3)


def test_the_loss_is_the_mean_square_of_each_sample() -> None:
    y, x, t = latents(1), latents(2), torch.tensor([5, 400, 999])
    found = objective.losses(lambda z, _: torch.zeros_like(z), (y, x), t, SCHEDULE, "sample")
    torch.testing.assert_close(found, (y**2).mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights(prediction: str) -> None:
    """By hand, for gamma 5 and a_t = 0.5, 0.9, 0.99: snr = 1, 9, 99."""
    expected = {
        "v_prediction": [1 / 2, 5 / 10, 5 / 100],
        "epsilon": [1, 5 / 9, 5 / 99],
        "sample": [1, 5, 5],
    }[prediction]
    found = objective.weights(torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64), prediction, 5)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights_at_the_ends(prediction: str) -> None:
    found = objective.weights(torch.tensor([0.0]), prediction, 5)
    assert found.tolist() == [1.0 if prediction == "epsilon" else 0.0]


def test_min_snr_weighs_every_prediction_by_the_same_error_of_the_map() -> None:
    """A wrong map y + d has the loss min(snr, gamma) d^2, whatever the network predicts."""
    y, x, t = latents(1), latents(2), torch.tensor([30, 400, 900])
    alpha = SCHEDULE.alphas[t].view(-1, 1, 1, 1)
    z, wrong = mix(y, x, alpha), y + 0.1
    image = (z - alpha**0.5 * wrong) / (1 - alpha) ** 0.5  # what would be with z and that map
    said = {one: target(wrong, image, alpha, one) for one in PREDICTIONS}
    found = [
        objective.losses(lambda _, __, one=one: said[one], (y, x), t, SCHEDULE, one, 5.0)
        for one in PREDICTIONS
    ]
    torch.testing.assert_close(found[0], found[2], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(found[1], found[2], rtol=1e-2, atol=1e-6)


def test_learning_rate() -> None:
    cosine = Course(steps=110, warmup=10, learning_rate=1.0)
    rates = [objective.learning_rate(step, cosine) for step in range(110)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert (rates[10], rates[60]) == (1.0, pytest.approx(0.5))
    assert rates[109] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
    constant = replace(cosine, schedule="constant")
    assert {objective.learning_rate(step, constant) for step in range(10, 110)} == {1.0}


# Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps 0 must be 1 or more"), ({"batch": 0}, "--batch"),
        ({"accumulate": 0}, "--accumulate"), ({"rank": 0}, "--rank"), ({"warmup": -1}, "--warmup"),
        ({"clip": -1.0}, "--clip"), ({"clip": float("nan")}, "--clip"), ({"seed": -1}, "--seed"),
        ({"learning_rate": 0.0}, "--lr 0.0 must be a number above 0"),
        ({"min_snr": 0.0}, "--min-snr"), ({"scale": -1.0}, "--scale"),
        ({"schedule": "linear"}, "--schedule 'linear' must be one of"),
        ({"precision": "fp8"}, "--mixed-precision"), ({"drop_prompt": 1.5}, "--drop-prompt"),
        ({"name": "My Model"}, "--name"), ({"keep": 0}, "--keep"), ({"workers": 0}, "--workers"),
        ({"checkpoint_every": 0}, "--checkpoint-every"), ({"normals": "up"}, "unknown axes"),
        ({"init": Path("/absent")}, "--init /absent: no such"),
        ({"validation": Path("v"), "hold_out": 1}, "cannot be used together"),
        ({"reading": Reading(unit=0.0)}, "unit of 0.0"),
        ({"reading": Reading(unit=float("nan"))}, "unit of nan"),
        ({"reading": Reading(axes="up")}, "unknown axes"),
        ({"normals": "opencv"}, "--normals does not go with depth"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(training(Path("data"), Path("out"), **changes), tasks.find("depth"))


def test_a_scale_is_for_depth_alone() -> None:
    asked = training(Path("data"), Path("out"), scale=4.0)
    check(asked, tasks.find("depth"))
    with pytest.raises(UsageError, match="--scale does not go with albedo"):
        check(asked, tasks.find("albedo"))


def test_flips_only_where_the_task_allows_them() -> None:
    asked = training(Path("data"), Path("out"), flip=True)
    check(asked, tasks.find("depth"))
    with pytest.raises(UsageError, match="--flip: a mirrored normals map is wrong"):
        check(asked, tasks.find("normals"))


# Checkpoints ------------------------------------------------------------------------------


def save(output: Path, step: int, keep: int = 2) -> Path:
    state = State(step, 1.5, {"seed": 0, "data": "é"})
    return checkpoints.save(output, state, b"lora", {"a": torch.ones(3)}, keep)


def test_a_checkpoint_comes_back_and_only_the_last_are_kept(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for step in (5, 10, 999_999, 1_000_000):
        path = save(tmp_path, step)
    assert checkpoints.newest(tmp_path) == path
    assert checkpoints.load_state(path) == State(1_000_000, 1.5, {"seed": 0, "data": "é"})
    assert torch.equal(checkpoints.load_optimizer(path)["a"], torch.ones(3))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-1000000", "step-999999",
    ]  # fmt: skip
    assert save(tmp_path, 1_000_000) == path
    checkpoints.clear(tmp_path)
    assert checkpoints.newest(tmp_path) is None


@pytest.mark.parametrize("name", [checkpoints.LORA, checkpoints.OPTIMIZER, checkpoints.STATE])
def test_a_full_disk_leaves_the_checkpoints_before_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save(tmp_path, 5)
    content = {path.name: path.read_bytes() for path in before.iterdir()}
    real = files.write

    def write(path: Path, save: Any) -> None:
        def full(file: Any) -> None:
            save(file)
            raise OSError(28, "No space left on device")

        real(path, full if path.name == name else save)

    monkeypatch.setattr(files, "write", write)
    with pytest.raises(ResourceError, match="No space left") as raised:
        save(tmp_path, 10, keep=1)
    assert "free some space" in raised.value.hint
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000005"]
    assert {path.name: path.read_bytes() for path in before.iterdir()} == content


def test_what_was_left_unfinished_is_swept_away(tmp_path: Path) -> None:
    part = tmp_path / "checkpoints" / ".step-000005-abcd.part"
    part.mkdir(parents=True)
    (part / "optimizer.pt").touch()
    kept = save(tmp_path, 5)
    checkpoints.sweep(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [kept]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"step": 1}'])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, 5)
    for name, read in ((checkpoints.STATE, checkpoints.load_state),
                       (checkpoints.OPTIMIZER, checkpoints.load_optimizer)):  # fmt: skip
        (path / name).write_bytes(content)
        with pytest.raises(ModelError, match="step-000005: not a whole checkpoint") as raised:
            read(path)
        assert "delete it" in raised.value.hint


def test_another_setting_is_named_with_both_values(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"with learning_rate 0\.1, not 0\.2") as raised:
        checkpoints.require_same(tmp_path, {"learning_rate": 0.1}, {"learning_rate": 0.2})
    assert "--fresh" in raised.value.hint
    with pytest.raises(UsageError, match='with prompt null, not "a room"'):
        checkpoints.require_same(tmp_path, {}, {"prompt": "a room"})


# Log --------------------------------------------------------------------------------------


def test_the_log_of_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    log = Journal(tmp_path, 0, False)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 10})
    log.write(2, {"abs_rel": 0.5}, "validation/")
    with (tmp_path / journal.LOG).open("a") as file:
        file.write('{"step": 4, "lo')
    Journal(tmp_path, 2, False).write(3, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / journal.LOG).read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 2, "validation/abs_rel": 0.5},
        {"step": 3, "loss": 9.0},
    ]  # fmt: skip
    assert [Journal(tmp_path, step, False).validated for step in (3, 2, 1)] == [False, True, False]
    Journal(tmp_path, 0, False)
    assert (tmp_path / journal.LOG).read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_at_the_log(tmp_path: Path) -> None:
    log = Journal(tmp_path, 0, False)
    (tmp_path / journal.LOG).unlink()
    (tmp_path / journal.LOG).symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"log\.jsonl cannot be written: No space"):
        log.write(1, {"loss": 0.1})


def test_tensorboard_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(UsageError, match="tensorboard is not installed") as raised:
        journal.require_tensorboard()
    assert raised.value.hint == "pip install tensorboard"


# The weights file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name"),
    [("My Depth (2)", "my-depth-2"), ("a_b-c", "a_b-c"), ("海", "mine"), ("..", "mine"),
     ("demo", "my-demo"), ("DMP", "my-dmp")],
)  # fmt: skip
def test_a_plain_name_of_the_folder(tmp_path: Path, folder: str, name: str) -> None:
    assert job.plain_name(tmp_path / folder) == name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Source(repo="a/b", revision="c", variant="fp16"),
         '{ repo = "a/b", revision = "c", variant = "fp16" }'),
        (Source(path=Path('/a "b"\x7f\n/c')), '{ path = "/a \\"b\\"\\u007f\\n/c" }'),
        (Source(made="tiny"), '{ made = "tiny" }'),
        (Source(path=Path("/site/demo"), packaged="demo"), '{ packaged = "demo" }'),
    ],
)  # fmt: skip
def test_a_backbone_as_toml(source: Source, expected: str) -> None:
    import tomllib

    found = result.inline(source)
    assert found == expected
    assert tomllib.loads(f"x = {found}")["x"]
