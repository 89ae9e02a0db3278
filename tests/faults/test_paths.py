"""Inputs and outputs as files: links, permissions, equal names, what changes under the run."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import hub as hubs
from tests.conftest import PARITY, write_image
from tests.faults.outputs import inputs_noted
from tests.faults.process import TORCH, Command
from tests.test_images import encode, noise


@pytest.fixture
def bound() -> dict[str, Any]:
    """What runs `dmp` as one whom mode bits bind: a user, or root without its two privileges."""
    if os.geteuid():
        return {}
    if not shutil.which("setpriv"):
        pytest.skip("root ignores mode bits, and there is no setpriv to take that away")
    privileges = "-dac_override,-dac_read_search"
    return {"before": ("setpriv", "--bounding-set", privileges, "--inh-caps", privileges)}


@pytest.mark.fault(14)
def test_what_may_not_be_read(command: Command, bound: dict[str, Any], tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a", "shut", "z", "below/b", "locked/c"):
        write_image(folder / f"{name}.png")
    (folder / "shut.png").chmod(0)
    (folder / "locked").chmod(0)
    ran = command.predict(folder, "-o", out, "--json", **bound)
    assert ran.code == 3, ran.err
    assert {name: record["status"] for name, record in ran.records.items()} == {
        "a.png": "done", "shut.png": "failed", "z.png": "done", "b.png": "done",
    }  # fmt: skip
    assert "cannot be read: Permission denied" in ran.records["shut.png"]["errors"][0]
    assert f"skipped {folder / 'locked'}: Permission denied" in ran.err
    refused = command.predict(folder / "locked", "-o", out, **bound)
    assert refused.code == 2
    assert f"{folder / 'locked'}: cannot be read: Permission denied" in refused.err
    (folder / "locked").chmod(0o755)  # or only root could delete it


@pytest.mark.fault(22)
def test_an_output_folder_that_may_not_be_written(
    command: Command, bound: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    shut.chmod(0o555)
    ran = command.predict(folder, "-o", shut, patch=TORCH, **bound)
    assert (ran.code, ran.out) == (6, b"")
    assert f"output folder {shut} cannot be written: Permission denied" in ran.err
    assert not list(shut.iterdir())


@pytest.mark.fault(22)
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_folder_that_is_a_file(command: Command, folder: Path, below: str) -> None:
    file = folder.parent / "file"
    file.touch()
    ran = command.predict(folder, "-o", file / below, patch=TORCH)
    assert (ran.code, ran.out) == (6, b"")
    assert str(file / below) in ran.err
    assert file.read_bytes() == b""


@pytest.mark.fault(16)
def test_links(command: Command, folder: Path, tmp_path: Path) -> None:
    """The search ends, a link to a file counts, a link to a folder does not."""
    write_image(tmp_path / "outside/o.png")
    (folder / "loop").symlink_to(folder)
    (folder / "self.png").symlink_to("self.png")
    (folder / "outside").symlink_to(tmp_path / "outside")
    (folder / "link.png").symlink_to(tmp_path / "outside/o.png")
    words = ("predict", "depth", folder, "-o", tmp_path / "out", *command.model)
    planned = command.run(*words, "--dry-run")
    assert {Path(line).name for line in planned.lines} == {
        f"{name}.depth.png" for name in ("0", "1", "2", "3", "link", "self")
    }
    ran = command.fork(*words, "--json")
    assert ran.code == 3, ran.err
    assert {name: record["status"] for name, record in ran.records.items()} == {
        **{f"{i}.png": "done" for i in range(4)}, "link.png": "done", "self.png": "failed",
    }  # fmt: skip
    assert "symbolic links" in ran.records["self.png"]["errors"][0]


# Draws two, and the others when there is a file of that name
GATE = """
import os, time
from dmp_cli.backbone import Backbone
decode, calls = Backbone.decode, []
def waiting(self, latents):
    calls.append(0)
    while len(calls) > 4 and not os.path.exists(os.environ["GO"]): time.sleep(0.05)
    return decode(self, latents)
