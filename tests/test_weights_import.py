"""`dmp weights import`: from files of others to a model that predicts; all of them or none."""

import json
import os
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dmp_cli import backbone, catalogue, header, hub, store, weights
from dmp_cli.importing import drive
from dmp_cli.sources import sha256
from tests.conftest import PARITY, TASKS, Dmp, Ran, write_image

TINY = PARITY / "sd-tiny"
FULL = PARITY / "lora" / "full"
PLAIN = ("normal-scene100-notext", "depth-hypersim-notext")
BEDROOMS = ("bedroom-depth", "bedroom-normal", "bedroom-seg", "bedroom-albedo", "bedroom-shading")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def state(seed: int = 0, rank: int = 1, config: Path | None = None) -> dict[str, Tensor]:
    """A LoRA for Stable Diffusion 1.x in the layout of the paper's authors."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, (outputs, inputs) in backbone.shapes_of(config).items():
        at, to = name.removesuffix(".0").rsplit(".", 1)
        for side, size in (("down", (rank, inputs)), ("up", (outputs, rank))):
            made[f"{at}.processor.{to}_lora.{side}.weight"] = torch.rand(size, generator=generator)
    return made


def official(root: Path, *names: str, rank: int = 1) -> Path:
    """The folder as the authors publish it: a pickle in a folder for each."""
    for name in names:
        path = root / name / "pytorch_lora_weights.bin"
        path.parent.mkdir(parents=True)
        torch.save(state(sum(name.encode()), rank), path)
    return root


def paths(ran: Ran) -> list[Path]:
    assert ran.code == 0, ran.err
    return [Path(line) for line in ran.out.splitlines()]


def stored(model: str) -> dict[str, Path]:
    """The LoRA files of a model in the weights file, each with the hash that it states."""
    entries = catalogue.load()["models"].get(model, {}).get("tasks", {})
    found = {task: entry["lora"] for task, entry in entries.items() if "lora" in entry}
    assert all(sha256(Path(lora["path"])) == lora["sha256"] for lora in found.values())
    return {task: Path(lora["path"]) for task, lora in found.items()}


def recipe(model: str, task: str) -> weights.Recipe:
    """What a prediction would take."""
    return weights.completed(weights.resolve(catalogue.load(), [task], model)[0])


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# The official weights ---------------------------------------------------------------------


def test_the_official_folder(dmp: Dmp, tmp_path: Path) -> None:
    root = official(tmp_path / "any" / "ckpt", *PLAIN, *BEDROOMS, rank=4)
    before = tree(tmp_path / "any")
    ran = dmp("weights", "import", tmp_path / "any")
    assert sorted(paths(ran)) == sorted({*stored("dmp").values(), *stored("dmp-paper").values()})
    assert set(stored("dmp")) == set(stored("dmp-paper")) == set(TASKS)
    for task in ("depth", "normals"):
        assert stored("dmp")[task] != stored("dmp-paper")[task]
        assert recipe("dmp", task).prompt == ""
    for task in ("segmentation", "albedo", "shading"):
        assert stored("dmp")[task] == stored("dmp-paper")[task]
        assert (recipe("dmp", task).prompt, recipe("dmp", task).guidance) == ("a bedroom", 2.0)
    assert recipe("dmp-paper", "depth").prompt == "a bedroom"
    assert weights.resolve(catalogue.load(), TASKS)[0].model == "dmp"
    lines = [line.split() for line in ran.err.splitlines()]
    assert ["depth", "dmp", "4", "797,184", "float32"] in [line[:5] for line in lines]
    assert "not stated" in ran.err
    assert f"from any/ckpt/{PLAIN[0]}/pytorch_lora_weights.bin" in ran.err
    assert "dmp weights pull dmp" in ran.err
    assert "next: dmp predict depth,normals,segmentation,albedo,shading photos/ -o out/" in ran.err
    assert max(map(len, ran.err.splitlines())) <= 80
    assert tree(tmp_path / "any") == before
    assert root.exists()


def test_what_the_header_says(dmp: Dmp, tmp_path: Path) -> None:
    root = official(tmp_path / "ckpt", *PLAIN, "bedroom-albedo")
    dmp("weights", "import", root)
    said = header.read(stored("dmp")["depth"])
    source = root / PLAIN[1] / "pytorch_lora_weights.bin"
    assert said == {
        "task": "depth", "prediction": "v_prediction", "prompt": "", "scale": "8.0", "rank": "1",
        "base": "CompVis/stable-diffusion-v1-4 (assumed)", "license": "not stated",
        "source": f"{PLAIN[1]}/pytorch_lora_weights.bin", "source_sha256": sha256(source),
        "version": said["version"],
    }  # fmt: skip
    assert header.read(stored("dmp")["normals"])["normals"] == "opengl"
    albedo = header.read(stored("dmp-paper")["albedo"])
    assert (albedo["prompt"], albedo["guidance"]) == ("a bedroom", "2.0")


def test_the_archives_of_google_drive_give_the_same_files(dmp: Dmp, tmp_path: Path) -> None:
    root = official(tmp_path / "ckpt", *PLAIN, "bedroom-seg")
    expected = {path.name for path in paths(dmp("weights", "import", root))}
    shutil.rmtree(tmp_path / "home")
    parts = [tmp_path / f"ckpt-20240101T000000Z-00{number}.zip" for number in (1, 2)]
    for path, names in zip(parts, (PLAIN, ("bedroom-seg",)), strict=True):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"ckpt/{names[0]}/logs.txt", "x")
            for name in names:
                member = f"ckpt/{name}/pytorch_lora_weights.bin"
                archive.write(tmp_path / member, member)
    ran = dmp("weights", "import", *parts)
    assert {path.name for path in paths(ran)} == expected
    assert f"from ckpt/{PLAIN[0]}/pytorch_lora_weights.bin" in ran.err
    assert {path.name for path in (tmp_path / "home").iterdir()} == {
        "loras", "weights.toml", ".lock",
    }  # fmt: skip


def test_the_same_again_is_fine(dmp: Dmp, tmp_path: Path) -> None:
    root = official(tmp_path / "ckpt", PLAIN[0], "bedroom-albedo")
    dmp("weights", "import", root)
    before = tree(tmp_path / "home")
    assert paths(dmp("weights", "import", root))
    assert tree(tmp_path / "home") == before


def test_what_is_replaced_is_told(dmp: Dmp, tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2J-depth.safetensors"
    path.write_bytes((FULL / "pytorch_lora_weights.safetensors").read_bytes())
    words = ("--model", "mine", "--backbone", PARITY / "sd-tiny", "--license", "a\nb" * 40)
    ran = dmp("weights", "import", path, *words)
    assert ran.code == 0
    assert "place of" not in ran.err
    assert "lies beside" not in ran.err
    assert "\x1b" not in ran.err
    assert all(len(line) < 130 for line in ran.err.splitlines() if "dmp" not in line)
    other = dmp("weights", "import", FULL / "pytorch_lora_weights.bin", "--task", "depth", *words)
    assert r"takes the place of \x1b[2J-depth.safetensors as depth of model mine" in other.err
    assert "place of" not in dmp("weights", "import", FULL / "pytorch_lora_weights.bin", "--task",
                                 "depth", *words).err  # fmt: skip


@pytest.mark.parametrize("model", ["demo", "untrained"])
def test_a_model_that_comes_with_dmp_keeps_its_loras(model: str, dmp: Dmp) -> None:
    path = FULL / "pytorch_lora_weights.safetensors"
    ran = dmp("weights", "import", path, "--model", model, "--task", "depth")
    assert ran.code == 2
    assert f"model '{model}' comes with dmp" in ran.err


def test_what_works_without_a_prompt_is_never_replaced(dmp: Dmp, tmp_path: Path) -> None:
    dmp("weights", "import", official(tmp_path / "a", PLAIN[1]))
    plain = stored("dmp")["depth"]
    dmp("weights", "import", official(tmp_path / "b", "bedroom-depth", "bedroom-albedo"))
    assert stored("dmp")["depth"] == plain
    assert stored("dmp")["albedo"] == stored("dmp-paper")["albedo"]
    other = tmp_path / "c" / "bedroom-albedo" / "pytorch_lora_weights.bin"
    other.parent.mkdir(parents=True)
    torch.save(state(99), other)
    dmp("weights", "import", tmp_path / "c")
    assert stored("dmp")["albedo"] == stored("dmp-paper")["albedo"]
    assert header.read(stored("dmp")["albedo"])["source_sha256"] == sha256(other)
    dmp("weights", "import", other, "--model", "dmp")
    assert stored("dmp")["albedo"] != stored("dmp-paper")["albedo"]
    assert stored("dmp-paper")["albedo"].exists()


def test_one_file(dmp: Dmp, tmp_path: Path) -> None:
    path = official(tmp_path, "anything") / "anything" / "pytorch_lora_weights.bin"
    (kept,) = paths(dmp("weights", "import", path, "--task", "normal"))
    assert stored("dmp") == {"normals": kept}


# A model of one's own ---------------------------------------------------------------------


def tiny(dmp: Dmp, path: Path, *options: object) -> Ran:
    return dmp("weights", "import", path, "--model", "mine", "--backbone", TINY, *options)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "pytorch_lora_weights.safetensors"])
def test_predictions_are_those_of_the_original(name: str, dmp: Dmp, tmp_path: Path) -> None:
    size = ("--size", 64, "--steps", 2, "--scale", 4)
    assert tiny(dmp, FULL / name, "--task", "depth", *size).code == 0
    (tmp_path / "w.toml").write_text(
        f"[models.direct]\nbackbone = {{ path = {json.dumps(str(TINY))} }}\nsize = 64\nsteps = 2\n"
        "[models.direct.tasks.depth]\nscale = 4\n"
        f"lora = {{ path = {json.dumps(str(FULL / 'pytorch_lora_weights.safetensors'))} }}\n"
    )
    photo = write_image(tmp_path / "a.png")
    maps = []
    for model in ("mine", "direct"):
        words = ("predict", "depth", photo, "-o", tmp_path / model, "--format", "npy")
        ran = dmp(*words, "--model", model, "--weights", tmp_path / "w.toml", "-q")
        maps.append(np.load(paths(ran)[0]))
    assert np.array_equal(*maps)
    assert np.ptp(maps[0]) > 0


def test_a_new_model_says_all_that_it_needs(dmp: Dmp, tmp_path: Path) -> None:
    ran = tiny(
        dmp, FULL / "pytorch_lora_weights.bin", "--task", "seg", "--license", "mit", "--summary",
        "my own", "--classes", "wall,bed", "--steps", 3, "--spacing", "trailing", "--final", "y0",
        "--sampler", "oracle", "--prompt", "a room", "--size", 64, "--prediction", "epsilon",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    entry = catalogue.load()["models"]["mine"]
    assert (entry["summary"], entry["license"]) == ("my own", "mit")
    assert entry["backbone"] == {"path": str(TINY)}
    found = recipe("mine", "segmentation")
    assert {key: getattr(found, key) for key in (
        "classes", "steps", "spacing", "final", "sampler", "prompt", "guidance", "size",
        "prediction",
    )} == {
        "classes": "wall,bed", "steps": 3, "spacing": "trailing", "final": "y0",
        "sampler": "oracle", "prompt": "a room", "guidance": 2.0, "size": 64,
        "prediction": "epsilon",
    }  # fmt: skip
    assert "--model mine" in ran.err
    assert "pull" not in ran.err  # its backbone is a folder of this machine


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (("--steps", 3), "steps", 3), (("--spacing", "trailing"), "spacing", "trailing"),
        (("--prediction", "sample"), "prediction", "sample"), (("--scale", 2), "scale", 2.0),
        (("--prompt", "x"), "prompt", "x"),
    ],
)  # fmt: skip
def test_options_win_over_the_model_s_entry(
    options: tuple[Any, ...], key: str, value: object, dmp: Dmp, tmp_path: Path
) -> None:
    root = official(tmp_path / "ckpt", PLAIN[1])
    paths(dmp("weights", "import", root, *options))
    assert getattr(recipe("dmp", "depth"), key) == value


def test_what_a_file_says_of_its_use_wins_over_the_model_s_entry(dmp: Dmp, tmp_path: Path) -> None:
    told = {"dmp.task": "depth", "dmp.steps": "1", "dmp.scale": "3.0", "dmp.license": "cc0-1.0",
            "dmp.backbone_sha256": "0" * 64}  # fmt: skip
    save_file(state(), tmp_path / "x.safetensors", told)
    (kept,) = paths(dmp("weights", "import", tmp_path / "x.safetensors"))
    found = recipe("dmp", "depth")
    assert (found.steps, found.scale) == (1, 3.0)
    said = header.read(kept)
    assert (said["license"], said["backbone_sha256"]) == ("cc0-1.0", "0" * 64)


@pytest.mark.parametrize(
    ("named", "source"),
    [
        ("org/name", {"repo": "org/name"}),
        ("org/name@refs/pr/1", {"repo": "org/name", "revision": "refs/pr/1"}),
    ],
)
def test_a_backbone_on_the_hub(
    named: str, source: dict[str, str], dmp: Dmp, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("weights", "import", FULL, "--task", "depth", "--model", "mine", "--backbone", named)
    ran = dmp(*words)  # it is not here, and its shapes are not those of Stable Diffusion 1.x
    assert ran.code == 5
    assert f"--backbone {named}: taken as a repository of the Hub" in " ".join(ran.err.split())
    assert "shapes of Stable Diffusion 1.x were taken" in " ".join(ran.err.split())
    assert "hf download org/name unet/config.json" in ran.err
    monkeypatch.setattr(hub, "cached", lambda repository, name: TINY / name)
    ran = dmp(*words)
    assert ran.code == 0, ran.err
    assert catalogue.load()["models"]["mine"]["backbone"] == source


def test_a_model_in_a_weights_file_of_one_s_own(dmp: Dmp, weights: Path) -> None:
    words = ("--model", "tiny", "--task", "depth", "--weights", weights)
    ran = dmp("weights", "import", FULL / "pytorch_lora_weights.bin", *words)
    assert ran.code == 0, ran.err
    assert "backbone" not in store.weights_file().read_text()


def test_json(dmp: Dmp, tmp_path: Path) -> None:
    root = official(tmp_path / "ckpt", PLAIN[1], "bedroom-shading")
    (root / "README.md").write_text("---\nlicense: mit\n---\n")
    ran = dmp("weights", "import", root, "--json", "-q")
    records = {record["task"]: record for record in map(json.loads, ran.out.splitlines())}
    depth, shading = records["depth"], records["shading"]
    assert depth["file"] == f"ckpt/{PLAIN[1]}/pytorch_lora_weights.bin"
    assert (depth["model"], depth["also"], depth["license"]) == ("dmp", [], "mit")
    assert (shading["model"], shading["also"]) == ("dmp-paper", ["dmp"])
    assert depth["sha256"] == sha256(Path(depth["path"]))
    assert depth["source_sha256"] == sha256(tmp_path / depth["file"])
    assert (depth["rank"], depth["dtype"]) == ("1", "float32")
    assert ran.err == ""


# What is refused --------------------------------------------------------------------------


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, call: Callable[..., object], *words: object) -> None:
        self.call = call, words

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def nothing_stored() -> bool:
    return not list(store.home().rglob("*.safetensors")) and not store.weights_file().exists()


def hostile(path: Path) -> None:
    torch.save({**state(), "x": Runs(os.system, f"touch {path.parent / 'flag'}")}, path)


def of_sd2(path: Path) -> None:
    wide = {
        key: torch.zeros(1, 1024) if "attn2" in key and "_k_lora.down" in key else value
        for key, value in state().items()
    }
    torch.save(wide, path)


def not_whole(path: Path) -> None:
    made = state()
    del made[max(made)]
    torch.save(made, path)


def not_finite(path: Path) -> None:
    made = state()
    made[max(made)][:] = float("nan")
    torch.save(made, path)


def a_web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (hostile, "posix.system, which is no tensor; nothing of it was run"),
        (of_sd2, "Stable Diffusion 2.x"), (not_whole, "matrix is missing"),
        (not_finite, "not finite"), (a_web_page, "a web page"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [False, True])
def test_one_bad_file_and_nothing_is_stored(
    damage: Callable[[Path], None], why: str, zipped: bool, dmp: Dmp, tmp_path: Path
) -> None:
    root = official(tmp_path / "ckpt", *PLAIN)
    bad = root / "shading" / "pytorch_lora_weights.bin"
    bad.parent.mkdir()
    damage(bad)
    given = root
    if zipped:
        given = tmp_path / "all.zip"
        with zipfile.ZipFile(given, "w") as archive:
            for path in root.rglob("*.bin"):
                archive.write(path, path.relative_to(tmp_path))
    ran = dmp("weights", "import", given)
    assert ran.code == 5
    assert why in ran.err
    assert "shading/pytorch_lora_weights.bin" in ran.err
    assert ".dmp-" not in ran.err  # the folder that it was unpacked into is gone
    assert (str(given) if zipped else str(bad)) in ran.err
    assert "weights_only" not in ran.err
    assert ran.out == ""
    assert nothing_stored()
    assert not list(tmp_path.rglob("flag"))


def test_the_commands_that_are_named_work(dmp: Dmp, tmp_path: Path) -> None:
    root = official(tmp_path / "my ckpt", "first", "depth")
    ran = dmp("weights", "import", root)
    assert ran.code == 2
    assert nothing_stored()
    lines = [line.strip() for line in ran.err.splitlines() if "dmp weights import" in line]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line.replace("TASK", "albedo"))
        assert dmp(*words[1:]).code == 0
    assert set(stored("dmp-paper")) == {"albedo", "depth"}


def test_a_file_of_another_task(dmp: Dmp, tmp_path: Path) -> None:
    save_file(state(), tmp_path / "depth.safetensors", {"dmp.task": "normals"})
    ran = dmp("weights", "import", "depth.safetensors", "--task", "depth")
    assert ran.code == 5
    assert "was trained for normals, not for depth" in ran.err
    assert nothing_stored()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "nothing to import"),
        (("gone",), "gone: no such file or folder"),
        ((FULL, "--download"), "--download fetches what to import"),
        ((FULL, "--folder-url", drive.OFFICIAL), "add --download"),
        ((FULL, "--task", "dept"), "unknown task 'dept'"),
        ((FULL, "--task", "depth", "--steps", "0"), "--steps 0 must be a whole number"),
        ((FULL, "--task", "depth", "--sampler", "x"), "--sampler 'x' must be one of"),
        ((FULL, "--task", "depth", "--scale", "nan"), "--scale nan must be a number above 0"),
        ((FULL, "--task", "depth", "--normals", "opengl"), "--normals is not a setting of depth"),
        ((FULL, "--task", "normals", "--scale", "2"), "--scale is not a setting of normals"),
        ((FULL, "--task", "depth", "--summary", "x"), "--summary is of a model"),
        ((FULL, "--task", "depth", "--backbone", TINY), "--backbone is of a model"),
        *(
            ((FULL, "--task", "depth", "--model", "m", "--backbone", name), f"{name}: no such")
            for name in ("/gone", "./gone", "../x", ".x/y", "~/gone", "~nobody/x")
        ),
        *(
            ((FULL, "--task", "depth", "--model", "m", "--backbone", name), "without `..`")
            for name in ("a/b@x/../y", "a/b@/main", "a/..", "a/b@x/", "a/b@.")
        ),
        ((FULL, "--task", "depth", "--model", "../m", "--backbone", TINY), "cannot be the name"),
        (("--download", "--folder-url", "https://example.com/x"), "not the address of a Google"),
    ],
)
def test_what_makes_no_sense(words: tuple[Any, ...], why: str, dmp: Dmp) -> None:
    ran = dmp("weights", "import", *words)
    assert ran.code == 2
    assert why in " ".join(ran.err.split())
    assert nothing_stored()


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_a_pickle_with_the_name_of_a_safetensors(kind: str, dmp: Dmp, tmp_path: Path) -> None:
    path = tmp_path / "depth.safetensors"
    torch.save(state(), path, _use_new_zipfile_serialization=kind == "zip")
    ran = dmp("weights", "import", path)
    assert ran.code == 5
    assert "named safetensors, but it is none" in " ".join(ran.err.split())
    assert "is for `dmp weights import`" not in " ".join(ran.err.split())


def test_a_full_disk_at_the_last_file_leaves_the_store_as_it_was(
    dmp: Dmp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths(dmp("weights", "import", official(tmp_path / "a", PLAIN[1])))
    before = tree(tmp_path / "home")
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if "segmentation" in target.name:
            raise OSError(ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    root = official(tmp_path / "b", PLAIN[0], "x-depth-notext", "bedroom-albedo", "bedroom-seg")
    ran = dmp("weights", "import", root)
    assert ran.code == 6
    assert "No space left" in ran.err
    assert tree(tmp_path / "home") == before


def test_names_and_licences_that_are_not_utf_8(dmp: Dmp, tmp_path: Path) -> None:
    path = tmp_path / "depth-\udcff.bin"
    torch.save(state(), path)
    ran = dmp("weights", "import", path, "--model", "mine", "--license", "x\udcff")
    (kept,) = paths(ran)
    entry = catalogue.load()["models"]["mine"]
    assert (entry["summary"], entry["license"]) == ("imported from depth-\\udcff.bin", "x\\udcff")
    assert header.read(kept)["license"] == "x\\udcff"


def test_a_folder_that_a_weights_file_cannot_name(dmp: Dmp, tmp_path: Path) -> None:
    folder = tmp_path / "sd\udcff"
    folder.mkdir()
    ran = dmp("weights", "import", FULL, "--task", "depth", "--model", "m", "--backbone", folder)
    assert ran.code == 2
    assert "not UTF-8" in ran.err
    assert nothing_stored()


@pytest.mark.parametrize(
    ("told", "beside", "options", "base"),
    [
        ({"ss_base_model_version": "sd_v1"}, "", (), "sd_v1"),
        ({"dmp.base": "org/sd"}, '{"base_model_name_or_path": "other/sd"}', (), "org/sd"),
        ({}, '{"base_model_name_or_path": "other/sd"}', (), "other/sd"),
        ({}, '{"base_model_name_or_path": "/home/me/my sd/"}', (), "my sd"),
        ({}, '{"base_model_name_or_path": null}', (), "CompVis/stable-diffusion-v1-4 (assumed)"),
        ({}, "[]", (), "CompVis/stable-diffusion-v1-4 (assumed)"),
        ({}, "", ("--model", "m", "--backbone", "org/sd"), "org/sd"),
        ({"dmp.base": "a/b (assumed)"}, "", ("--model", "m", "--backbone", "org/sd"), "org/sd"),
    ],
)
def test_the_base_is_what_is_stated_and_else_assumed(
    told: dict[str, str], beside: str, options: tuple[str, ...], base: str, dmp: Dmp, tmp_path: Path
) -> None:
    save_file(state(), tmp_path / "depth.safetensors", told)
    if beside:
        (tmp_path / "adapter_config.json").write_text(beside)
    (kept,) = paths(dmp("weights", "import", tmp_path / "depth.safetensors", *options))
    assert header.read(kept)["base"] == base


def test_an_adapter_config_that_is_broken(dmp: Dmp, tmp_path: Path) -> None:
    save_file(state(), tmp_path / "depth.safetensors")
    (tmp_path / "adapter_config.json").write_text("{")
    ran = dmp("weights", "import", tmp_path / "depth.safetensors")
    assert ran.code == 5
    assert "adapter_config.json: cannot be read" in " ".join(ran.err.split())
    assert nothing_stored()


def test_a_store_that_cannot_be_written(
    dmp: Dmp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DMP_HOME", str(tmp_path / "file"))
    ran = dmp("weights", "import", official(tmp_path / "ckpt", PLAIN[1]))
    assert ran.code == 6
    assert "DMP_HOME" in ran.err


# Google Drive -----------------------------------------------------------------------------


@pytest.fixture
def gdown(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return pytest.importorskip("gdown")


def by_hand(ran: Ran, url: str = drive.OFFICIAL) -> bool:
    return f"open {url} in a browser" in ran.err and "dmp weights import ~/Downloads" in ran.err


def test_no_connection(dmp: Dmp, gdown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real gdown, with a proxy that is not there."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    ran = dmp("weights", "import", "--download")
    assert ran.code == 5
    assert "127.0.0.1:9 cannot be reached" in ran.err
    assert by_hand(ran)
    monkeypatch.setattr(drive.connection, "away", lambda address: None)
    ran = dmp("weights", "import", "--download")
    assert ran.code == 5
    assert "ProxyError" in ran.err
    assert by_hand(ran)
    assert nothing_stored()


def test_offline(dmp: Dmp) -> None:
    ran = dmp("weights", "import", "--download")
    assert ran.code == 5
    assert "offline" in ran.err
    assert by_hand(ran)


def test_gdown_is_not_there(dmp: Dmp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    ran = dmp("weights", "import", "--download")
    assert ran.code == 5
    assert "pip install 'dmp-predict[drive]'" in ran.err
    assert by_hand(ran)


@pytest.mark.parametrize("zipped", [False, True])
def test_what_gdown_leaves_is_imported(
    zipped: bool, dmp: Dmp, gdown: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It talks to Google alone, so here a function of ours stands in for it."""
    url = "https://drive.google.com/drive/folders/0123456789abc"

    def fetched(*, url: str, output: str, use_cookies: bool, **how: object) -> None:
        asked.append(url)
        assert not use_cookies
        assert Path(output).is_relative_to(store.home())
        root = official(Path(output), *PLAIN)
        if zipped:
            shutil.make_archive(output + "/all", "zip", root)

    asked: list[str] = []
    monkeypatch.setattr(drive.connection, "away", lambda address: None)
    monkeypatch.setattr(gdown, "download_folder", fetched)
    ran = dmp("weights", "import", "--download", "--folder-url", url)
    assert len(paths(ran)) == 2
    assert set(stored("dmp")) == {"depth", "normals"}
    assert asked == [url]
    assert not list(store.home().glob(".dmp-*"))


