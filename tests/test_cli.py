"""`dmp` as a user types it: options, streams, exit codes."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmp_cli import __version__, colour
from dmp_cli.commands.report import Talk, shown
from dmp_cli.engines import steps
from tests.conftest import PARITY, TASKS, Dmp, apart, write_image, write_weights
from tests.faults.process import Command, uncovered

DMP = [sys.executable, "-m", "dmp_cli"]


def test_predict_prints_the_paths_it_wrote_and_nothing_else(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    ran = dmp("predict", "depth,seg", photos, "-o", out, "--format", "png,npy", *model)
    assert ran.code == 0
    printed = sorted(ran.out.splitlines())
    there = {str(path) for path in out.rglob("*") if path.is_file()}
    beside = ("labels.json", "labels.png", "dmp-manifest.jsonl")
    assert there - {*printed} == {f"{out}/{name}" for name in beside}
    assert len(printed) == 12
    assert "3 of 3 images, 6 maps" in ran.err
    assert "images/s" in ran.err


def test_all_five_tasks(dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]) -> None:
    ran = dmp("predict", ",".join(TASKS), photos / "b.jpg", "-o", tmp_path / "out", *model)
    assert ran.code == 0
    with Image.open(tmp_path / "out/b.segmentation.png") as image:
        assert (image.mode, image.size) == ("P", (48, 64))
    modes = {}
    for task in TASKS:
        with Image.open(tmp_path / f"out/b.{task}.png") as image:
            modes[task] = image.mode
    assert modes == {
        "depth": "RGB", "normals": "RGB", "segmentation": "P", "albedo": "RGB", "shading": "L",
    }  # fmt: skip


def test_the_official_depth_through_the_command(dmp: Dmp, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.toml")
    ran = dmp("predict", "depth", PARITY / "inputs/a.png", "-o", tmp_path / "out", "--weights",
              weights, "--model", "tiny", "--format", "npy", "--dtype", "fp32")  # fmt: skip
    assert ran.code == 0
    truth = np.load(PARITY / "golden.npz")["depth/ddim/5"][0]
    assert apart(np.load(tmp_path / "out/a.depth.npy")[::4, ::4], truth) < 1e-4


def test_a_mixed_folder_fails_in_part(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    write_image(photos / "large.jpg", 1500, 1000)
    (photos / "broken.jpg").write_bytes((photos / "large.jpg").read_bytes()[:2000])
    (photos / "text.png").write_text("not a picture")
    (photos / "notes.txt").write_text("not an image either")
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "--format", "npy", *model)
    assert ran.code == 3
    assert np.load(tmp_path / "out/large.depth.npy").shape == (1500, 1000)
    assert len(ran.out.splitlines()) == 4
    assert f"failed: {photos / 'broken.jpg'}: damaged" in ran.err
    assert f"failed: {photos / 'text.png'}: not an image" in ran.err
    assert "skipped 1 file without an image suffix: notes.txt" in ran.err
    assert f"2 of 6 failed: {photos / 'broken.jpg'}, {photos / 'text.png'}" in ran.err


def test_json_records(dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]) -> None:
    (photos / "bad.png").write_bytes(b"x")
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "--json", *model)
    records = {Path(r["input"]).name: r for r in map(json.loads, ran.out.splitlines())}
    assert {name: r["status"] for name, r in records.items()} == {
        "a.png": "done", "b.jpg": "done", "c.webp": "done", "bad.png": "failed",
    }  # fmt: skip
    assert records["a.png"]["outputs"] == [
        {"task": "depth", "format": "png", "path": str(tmp_path / "out/a.depth.png")}
    ]
    assert "not an image" in records["bad.png"]["errors"][0]


def test_quiet_says_only_what_failed(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    assert dmp("predict", "depth", photos, "-o", tmp_path / "out", "-q", *model).err == ""
    (photos / "bad.png").write_bytes(b"x")
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "-q", *model)
    assert len(ran.err.splitlines()) == 2


def test_verbose_says_what_is_chosen(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "-v", *model)
    assert "steps=1" in ran.err
    assert "on cpu in fp32 (no accelerator found), batches of 1" in ran.err


@pytest.mark.parametrize("separator", ["\n", "\0", "\r\n"])
def test_a_list_keeps_its_folders(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch, separator: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(photos)
    listed = tmp_path / "list"
    listed.write_bytes(separator.join(["a.png", "sub/c.webp", ""]).encode())
    null = ["-0"] if separator == "\0" else []
    ran = dmp("predict", "depth", "--files-from", listed, *null, "-o", tmp_path / "out", *model)
    assert ran.code == 0
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert found == {"a.depth.png", "sub/c.depth.png"}


def test_find_pipes_into_predict(
    photos: Path, tmp_path: Path, model: tuple[str, ...], typed: Path
) -> None:
    command = f"find . -name '*.png' -print0 | {typed}/dmp predict depth - -0 -o {tmp_path}/o"
    done = subprocess.run(
        ["sh", "-c", f"{command} --print0 {' '.join(model)}"],
        cwd=photos, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, os.fsencode(f"{tmp_path}/o/a.depth.png\0"))


def test_nobody_reading_does_not_stop_the_run(
    photos: Path, tmp_path: Path, model: tuple[str, ...], typed: Path
) -> None:
    command = f"{typed}/dmp predict depth {photos} -o {tmp_path}/o {' '.join(model)} | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "o").rglob("*.png"))) == 3


def screen_of(command: list[Any], tmp_path: Path, both: bool) -> tuple[str, list[str]]:
    """What a terminal shows on standard error (or both streams), and what standard output got."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    with (tmp_path / "stdout").open("wb") as plain:
        process = subprocess.Popen(command, stdout=follower if both else plain, stderr=follower)
    os.close(follower)
    screen = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            screen += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait(60) == 0
    os.close(leader)
    return screen.decode(), (tmp_path / "stdout").read_text().splitlines()