Backbone.decode = waiting
"""


@pytest.mark.fault(17)
def test_what_vanishes_or_changes_under_the_run(command: Command, tmp_path: Path) -> None:
    """While the fifth is drawn, of the last inputs some go, some change, some are no pictures."""
    folder, out, count = tmp_path / "in", tmp_path / "out", 40
    for seed in range(count):
        write_image(folder / f"{seed:02}.png", seed=seed)
    running = command.start("predict", "depth", folder, "-o", out, "--json", "--format", "npy",
                            *command.model, patch=GATE, forked=True,
                            env={"GO": str(tmp_path / "go")})  # fmt: skip
    running.prints()
    for seed in range(count - 15, count, 3):
        (folder / f"{seed:02}.png").unlink()
        (folder / f"{seed + 1:02}.png").write_bytes(b"no picture")
        write_image(folder / "new.png", seed=1000 + seed)
        (folder / "new.png").rename(folder / f"{seed + 2:02}.png")
    (tmp_path / "go").touch()
    ran = running.end()
    records = ran.records
    assert ran.code == 3, ran.err
    assert len(records) == count
    for seed in range(count - 15, count, 3):
        gone, text, other = (records[f"{seed + more:02}.png"] for more in range(3))
        assert "No such file" in gone["errors"][0]
        assert "not an image" in text["errors"][0]
        assert other["status"] == "done"
    require_maps_of_what_was_hashed(command, folder, out)


def require_maps_of_what_was_hashed(command: Command, folder: Path, out: Path) -> None:
    """A file whose hash the manifest has gives the map that lies there."""
    noted = {Path(line["input"]).name: line for line in inputs_noted(out)}
    hashed = {path.name: hubs.hashlib.sha256(path.read_bytes()).hexdigest()
              for path in folder.glob("*.png")}  # fmt: skip
    for name in ("27.png", "30.png"):  # taken in after they were changed
        assert noted[name]["sha256"] == hashed[name]
        again = command.fork("predict", "depth", folder / name, "-o", out.with_name("again"),
                             "--format", "npy", *command.model)  # fmt: skip
        assert again.code == 0, again.err
        found, expected = (np.load(at / f"{name[:2]}.depth.npy")
                           for at in (out, out.with_name("again")))  # fmt: skip
        assert np.array_equal(found, expected)


Files = tuple[str, ...]


@pytest.mark.fault(18)
@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("A.png", "a.png"), ("x/a.png", "X/a.png")])
def test_names_that_would_share_an_output(command: Command, tmp_path: Path, names: Files) -> None:
    paths = [write_image(tmp_path / "in" / name) for name in names]
    if paths[0].samefile(paths[1]):
        pytest.skip("this file system has no two names that are equal but for case")
    ran = command.predict(tmp_path / "in", "-o", tmp_path / "out", patch=TORCH)
    assert (ran.code, ran.out) == (2, b"")
    for path in paths:
        assert str(path) in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(18)
def test_names_that_differ_before_their_last_dot(command: Command, tmp_path: Path) -> None:
    names = ["a.png", "a.b.png", "a.c.png", "a.depth.png"]
    for seed, name in enumerate(names):
        write_image(tmp_path / "in" / name, seed=seed)
    out = tmp_path / "out"
    ran = command.fork("predict", "depth", tmp_path / "in", "-o", out, *command.model)
    assert ran.code == 0, ran.err
    made = {f"{name.removesuffix('.png')}.depth.png" for name in names}
    assert {path.name for path in out.glob("*.png")} == made
    assert len({path.read_bytes() for path in out.glob("*.png")}) == len(names)


@pytest.mark.fault(20)
@pytest.mark.parametrize("below", ["", "maps"])
def test_outputs_are_never_inputs(command: Command, folder: Path, below: str) -> None:
    """All formats beside or below the inputs; then there are as many inputs as before."""
    words = ("predict-all", folder, "-o", folder / below, *command.model)
    formats = ("--format", "png,png16,exr,npy,tiff,tiff16", "--side-by-side", "--contact-sheet")
    first = command.fork(*words, *formats)
    assert first.code == 0, first.err
    assert len(first.lines) >= 4 * 5 * 5
    again = command.run(*words, *formats, "--dry-run", "--overwrite")
    assert again.code == 0, again.err
    assert sorted(again.lines) == sorted(first.lines)


@pytest.mark.fault(21)
def test_a_list_that_leads_elsewhere(command: Command, folder: Path, tmp_path: Path) -> None:
    """Inputs may lie anywhere; their outputs lie in OUT."""
    (tmp_path / "work/deep").mkdir(parents=True)
    listed = ["../in/0.png", str(folder / "1.png"), "deep/../../in/2.png", f"//{folder}/3.png"]
    (tmp_path / "list").write_text("\n".join(listed))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "work/out"
    ran = command.fork(
        "predict", "depth", "--files-from", tmp_path / "list", "-o", out, *command.model,
        patch=f"import os; os.chdir({str(out.parent)!r})",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    made = {path for path in made if not path.is_relative_to(command.folder)}
    assert {f"{i}.depth.png" for i in range(4)} <= {path.name for path in made}
    assert all(path.is_relative_to(out) for path in made)


HOSTILE = {
    "repo": '[models.x]\nbackbone = { repo = "../../x" }\n',
    "revision": '[models.x]\nbackbone = { repo = "a/b", revision = "../../x" }\n',
    "file": '[models.x]\nbackbone = { path = "sd" }\n'
            '[models.x.tasks.depth]\nlora = { repo = "a/b", file = "../x.safetensors" }\n',
    "hash": '[models.x.backbone]\npath = "sd"\n'
            f'sha256 = {{ "../a" = "{"0a" * 32}" }}\n',
}  # fmt: skip


@pytest.mark.fault(21, 43)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_weights_file_that_leads_elsewhere(
    command: Command, folder: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "w.toml"
    path.write_text(HOSTILE[kind])
    ran = command.run("predict", "depth", folder, "-o", tmp_path / "out", "--weights", path,
                      "--model", "x")  # fmt: skip
    assert (ran.code, ran.out) == (2, b"")
    assert f"{path}, line " in ran.err


@pytest.mark.fault(21)
def test_a_repository_that_leads_elsewhere(command: Command, tmp_path: Path) -> None:
    home = tmp_path / "a/b/c"
    (tmp_path / "w.toml").write_text('[models.x]\nbackbone = { repo = "org/tiny" }\n')
    with hubs.faulty() as (address, _):
        env = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"{address}/hostile", "HF_HOME": str(home)}
        ran = command.run("weights", "pull", "x", "--weights", tmp_path / "w.toml", env=env)
    assert ran.code == 5, ran.err
    assert ".." in ran.err
    assert not [path for path in tmp_path.rglob("*climbed*") if path.is_file()]


@pytest.mark.fault(21)
@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".."])
def test_a_model_whose_name_leads_out_of_the_store(
    command: Command, tmp_path: Path, name: str
) -> None:
    ran = command.fork("weights", "import", hubs.LORA, "--task", "depth", "--model", name,
                       "--backbone", PARITY / "sd-tiny")  # fmt: skip
    assert (ran.code, ran.out) == (2, b""), ran.err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.fault(19)
def test_a_list_of_bytes_that_are_not_utf_8(command: Command, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\n.png")
    path.write_bytes(encode(noise(), "PNG"))
    (tmp_path / "list").write_bytes(os.fsencode(path) + b"\0absent\0")
    ran = command.fork("predict", "depth", "--files-from", tmp_path / "list", "-0", "--print0",
                       "-o", tmp_path / "out", *command.model)  # fmt: skip
    assert ran.code == 3
    assert ran.out == os.fsencode(tmp_path / "out") + b"/\xff\n.depth.png\0"
