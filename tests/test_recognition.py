"""Files of others: which are LoRAs, what their names say, and which model they go into."""

import os
import shlex
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from dmp_cli.errors import ModelError, UsageError
from dmp_cli.importing import recognition
from dmp_cli.importing.recognition import Found, Placed


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({}, path)
        else:
            path.touch()
    return root


def found(*roots: Path) -> list[Found]:
    return recognition.find(roots, {})


def names(root: Path) -> set[str]:
    return {one.path.relative_to(root).as_posix() for one in found(root)}


# What a name says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "tasks"),
    [
        ("depth-hypersim-notext/pytorch_lora_weights.bin", ["depth"]),
        ("normal-scene100-notext/pytorch_lora_weights.bin", ["normals"]),
        ("a/Surface_Normals/x.pt", ["normals"]),
        ("surfaceNormals.pth", ["normals"]),
        ("bedroom-seg/pytorch_lora_weights.safetensors", ["segmentation"]),
        ("semantic/x.bin", ["segmentation"]),
        ("SEGMENTATION/deeper/still/x.bin", ["segmentation"]),
        ("reflectance.ckpt", ["albedo"]),
        ("intrinsic_lora_albedo.safetensors", ["albedo"]),
        ("shading2/x.bin", ["shading"]),
        ("depths/normal.bin", ["normals"]),
        ("normals/x/depth/y/z.bin", ["depth"]),
        ("depth-and-normals/x.bin", ["depth", "normals"]),
        ("abnormal/deepness.bin", []),
        ("bedroom/x.bin", []),
    ],
)
def test_tasks(path: str, tasks: list[str], tmp_path: Path) -> None:
    (one,) = found(write(tmp_path / "given", path))
    assert list(one.understood) == tasks
    assert one.name == f"given/{path}"


@pytest.mark.parametrize(
    ("given", "path", "tasks"),
    [
        ("depth", "x.bin", ["depth"]),  # the folder that was given
        ("depth/x.bin", "", ["depth"]),  # the folder of a file
        ("depth/checkpoint-5/x.bin", "", ["depth"]),
        ("depth/checkpoint-5", "x.bin", ["depth"]),
        ("depth/run", "x.bin", []),  # what stands above says nothing
        ("depth/run/x.bin", "", []),
    ],
)
def test_how_far_names_are_looked_at(
    given: str, path: str, tasks: list[str], tmp_path: Path
) -> None:
    write(tmp_path, f"{given}/{path}" if path else given)
    (one,) = found(tmp_path / given)
    assert list(one.understood) == tasks


def test_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "depth", "pytorch_lora_weights.bin"))
    assert found(Path())[0].understood == ("depth",)
    assert found(Path("pytorch_lora_weights.bin"))[0].name == "depth/pytorch_lora_weights.bin"


@pytest.mark.parametrize(("told", "tasks"), [("normals", ("normals",)), ("x", ("depth",))])
def test_a_header_wins_over_the_name(told: str, tasks: tuple[str, ...], tmp_path: Path) -> None:
    save_file({}, tmp_path / "depth.safetensors", {"dmp.task": told})
    assert found(tmp_path / "depth.safetensors")[0].understood == tasks


def test_a_pickle_with_the_name_of_a_safetensors_is_for_who_reads_it(tmp_path: Path) -> None:
    (tmp_path / "depth.safetensors").write_bytes(b"\x80\x02}.")
    (found,) = recognition.find([tmp_path / "depth.safetensors"], {})
    assert found.understood == ("depth",)


def test_a_safetensors_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "depth.safetensors").write_bytes(b"\x02" + bytes(7) + b"{!")
    with pytest.raises(ModelError, match=r"depth\.safetensors"):
        found(tmp_path)


