"""A disk that is full in the middle of a run."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import write_image
from tests.faults.outputs import require_whole
from tests.faults.process import Command

# In a name space of its own: a small disk, dmp, what it left, a larger disk, dmp, what it left
SMALL = """
mount -t tmpfs -o size=200k none "$1" || exit 99
kept="$2"; out="$1"; shift 2
"$@"; echo $? > "$kept/first.code"
cp -r "$out" "$kept/first"
mount -o remount,size=50m "$out"
"$@"; echo $? > "$kept/again.code"
cp -r "$out" "$kept/again"
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for seed in range(20):
        write_image(tmp_path / "many" / f"{seed}.png", seed=seed)
    return tmp_path / "many"


@pytest.mark.fault(23)
def test_a_small_disk(command: Command, many: Path, tmp_path: Path) -> None:
    try_it = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(try_it, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted: unshare and user name spaces are needed")
    kept, out = tmp_path / "kept", tmp_path / "out"
    kept.mkdir()
    out.mkdir()
    ran = command.predict(
        many, "-o", out, "--format", "npy,png",
        before=("unshare", "-rm", "sh", "-c", SMALL, "sh", out, kept),
    )  # fmt: skip
    assert (kept / "first.code").read_text() == "6\n", ran.err
    assert "No space left on device; " not in ran.err  # no input failed: the disk did
    assert "cannot be written: No space left on device" in ran.err
    assert "Traceback" not in ran.err
    assert 0 < require_whole(kept / "first") < 40
    assert not list((kept / "first").rglob(".dmp-*"))
    assert (kept / "again.code").read_text() == "0\n", ran.err
    assert require_whole(kept / "again") == 40


@pytest.mark.fault(23)
def test_a_limit_on_the_size_of_a_file(command: Command, many: Path, tmp_path: Path) -> None:
    write_image(many / "large.png", 400, 300)
    out = tmp_path / "out"
    words = ("predict", "depth", many, "-o", out, "--format", "npy", *command.model)
    ran = command.fork(
        *words, patch="import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (60_000, 60_000))"
    )
    assert ran.code == 6, ran.err
    assert "large.depth.npy cannot be written: File too large" in ran.err
    assert not (out / "large.depth.npy").exists()
    assert not list(out.rglob(".dmp-*"))
    require_whole(out)
    again = command.fork(*words)
    assert again.code == 0, again.err
    assert require_whole(out) == 21