def test_loras_beside_archives_on_google_drive(
    dmp: Dmp, gdown: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those in folders and those in archives are taken; an archive of pictures is passed over."""

    def fetched(*, output: str, **how: object) -> None:
        official(Path(output), PLAIN[0])
        inner = official(tmp_path / "other", PLAIN[1])
        shutil.make_archive(output + "/sub/all", "zip", inner)
        with zipfile.ZipFile(output + "/photos.ZIP", "w") as archive:
            archive.writestr("photos/a.jpg", b"x")

    monkeypatch.setattr(drive.connection, "away", lambda address: None)
    monkeypatch.setattr(gdown, "download_folder", fetched)
    assert len(paths(dmp("weights", "import", "--download"))) == 2
    assert set(stored("dmp")) == {"depth", "normals"}


@pytest.mark.parametrize(
    ("content", "code", "why"),
    [
        (b"", 5, "photos.zip: cannot be unpacked"),
        ({"x.jpg": b"x"}, 2, "photos.zip: photos: holds no LoRA"),
        ({"depth/pytorch_lora_weights.bin": b"x"}, 5, "depth/pytorch_lora_weights.bin: not a file"),
        ({"first/pytorch_lora_weights.bin": b"x"}, 2, "unzip -n NAME/photos.zip -d unpacked &&"),
    ],
)
def test_what_is_wrong_on_google_drive_is_told_with_its_address(
    content: Any, code: int, why: str, dmp: Dmp, gdown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*, output: str, **how: object) -> None:
        Path(output).mkdir()
        if isinstance(content, bytes):
            (Path(output) / "photos.zip").write_bytes(content)
            return
        with zipfile.ZipFile(output + "/photos.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)

    monkeypatch.setattr(drive.connection, "away", lambda address: None)
    monkeypatch.setattr(gdown, "download_folder", fetched)
    ran = dmp("weights", "import", "--download")
    assert ran.code == code
    assert why in " ".join(ran.err.split())
    assert drive.OFFICIAL in ran.err
    assert ".dmp-" not in ran.err
    assert nothing_stored()


def test_what_drive_sends_cannot_be_told_apart(
    dmp: Dmp, gdown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive.connection, "away", lambda address: None)
    monkeypatch.setattr(
        gdown, "download_folder", lambda output, **how: official(Path(output), "first")
    )
    ran = dmp("weights", "import", "--download")
    assert ran.code == 2
    assert f"1. open {drive.OFFICIAL} in a browser" in ran.err
    assert "unpack them in one place: that makes a folder, here called NAME" in ran.err
    assert "import NAME/first/pytorch_lora_weights.bin --model dmp-paper --task TASK" in ran.err
    assert "unzip" not in ran.err
    assert ".dmp-" not in ran.err
    assert ran.out == ""
