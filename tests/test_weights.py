"""Which model, with which settings and from which sources."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import catalogue, weights
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.plan import Settings
from dmp_cli.sources import Source
from dmp_cli.tasks import TASKS

SD = {"path": "/models/sd"}
DEPTH = {"lora": {"path": "/models/depth.safetensors"}}


def table(*default: str, **models: Any) -> dict[str, Any]:
    return {"default": list(default), "models": models}


TABLE = table(
    "empty", "half", "whole",
    empty={"backbone": SD, "tasks": {"depth": {}, "normals": {}}},
    half={"backbone": SD, "tasks": {"depth": DEPTH}, "steps": 3},
    whole={"backbone": SD, "tasks": {"depth": DEPTH, "normals": DEPTH}, "steps": 4},
    baseless={"tasks": {"depth": DEPTH}},
)  # fmt: skip


# The choice -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "model", "environment", "chosen"),
    [
        (["depth"], None, None, "half"),
        (["depth", "normals"], None, None, "whole"),
        (["normals"], None, "", "whole"),
        (["depth"], None, "whole", "whole"),
        (["depth"], "half", "whole", "half"),
    ],
)
def test_model(
    tasks: list[str], model: str | None, environment: str | None, chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if environment is not None:
        monkeypatch.setenv("DMP_MODEL", environment)
    recipes = weights.resolve(TABLE, tasks, model)
    assert [recipe.task for recipe in recipes] == tasks
    assert {recipe.model for recipe in recipes} == {chosen}
    assert recipes[0].backbone == Source(path=Path("/models/sd"))
    assert recipes[0].lora == Source(path=Path("/models/depth.safetensors"))
    assert recipes[0].steps == TABLE["models"][chosen]["steps"]


@pytest.mark.parametrize("through", ["flag", "environment"])
def test_unknown_model(through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if through == "environment":
        monkeypatch.setenv("DMP_MODEL", "dpm")
    with pytest.raises(UsageError, match="unknown model 'dpm'") as raised:
        weights.resolve(TABLE, ["depth"], "dpm" if through == "flag" else None)
    assert "empty, half, whole" in raised.value.hint


@pytest.mark.parametrize(
    ("model", "tasks", "named"),
    [
        ("empty", ["depth"], "model 'empty' has no weights for depth"),
        ("empty", ["depth", "normals"], "for depth, normals"),
        ("half", ["depth", "normals"], "model 'half' has no weights for normals"),
        ("baseless", ["depth"], "model 'baseless' has no weights for depth"),
        (None, ["albedo"], "model 'empty' has no weights for albedo"),
    ],
)
def test_no_source(model: str | None, tasks: list[str], named: str) -> None:
    with pytest.raises(ModelError, match=named) as raised:
        weights.resolve(TABLE, tasks, model)
    assert "dmp weights import PATH" in raised.value.hint
    assert "--model demo" in raised.value.hint


@pytest.mark.parametrize("default", [(), ("gone",)])
def test_no_default(default: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="no weights for depth"):
        weights.resolve(table(*default), ["depth"])


@pytest.mark.parametrize("task", TASKS)
def test_packaged_models(task: str) -> None:
    """The paper's are not to be had; the demo stands in for them unless they are asked for."""
    packaged = catalogue.load()
    with pytest.raises(ModelError, match="'dmp' has no weights"):
        weights.resolve(packaged, [task], "dmp")
    (recipe,) = weights.resolve(packaged, [task])
    assert recipe.model == "demo"
    assert recipe.lora.path is not None
    assert recipe.lora.path.is_file()
    assert weights.stands_in_for(packaged, "demo", None) == "dmp"
    assert weights.stands_in_for(packaged, "demo", "demo") is None
    assert weights.stands_in_for(packaged, "dmp", None) is None
    (recipe,) = weights.resolve(packaged, [task], "untrained")
    assert (recipe.lora.made, recipe.backbone.made) == (task, "tiny")


def test_sources() -> None:
    found = weights.sources(TABLE, "half")
    assert {task: [str(file) for file in files] for task, files in found.items()} == {
        "depth": ["/models/sd", "/models/depth.safetensors"]
    }
    assert weights.sources(TABLE, "empty") == weights.sources(TABLE, "baseless") == {}


SETTINGS = Settings(
    steps=9, sampler="onepass", spacing="trailing", prediction="epsilon", final="y0", timestep=7,
    size=64, prompt="a room", guidance=3.5,
)  # fmt: skip


def test_settings_of_the_official_code() -> None:
    (recipe,) = weights.resolve(
        table(m={"backbone": SD, "tasks": {"depth": DEPTH}}), ["depth"], "m"
    )
    assert (recipe.steps, recipe.sampler, recipe.prediction) == (5, "ddim", "v_prediction")
    assert (recipe.final, recipe.size, recipe.scale) == ("z", 512, 8.0)
    assert (recipe.prompt, recipe.guidance, recipe.normals) == ("", 1.0, "opengl")


