"""What killed processes leave behind, and who removes it."""

import os
import subprocess
import sys
from pathlib import Path

from dmp_cli import files, unfinished


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom dmp_cli import files\n"
        "files.hidden_folder(Path(sys.argv[1])).joinpath('map.npz').touch()\n"
        "files.write(Path(sys.argv[1], 'a.png'), lambda file: os._exit(9))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = list(tmp_path.iterdir())
    assert len(left) == 2
    mine = files.hidden_folder(tmp_path)  # of a process that lives
    others = tmp_path / ".dmp-00000000-1-ff.part"  # of another machine
    others.touch()
    unfinished.sweep([tmp_path, tmp_path / "none"])
    assert {*tmp_path.iterdir()} == {mine, others}


def test_temporary_files_of_killed_processes_are_swept(tmp_path: Path) -> None:
    """By the next process that needs some; each takes its own with it when it ends in order."""
    code = "import os, sys\nfrom dmp_cli import storage\nprint(storage.hidden_folder())\n"

    def run(end: str) -> Path:
        ran = subprocess.run(
            [sys.executable, "-c", f"{code}sys.stdout.flush()\n{end}"], check=False, text=True,
            env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True,
        )  # fmt: skip
        assert ran.stderr == ""
        return Path(ran.stdout.strip())

    left = run("os._exit(9)")
    assert left.exists()
    run("pass")
    assert list(tmp_path.iterdir()) == []
