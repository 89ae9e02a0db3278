"""Training end to end on the tiny random backbone: what it learns, how it ends, how it goes on."""

import json
import os
import platform
import re
import shutil
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from dmp_cli import Predictor, catalogue, header, images, lora, tasks
from dmp_cli.backbone import Backbone
from dmp_cli.device import choose
from dmp_cli.errors import DmpError, ImageError, ModelError, ResourceError, UsageError
from dmp_cli.host import Host
from dmp_cli.networks import winograd
from dmp_cli.plan import Settings
from dmp_cli.sources import sha256
from dmp_cli.train import checkpoints, loop, result
from dmp_cli.train import events as ev
from dmp_cli.train import trainer as trainers
from dmp_cli.train.draws import Chances, draws
from dmp_cli.train.job import job_of, plain_name
from dmp_cli.train.latents import Cache
from dmp_cli.weights import resolve, to_train
from tests.training import SIZE, losses, only, run, small_backbone, training, write_pairs

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def _accelerate() -> Iterator[None]:
    """accelerate keeps device and precision for the life of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"))


def state(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / LORA)


def same(a: Path, b: Path) -> bool:
    one, other = state(a), state(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# What it learns ---------------------------------------------------------------------------


def test_it_learns_one_pair_by_heart(tmp_path: Path) -> None:
    """To a fifth of the loss that the untouched backbone has."""
    seen = losses(run(training(
        write_pairs(tmp_path / "data", 1), tmp_path / "out", steps=40, batch=4, learning_rate=2e-2,
        timesteps="600-999",
    )))  # fmt: skip
    assert np.mean(seen[-5:]) < np.mean(seen[:1]) / 5


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_it_learns_the_map_that_it_predicts(tmp_path: Path, task: str) -> None:
    data = write_pairs(tmp_path / "data", 1)
    seen = run(training(
        data, tmp_path / "out", task=task, steps=20, batch=1, learning_rate=2e-2, loss="map",
        spacing="trailing", final="y0", flip=False, validation=data, validate_every=20,
    ))  # fmt: skip
    values = losses(seen)
    assert np.mean(values[-3:]) < values[0] * 0.95
    if task == "depth":  # it is what is measured, but for the rounding of the picture
        measured = only(seen, ev.Validated)[-1].numbers["abs_rel"]
        assert measured == pytest.approx(values[-1], rel=0.2)


def test_it_does_so_through_winograds_convolutions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a backbone of Stable Diffusion's size has them: the gradient comes through the decoder."""
    made: list[winograd.WinogradConv] = []
    how = {"task": "depth", "steps": 2, "batch": 1, "loss": "map", "flip": False}
    data = write_pairs(tmp_path / "data", 1)
    direct = losses(run(training(data, tmp_path / "direct", **how)))
    monkeypatch.setattr(winograd, "_CHANNELS", 1)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    start = winograd.WinogradConv.__init__
    monkeypatch.setattr(
        winograd.WinogradConv, "__init__", lambda one, conv: made.append(one) or start(one, conv)
    )
    assert losses(run(training(data, tmp_path / "out", **how))) == pytest.approx(direct, rel=1e-3)
    assert made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": Path("cache")}, "a cache has none"),
        ({"timesteps": "999"}, "--timesteps does not go with --loss map"),
        ({"min_snr": 5.0}, "--min-snr does not go with --loss map"),
        ({"loss": "pixels"}, "--loss 'pixels' must be one of latents, map"),
        ({"prompt": "a room"}, "--loss map predicts without guidance"),
    ],
)
def test_what_does_not_go_with_a_loss_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(training(data, tmp_path, **{"loss": "map"} | changes))


def test_a_run_says_what_it_does(data: Path, tmp_path: Path) -> None:
    seen = run(training(data, tmp_path / "out", steps=3, checkpoint_every=2, hold_out=1))
    kinds = [type(event).__name__ for event in seen]
    assert kinds == ["Begun", "Stepped", "Stepped", "Saved", "Stepped", "Saved", "Validated",
                     "Finished"]  # fmt: skip
    begun, finished = seen[0], seen[-1]
    assert isinstance(begun, ev.Begun)
    assert isinstance(finished, ev.Finished)
    assert (begun.step, begun.steps, begun.pairs, begun.held_out, begun.images) == (0, 3, 3, 1, 2)
    assert begun.parameters == sum(value.numel() for value in state(tmp_path / "out").values())
    assert (finished.lora, finished.step) == (tmp_path / "out" / LORA, 3)
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert [line["loss"] for line in lines[:3]] == losses(seen)
    (validated,) = only(seen, ev.Validated)
    assert lines[3] == {"step": 3} | {f"validation/{k}": v for k, v in validated.numbers.items()}
    assert set(tasks.find("depth").metrics) <= set(validated.numbers)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_other_predictions_have_other_losses(data: Path, tmp_path: Path, prediction: str) -> None:
    usual = losses(run(training(data, tmp_path / "a", steps=1)))
    asked = training(data, tmp_path / "b", steps=1, prediction=prediction)
    assert losses(run(asked)) != usual
    assert header.settings(tmp_path / "b" / LORA, "depth")["prediction"] == prediction


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_trains_and_is_measured(data: Path, tmp_path: Path, task: str) -> None:
    seen = run(training(data, tmp_path, task=task, steps=1, hold_out=1))
    assert np.isfinite(losses(seen)).all()
    (validated,) = only(seen, ev.Validated)
    assert tasks.find(task).metrics[0] in validated.numbers
    assert np.isfinite(list(validated.numbers.values())).all()