def test_standard_output_is_only_paths_with_a_terminal_on_standard_error(
    photos: Path, tmp_path: Path, model: tuple[str, ...], typed: Path
) -> None:
    command = [typed / "dmp", "predict", "depth", photos, "-o", tmp_path / "o", *model]
    screen, printed = screen_of(command, tmp_path, both=False)
    assert sorted(printed) == sorted(map(str, (tmp_path / "o").rglob("*.png")))
    assert "3/3" in screen
    assert "image/s" in screen or "s/image" in screen


def test_paths_and_bar_share_a_terminal(
    photos: Path, tmp_path: Path, model: tuple[str, ...], typed: Path
) -> None:
    command = [typed / "dmp", "predict", "depth", photos, "-o", tmp_path / "o", *model]
    screen, _ = screen_of(command, tmp_path, both=True)
    for path in (tmp_path / "o").rglob("*.png"):  # each begins where a line begins
        assert screen[screen.index(str(path)) - 1] in "\r\n"


@pytest.mark.parametrize("closing", ["2>&-", ">&-", "2>&- >&-"])
def test_closed_streams_do_not_stop_the_run(
    photos: Path, tmp_path: Path, model: tuple[str, ...], closing: str
) -> None:
    command = f"{' '.join(DMP)} predict depth {photos} -o {tmp_path}/o {' '.join(model)} {closing}"
    done = subprocess.run(
        ["sh", "-c", command], env=uncovered(os.environ), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "o").rglob("*.png"))) == 3


def test_standard_output_on_a_full_disk_is_exit_6(
    photos: Path, tmp_path: Path, model: tuple[str, ...], typed: Path
) -> None:
    command = f"{typed}/dmp predict depth {photos} -o {tmp_path}/o {' '.join(model)} >/dev/full"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "standard output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"a\nb.png", b"-x.png"])