@pytest.mark.parametrize("key", sorted(asdict(SETTINGS).keys() - {"fast", "tiny_decoder"}))
def test_flag_over_task_over_model(key: str) -> None:
    flag = getattr(SETTINGS, key)
    low, high = ("model", "task") if isinstance(flag, str) else (11, 12)
    entry = {"backbone": SD, key: low, "tasks": {"depth": DEPTH | {key: high}, "normals": DEPTH}}
    found = weights.resolve(table(m=entry), ["depth", "normals"], "m")
    assert [getattr(recipe, key) for recipe in found] == [high, low]
    found = weights.resolve(table(m=entry), ["depth", "normals"], "m", Settings(**{key: flag}))
    assert [getattr(recipe, key) for recipe in found] == [flag, flag]


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("steps", -1), ("sampler", "euler"), ("spacing", ""), ("prediction", "v"),
     ("final", "x"), ("timestep", -1), ("size", -8), ("guidance", 0), ("guidance", float("nan"))],
)  # fmt: skip
def test_invalid_setting(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{key} {value!r} must be"):
        weights.resolve(TABLE, ["depth"], "half", Settings(**{key: value}))


@pytest.mark.parametrize(
    ("entry", "settings", "guidance"),
    [
        ({}, Settings(), 1),
        ({"prompt": "a room"}, Settings(), 2),
        ({"prompt": ""}, Settings(), 1),
        ({}, Settings(prompt="a room"), 2),
        ({"prompt": "a room"}, Settings(prompt=""), 1),
        ({"prompt": "a room", "guidance": 4.0}, Settings(), 4),
        ({"prompt": "a room"}, Settings(guidance=1.0), 1),
    ],
)
def test_guidance_is_two_with_a_prompt(
    entry: dict[str, Any], settings: Settings, guidance: float
) -> None:
    model = {"backbone": SD, "tasks": {"depth": DEPTH}} | entry
    assert weights.resolve(table(m=model), ["depth"], "m", settings)[0].guidance == guidance


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(), "steps=3 spacing='leading'"),
        (Settings(sampler="onepass", timestep=9), "timestep=9"),
        (Settings(prompt="a room"), "prompt='a room' guidance=2.0"),
    ],
)
def test_settings_in_one_line(settings: Settings, expected: str) -> None:
    line = weights.resolve(TABLE, ["depth"], "half", settings)[0].settings
    assert expected in line
    assert ("steps" in line) != ("timestep" in line)
    assert ("prompt" in line) == ("guidance" in line)


# To train ---------------------------------------------------------------------------------

TRAIN = table(
    "none", "bare", none={"size": 8}, bare={"backbone": SD, "size": 64, "prompt": "a room"},
    full={"backbone": SD, "tasks": {"depth": DEPTH | {"scale": 3.0, "steps": 2}}},
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "task", "folder", "expected"),
    [
        (None, "depth", None, {"model": "bare", "size": 64, "prompt": "a room", "guidance": 2.0}),
        ("full", "depth", None, {"model": "full", "scale": 3.0, "steps": 2, "size": 512}),
        ("full", "edges", None, {"scale": 8.0, "steps": 5}),
        (None, "depth", "/b", {"model": "", "size": 512, "backbone": Source(path=Path("/b"))}),
        ("none", "depth", "/b", {"size": 8, "backbone": Source(path=Path("/b"))}),
    ],
)
def test_the_recipe_of_a_lora_that_is_yet_to_be(
    model: str | None, task: str, folder: str | None, expected: dict[str, Any]
) -> None:
    found = weights.to_train(TRAIN, task, model, folder=Path(folder) if folder else None)
    assert {key: getattr(found, key) for key in expected} == expected
    assert (found.task, found.lora) == (task, Source())


def test_flags_of_a_training() -> None:
    found = weights.to_train(TRAIN, "depth", "bare", Settings(size=16, prompt=""))
    assert (found.size, found.prompt, found.guidance) == (16, "", 1.0)
    with pytest.raises(UsageError, match="size -1 must be"):
        weights.to_train(TRAIN, "depth", "bare", Settings(size=-1))


def test_no_backbone_to_train_on() -> None:
    with pytest.raises(UsageError, match="unknown model 'x'"):
        weights.to_train(TRAIN, "depth", "x")
    for model, models in (("none", TRAIN), (None, table("gone"))):
        with pytest.raises(ModelError, match="backbone") as raised:
            weights.to_train(models, "depth", model)
        assert "--backbone" in raised.value.hint


def test_a_made_lora_fits_only_the_made_backbone() -> None:
    made = {"lora": {"made": "depth"}}
    with pytest.raises(UsageError, match="fits only the backbone made by dmp"):
        weights.resolve(table(m={"backbone": SD, "tasks": {"depth": made}}), ["depth"], "m")
    own = table(m={"backbone": {"made": "tiny"}, "tasks": {"depth": DEPTH}})
    assert weights.resolve(own, ["depth"], "m")[0].backbone.made == "tiny"