def test_accumulated_passes_are_a_larger_batch(data: Path, tmp_path: Path) -> None:
    whole = losses(run(training(data, tmp_path / "a", steps=3, batch=4)))
    parts = losses(run(training(data, tmp_path / "b", steps=3, batch=1, accumulate=4)))
    assert parts == pytest.approx(whole, rel=1e-4)
    one, other = state(tmp_path / "a"), state(tmp_path / "b")
    assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-3
    assert losses(run(training(data, tmp_path / "c", steps=3, batch=1))) != whole


def test_gradient_checkpointing_changes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.utils.checkpoint.checkpoint, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    usual = losses(run(training(data, tmp_path / "a")))
    assert not calls
    assert losses(run(training(data, tmp_path / "b", checkpointing=True))) == pytest.approx(usual)
    assert calls


def test_bfloat16_on_the_cpu(data: Path, tmp_path: Path) -> None:
    seen = run(training(data, tmp_path, steps=1, precision="bf16", hold_out=1))
    assert np.isfinite(losses(seen)).all()
    assert {value.dtype for value in state(tmp_path).values()} == {torch.float32}


# Flips, prompts ---------------------------------------------------------------------------


class Watched:
    """What the UNet is called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.words: list[torch.Tensor] = []
        real = UNet2DConditionModel.forward

        def forward(unet: Any, *args: Any, **kwargs: Any) -> Any:
            self.words += list(kwargs["encoder_hidden_states"])
            return real(unet, *args, **kwargs)

        monkeypatch.setattr(UNet2DConditionModel, "forward", forward)


@pytest.fixture(scope="module")
def embedded() -> dict[str, torch.Tensor]:
    texts = ["", "a room", *(f"room {index}" for index in range(4))]
    loaded = Backbone.load(small_backbone(), choose("cpu", "fp32"), texts)
    return {text: loaded.words([text])[0] for text in texts}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {""}),
        ({"prompt": "a room", "drop_prompt": 0.0}, {"a room"}),
        ({"prompt": "a room", "drop_prompt": 1.0}, {""}),
        ({"prompt": "a room", "drop_prompt": 0.5}, {"", "a room"}),
        ({"captions": True, "drop_prompt": 0.0}, {f"room {index}" for index in range(4)}),
    ],
    ids=["none", "prompt", "dropped", "half", "captions"],
)
def test_prompts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any],
    expected: set[str], embedded: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    watched = Watched(monkeypatch)
    run(training(data, tmp_path, steps=4, batch=2, **changes))
    seen = set()
    for words in watched.words:
        apart = {text: float((words - one).abs().max()) for text, one in embedded.items()}
        nearest = min(apart, key=lambda text: apart[text])
        assert apart[nearest] < 1e-5
        seen.add(nearest)
    assert seen == expected
    told = header.settings(tmp_path / LORA, "depth")
    assert told["prompt"] == changes.get("prompt", "")
    assert told.get("guidance") == (2.0 if told["prompt"] else None)


def test_pairs_without_a_caption_take_the_prompt(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 2)
    (folder / "metadata.jsonl").write_text('{"file_name": "images/1.png", "text": "a hall"}')
    job = job_of(training(folder, tmp_path / "out", captions=True, prompt="a room"))
    assert [job.prompt(pair) for pair in job.pairs] == ["a room", "a hall"]


@pytest.mark.parametrize(
    ("task", "asked", "expected"),
    [("depth", None, True), ("depth", False, False), ("normals", None, False)],
)
def test_pairs_are_mirrored_where_the_task_allows_it(
    data: Path, tmp_path: Path, task: str, asked: bool | None, expected: bool
) -> None:
    cache = tmp_path / "cache"
    run(training(data, tmp_path / "out", task=task, flip=asked, steps=1, cache=cache))
    assert len(list(cache.iterdir())) == (8 if expected else 4)


def test_mirrored_latents_are_those_of_mirrored_pictures(data: Path, tmp_path: Path) -> None:
    job = job_of(training(data, tmp_path, steps=1))
    from dmp_cli.train.feed import Coding, Fit, Pictures

    read = Pictures(job.pairs, job.task, Coding(), Fit(SIZE, 2), job.training.reading)
    plain, mirrored = read(0, False), read(0, True)
    assert plain.shape == (2, 3, SIZE, SIZE)
    assert torch.equal(mirrored, plain.flip(-1))
    assert not torch.equal(mirrored, plain)


# Cache ------------------------------------------------------------------------------------


def test_the_cache_changes_no_loss_and_no_image_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = training(data, tmp_path / "a", steps=3)
    usual = losses(run(asked))
    cached = replace(asked, output=tmp_path / "b", cache=tmp_path / "cache")
    seen = run(cached)
    assert losses(seen) == pytest.approx(usual, rel=1e-4)
    assert only(seen, ev.Cached)[-1] == ev.Cached(8, 8)
    monkeypatch.setattr(images, "read", None)
    again = run(replace(cached, output=tmp_path / "c"))
    assert losses(again) == losses(seen)
    assert only(again, ev.Cached) == [ev.Cached(8, 8)]


def test_an_entry_is_made_anew_when_what_it_is_made_of_changes(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 2)
    asked = training(folder, tmp_path / "a", steps=1, flip=False, cache=tmp_path / "cache")
    made = lambda: len(list((tmp_path / "cache").iterdir()))  # noqa: E731
    counts = []
    for number, change in enumerate(({}, {}, {"scale": 4.0}, {"task": "shading"})):
        run(replace(asked, output=tmp_path / f"o{number}", **change))
        counts.append(made())
    assert counts == [2, 2, 4, 6]
    np.save(folder / "depth/0.npy", np.ones((SIZE, SIZE), np.float32))
    run(replace(asked, output=tmp_path / "last"))
    assert made() == 7


def test_an_entry_is_made_anew_in_another_dtype_and_by_another_version(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = training(data, tmp_path / "a", steps=1, flip=False, cache=tmp_path / "cache")
    run(asked)
    AcceleratorState._reset_state(reset_partial_state=True)
    run(replace(asked, output=tmp_path / "b", precision="bf16"))
    assert len(list((tmp_path / "cache").iterdir())) == 8
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr("dmp_cli.train.latents._VERSION", 0)
    run(replace(asked, output=tmp_path / "c"))
    assert len(list((tmp_path / "cache").iterdir())) == 12


def test_a_damaged_entry_is_named(data: Path, tmp_path: Path) -> None:
    asked = training(data, tmp_path / "a", steps=1, cache=tmp_path / "cache")
    run(asked)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"safetensors: cannot be read from the cache") as raised:
        run(replace(asked, output=tmp_path / "b"))
    assert "delete it" in raised.value.hint


# Going on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "prompt": "a room"}], ids=["", "more"])
def test_a_resumed_run_is_the_run_that_never_stopped(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Bit by bit, on the CPU: losses, LoRA, log."""
    asked = training(data, tmp_path / "a", steps=6, checkpoint_every=2, warmup=2, **changes)
    whole = run(asked)
    broken = replace(asked, output=tmp_path / "b")
    run(broken, until=3)
    seen = run(broken)
    assert only(seen, ev.Begun)[0].resumed == tmp_path / "b/checkpoints/step-000002"
    assert losses(seen) == losses(whole)[2:]
    assert same(tmp_path / "a", tmp_path / "b")
    logs = []
    for name in "ab":
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        logs.append([(line["step"], line["loss"], line["lr"]) for line in lines])
    assert logs[0] == logs[1]


