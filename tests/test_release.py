"""What of a model may be published, under which licence, and its entry as text."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dmp_cli import catalogue, store, weights
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.publishing import release
from tests.conftest import write_weights
from tests.releases import DEPTH, LORA, SHA256, load, lora, one

COMMIT = "c0ffee" * 6 + "abcd"
SD = {"repo": "CompVis/stable-diffusion-v1-4", "revision": "133a221b"}


# What is gathered -------------------------------------------------------------------------


def test_files_are_gathered_with_their_hash_rank_and_header(tmp_path: Path) -> None:
    found = one(tmp_path, header={"dmp.task": "depth", "dmp.steps": "2", "dmp.source": "x.bin"})
    (adapter,) = found.adapters
    assert adapter.sha256 == hashlib.sha256((tmp_path / "one.safetensors").read_bytes()).hexdigest()
    assert (adapter.rank, adapter.prefix, adapter.file) == ("2", "unet", DEPTH)
    assert adapter.recipe.steps == 2
    assert adapter.stated["source"] == "x.bin"
    assert found.bytes == adapter.path.stat().st_size


def test_what_was_imported_into_the_store_is_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMP_HOME", str(tmp_path / "home"))
    with store.staging() as folder:
        shutil.copy(LORA, folder / "new")
        keys = {"model": {"backbone": SD, "license": "mit"}, "task": {"scale": 3.0}}
        with store.changes(catalogue.parse) as made:
            path = made.add("kept", "depth", folder / "new", SHA256, keys)
    table = catalogue.load()
    found = release.gather(table, "kept", release.tasks_of(table, "kept"), "org/kept")
    assert [(one.path, one.sha256, one.license) for one in found.adapters] == [
        (path, SHA256, "mit")
    ]
    path.write_bytes(LORA.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=f"expected {SHA256}"):
        release.gather(table, "kept", ["depth"], "org/kept")


@pytest.mark.parametrize(
    ("model", "tasks", "error", "said"),
    [
        ("nobody", ["depth"], UsageError, "unknown model 'nobody'"),
        ("untrained", ["depth"], UsageError, "made by dmp itself"),
        ("dmp", ["depth"], ModelError, "'dmp' has no weights for depth"),
        ("tiny", ["depth", "albedo"], ModelError, "'tiny' has no weights for albedo"),
    ],
)
def test_what_cannot_be_published(
    tmp_path: Path, model: str, tasks: list[str], error: type[Exception], said: str
) -> None:
    table = catalogue.load(write_weights(tmp_path / "w.toml", "", ("depth",)))
    with pytest.raises(error, match=said) as raised:
        release.gather(table, model, tasks, "org/x")
    assert raised.value.hint  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", ["nobody", "dmp"])
def test_tasks_of_a_model_without_files(model: str) -> None:
    with pytest.raises(UsageError, match=model):
        release.tasks_of(catalogue.load(), model)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("lora.safetensors", "base_model.model.a.to_q.lora_A.weight"),
        ("lora.safetensors", "unet.a.attn1.to_q.alpha"),
        ("lora.safetensors", "conv_in.weight"),
        ("adapter_model.safetensors", "unet.a.to_q.lora_A.weight"),
    ],
)
def test_a_layout_that_diffusers_would_misread_is_refused(
    tmp_path: Path, name: str, key: str
) -> None:
    """An alpha that stands beside the file would be lost on the Hub, for example."""
    path = lora(tmp_path / name, {}, key)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    text = f'[models.m]\nbackbone.repo = "a/b"\n[models.m.tasks.depth]\nlora.path = "{path}"\n'
    table = load(tmp_path / "w.toml", text)
    with pytest.raises(UsageError, match="not in a layout that diffusers reads") as raised:
        release.gather(table, "m", ["depth"], "org/m")
    assert f"dmp weights import {path} --model m --task depth" in raised.value.hint


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    source = tmp_path / "one.safetensors"
    text = f'[models.m]\nbackbone.repo = "a/b"\n[models.m.tasks.depth]\nlora.path = "{source}"\n'
    source.write_bytes(b"PK" * 100)
    with pytest.raises(ModelError, match=f"{source}: cannot be read as safetensors"):
        release.gather(load(tmp_path / "w.toml", text), "m", ["depth"], "org/m")


def test_the_default_model_is_the_first_with_files_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMP_HOME", str(tmp_path / "home"))
    with pytest.raises(ModelError, match="no model of the default list") as raised:
        release.default_model(catalogue.load())
    assert "dmp weights import" in raised.value.hint
    path = write_weights(tmp_path / "w.toml", "", ("depth",))
    with pytest.raises(ModelError) as raised:
        release.default_model(catalogue.load(path))
    assert "tiny" in raised.value.hint
    path.write_text(f'default = ["dmp", "demo", "tiny"]\n{path.read_text()}')
    assert release.default_model(catalogue.load(path)) == "tiny"


# Licences ---------------------------------------------------------------------------------

UNKNOWN = ("", "not stated", "not stated (backbone: creativeml-openrail-m)", "unknown", " ")


@pytest.mark.parametrize("entry", UNKNOWN)
@pytest.mark.parametrize("header", [{}, {"dmp.license": "not stated"}])
def test_no_licence_no_publishing(tmp_path: Path, entry: str, header: dict[str, str]) -> None:
    found = one(tmp_path, entry, header)
    with pytest.raises(UsageError, match="no licence is stated for depth") as raised:
        release.licensed(found, None, right=False)
    assert "--license ID" in raised.value.hint
    assert "--i-have-the-right" in raised.value.hint
    assert release.licensed(found, None, right=True).license == ""
    assert release.licensed(found, "mit", right=False).license == "mit"


@pytest.mark.parametrize(
    ("entry", "header", "flag", "right", "license"),
    [
        ("mit", {}, None, False, "mit"),
        ("mit", {"dmp.license": "openrail"}, None, False, "openrail"),
        ("not stated", {"dmp.license": "openrail"}, None, False, "openrail"),
        ("mit", {"dmp.license": " "}, None, False, "mit"),
        ("Apache-2.0", {}, "apache-2.0", False, "apache-2.0"),
        ("mit", {"dmp.license": "openrail"}, "cc0-1.0", True, "cc0-1.0"),
    ],
)
def test_which_licence_counts(
    tmp_path: Path, entry: str, header: dict[str, str], flag: str | None, right: bool, license: str
) -> None:
    assert release.licensed(one(tmp_path, entry, header), flag, right).license == license


@pytest.mark.parametrize("word", [word for word in UNKNOWN if word.strip()])
def test_a_file_s_own_word_that_none_is_known_counts(tmp_path: Path, word: str) -> None:
    found = one(tmp_path, "mit", {"dmp.license": word})
    with pytest.raises(UsageError, match="no licence is stated for depth") as raised:
        release.licensed(found, None, right=False)
    assert f"({word})" in str(raised.value)
    published = release.stanza(release.licensed(found, None, right=True), "main")
    assert 'license = "not stated"' in published


def test_a_licence_is_not_changed_by_the_way(tmp_path: Path) -> None:
    found = one(tmp_path, "mit", {"dmp.license": "creativeml-openrail-m"})
    with pytest.raises(UsageError, match="files are under creativeml-openrail-m"):
        release.licensed(found, "apache-2.0", right=False)


# The tables for a weights file ------------------------------------------------------------

MODELS = {
    "settings": 'summary = "a \\"b\\" [c]"\nlicense = "mit"\nsteps = 5\nsize = 64\nfinal = "y0"',
    "hub": 'backbone = { repo = "a/b", revision = "main", variant = "fp16" }',
    "packaged": 'backbone = { packaged = "demo" }',
    "prompted": 'prompt = "a room"\nguidance = 3.5\nprediction = "epsilon"',
}


@pytest.mark.parametrize("name", ["tiny", "my.model", "a b"])
@pytest.mark.parametrize("extra", MODELS.values(), ids=MODELS)
def test_the_stanza_reads_back_to_the_same_recipes(tmp_path: Path, extra: str, name: str) -> None:
    quoted = json.dumps(name)
    backbone = "" if "backbone" in extra else f"backbone = {{ path = '{tmp_path}' }}"
    text = f"""
        [models.{quoted}]
        {backbone}
        {extra}
        [models.{quoted}.tasks.depth]
        lora = {{ path = "{LORA}" }}
        scale = 3.5
        [models.{quoted}.tasks.normals]
        lora = {{ path = "{LORA}", sha256 = "{SHA256}" }}
        normals = "-x y z"
        prompt = "a wall"
        steps = 3
        [models.{quoted}.tasks.segmentation]
        lora = {{ path = "{LORA}" }}
        classes = "wall,sky"
    """
    table = load(tmp_path / "local.toml", text)
    tasks = release.tasks_of(table, name)
    found = release.gather(table, name, tasks, "org/x")
    back = load(tmp_path / "hub.toml", release.stanza(found, COMMIT))
    for was, now in zip(
        weights.resolve(table, tasks, name), weights.resolve(back, tasks, name), strict=True
    ):
        assert replace(now, lora=was.lora) == was
        assert (now.lora.repo, now.lora.revision, now.lora.sha256) == ("org/x", COMMIT, SHA256)
        assert now.lora.file == f"{now.task}/pytorch_lora_weights.safetensors"


def test_the_stanza_states_the_licence_that_was_given(tmp_path: Path) -> None:
    found = release.licensed(one(tmp_path, "not stated"), "mit", right=False)
    assert 'license = "mit"' in release.stanza(found, "main")
    assert 'license = "not stated"' in release.stanza(one(tmp_path, "not stated"), "main")