def test_odd_names_are_predicted(
    tmp_path: Path, model: tuple[str, ...], name: bytes, typed: Path
) -> None:
    folder = tmp_path / "odd"
    write_image(folder / "plain.png").rename(folder / os.fsdecode(name))
    command = [typed / "dmp", "predict", "depth", folder, "-o", tmp_path / "out", *model]
    done = subprocess.run([*command, "--print0"], capture_output=True, check=False)
    expected = os.fsencode(tmp_path / "out") + b"/" + name.replace(b".png", b".depth.png")
    assert (done.returncode, done.stdout) == (0, expected + b"\0")
    assert Path(os.fsdecode(expected)).exists()


def test_a_dry_run_loads_and_writes_nothing(dmp: Dmp, photos: Path, tmp_path: Path) -> None:
    options = ("--dry-run", "--keep-suffix", "--model", "untrained")
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", *options)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == str(tmp_path / "out/a.png.depth.png")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "dept", "IN", "-o", "OUT"], 2, "unknown task 'dept'"),
        (["predict", "depth", "-o", "OUT"], 2, "give either inputs or --files-from"),
        (["predict", "depth", "IN", "--files-from", "x", "-o", "OUT"], 2, "give either"),
        (["predict", "depth", "--files-from", "/nowhere", "-o", "OUT"], 2, "cannot be read"),
        (["predict", "depth", "/nowhere", "-o", "OUT"], 2, "no such file or folder"),
        (["predict", "depth", "IN", "-o", "OUT", "--format", "png,jpg"], 2, "unknown format jpg"),
        (["predict", "depth", "IN", "-o", "OUT", "--format", ""], 2, "unknown format"),
        (["predict", "depth", "IN", "-o", "OUT", "--batch", "0"], 2, "--batch 0"),
        (["predict", "depth", "IN", "-o", "OUT", "--colormap", "jet"], 2, "unknown colour map"),
        (["predict", "depth", "IN", "-o", "OUT", "--range", "5,1"], 2, "--range 5,1"),
        (["predict", "depth", "IN", "-o", "OUT", "--model", "nope"], 2, "unknown model 'nope'"),
        (["predict", "depth", "IN", "-o", "OUT", "--weights", "/no.toml"], 2, "/no.toml"),
        (["predict", "depth", "IN"], 2, "Missing option"),
        (["predict", "depth", "EMPTY", "-o", "OUT"], 4, "no image found"),
        (["predict", "depth", "IN", "-o", "OUT", "--model", "dmp"], 5, "no weights for depth"),
        (["predict", "depth", "IN", "-o", "OUT", "--model", "dmp-paper"], 5, "'dmp-paper' has no"),
        (["predict", "depth", "IN", "-o", "FILE", "--model", "untrained"], 6, "is a file"),
        (["predict", "depth", "IN", "-o", "OUT", "--model", "nope", "--dry-run"], 2, "'nope'"),
        (["predict", "depth", "IN", "-o", "OUT", "--normals", "up", "--dry-run"], 2, "'up'"),
        (["predict", "depth", "normals", "IN", "-o", "OUT"], 2, "depth,normals"),
        (["predict", "IN", "depth", "-o", "OUT"], 2, "the task comes first"),
        (["predict", "dpeth", "IN", "-o", "OUT"], 2, "did you mean depth?"),
        (["predict", "depth", "IN", "-o", "OUT", "--dry-run", "--device", "gpu"], 2,
         "unknown device 'gpu'"),
        (["predict", "depth", "IN", "-o", "OUT", "--model", "untrained", "--device", "cuda:77"], 6,
         "--device cuda:77"),
        (["doctor", "--device", "cuda:77"], 6, "--device cuda:77"),
        (["predict", "depth", "IN", "-o", "OUT", "--model", "untrained", "--dtype", "fp16",
          "--device", "cpu"], 2, "fp16 is not for the CPU"),
        (["predict", "depth", "IN", "-o", "OUT", "--model", "untrained", "--steps", "1000"], 2,
         "start past the schedule's last"),
        (["nothing"], 2, "No such command"),
    ],
)  # fmt: skip
def test_exit_codes(
    dmp: Dmp, photos: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"IN": photos, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty",
              "FILE": tmp_path / "file"}  # fmt: skip
    ran = dmp(*(places.get(word, word) for word in arguments))
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert not list((tmp_path / "out").rglob("*.png"))