def test_the_same_seed_gives_the_same_lora(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(training(data, tmp_path / name, steps=2, seed=seed))
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_a_finished_run_has_nothing_left_to_do(data: Path, tmp_path: Path) -> None:
    asked = training(data, tmp_path, steps=2, cache=tmp_path / "cache")
    run(asked)
    before = state(tmp_path)
    (tmp_path / LORA).unlink()
    shutil.rmtree(tmp_path / "cache")
    seen = run(asked)
    assert [type(event) for event in seen] == [ev.Begun, ev.Finished]
    assert all(torch.equal(value, before[key]) for key, value in state(tmp_path).items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.5}, "learning_rate 0.01, not 0.5"),
        ({"steps": 9}, "steps 2, not 9"),
        ({"prediction": "sample"}, 'prediction "v_prediction", not "sample"'),
        ({"scale": 4.0}, "scale 8.0, not 4.0"),
        ({"batch": 3}, "images_per_step 2, not 3"),
        ({"hold_out": 1}, "data"),
    ],
)
def test_going_on_with_other_settings_names_them(
    data: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    run(training(data, tmp_path, steps=2))
    with pytest.raises(UsageError, match=f"step-000002: was trained with {named}") as raised:
        run(training(data, tmp_path, **({"steps": 2} | changes)))
    assert "--fresh" in raised.value.hint


@pytest.mark.parametrize(
    ("part", "name", "key"),
    [("vae", "config.json", "scaling_factor"),
     ("scheduler", "scheduler_config.json", "beta_end")],
)  # fmt: skip
def test_going_on_with_another_backbone_is_refused(
    data: Path, tmp_path: Path, part: str, name: str, key: str
) -> None:
    other = shutil.copytree(small_backbone(), tmp_path / "other")
    run(training(data, tmp_path / "out", steps=1))
    if part == "vae":
        weights = other / "vae/diffusion_pytorch_model.safetensors"
        save_file({key: value * 2 for key, value in load_file(weights).items()}, weights)
    config = json.loads((other / part / name).read_text())
    (other / part / name).write_text(json.dumps(config | {key: 0.5}))
    named = "vae" if part == "vae" else "schedule"
    with pytest.raises(UsageError, match=f"was trained with {named} "):
        run(training(data, tmp_path / "out", steps=1, backbone=other))


def test_what_is_there_without_a_flag_may_be_named(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path, steps=1))
    asked = training(data, tmp_path, steps=1, targets="all", rank=4, flip=True, scale=8.0)
    assert only(run(asked), ev.Begun)[0].step == 1


def test_a_validation_that_was_cut_off_is_made_up_for(data: Path, tmp_path: Path) -> None:
    asked = training(data, tmp_path, checkpoint_every=2, hold_out=1, validate_every=2)
    for event in loop.run(job_of(asked)):
        if isinstance(event, ev.Saved):
            break
    seen = run(asked)
    assert [event.step for event in only(seen, ev.Validated)] == [2, 4]
    assert isinstance(seen[1], ev.Validated)
    assert only(run(asked), ev.Validated) == []