# Which files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["pytorch_lora_weights.bin", "other.bin"], {"pytorch_lora_weights.bin"}),
        (["adapter_model.bin", "adapter_config.json"], {"adapter_model.bin"}),
        (["a.pt", "b.PTH", "c.ckpt", "d.safetensors", "e.txt", "f.png"],
         {"a.pt", "b.PTH", "c.ckpt", "d.safetensors"}),
        (["a.bin", "optimizer.bin", "scheduler.bin", "random_states_0.pt", "scaler.pt",
          "training_args.bin", "pytorch_model.bin", "model.safetensors"], {"a.bin"}),
        (["a.bin", "a.safetensors", "b.pt"], {"a.safetensors", "b.pt"}),
        (["a.bin", "checkpoint-1/b.bin"], {"a.bin"}),
        (["checkpoint-9/a.bin", "checkpoint-500/a.bin", "checkpoint-1000/optimizer.bin"],
         {"checkpoint-500/a.bin"}),
        (["x/checkpoint-9/a.bin", "y/a.bin", "y/checkpoint-9/a.bin"],
         {"x/checkpoint-9/a.bin", "y/a.bin"}),
        (["a.bin", "checkpoints/step-000100/b.bin"], {"a.bin"}),
        (["checkpoints/step-000100/b.bin", "checkpoints/step-000020/b.bin"],
         {"checkpoints/step-000100/b.bin"}),
        (["a.bin", ".git/b.bin", "__MACOSX/._a.bin", "._a.bin"], {"a.bin"}),
        (["a.bin", "sd/model_index.json", "sd/unet/x.bin"], {"a.bin"}),
    ],
)  # fmt: skip
def test_which_files(there: list[str], taken: set[str], tmp_path: Path) -> None:
    assert names(write(tmp_path, *there)) == taken


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "given", "a.bin")
    write(tmp_path / "other", "b.bin")
    (tmp_path / "given" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "given" / "loop").symlink_to(tmp_path / "given")
    assert names(tmp_path / "given") == {"a.bin"}


def test_a_pickle_beside_a_safetensors(tmp_path: Path) -> None:
    write(tmp_path, "depth.bin", "depth.safetensors")
    (one,) = found(tmp_path)
    assert one.path.name == "depth.safetensors"
    assert one.notes == ("depth.bin beside it was not opened",)
    (one,) = found(tmp_path / "depth.bin", tmp_path / "depth.safetensors")
    assert one.path.name == "depth.safetensors"
    (one,) = found(tmp_path / "depth.bin")
    assert one.path.name == "depth.bin"
    assert "depth.safetensors lies beside it" in one.notes[0]


def test_a_file_is_taken_once(tmp_path: Path) -> None:
    write(tmp_path, "a/depth.bin")
    assert len(found(tmp_path, tmp_path / "a", tmp_path / "a/depth.bin")) == 1


@pytest.mark.parametrize(
    ("there", "given", "why"),
    [
        ([], "gone", "no such file or folder"),
        (["optimizer.bin"], "", "holds no LoRA"),
        (["a.txt"], "a.txt", "not the name of a LoRA file"),
    ],
)
def test_nothing_to_import(there: list[str], given: str, why: str, tmp_path: Path) -> None:
    write(tmp_path, *there)
    with pytest.raises(UsageError, match=why) as raised:
        found(tmp_path / given)
    assert str(tmp_path / given) in str(raised.value)
    assert raised.value.hint


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "depth.bin")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        found(tmp_path / "depth.bin")
    with pytest.raises(UsageError, match="holds no LoRA"):
        found(tmp_path)


def test_a_folder_of_archives(tmp_path: Path) -> None:
    write(tmp_path, "my weights.zip")
    with pytest.raises(UsageError, match="but archives") as raised:
        found(tmp_path)
    assert shlex.split(raised.value.hint)[-1] == str(tmp_path / "my weights.zip")


# Which model ------------------------------------------------------------------------------


OFFICIAL = ("normal-scene100-notext", "depth-hypersim-notext", "depth", "albedo")


def official(root: Path, *folders: str) -> list[Found]:
    return found(write(root, *(f"{folder}/pytorch_lora_weights.bin" for folder in folders)))


def goals(placed: list[Placed]) -> set[tuple[str, str]]:
    return {(one.model, one.task) for one in placed}


