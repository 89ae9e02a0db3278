"""Which model with which settings, and its verified files: from a folder and from a real Hub."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import catalogue, weights
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.plan import Settings
from dmp_cli.tasks import TASKS
from dmp_cli.weights import Source
from tests import hub as hubs
from tests.conftest import write_image, write_weights

PARITY = Path(__file__).parent / "parity"
LORA = PARITY / "lora" / "full" / "pytorch_lora_weights.safetensors"
SHA256 = hashlib.sha256(LORA.read_bytes()).hexdigest()
PARTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")

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
        ("empty", ["depth"], "model 'empty' has no weights for depth:"),
        ("empty", ["depth", "normals"], "for depth, normals:"),
        ("half", ["depth", "normals"], "model 'half' has no weights for normals:"),
        ("baseless", ["depth"], "model 'baseless' has no weights for depth:"),
        (None, ["albedo"], "model 'empty' has no weights for albedo:"),
    ],
)
def test_no_source(model: str | None, tasks: list[str], named: str) -> None:
    with pytest.raises(ModelError, match=named) as raised:
        weights.resolve(TABLE, tasks, model)
    assert "--weights" in raised.value.hint
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


@pytest.mark.parametrize("key", asdict(SETTINGS))
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


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Source(repo="a/b", revision="c0ffee", file="d.safetensors"), "a/b/d.safetensors@c0ffee"),
        (Source(repo="a/b"), "a/b@main"),
        (Source(path=Path("/x")), "/x"),
        (Source(made="tiny"), "made by dmp (tiny)"),
    ],
)
def test_source_in_words(source: Source, expected: str) -> None:
    assert str(source) == expected


def test_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DMP_HOME", str(tmp_path))
    assert weights.store() == tmp_path
    monkeypatch.delenv("DMP_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert weights.store().name == "dmp"


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


# Files of this machine --------------------------------------------------------------------


@pytest.mark.parametrize("name", weights.LORA_NAMES)
def test_lora_in_a_folder(tmp_path: Path, name: str) -> None:
    shutil.copy(LORA, tmp_path / name)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"a pickle")
    assert weights.lora_file(Source(path=tmp_path)) == tmp_path / name


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_lora_of_any_name(tmp_path: Path, sha256: str | None) -> None:
    path = tmp_path / "depth.safetensors"
    shutil.copy(LORA, path)
    assert weights.lora_file(Source(path=path, sha256=sha256)) == path


@pytest.mark.parametrize(
    ("name", "why"),
    [("absent.safetensors", "no such LoRA file"), ("folder", "holds none of"),
     ("lora.bin", "never a pickle"), ("only-bin", "holds none of"), ("a\0b", "no such")],
)  # fmt: skip
def test_lora_that_is_not_to_be_had(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "only-bin").mkdir()
    for file in ("lora.bin", "only-bin/pytorch_lora_weights.bin"):
        (tmp_path / file).write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=why) as raised:
        weights.lora_file(Source(path=tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)
    assert raised.value.hint


def test_lora_with_a_wrong_sha256() -> None:
    with pytest.raises(ModelError) as raised:
        weights.lora_file(Source(path=LORA, sha256="0" * 64))
    message = str(raised.value)
    assert all(part in message for part in (str(LORA), f"expected {'0' * 64}", f"found {SHA256}"))


def backbone(folder: Path, *variants: str | None) -> Path:
    for part in PARTS:
        for variant in variants:
            path = folder / f"{part}{'.' + variant if variant else ''}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            (path.parent / "config.json").touch()
    for name in ("scheduler/scheduler_config.json", "tokenizer/vocab.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("there", "wanted", "half", "taken"),
    [
        ((None, "fp16"), "fp16", True, "fp16"),
        ((None, "fp16"), "fp16", False, None),
        ((None,), "fp16", True, None),
        (("fp16",), "fp16", False, "fp16"),
        ((None, "fp16"), None, True, None),
        ((None,), None, False, None),
    ],
)
def test_variant(
    tmp_path: Path, there: tuple[str | None, ...], wanted: str | None, half: bool,
    taken: str | None,
) -> None:  # fmt: skip
    folder = backbone(tmp_path / "sd", *there)
    found = weights.backbone_folder(Source(path=folder, variant=wanted), half)
    assert found == (folder, taken)


@pytest.mark.parametrize("part", PARTS)
def test_backbone_that_is_not_whole(tmp_path: Path, part: str) -> None:
    folder = backbone(tmp_path, None)
    (folder / f"{part}.safetensors").unlink()
    with pytest.raises(ModelError, match=f"{part}.safetensors is missing") as raised:
        weights.backbone_folder(Source(path=folder, variant="fp16"), half=True)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_backbone_that_is_not_there(tmp_path: Path, variant: str | None) -> None:
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.safetensors is missing"):
        weights.backbone_folder(Source(path=tmp_path / "absent", variant=variant), half=True)


# The Hub ----------------------------------------------------------------------------------

FETCH = """
import json, sys
from pathlib import Path
from dmp_cli import weights
from dmp_cli.errors import DmpError
what, half, fields = json.loads(sys.argv[1])
source = weights.Source(**fields)
try:
    if what == "lora":
        found = [str(weights.lora_file(source)), None]
    else:
        folder, variant = weights.backbone_folder(source, half)
        found = [str(folder), variant]
    print(json.dumps({"found": found, "cache": str(weights.hub_cache())}))
