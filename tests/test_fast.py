"""`--fast`: what it stands for, of which models, and what it contradicts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dmp_cli import header, host, weights
from dmp_cli.errors import UsageError
from dmp_cli.plan import Plan, Settings
from dmp_cli.predict import Predictor
from dmp_cli.weights import Recipe
from tests.conftest import PARITY, Dmp, write_weights

SPELLED = {"steps": 1, "spacing": "trailing", "final": "y0"}


def recipe(file: Path, **settings: Any) -> Recipe:
    """That of depth by the model `tiny` of a weights file."""
    plan = Plan(("depth",), "tiny", str(file), Settings(**settings))
    return host.completed(plan).recipes["depth"]


@pytest.mark.parametrize("extra", ["", "steps = 7", 'sampler = "oracle"\nfinal = "z"'])
def test_it_is_one_trailing_step_and_its_map(tmp_path: Path, extra: str) -> None:
    file = write_weights(tmp_path / "weights.toml", extra)
    fast, slow = recipe(file, fast=True), recipe(file)
    assert fast.settings == recipe(file, **SPELLED).settings != slow.settings
    assert fast.sampler == slow.sampler


def test_what_the_lora_says_of_steps_gives_way(tmp_path: Path) -> None:
    file = of_lora(tmp_path, {"steps": "3", "spacing": "leading", "sampler": "oracle"})
    assert (recipe(file).steps, recipe(file).sampler) == (3, "oracle")
    fast = recipe(file, fast=True)
    assert (fast.steps, fast.spacing, fast.final, fast.sampler) == (1, "trailing", "y0", "oracle")


@pytest.mark.parametrize("of", ["weights file", "lora"])
def test_a_model_of_one_pass_stays_as_it_is(tmp_path: Path, of: str) -> None:
    extra = 'sampler = "onepass"\ntimestep = 9'
    if of == "lora":
        file = of_lora(tmp_path, {"sampler": "onepass", "timestep": "9"})
    else:
        file = write_weights(tmp_path / "weights.toml", extra)
    assert recipe(file, fast=True).settings == recipe(file).settings
    assert "timestep=9" in recipe(file, fast=True).settings


def test_the_packaged_model_made_by_dmp_knows_it() -> None:
    (made,) = weights.recipes(Plan(("depth",), "untrained", settings=Settings(fast=True)))
    assert weights.completed(made).steps == 1
    assert weights.completed(made).spacing == "trailing"


def of_lora(folder: Path, entries: dict[str, str]) -> Path:
    """A weights file whose LoRA states settings."""
    lora, file = folder / "lora.safetensors", folder / "weights.toml"
    save_file({"a": torch.zeros(2)}, lora, header.text({"task": "depth"} | entries))
    backbone = PARITY / "sd-tiny"
    file.write_text(
        f"[models.tiny]\nbackbone = {{ path = '{backbone}' }}\n"
        f"[models.tiny.tasks.depth]\nlora = {{ path = '{lora}' }}\n"
    )
    return file


@pytest.mark.parametrize("first", ["fast", "spelled"])
def test_it_and_what_it_stands_for_go_on_with_each_other(
    dmp: Dmp, photos: Path, weights: Path, tmp_path: Path, first: str
) -> None:
    model = ("--weights", weights, "--model", "tiny")
    words = [("--fast",), ("--steps", 1, "--spacing", "trailing", "--final", "y0")]
    one, other = words if first == "fast" else words[::-1]
    run = ("predict", "depth", photos, "-o", tmp_path / "out", *model)
    assert len(dmp(*run, *one).out.splitlines()) == 3
    again = dmp(*run, *other)
    assert (again.code, again.out) == (0, "")
    assert "3 of them there already" in again.err
    assert len(dmp(*run, "--steps", 1).out.splitlines()) == 3  # other settings, other maps


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--steps", "1"), "steps 1"),
        (("--spacing", "trailing"), "spacing 'trailing'"),
        (("--final", "y0"), "final 'y0'"),
        (("--sampler", "oracle"), "sampler 'oracle'"),
        (("--steps", "2", "--final", "z"), "steps 2, final 'z'"),
    ],
)
@pytest.mark.parametrize("command", ["predict depth", "predict-all", "watch depth", "bench"])
def test_what_contradicts_it_is_refused(
    dmp: Dmp, photos: Path, tmp_path: Path, command: str, words: tuple[str, ...], told: str
) -> None:
    out = () if command == "bench" else ("-o", tmp_path / "out")
    ran = dmp(*command.split(), photos, *out, "--model", "untrained", "--fast", *words)
    assert (ran.code, ran.out) == (2, "")
    assert f"fast contradicts {told}\n" in ran.err
    assert "steps 1, spacing 'trailing', final 'y0'" in ran.err
    assert not (tmp_path / "out").exists()


def test_it_is_an_option_in_python(weights: Path, photos: Path) -> None:
    made = Predictor("depth", model="tiny", weights=weights, fast=True, device="cpu")
    same = Predictor("depth", model="tiny", weights=weights, device="cpu", **SPELLED)  # type: ignore[arg-type]
    assert (made(photos / "a.png") == same(photos / "a.png")).all()
    with pytest.raises(UsageError, match="fast contradicts steps 1"):
        Predictor("depth", model="tiny", weights=weights, fast=True, steps=1)


@pytest.mark.parametrize("flag", ["--readers", "--writers"])
@pytest.mark.parametrize("number", ["0", "-1", "some", "100000"])
def test_threads_that_make_no_sense(
    dmp: Dmp, photos: Path, tmp_path: Path, flag: str, number: str
) -> None:
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", flag, number)
    assert (ran.code, ran.out) == (2, "")
    assert flag in ran.err