def test_the_official_folder(tmp_path: Path) -> None:
    placed = recognition.place(official(tmp_path, *OFFICIAL), None, None)
    assert goals(placed) == {
        ("dmp", "normals"), ("dmp", "depth"), ("dmp-paper", "depth"), ("dmp-paper", "albedo"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("depth/pytorch_lora_weights.bin", "depth/pytorch_lora_weights.bin"),  # a single file
        ("depth/adapter_model.bin", ""),  # PEFT's name
        ("depth/x.bin", ""),
    ],
)
def test_what_is_not_the_paper_s(path: str, given: str, tmp_path: Path) -> None:
    write(tmp_path, path)
    assert goals(recognition.place(found(tmp_path / given), None, None)) == {("dmp", "depth")}


def test_a_file_of_dmp_train_is_not_the_paper_s(tmp_path: Path) -> None:
    save_file({}, tmp_path / "pytorch_lora_weights.safetensors", {"dmp.task": "depth"})
    assert goals(recognition.place(found(tmp_path), None, None)) == {("dmp", "depth")}


def test_a_model_and_a_task_that_were_asked_for(tmp_path: Path) -> None:
    both = official(tmp_path / "a", "albedo", "depth")
    assert goals(recognition.place(both, "mine", None)) == {("mine", "albedo"), ("mine", "depth")}
    one = official(tmp_path / "b", "albedo")
    assert goals(recognition.place(one, None, "shading")) == {("dmp-paper", "shading")}
    with pytest.raises(UsageError, match="--task depth: there are 2 files") as raised:
        recognition.place(both, None, "depth")
    assert "a/albedo/pytorch_lora_weights.bin" in raised.value.hint


def test_two_files_for_one_task(tmp_path: Path) -> None:
    several = official(tmp_path, *OFFICIAL)
    with pytest.raises(UsageError, match="2 files for depth of model dmp") as raised:
        recognition.place(several, "dmp", None)
    for folder in ("depth-hypersim-notext", "depth"):
        path = tmp_path / folder / "pytorch_lora_weights.bin"
        assert f"{folder}/pytorch_lora_weights.bin" in str(raised.value)
        assert f"dmp weights import {path} --model dmp --task depth" in raised.value.hint


def test_a_task_that_the_names_do_not_say(tmp_path: Path) -> None:
    several = official(tmp_path / "my files", "first", "depth-or-normal", "shading")
    with pytest.raises(UsageError, match="which task is each file for") as raised:
        recognition.place(several, None, None)
    text, commands = str(raised.value), raised.value.hint.splitlines()[1:]
    assert "first/pytorch_lora_weights.bin: unknown" in text
    assert "depth-or-normal/pytorch_lora_weights.bin: depth or normals" in text
    assert "shading/pytorch_lora_weights.bin: shading" in text
    words = {shlex.split(line)[3]: shlex.split(line)[4:] for line in commands}
    assert set(words) == {str(one.path) for one in several}
    assert sorted(end[-1] for end in words.values()) == ["TASK", "TASK", "shading"]


def test_the_command_for_a_file_of_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "my weights.zip"
    root = write(tmp_path / "staged", "ckpt/x/a.bin")
    (one,) = recognition.find([root], {root: archive})
    assert one.name == "ckpt/x/a.bin"
    with pytest.raises(UsageError) as raised:
        recognition.place([one], None, None)
    command = raised.value.hint.splitlines()[1]
    assert shlex.split(command) == [
        "unzip", "-n", str(archive), "-d", "unpacked", "&&", "dmp", "weights", "import",
        "unpacked/ckpt/x/a.bin", "--model", "dmp", "--task", "TASK",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("pytorch_lora_weights.bin", True), ("a.safetensors", True), ("adapter_config.json", True),
        ("README.md", True), ("LICENSE", True), ("license.txt", True), ("optimizer.bin", False),
        ("a.png", False), ("config.json", False), ("._a.bin", False),
    ],
)  # fmt: skip
def test_what_is_unpacked(name: str, wanted: bool) -> None:
    assert recognition.is_wanted(name) is wanted