def test_a_batch_in_parts_may_go_on(data: Path, tmp_path: Path) -> None:
    """What the hint for too little memory says."""
    asked = training(data, tmp_path, steps=4, checkpoint_every=2)
    run(asked, until=3)
    seen = run(training(data, tmp_path, steps=4, batch=1, accumulate=2))
    assert only(seen, ev.Begun)[0].step == 2


def test_fresh_begins_anew(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path, steps=2))
    seen = run(training(data, tmp_path, steps=3, fresh=True))
    assert len(losses(seen)) == 3
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoints/step-000003"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"targets": "foo"}, UsageError), ({"init": True, "rank": 3}, UsageError),
     ({"timesteps": "1000"}, UsageError), ({"backbone": Path("/absent")}, ModelError),
     ({"validation": True}, ImageError), ({"cache": True}, ImageError)],
)  # fmt: skip
def test_fresh_deletes_nothing_before_all_is_found_good(
    tmp_path: Path, changes: dict[str, Any], kind: type[DmpError]
) -> None:
    folder, broken = write_pairs(tmp_path / "data", 2), write_pairs(tmp_path / "broken", 2)
    damaged(broken)
    run(training(folder, tmp_path / "out", steps=2))
    places = {"init": tmp_path / "out", "validation": broken, "cache": tmp_path / "cache"}
    given = {key: places[key] if value is True else value for key, value in changes.items()}
    source = broken if "cache" in changes else folder
    with pytest.raises(kind):
        run(training(source, tmp_path / "out", steps=2, fresh=True, **given))
    assert checkpoints.newest(tmp_path / "out") == tmp_path / "out/checkpoints/step-000002"
    assert (tmp_path / "out/log.jsonl").read_text().count("loss") == 2


def test_a_lora_without_checkpoint_is_not_written_over(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path, steps=1))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UsageError, match="is there already"):
        run(training(data, tmp_path, steps=1))


def test_a_run_starts_from_a_lora(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path / "a", steps=2, rank=2, targets="cross,to_q"))
    seen = run(training(data, tmp_path / "b", steps=1, init=tmp_path / "a", learning_rate=1e-30))
    assert same(tmp_path / "a", tmp_path / "b")
    assert header.read(tmp_path / "b" / LORA)["targets"] == "cross,to_q"
    assert header.read(tmp_path / "b" / LORA)["rank"] == "2"
    new = run(training(data, tmp_path / "c", steps=1, rank=2, targets="cross,to_q"))
    assert losses(seen) != losses(new)


def test_how_maps_are_predicted_decides_the_loss_of_maps(data: Path, tmp_path: Path) -> None:
    how = {"loss": "map", "spacing": "trailing", "final": "y0"}
    run(training(data, tmp_path, checkpoint_every=1, **how), until=2)
    with pytest.raises(UsageError, match="sampling"):
        run(training(data, tmp_path, sampling_steps=2, **how))


def test_a_lora_grows_without_a_change(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path / "a", steps=2, rank=2))
    run(training(data, tmp_path / "b", steps=1, init=tmp_path / "a", rank=5, learning_rate=1e-30))
    small, large = (state(tmp_path / name) for name in "ab")
    assert header.read(tmp_path / "b" / LORA)["rank"] == "5"
    for key in (key for key in small if ".lora_A." in key):
        beside = key.replace(".lora_A.", ".lora_B.")
        assert large[key].shape[0] == 5
        torch.testing.assert_close(large[beside] @ large[key], small[beside] @ small[key])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rank": 1}, "--rank 1: .* has rank 2"), ({"targets": "self"}, "--targets self: .* has all")],
)
def test_a_start_that_does_not_fit(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run(training(data, tmp_path / "a", steps=1, rank=2))
    with pytest.raises(UsageError, match=message):
        run(training(data, tmp_path / "b", steps=1, init=tmp_path / "a" / LORA, **changes))


# How it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_step(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    asked = training(data, tmp_path / "a", steps=4)
    before = signal.getsignal(number)
    seen: list[ev.Event] = []
    for event in loop.run(job_of(asked)):
        seen.append(event)
        if isinstance(event, ev.Stepped) and event.step == 1:
            os.kill(os.getpid(), number)
    assert seen[-1] == ev.Stopped(2, number)
    assert seen[-2] == ev.Saved(2, tmp_path / "a/checkpoints/step-000002")
    assert not (tmp_path / "a" / LORA).exists()
    assert signal.getsignal(number) == before
    rest = losses(run(asked))
    assert losses(seen) + rest == losses(run(replace(asked, output=tmp_path / "b")))


def test_a_signal_while_the_cache_is_filled(data: Path, tmp_path: Path) -> None:
    asked = training(data, tmp_path / "a", cache=tmp_path / "cache")
    seen: list[ev.Event] = []
    for event in loop.run(job_of(asked)):
        seen.append(event)
        if event == ev.Cached(2, 8):
            os.kill(os.getpid(), signal.SIGTERM)
    assert seen[-1] == ev.Stopped(0, signal.SIGTERM)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(("call", "stopped"), [(1, True), (4, False)], ids=["cache", "validation"])
def test_what_another_process_is_told_counts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, stopped: bool
) -> None:
    """`call`: of `agreed`, in turn after the cache, before the steps, in a step, in validation."""
    calls: list[int] = []

    def agreed(trainer: Any, number: int) -> int:
        calls.append(number)
        return signal.SIGTERM if len(calls) == call else number

    monkeypatch.setattr(trainers.Trainer, "agreed", agreed)
    asked = training(data, tmp_path, steps=1, validation=data, cache=tmp_path / "cache")
    seen = run(asked)
    assert only(seen, ev.Validated) == []
    assert only(seen, ev.Stopped) == ([ev.Stopped(0, signal.SIGTERM)] if stopped else [])