def test_two_inputs_for_one_output_are_refused_before_loading(
    dmp: Dmp, photos: Path, tmp_path: Path
) -> None:
    write_image(photos / "a.jpg")
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "--model", "untrained")
    assert ran.code == 2
    assert str(photos / "a.png") in ran.err
    assert str(photos / "a.jpg") in ran.err
    assert "--keep-suffix" in ran.err


def test_a_wrong_lora_is_exit_5_with_its_first_difference(
    dmp: Dmp, photos: Path, tmp_path: Path, weights: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_bytes(b"nothing")
    text = weights.read_text().replace(str(PARITY / "lora" / "full"), str(file))
    weights.write_text(text)
    ran = dmp(
        "predict", "depth", photos, "-o", tmp_path / "out", "--weights", weights, "--model", "tiny"
    )
    assert ran.code == 5
    assert str(file) in ran.err


def test_a_bug_shows_its_traceback(command: Command, photos: Path, tmp_path: Path) -> None:
    bug = "from dmp_cli.engines import steps; steps.draw = None"
    ended = command.fork("predict", "depth", photos, "-o", tmp_path, *command.model, patch=bug)
    assert ended.code == 1
    assert "TypeError" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_in_flight_is_finished_when_a_signal_comes(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch, number: int,
) -> None:  # fmt: skip
    draw = steps.draw

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return draw(*arguments)

    monkeypatch.setattr(steps, "draw", signalled)
    out = tmp_path / "out"
    ran = dmp("predict", "depth", photos, "-o", out, "--batch", "1", *model)
    assert ran.code == 128 + number
    assert "interrupted after 1 of 3 images" in ran.err
    assert ran.out.split() == [str(out / "a.depth.png")]
    monkeypatch.setattr(steps, "draw", draw)
    ran = dmp("predict", "depth", photos, "-o", out, *model)
    assert (ran.code, len(ran.out.split())) == (0, 2)
    assert "3 of 3 images, 1 of them there already, 2 maps" in ran.err


def test_the_untrained_model_works_and_says_what_it_is(
    dmp: Dmp, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--model", "untrained", "--steps", "1", "--size", "64", "--format", "npy")
    ran = dmp("predict", "depth,normals", photos / "a.png", "-o", out, *options)
    assert ran.code == 0
    assert "its maps mean nothing" in ran.err
    first = np.load(out / "a.depth.npy")
    assert first.std() > 0
    assert dmp("predict", "depth", photos / "a.png", "-o", out, *options).code == 0
    assert np.array_equal(np.load(out / "a.depth.npy"), first)


def test_without_the_papers_weights_the_demo_is_taken_and_said(
    dmp: Dmp, photos: Path, tmp_path: Path
) -> None:
    options = ("predict", "depth", photos / "a.png", "--format", "npy")
    ran = dmp(*options, "-o", tmp_path / "by itself")
    assert ran.code == 0
    assert ran.err.count("model dmp has no weights here: taking demo") == 1
    assert "docs/weights.md" in ran.err
    asked = dmp(*options, "-o", tmp_path / "asked for", "--model", "demo")
    assert "no weights" not in asked.err
    same = [np.load(tmp_path / name / "a.depth.npy") for name in ("by itself", "asked for")]
    assert np.array_equal(*same)


def test_looks_of_depth_pictures(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    common = ("predict", "depth", photos / "a.png", "-o", out, *model, "--range", "0,8")
    dmp(*common, "--colormap", "gray")
    with Image.open(out / "a.depth.png") as image:
        grey = np.asarray(image)
        assert (image.mode, image.info["near"], image.info["far"]) == ("L", "0 m", "8 m")
    dmp(*common, "--colormap", "grey", "--invert")
    with Image.open(out / "a.depth.png") as image:
        assert np.array_equal(np.asarray(image), 255 - grey)


def test_kept_classes(dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]) -> None:
    options = ("--format", "npy", "--classes", "wall,bed", *model)
    dmp("predict", "seg", photos / "a.png", "-o", tmp_path / "out", *options)
    assert set(np.unique(np.load(tmp_path / "out/a.segmentation.npy"))) <= {0, 1, 7}


def test_version_and_tasks(dmp: Dmp) -> None:
    assert dmp("--version").out == f"dmp {__version__}\n"
    ran = dmp("tasks", "--json")
    assert [row["task"] for row in json.loads(ran.out)] == list(TASKS)
    assert "unit vectors" in dmp("tasks").out


def test_doctor_says_what_is_here(dmp: Dmp, weights: Path) -> None:
    facts = json.loads(dmp("doctor", "--json", "--weights", weights, "--device", "cpu").out)
    assert facts["device"] == "cpu (as asked)"
    assert facts["model tiny"] == ", ".join(("backbone", *TASKS))
    assert (
        "backbone (not fetched), tiny_decoder (not fetched), depth (no source)"
        in facts["model dmp"]
    )
    weights.write_text(
        "[models.away]\nbackbone = {path = 'none'}\ntasks.depth.lora = {path = 'none'}\n"
        "[models.hub]\nbackbone = {repo = 'a/b'}\n"
        "tasks.depth.lora = {repo = 'a/b', file = 'c.safetensors'}\n"
    )
    facts = json.loads(dmp("doctor", "--json", "--weights", weights, "--device", "cpu").out)
    none = weights.parent / "none"
    assert facts["model away"] == f"backbone (missing: {none}), depth (missing: {none})"
    assert facts["model hub"] == "backbone (not fetched), depth (not fetched)"
    assert str(weights) in facts["weights files"]
    assert "GiB free of" in facts["memory"]
    assert "torch" in dmp("doctor", "--device", "cpu").out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("--sampler ", ["ddim", "oracle", "onepass"]),
        ("--model ", ["dmp", "dmp-paper", "intrinsic-lora", "demo", "untrained"]),
        ("--colormap ", list(colour.COLORMAPS)),
        ("de", ["depth"]),
        ("depth,no", ["depth,normals"]),
    ],
)
def test_completion_knows_the_choices(words: str, offered: list[str]) -> None:
    line = f"dmp predict {words}"
    asked = os.environ | {
        "_DMP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")),
    }  # fmt: skip
    code = "import sys; sys.argv = ['dmp']; from dmp_cli.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=asked, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == offered


@pytest.mark.parametrize(("name", "line"), [("a b.png", "a b.png"), ("a\nb", r"'a\nb'"),
                                            ("a\udcff", r"'a\udcff'")])  # fmt: skip
def test_odd_names_are_one_line(name: str, line: str) -> None:
    assert shown(Path(name)) == line


def test_notes_are_for_those_who_want_them(capsys: pytest.CaptureFixture[str]) -> None:
    Talk(quiet=True).note("hidden")
    Talk().detail("hidden")
    Talk(quiet=True).fail("shown")
    assert capsys.readouterr().err == "dmp: shown\n"


def test_a_list_of_lines_is_not_taken_for_one_of_nul(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    (tmp_path / "list").write_text(f"{photos}/a.png\n{photos}/b.jpg\n")
    ran = dmp("predict", "depth", "--files-from", tmp_path / "list", "-0", "-o", tmp_path, *model)
    assert ran.code == 2
    assert "leave out -0" in ran.err
