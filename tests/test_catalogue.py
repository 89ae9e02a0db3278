"""weights.toml: the packaged one, how several merge, and where an error is said to be."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dmp_cli
from dmp_cli import catalogue
from dmp_cli.errors import UsageError
from dmp_cli.tasks import TASKS

HEAD = """\
# a comment
[models.mine]
summary = "of mine"
backbone = { path = "sd" }

"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def run(text: str, name: str = "w.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return run


# The packaged file ------------------------------------------------------------------------


def test_packaged_file_loads() -> None:
    table = catalogue.load()
    assert set(table) == {"default", "models"}
    assert table["default"]
    assert set(table["default"]) <= set(table["models"])


@pytest.mark.parametrize("model", catalogue.load()["models"])
def test_packaged_models_have_all_tasks_and_a_licence(model: str) -> None:
    entry = catalogue.load()["models"][model]
    without = {"segmentation"} if model == "intrinsic-lora" else set()
    assert set(entry["tasks"]) == set(TASKS) - without
    assert entry["summary"]
    assert entry["license"]
    revision = entry["backbone"].get("revision")
    assert "repo" not in entry["backbone"] or (revision and len(revision) == 40)


def test_wheel_layout(tmp_path: Path) -> None:
    """In a wheel weights.toml lies in the package, and that copy is read."""
    package = Path(dmp_cli.__file__).parent
    shutil.copytree(package, tmp_path / "dmp_cli", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dmp_cli" / "weights.toml").write_text('[models.inside]\nsummary = "x"\n')
    code = "from dmp_cli import catalogue as c; print(c.files()[0], list(c.load()['models']))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"{tmp_path / 'dmp_cli' / 'weights.toml'} ['inside']\n"


def test_a_packaged_source_is_a_file_of_the_package(tmp_path: Path) -> None:
    mine = tmp_path / "w.toml"
    mine.write_text('[models.mine]\nbackbone = { packaged = "demo" }\n')
    found = catalogue.load(mine)["models"]["mine"]["backbone"]
    assert found["path"] == str(Path(dmp_cli.__file__).parent / "demo")


# Merging ----------------------------------------------------------------------------------


def test_a_model_of_ones_own_stands_beside_the_packaged(write: Any) -> None:
    table = catalogue.load(write(HEAD))
    assert table["models"]["mine"]["summary"] == "of mine"
    assert set(catalogue.load()["models"]) < set(table["models"])


def test_order_of_the_files(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "[models.dmp]\nsteps = {}\n[models.dmp.tasks.depth]\nscale = {}\n"
    one = write(entry.format(7, 1.5), "one.toml")
    two = write("[models.dmp]\nsteps = 9\n", "two.toml")
    assert catalogue.load()["models"]["dmp"]["steps"] == 5
    monkeypatch.setenv("DMP_WEIGHTS", str(one))
    assert catalogue.load()["models"]["dmp"]["steps"] == 7
    table = catalogue.load(two)["models"]["dmp"]
    assert (table["steps"], table["tasks"]["depth"]["scale"]) == (9, 1.5)
    assert table["sampler"] == "ddim"
    assert catalogue.files(two)[1:] == [one, two]


def test_default_is_replaced(write: Any) -> None:
    assert catalogue.load(write('default = ["mine", "dmp"]\n' + HEAD))["default"] == ["mine", "dmp"]


def test_a_source_is_replaced_as_a_whole(write: Any) -> None:
    """Half of one source and half of another would be a third that nobody named."""
    one = write(
        '[models.dmp.tasks.depth]\nlora = { repo = "a/b", file = "c.safetensors" }\n', "1.toml"
    )
    two = write(
        '[models.dmp]\nbackbone = { path = "/sd" }\n'
        '[models.dmp.tasks.depth]\nlora = { path = "/l.safetensors" }\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMP_WEIGHTS", str(one))
        table = catalogue.load(two)["models"]["dmp"]
    assert table["backbone"] == {"path": "/sd"}
    assert table["tasks"]["depth"] == {"scale": 8.0, "lora": {"path": "/l.safetensors"}}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("sd", "sub/sd"), ("./sd", "sub/sd"), ("/models/sd", "/models/sd"), ("~/sd", "home/sd"),
     ("../sd", "sub/../sd")],
)  # fmt: skip
def test_paths_are_relative_to_their_file(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(HEAD.replace('"sd"', f'"{path}"'), "sub/w.toml")
    monkeypatch.chdir(tmp_path)
    for name in ("sub/w.toml", tmp_path / "sub/w.toml"):
        found = catalogue.load(name)["models"]["mine"]["backbone"]["path"]
        assert found == str(tmp_path / expected)


# Errors -----------------------------------------------------------------------------------

DEPTH = HEAD + "[models.mine.tasks.depth]\n"

BAD = {
    # what stands in the file: (line of the error, key it names, a word of the reason)
    "unknown table": ("[model.mine]\n", 1, "model", "is unknown"),
    "unknown key above": ("\ncolour = 1\n", 2, "colour", "is unknown"),
    "default": ('# x\n\ndefault = "dmp"\n', 3, "default", "list of names"),
    "default of numbers": ("default = [1]\n", 1, "default", "list of names"),
    "models": ("models = 3\n", 1, "models", "must be a table"),
    "a model": ("[models]\nmine = 3\n", 2, "models.mine", "must be a table"),
    "unknown key": (HEAD + "step = 3\n", 6, "models.mine.step", "is unknown"),
    "steps of zero": (HEAD + "steps = 0\n", 6, "models.mine.steps", "1 or more"),
    "steps of true": (HEAD + "steps = true\n", 6, "models.mine.steps", "whole number"),
    "steps of text": (HEAD + "size = 512\nsteps = '5'\n", 7, "models.mine.steps", "whole number"),
    "sampler": (HEAD + 'sampler = "euler"\n', 6, "models.mine.sampler", "one of ddim"),
    "spacing": (HEAD + 'spacing = "x"\n', 6, "models.mine.spacing", "one of leading"),
    "prediction": (HEAD + "prediction = []\n", 6, "models.mine.prediction", "one of"),
    "final": (HEAD + 'final = ""\n', 6, "models.mine.final", "one of z, y0"),
    "prompt": (HEAD + "prompt = 3\n", 6, "models.mine.prompt", "a string"),
    "guidance of nan": (HEAD + "guidance = nan\n", 6, "models.mine.guidance", "above 0"),
    "guidance of inf": (HEAD + "guidance = inf\n", 6, "models.mine.guidance", "above 0"),
    "summary": ("[models.mine]\nsummary = 3\n", 2, "models.mine.summary", "a string"),
    "backbone of text": (
        '[models.mine]\n\nbackbone = "sd"\n', 3, "models.mine.backbone", "a table"
    ),
    "key of a backbone": (
        '[models.mine]\nbackbone = { path = "sd", file = "x" }\n',
        2, "models.mine.backbone.file", "is unknown",
    ),
    "one hash of a backbone": (
        f'[models.mine]\nbackbone = {{ path = "sd", sha256 = "{"0a" * 32}" }}\n',
        2, "models.mine.backbone.sha256", "must be a table",
    ),
    "short hash in a backbone": (
        '[models.mine.backbone]\npath = "sd"\nsha256 = { "unet/a.safetensors" = "0a" }\n',
        3, "models.mine.backbone.sha256", "64 hexadecimal digits",
    ),
    "hash of a file outside": (
        f'[models.mine.backbone]\npath = "sd"\nsha256 = {{ "../a" = "{"0a" * 32}" }}\n',
        3, "models.mine.backbone.sha256", "a file of the folder",
    ),
    "repo that climbs": (
        '[models.mine]\nbackbone = { repo = "../x" }\n', 2, "models.mine.backbone.repo", "without"
    ),
    "revision that climbs": (
        '[models.mine]\nbackbone = { repo = "a/b", revision = "../../x" }\n',
        2, "models.mine.backbone.revision", "without `..`",
    ),
    "absolute revision": (
        '[models.mine]\nbackbone = { repo = "a/b", revision = "/etc/x" }\n',
        2, "models.mine.backbone.revision", "absolute",
    ),
    "variant that climbs": (
        '[models.mine]\nbackbone = { path = "sd", variant = "../x" }\n',
        2, "models.mine.backbone.variant", "a plain name",
    ),
    "two origins": (
        '[models.mine]\nsteps = 5\nbackbone = { path = "sd", repo = "a/b" }\n',
        3, "models.mine.backbone", "only one of",
    ),
    "empty repo": (
        '[models.mine]\nbackbone = { repo = "" }\n', 2, "models.mine.backbone.repo", "not empty"
    ),
    "path of nobody": (
        '[models.mine]\nbackbone = { path = "~nobody-of-that-name/x" }\n',
        2, "models.mine.backbone.path", "is not a path",
    ),
    "packaged elsewhere": (
        '[models.mine]\nbackbone = { packaged = "../demo" }\n',
        2, "models.mine.backbone.packaged", "inside the package",
    ),
    "packaged and a path": (
        '[models.mine]\nbackbone = { packaged = "demo", path = "sd" }\n',
        2, "models.mine.backbone", "only one of",
    ),
    "classes": (
        HEAD + '[models.mine.tasks.segmentation]\nclasses = "wall,unicorn"\n',
        7, "models.mine.tasks.segmentation.classes", "unknown class 'unicorn'",
    ),
    "made elsewhere": (
        DEPTH + 'lora = { made = "../../x" }\n',
        7, "models.mine.tasks.depth.lora.made", "plain name",
    ),
    "tasks": ("[models.mine]\ntasks = 3\n", 2, "models.mine.tasks", "must be a table"),
    "unknown task": (
        HEAD + "[models.mine.tasks.depht]\n", 6, "models.mine.tasks.depht", "not the name of a task"
    ),
    "alias of a task": (
        HEAD + "[models.mine.tasks.normal]\n", 6, "models.mine.tasks.normal", "not the name"
    ),
    "scale": (DEPTH + "# far\nscale = -1\n", 8, "models.mine.tasks.depth.scale", "above 0"),
    "scale of a model": (HEAD + "scale = 8.0\n", 6, "models.mine.scale", "is unknown"),
    "axes": (
        HEAD + '[models.mine.tasks.normals]\nnormals = "x x z"\n',
        7, "models.mine.tasks.normals.normals", "unknown axes",
    ),
    "sha256": (
        DEPTH + f'lora = {{ path = "l", sha256 = "{"A" * 64}" }}\n',
        7, "models.mine.tasks.depth.lora.sha256", "64 hexadecimal",
    ),
    "file with dots": (
        DEPTH + 'lora = { repo = "a/b", file = "../l.safetensors" }\n',
        7, "models.mine.tasks.depth.lora.file", "inside the repository",
    ),
    "absolute file": (
        DEPTH + 'lora = { repo = "a/b", file = "/l.safetensors" }\n',
        7, "models.mine.tasks.depth.lora.file", "inside the repository",
    ),
    "pickle": (
        DEPTH + 'lora = { repo = "a/b", file = "l.bin" }\n',
        7, "models.mine.tasks.depth.lora.file", ".safetensors",
    ),
    "no file": (
        DEPTH + 'lora = { repo = "a/b" }\n', 7, "models.mine.tasks.depth.lora.file", ".safetensors"
    ),
    "key of a second model": (
        HEAD + "steps = 5\n[models.other]\nsteps = 5\nstep = 1\n",
        9, "models.other.step", "is unknown",
    ),
    "value of a second task": (
        DEPTH + "scale = 8.0\n[models.mine.tasks.albedo]\nsteps = 5\n"
        "[models.mine.tasks.shading]\nscale = 8.0\nsteps = 0\n",
        12, "models.mine.tasks.shading.steps", "1 or more",
    ),
    "source as a table of its own": (
        '[models.mine.backbone]\npath = "sd"\nvariant = 16\n',
        3, "models.mine.backbone.variant", "a string",
    ),
    "dotted key": ("[models]\nmine.steps = 0\n", 2, "models.mine.steps", "1 or more"),
    "quoted names": ('[models."mine"]\n"steps" = 0\n', 2, "models.mine.steps", "1 or more"),
    "source over lines": (
        DEPTH + 'lora.repo = "a/b"\nlora.file = "l.bin"\n',
        8, "models.mine.tasks.depth.lora.file", ".safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_error_names_file_line_and_key(write: Any, kind: str) -> None:
    text, line, key, why = BAD[kind]
    path = write(text)
    with pytest.raises(UsageError) as raised:
        catalogue.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path}, line {line}: {key} ")
    assert why in message
    assert raised.value.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [("[models.mine\n", 1), (HEAD + "steps = \n", 6), (HEAD + "steps = 1\nsteps = 2\n", 7),
     (HEAD + "[models.mine]\n", 6)],
    ids=["bracket", "no value", "key twice", "table twice"],
)  # fmt: skip
def test_what_is_not_toml(write: Any, text: str, line: int) -> None:
    path = write(text)
    with pytest.raises(UsageError, match=f"not valid TOML: .*at line {line}") as raised:
        catalogue.load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("data", [None, b"\xff\xfe\x00", "folder"])
def test_unreadable_file(tmp_path: Path, data: bytes | str | None) -> None:
    path = tmp_path / "w.toml"
    if data == "folder":
        path.mkdir()
    elif isinstance(data, bytes):
        path.write_bytes(data)
    with pytest.raises(UsageError, match="cannot be read") as raised:
        catalogue.load(path)
    assert str(path) in str(raised.value)


def test_environment_that_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMP_WEIGHTS", str(tmp_path / "absent.toml"))
    with pytest.raises(UsageError, match=r"absent\.toml: cannot be read"):
        catalogue.load()
    monkeypatch.setenv("DMP_WEIGHTS", "")
    assert catalogue.load()["models"]


GOOD = [
    HEAD,
    HEAD + 'steps = 1\nsampler = "onepass"\ntimestep = 0\nsize = 0\nguidance = 3\nprompt = ""\n',
    DEPTH + "scale = 10\n",
    DEPTH + f'lora = {{ path = "x", sha256 = "{"0a" * 32}" }}\n',
    DEPTH + 'lora = { repo = "a/b", file = "sub/l.safetensors", revision = "main" }\n',
    HEAD + '[models.mine.tasks.normals]\nnormals = "-x y -z"\n',
    f'[models.m.backbone]\npath = "sd"\nsha256 = {{ "vae/config.json" = "{"0a" * 32}" }}\n',
    "",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_file(write: Any, text: str) -> None:
    assert catalogue.load(write(text))["models"].get("mine", {}).get("summary", "of mine")