@pytest.fixture
def whole(data: Path, tmp_path: Path) -> list[float]:
    """The losses of a run that nothing befalls."""
    return losses(run(training(data, tmp_path / "whole", accumulate=2)))


@pytest.mark.parametrize("call", [5, 6], ids=["first", "second"])
@pytest.mark.parametrize("failure", ["nan", "memory", "image", "bug", "device"])
def test_a_failure_in_a_step_loses_no_whole_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: list[float], failure: str,
    call: int,
) -> None:  # fmt: skip
    """In the first or the second pass of step 3: what goes on from there is the run itself."""
    errors = {
        "memory": torch.OutOfMemoryError("CUDA out of memory"), "image": ImageError("1.png: bad"),
        "bug": RuntimeError("mat1 and mat2"), "device": torch.AcceleratorError("out of memory"),
    }  # fmt: skip
    real, calls = trainers.objective.losses, []

    def broken(*args: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == call and failure in errors:
            raise errors[failure]
        return real(*args) * (float("nan") if len(calls) == call else 1)

    monkeypatch.setattr(trainers.objective, "losses", broken)
    asked = training(data, tmp_path / "out", accumulate=2)
    with pytest.raises((DmpError, RuntimeError)):
        run(asked)
    monkeypatch.setattr(trainers.objective, "losses", real)
    if failure in ("bug", "device"):
        assert checkpoints.newest(tmp_path / "out") is None
        return
    rest = run(asked)
    assert only(rest, ev.Begun)[0].step == 2
    assert losses(rest) == whole[2:]
    assert same(tmp_path / "out", tmp_path / "whole")


def test_half_an_update_is_not_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.optim.AdamW.step, []

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(ResourceError):
        run(training(data, tmp_path))
    assert checkpoints.newest(tmp_path) is None


def test_an_image_that_breaks_in_the_middle_loses_no_step(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 4)
    asked = training(folder, tmp_path / "out", batch=1, workers=1)
    job = job_of(asked)
    chances = Chances(0, 4, 1, range(1000), True, 0.0)
    job.pairs[draws(3, chances)[0].pair].image.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"\.png"):
        run(asked)
    assert checkpoints.newest(tmp_path / "out") == tmp_path / "out/checkpoints/step-000003"


def test_a_loss_that_is_not_finite_names_step_and_image_and_the_way_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = trainers.objective.losses, []

    def broken(*args: Any) -> torch.Tensor:
        calls.append(None)
        found = real(*args)
        return found * torch.tensor([1.0, float("nan") if len(calls) == 3 else 1.0])

    monkeypatch.setattr(trainers.objective, "losses", broken)
    asked = training(data, tmp_path / "a")
    with pytest.raises(ModelError, match=r"step 3: the loss is not finite, on \S+\.png$") as raised:
        run(asked)
    found = re.search(r"--learning-rate.*\n--init (\S+) -o OTHER", raised.value.hint)
    assert found
    assert Path(found[1]) == checkpoints.newest(tmp_path / "a")
    monkeypatch.setattr(trainers.objective, "losses", real)
    seen = run(training(data, tmp_path / "b", init=Path(found[1]), learning_rate=1e-3))
    assert len(losses(seen)) == 4


def test_a_loss_that_is_not_finite_at_once_needs_no_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainers.objective.losses
    monkeypatch.setattr(trainers.objective, "losses", lambda *args: real(*args) * float("nan"))
    with pytest.raises(ModelError, match="step 1: the loss") as raised:
        run(training(data, tmp_path))
    assert "--init" not in raised.value.hint
    assert checkpoints.newest(tmp_path) is None
    monkeypatch.setattr(trainers.objective, "losses", real)
    assert len(losses(run(training(data, tmp_path, learning_rate=1e-3)))) == 4


