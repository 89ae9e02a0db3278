"""docs/training.md: its commands run as they stand, and its sixth task trains."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import Predictor, maps, tasks
from dmp_cli.train.events import Validated
from tests.training import SIZE, only, run, training, write_pairs

PAGE = (Path(__file__).parent.parent / "docs" / "training.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_run_from_a_folder_to_numbers(tmp_path: Path, typed: Path) -> None:
    paths = os.pathsep.join([str(typed), os.environ["PATH"]])
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks("bash"))],
        cwd=tmp_path, env=os.environ | {"PATH": paths, "DMP_MODEL": "dmp"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "maps").is_dir()
    assert len(list((tmp_path / "maps").glob("*.depth.npy"))) == 2
    assert "nothing left to do: 20 steps" in ran.stderr
    assert "abs_rel" in ran.stdout
    for name in ("weights.toml", "log.jsonl", "tensorboard", "cache", "checkpoints"):
        assert (tmp_path / "my-depth" / name).exists()


@pytest.mark.parametrize("form", ["npy", "png"])
def test_the_sixth_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Also from what dmp writes of it: pictures of 8 bits hold the same values."""
    (row,) = (block for block in blocks("python") if block.startswith("Task("))
    edges = eval(row, vars(tasks))
    monkeypatch.setitem(tasks.TASKS, "edges", edges)
    data = write_pairs(tmp_path / "data")
    (data / "shading").rename(data / "edges")
    for path in sorted((data / "edges").iterdir()) if form == "png" else ():
        values = np.load(path)
        picture = path.with_suffix(".png")
        Image.fromarray(edges.preview(values, tasks.View()).pixels).save(picture)
        path.unlink()
        assert np.abs(maps.read(picture, edges) - values).max() < 0.005
    out = tmp_path / "my-edges"
    seen = run(training(data, out, task="edges", hold_out=1, steps=2))
    found = Predictor("edges", weights=out / "weights.toml", device="cpu")(data / "images/0.png")
    assert found.shape == (SIZE, SIZE)
    assert 0 <= np.min(found) <= np.max(found) <= 1
    (validated,) = only(seen, Validated)
    assert validated.numbers["rmse"] > 0