except DmpError as error:
    print(json.dumps({"error": str(error), "hint": error.hint, "code": error.exit_code}))
"""
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hubs.Hub]:
    """A server with org/tiny (a backbone, a LoRA) and org/half (the backbone in fp16 only)."""
    if hubs.missing():
        pytest.skip(f"no {hubs.missing()} here")
    root = tmp_path_factory.mktemp("hub")
    tiny = PARITY / "sd-tiny"
    files = {str(path.relative_to(tiny)): path for path in tiny.rglob("*") if path.is_file()}
    half = {name.replace(".safetensors", ".fp16.safetensors"): path for name, path in files.items()}
    extra = {"loras/depth.safetensors": LORA, "loras/depth.bin": LORA.with_suffix(".bin")}
    commits = {
        "org/tiny": hubs.commit(root, "org/tiny", files | extra),
        "org/half": hubs.commit(root, "org/half", half),
    }
    with hubs.serve(root) as address:
        yield hubs.Hub(address, commits)


@dataclass(frozen=True)
class Client:
    """Fetches in a process of its own: huggingface_hub reads its settings as it is imported."""

    home: Path
    address: str

    def environment(self, offline: bool = False) -> dict[str, str]:
        return os.environ | {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.address,
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def run(self, what: str, half: bool = False, offline: bool = False, **source: Any) -> Any:
        ran = subprocess.run(
            [sys.executable, "-c", FETCH, json.dumps([what, half, source])],
            env=self.environment(offline), capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture
def client(hub: hubs.Hub, tmp_path: Path) -> Client:
    return Client(tmp_path / "hf", hub.address)


@pytest.fixture
def lora(hub: hubs.Hub) -> dict[str, Any]:
    """The fields of a source that is there."""
    return {
        "repo": "org/tiny",
        "revision": hub.commits["org/tiny"],
        "file": "loras/depth.safetensors",
        "sha256": SHA256,
    }


def without_server(client: Client) -> Client:
    return Client(client.home, NOWHERE)


def test_lora_is_fetched_at_its_commit_and_then_kept(client: Client, lora: dict[str, Any]) -> None:
    first = client.run("lora", **lora)
    path = Path(first["found"][0])
    assert path.read_bytes() == LORA.read_bytes()
    assert lora["revision"] in path.parts
    assert path.is_relative_to(first["cache"])
    assert Path(first["cache"]).is_relative_to(client.home)
    start = time.monotonic()
    assert without_server(client).run("lora", **lora) == first
    assert time.monotonic() - start < 15  # the client's own waiting for a server takes 23
    assert without_server(client).run("lora", offline=True, **lora) == first


def test_lora_of_a_branch(client: Client, lora: dict[str, Any]) -> None:
    for revision in ("main", None):
        found = client.run("lora", **(lora | {"revision": revision}))["found"][0]
        assert lora["revision"] in Path(found).parts


def test_lora_with_a_wrong_sha256_on_the_hub(client: Client, lora: dict[str, Any]) -> None:
    failed = client.run("lora", **(lora | {"sha256": "1" * 64}))
    assert f"expected {'1' * 64}, found {SHA256}" in failed["error"]
    assert failed["code"] == 5


def test_lora_damaged_in_the_cache(client: Client, lora: dict[str, Any]) -> None:
    path = Path(client.run("lora", **lora)["found"][0])
    damaged = bytearray(LORA.read_bytes())
    damaged[-1] ^= 1
    path.resolve().write_bytes(damaged)
    failed = without_server(client).run("lora", **lora)
    assert f"expected {SHA256}, found {hashlib.sha256(damaged).hexdigest()}" in failed["error"]
    assert str(path) in failed["error"]


@pytest.mark.parametrize(
    "change",
    [{"repo": "org/absent"}, {"revision": "absent"}, {"file": "loras/absent.safetensors"},
     {"repo": "not a name"}, {"repo": "../../x/y"}],
    ids=["repo", "revision", "file", "no name", "climbs"],
)  # fmt: skip
def test_missing_on_the_hub(client: Client, lora: dict[str, Any], change: dict[str, str]) -> None:
    source = lora | change
    failed = client.run("lora", **source)
    assert failed["code"] == 5
    for part in (source["repo"], source["file"], source["revision"]):
        assert part in failed["error"]
    assert "run the same command again" in failed["hint"]
    assert "\n" not in failed["error"]
    assert not [path for path in client.home.rglob("*.safetensors") if path.exists()]


def test_offline_without_a_copy(client: Client, lora: dict[str, Any]) -> None:
    failed = client.run("lora", offline=True, **lora)
    assert failed["code"] == 5
    assert "org/tiny: loras/depth.safetensors at revision" in failed["error"]


def files_of(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("repo", "variant", "half", "taken"),
    [
        ("org/tiny", None, False, None),
        ("org/tiny", "fp16", True, None),
        ("org/half", "fp16", True, "fp16"),
        ("org/half", "fp16", False, "fp16"),
    ],
)
def test_backbone_is_fetched_and_then_kept(
    hub: hubs.Hub, client: Client, repo: str, variant: str | None, half: bool, taken: str | None
) -> None:
    source = {"repo": repo, "revision": hub.commits[repo], "variant": variant}
    first = client.run("backbone", half, **source)
    folder, found = first["found"]
    assert found == taken
    assert Path(folder).name == hub.commits[repo]
    middle = ".fp16" if taken else ""
    assert {f"{part}{middle}.safetensors" for part in PARTS} <= files_of(folder)
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json"} <= files_of(folder)
    assert not [name for name in files_of(folder) if name.startswith("loras/")]
    for path in PARTS:
        original = (PARITY / "sd-tiny" / f"{path}.safetensors").read_bytes()
        assert (Path(folder) / f"{path}{middle}.safetensors").read_bytes() == original
    assert client.run("backbone", half, offline=True, **source) == first


def test_backbone_needs_no_server_once_it_is_there(hub: hubs.Hub, client: Client) -> None:
    source = {"repo": "org/tiny", "revision": hub.commits["org/tiny"]}
    first = client.run("backbone", **source)
    start = time.monotonic()
    assert without_server(client).run("backbone", **source) == first
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("pattern", ["*.safetensors", "merges.txt"])
def test_half_a_backbone_is_completed(hub: hubs.Hub, client: Client, pattern: str) -> None:
    source = {"repo": "org/tiny", "revision": hub.commits["org/tiny"]}
    folder = client.run("backbone", **source)["found"][0]
    whole = files_of(folder)
    for path in Path(folder).rglob(pattern):
        path.resolve().unlink()
        path.unlink()
    assert files_of(folder) < whole
    assert client.run("backbone", **source)["found"][0] == folder
    assert files_of(folder) == whole


def test_backbone_that_is_not_whole_on_the_hub(hub: hubs.Hub, client: Client) -> None:
    revision = hub.commits["org/half"]
    failed = client.run("backbone", repo="org/half", revision=revision)
    assert failed["code"] == 5
    assert f"org/half@{revision}: not a whole backbone" in failed["error"]
    assert "unet/diffusion_pytorch_model.safetensors is missing" in failed["error"]


@pytest.mark.parametrize("change", [{"repo": "org/absent"}, {"revision": "absent"}])
def test_missing_backbone(hub: hubs.Hub, client: Client, change: dict[str, str]) -> None:
    source = {"repo": "org/tiny", "revision": hub.commits["org/tiny"]} | change
    failed = client.run("backbone", **source)
    assert failed["code"] == 5
    assert f"{source['repo']}: backbone at revision {source['revision']}" in failed["error"]


FAULTS = {
    "cut": "peer closed connection",
    "short": "100000",
    "loop": "redirect",
    "closed": "disconnected",
    "401": "401",
    "403": "403",
    "404": "404",
    "429": "429",
    "500": "500",
}
WAITS = ("429", "500")  # the client tries again for 23 seconds


@pytest.mark.parametrize(
    "fault", [pytest.param(key, marks=[pytest.mark.slow] * (key in WAITS)) for key in FAULTS]
)
def test_faulty_server(tmp_path: Path, fault: str) -> None:
    with hubs.faulty() as address:
        failed = Client(tmp_path, f"{address}/{fault}").run(
            "lora", repo="org/tiny", revision="0" * 40, file="l.safetensors"
        )
    assert failed["code"] == 5
    assert f"org/tiny: l.safetensors at revision {'0' * 40} is not to be had" in failed["error"]
    assert FAULTS[fault] in failed["error"]
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lora", "backbone"])
def test_no_server_at_all(client: Client, lora: dict[str, Any], what: str) -> None:
    """The client waits 23 seconds by itself, with bounded retries."""
    failed = without_server(client).run(what, **lora)
    assert failed["code"] == 5
    assert lora["revision"] in failed["error"]
    assert "check the connection" in failed["hint"]


def test_predict_from_the_hub_and_then_without_it(
    hub: hubs.Hub, client: Client, lora: dict[str, Any], tmp_path: Path
) -> None:
    """The whole command: maps from the Hub's files are those from local ones, server or not."""
    backbone = f'{{ repo = "org/tiny", revision = "{hub.commits["org/tiny"]}" }}'
    source = ", ".join(f"{key} = {json.dumps(value)}" for key, value in lora.items())
    text = f"[models.hub]\nsize = 64\nbackbone = {backbone}\n[models.hub.tasks.depth]\n"
    (tmp_path / "hub.toml").write_text(f"{text}lora = {{ {source} }}\n")
    write_weights(tmp_path / "local.toml", "size = 64")
    image = write_image(tmp_path / "a.png")

    def predict(who: Client, model: str, file: str) -> bytes:
        out = tmp_path / "out"
        command = ["-m", "dmp_cli", "predict", "depth", image, "-o", out, "--format", "npy"]
        options = ["--model", model, "--weights", tmp_path / file]
        subprocess.run(
            [sys.executable, *command, *options],
            env=who.environment(), capture_output=True, check=True, timeout=120,
        )  # fmt: skip
        return (out / "a.depth.npy").read_bytes()

    expected = predict(client, "tiny", "local.toml")
    assert predict(client, "hub", "hub.toml") == expected
    assert predict(without_server(client), "hub", "hub.toml") == expected