def test_a_gradient_that_is_not_finite_does_not_reach_the_lora(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainers.objective.losses
    # the root has an infinite slope at 0, the loss itself is finite
    monkeypatch.setattr(
        trainers.objective, "losses", lambda *args: real(*args) + (real(*args) * 0).sqrt()
    )
    with pytest.raises(ModelError, match="step 1: the gradient is not finite"):
        run(training(data, tmp_path))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), MemoryError("none")]
)
def test_out_of_memory_says_what_to_do(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked = training(data, tmp_path, checkpoint_every=2)
    run(asked, until=3)

    def full(*args: Any) -> None:
        raise error

    monkeypatch.setattr(trainers.objective, "losses", full)
    with pytest.raises(ResourceError, match="out of memory") as raised:
        run(asked)
    for remedy in ("--batch", "--accumulate", "--gradient-checkpointing"):
        assert remedy in raised.value.hint
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoints/step-000002"


def test_a_map_that_is_not_finite_in_validation_names_the_image(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise ImageError("depth: the output is not finite in fp32")

    monkeypatch.setattr(Host, "finish", broken)
    with pytest.raises(ImageError, match=r"images/0\.png: depth: the output is not finite"):
        run(training(data, tmp_path, validation=data))
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoints/step-000004"
    assert (tmp_path / LORA).exists()


def test_a_signal_cuts_a_validation_short(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainers.judge

    def judge(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(trainers, "judge", judge)
    asked = training(data, tmp_path, validation=data, validate_every=2)
    seen = run(asked)
    assert seen[-1] == ev.Stopped(3, signal.SIGTERM)
    assert only(seen, ev.Validated) == []
    assert "validation" not in (tmp_path / "log.jsonl").read_text()


def test_an_optimizer_that_does_not_fit(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path, steps=1))
    path = tmp_path / "checkpoints/step-000001/optimizer.pt"
    torch.save({"optimizer": {"state": {}, "param_groups": []}}, path)
    with pytest.raises(ModelError, match="step-000001: its optimizer does not fit"):
        run(training(data, tmp_path, steps=1))


def test_outside_the_main_thread_it_runs_without_signals(data: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert len(losses(pool.submit(run, training(data, tmp_path)).result())) == 4


def test_another_runtime_error_is_a_bug(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainers.objective, "losses", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run(training(data, tmp_path))


# Bad input --------------------------------------------------------------------------------


def no_targets(folder: Path) -> None:
    shutil.rmtree(folder / "depth")


def one_missing(folder: Path) -> None:
    (folder / "depth/1.npy").unlink()


def other_size(folder: Path) -> None:
    np.save(folder / "depth/1.npy", np.ones((16, 48), np.float32))


def with_nan(folder: Path) -> None:
    np.save(folder / "depth/1.npy", np.full((SIZE, SIZE), np.nan, np.float32))


def damaged(folder: Path) -> None:
    (folder / "images/1.png").write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "named"),
    [(no_targets, "no depth maps"), (one_missing, r"1\.png: there is no depth map"),
     (other_size, r"1\.npy: 48x16"), (with_nan, r"1\.npy: .* NaN"), (damaged, r"1\.png: ")],
)  # fmt: skip
@pytest.mark.parametrize("cached", [False, True])
def test_data_that_cannot_be_used_names_the_file(
    tmp_path: Path, damage: Any, named: str, cached: bool
) -> None:
    folder = write_pairs(tmp_path / "data", 2)
    damage(folder)
    with pytest.raises(DmpError, match=named) as raised:
        run(training(folder, tmp_path / "out", cache=tmp_path / "cache" if cached else None))
    assert raised.value.hint or "1.png" in str(raised.value)


def test_a_class_that_is_not_there(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 2)
    np.save(folder / "segmentation/1.npy", np.full((SIZE, SIZE), 200, np.uint8))
    with pytest.raises(ImageError, match=r"1\.npy: class id 200"):
        run(training(folder, tmp_path / "out", task="segmentation"))


@pytest.mark.parametrize(
    ("damage", "named"),
    [(with_nan, r"depth/1\.npy: .* NaN"), (other_size, r"depth/1\.npy: 48x16"),
     (damaged, r"images/1\.png: ")],
)  # fmt: skip
def test_a_pair_to_measure_on_is_refused_before_training(
    tmp_path: Path, damage: Any, named: str
) -> None:
    folder, other = write_pairs(tmp_path / "data", 2), write_pairs(tmp_path / "other", 2)
    asked = training(folder, tmp_path / "out", validation=other, steps=1)
    damage(other)
    with pytest.raises(ImageError, match=f"other/{named}"):
        run(asked)
    assert not (tmp_path / "out").exists()
    run(replace(asked, validation=folder))
    assert only(run(asked), ev.Finished)  # nothing is left to measure


def test_images_of_several_sizes_as_they_are(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 2)
    other = write_pairs(tmp_path / "other", 2, 40)
    for name in ("images/1.png", "depth/1.npy"):
        shutil.copy(other / name, folder / name)
    asked = training(folder, tmp_path / "out", size=0)
    with pytest.raises(ImageError, match="different sizes in one batch") as raised:
        run(asked)
    assert "--batch 1" in raised.value.hint
    assert len(losses(run(training(folder, tmp_path / "one", size=0, batch=1)))) == 4


def test_long_images_are_cut_in_the_middle(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", 1)
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (SIZE, 3 * SIZE, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(wide).save(folder / "images/0.png")
    np.save(folder / "depth/0.npy", wide.mean(axis=-1, dtype=np.float32))
    from dmp_cli.train.feed import Coding, Fit, Pictures

    job = job_of(training(folder, tmp_path / "out"))
    read = Pictures(job.pairs, job.task, Coding(255.0), Fit(SIZE, 2), job.training.reading)
    image, drawn = read(0, False)
    middle = wide[:, SIZE : 2 * SIZE].astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
    assert torch.allclose(image, torch.from_numpy(middle))
    assert drawn.shape == image.shape


def test_more_held_out_than_there_is(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--hold-out 4: there are only 4 pairs"):
        run(training(data, tmp_path, hold_out=4))


# What it leaves ---------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [None, "cross,to_v"])
def test_the_lora_in_plain_diffusers_gives_the_same_output(
    data: Path, tmp_path: Path, targets: str | None
) -> None:
    run(training(data, tmp_path, targets=targets))
    folder = small_backbone()
    own = Backbone.load(folder, choose("cpu", "fp32"))
    own.add_lora("depth", tmp_path / LORA)
    own.use_lora("depth")
    plain = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    words = own.words([""])
    with torch.inference_mode():
        untouched = plain(z, 401, encoder_hidden_states=words).sample
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain.load_lora_adapter(load_file(tmp_path / LORA), prefix="unet")
        found = plain(z, 401, encoder_hidden_states=words).sample
        expected = own.predict(z, 401)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert float((found - untouched).norm() / expected.norm()) > 1e-3


def test_the_lora_in_a_pipeline_of_diffusers_and_in_peft_alone(data: Path, tmp_path: Path) -> None:
    """`load_lora_weights` on the folder; PEFT with the keys as it has them, below no `unet.`."""
    run(training(data, tmp_path))
    folder = small_backbone()
    own = Backbone.load(folder, choose("cpu", "fp32"))
    own.add_lora("depth", tmp_path / LORA)
    own.use_lora("depth")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = own.predict(z, 401)
    networks = {kind: UNet2DConditionModel.from_pretrained(folder / "unet").eval()
                for kind in ("pipeline", "peft")}  # fmt: skip
    pipe = StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(folder / "vae"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"), networks["pipeline"],
        DDIMScheduler.from_pretrained(folder / "scheduler"),
        None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_weights(tmp_path)
    held = {key.removeprefix("unet."): value for key, value in state(tmp_path).items()}
    modules = sorted({key.rpartition(".lora_")[0] for key in held})
    config = LoraConfig(r=4, lora_alpha=4, target_modules=modules)
    networks["peft"] = get_peft_model(networks["peft"], config).eval()
    wrapped = {f"base_model.model.{key}": value for key, value in held.items()}
    loaded = set_peft_model_state_dict(networks["peft"], wrapped)
    assert not loaded.unexpected_keys
    for kind, network in networks.items():
        with torch.inference_mode():
            found = network(z, 401, encoder_hidden_states=own.words([""])).sample
        assert float((found - expected).norm() / expected.norm()) < 1e-6, kind


def test_the_weights_file_predicts_what_validation_saw(data: Path, tmp_path: Path) -> None:
    """With nothing repeated: size, scale, prompt and steps come from the LoRA."""
    asked = training(
        data, tmp_path / "My Model", scale=3.0, prompt="a room", guidance=1.5, sampling_steps=2,
        spacing="trailing", final="y0", validation=data,
    )  # fmt: skip
    seen = run(asked)
    (finished,), (validated,) = only(seen, ev.Finished), only(seen, ev.Validated)
    assert finished.model == "my-model"
    weights = tmp_path / "My Model/weights.toml"
    predictor = Predictor("depth", weights=weights, model="my-model", device="cpu")
    recipe = predictor.recipes["depth"]
    assert (recipe.size, recipe.scale, recipe.prompt, recipe.guidance) == (SIZE, 3.0, "a room", 1.5)
    assert (recipe.steps, recipe.spacing, recipe.final) == (2, "trailing", "y0")
    errors = []
    for index in range(4):
        truth = np.load(data / f"depth/{index}.npy")
        found = np.maximum(predictor(data / f"images/{index}.png"), 1e-3)
        errors.append(np.mean(np.abs(found - truth) / truth))
    assert np.mean(errors) == pytest.approx(validated.numbers["abs_rel"], rel=1e-5)


def test_the_header_tells_how_it_was_made(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path, steps=1, min_snr=5.0))
    with safe_open(tmp_path / LORA, "pt") as file:
        told = file.metadata()
    assert told["dmp.data"] == f"4 pairs of {data.name}"
    assert json.loads(told["dmp.training"])["min_snr"] == 5.0
    assert len(told["dmp.backbone_sha256"]) == 64
    assert str(tmp_path) not in " ".join(told.values())


def test_a_lora_on_another_backbone_is_remarked_on(data: Path, tmp_path: Path) -> None:
    """But not if the file it was trained on lies beside the one in use, in another precision."""
    run(training(data, tmp_path / "out", steps=1))
    other = shutil.copytree(small_backbone(), tmp_path / "other")
    unet = other / "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(unet, tmp_path / "before")
    save_file({key: value * 1.01 for key, value in load_file(unet).items()}, unet)
    weights = tmp_path / "out/weights.toml"

    def notes(folder: Path) -> tuple[str, ...]:
        weights.write_text(weights.read_text().replace(str(small_backbone()), str(folder)))
        return Predictor("depth", weights=weights, model="out", device="cpu").notes

    assert notes(small_backbone()) == ()
    (text,) = notes(other)
    for named in (tmp_path / "out" / LORA, unet, sha256(tmp_path / "before"), sha256(unet)):
        assert str(named) in text
    shutil.copy(tmp_path / "before", unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert notes(other) == ()


def test_names_that_are_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data may have them; of output and backbone they are refused before anything is trained."""
    odd = tmp_path / os.fsdecode(b"\xff")
    folder = write_pairs(odd, 2)
    for path in (folder / "images/0.png", folder / "depth/0.npy"):
        path.rename(path.with_name(os.fsdecode(b"\xff" + path.suffix.encode())))
    (folder / "metadata.jsonl").unlink()
    seen = run(training(folder, tmp_path / "a", steps=1, cache=odd / "cache", hold_out=1))
    assert only(seen, ev.Finished)
    shutil.copytree(small_backbone(), odd / "sd")
    monkeypatch.chdir(odd)  # the backbone can be loaded by a short path, but not named in full
    for changes in ({"output": odd / "b"}, {"output": tmp_path / "b", "backbone": Path("sd")}):
        with pytest.raises(UsageError, match="is not UTF-8"):
            run(replace(training(folder, tmp_path), **changes))
        assert not (changes["output"] / "checkpoints").exists()


def test_normals_are_drawn_in_the_axes_asked_for(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path, task="normals", steps=1, normals="opencv"))
    assert header.settings(tmp_path / LORA, "normals")["normals"] == "opencv"
    assert "scale" not in header.settings(tmp_path / LORA, "normals")


def test_targets_that_are_not_declared_are_refused(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path, steps=1, targets="self"))
    shapes = Backbone.load(small_backbone(), choose("cpu", "fp32")).shapes
    held = lora.read(tmp_path / LORA, shapes)
    assert {name.split(".")[-2] if "to_out" not in name else name.split(".")[-3] for name in held} \
        == {"attn1"}  # fmt: skip
    save_file(load_file(tmp_path / LORA), tmp_path / "bare.safetensors")
    with pytest.raises(ModelError, match="is missing"):
        lora.read(tmp_path / "bare.safetensors", shapes)


def test_a_checkpoint_is_a_lora_too(data: Path, tmp_path: Path) -> None:
    run(training(data, tmp_path, steps=2))
    checkpoint = checkpoints.newest(tmp_path)
    assert checkpoint is not None
    assert same(checkpoint, tmp_path)
    assert header.settings(checkpoint / LORA, "depth")["size"] == SIZE


def test_a_sixth_task_is_one_row(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = replace(tasks.find("shading"), name="edges", aliases=(), metrics=("rmse",))
    monkeypatch.setitem(tasks.TASKS, "edges", edges)
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "shading").rename(folder / "edges")
    seen = run(training(folder, tmp_path / "out", task="edges", steps=1, hold_out=1))
    assert "rmse" in only(seen, ev.Validated)[0].numbers
    maps = Predictor("edges", weights=tmp_path / "out/weights.toml", device="cpu")
    assert maps(data / "images/0.png").shape == (SIZE, SIZE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports
def test_tensorboard_has_numbers_and_pictures(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = run(training(data, tmp_path, steps=2, hold_out=2, tensorboard=True, task="seg"))
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses(seen))
    numbers = only(seen, ev.Validated)[0].numbers
    assert board.Scalars("validation/miou")[0].value == pytest.approx(numbers["miou"])
    (picture,) = board.Images("validation/1")
    assert (picture.width, picture.height) == (3 * 256, 256)


# The model --------------------------------------------------------------------------------


def test_the_backbone_of_a_model_or_of_a_folder(data: Path, tmp_path: Path, weights: Path) -> None:
    from tests.conftest import PARITY

    by_folder = replace(
        training(data, tmp_path / "a", steps=1), model=None, backbone=PARITY / "sd-tiny"
    )
    by_model = replace(by_folder, output=tmp_path / "b", backbone=None, model="tiny",
                       weights=str(weights))  # fmt: skip
    assert losses(run(by_folder)) == losses(run(by_model))
    assert same(tmp_path / "a", tmp_path / "b")
    assert (
        Predictor("depth", weights=tmp_path / "a/weights.toml", device="cpu")
        .recipes["depth"]
        .backbone.path
        == PARITY / "sd-tiny"
    )
    assert header.read(tmp_path / "a" / LORA)["backbone"] == "sd-tiny"


def test_a_packaged_backbone_stays_packaged_and_the_model_is_not_its_own(tmp_path: Path) -> None:
    """`demo` by its entry alone: no file of it is read."""
    recipe = to_train(catalogue.load(), "depth", "demo")
    name = plain_name(tmp_path / "demo")
    result.write(tmp_path / "demo", b"x", recipe, name, "a summary")
    text = (tmp_path / "demo/weights.toml").read_text()
    assert 'backbone = { packaged = "demo" }' in text
    assert "--model my-demo" in text.splitlines()[0]
    (found,) = resolve(catalogue.load(tmp_path / "demo/weights.toml"), ["depth"])
    assert (found.model, found.backbone.packaged) == ("my-demo", "demo")
    assert "size" not in found.stated


def test_settings_reach_the_recipe(data: Path, tmp_path: Path) -> None:
    asked = replace(training(data, tmp_path), settings=Settings(size=0, steps=3))
    recipe = job_of(asked).recipe
    assert (recipe.size, recipe.steps, recipe.prediction) == (0, 3, "v_prediction")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": "1000"}, "--timesteps 1000"), ({"targets": "to_k,foo"}, "target 'foo'"),
        ({"sampling_steps": 0}, "steps 0 must"), ({"device": "cuda:1"}, "chosen from outside"),
        ({"precision": "fp16"}, "fp16 is not for cpu"), ({"model": "dpm"}, "unknown model"),
        ({"task": "dpeth"}, "unknown task"), ({"sampling_steps": 2000}, "steps must be"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(training(data, tmp_path, **changes))
    assert not (tmp_path / "checkpoints").exists()


def test_cached_latents_have_the_vae_in_their_name(data: Path, tmp_path: Path) -> None:
    job = job_of(training(data, tmp_path))
    from dmp_cli.train.feed import Coding, Fit, Pictures

    read = Pictures(job.pairs, job.task, Coding(), Fit(SIZE, 2), job.training.reading)
    names = {Cache(tmp_path, read, vae).path(0, flip) for vae in "ab" for flip in (False, True)}
    assert len(names) == 4
