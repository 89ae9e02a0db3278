"""Files of all five tasks, opened in real Blender: the passes are there, with the right values.

Slow, and only where there is a Blender: pytest -m slow tests/test_blender.py
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray

from dmp_cli.outputs import export
from dmp_cli.outputs.writers import Channel, write_exr
from dmp_cli.tasks import TASKS

Array = NDArray[Any]

pytestmark = pytest.mark.slow
HEIGHT, WIDTH = 20, 30
HOW = (
    "no Blender here. Either put `blender` on PATH, or: python3.11 -m venv bpy && "
    "bpy/bin/pip install bpy==4.5.3 && export DMP_BLENDER=bpy/bin/python"
)

# What Blender runs: each pass of an Image node into a File Output node, as 32-bit floats
SCRIPT = """
import json, sys
import bpy

source, target = sys.argv[-2:]
scene = bpy.context.scene
scene.use_nodes = True
tree = scene.node_tree
tree.nodes.clear()
node = tree.nodes.new("CompositorNodeImage")
node.image = bpy.data.images.load(source)
out = tree.nodes.new("CompositorNodeOutputFile")
out.base_path = target
out.format.file_format = "OPEN_EXR_MULTILAYER"
out.format.color_depth = "32"
out.format.exr_codec = "ZIP"
out.layer_slots.clear()
passes = [socket for socket in node.outputs if socket.enabled]
for socket in passes:
    out.layer_slots.new(socket.name)
    tree.links.new(socket, out.inputs[len(out.inputs) - 1])
composite = tree.nodes.new("CompositorNodeComposite")
tree.links.new(passes[0], composite.inputs[0])
scene.render.resolution_x, scene.render.resolution_y = WIDTH, HEIGHT
scene.render.resolution_percentage = 100
scene.render.use_compositing = True
bpy.ops.render.render()
said = {"passes": {socket.name: socket.type for socket in passes}, "version": bpy.app.version[:2]}
print("PASSES", json.dumps({**said, "space": node.image.colorspace_settings.name}))
""".replace("WIDTH", str(WIDTH)).replace("HEIGHT", str(HEIGHT))


def command(script: Path, source: Path, target: Path) -> list[str]:
    """How Blender is started; the test is skipped if there is none."""
    python, program = os.environ.get("DMP_BLENDER"), shutil.which("blender")
    if not python and not program:
        pytest.skip(HOW)
    start = [python] if python else [str(program), "--background", "--python"]
    return [*start, str(script), *(() if python else ("--",)), str(source), str(target)]


def composited(folder: Path, source: Path) -> tuple[dict[str, Any], dict[str, list[Array]]]:
    """What Blender says of a file, and the channels of each pass as its compositor gives them."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        command(script, source, folder / "out"), capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip
    said = [line for line in ran.stdout.splitlines() if line.startswith("PASSES ")]
    assert said, ran.stdout + ran.stderr
    (written,) = folder.glob("out*.exr")
    passes: dict[str, list[Array]] = {}
    channels = OpenEXR.File(str(written), separate_channels=True).channels()
    for name in sorted(channels, key=lambda name: "RGBXYZAV".index(name[-1])):
        passes.setdefault(name.split(".")[-2], []).append(channels[name].pixels)
    return json.loads(said[0].removeprefix("PASSES ")), passes


def maps() -> dict[str, Array]:
    """Maps without any symmetry, so that nothing turned or exchanged can pass."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    return {
        "depth": rng.uniform(0.3, 80, (HEIGHT, WIDTH)).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        "segmentation": rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8),
        "albedo": rng.random((HEIGHT, WIDTH, 3), np.float32),
        "shading": rng.random((HEIGHT, WIDTH), np.float32),
    }


def channels_of(layout: str, tasks: Sequence[str]) -> list[Channel]:
    layers = [export.layer(TASKS[task], maps()[task], layout)[0] for task in tasks]
    return [channel for layer in layers for channel in layer.channels]


PASSES = {  # by layout and task
    "blender": {
        "depth": "Depth",
        "normals": "Normal",
        "segmentation": "IndexOB",
        "albedo": "DiffCol",
        "shading": "Shading",
    },
    "flat": {
        "depth": "Depth",
        "normals": "N",
        "segmentation": "seg",
        "albedo": "albedo",
        "shading": "shading",
    },
}
SOCKETS = {"depth": "VALUE", "normals": "VECTOR", "segmentation": "VALUE"}  # others: RGBA


def require_passes(said: dict[str, Any], expected: dict[str, str]) -> None:
    """Names and types. Before 4.5, vectors are shown as colours, and `seg.id` is not read."""
    wanted = {name: SOCKETS.get(task, "RGBA") for task, name in expected.items()}
    if tuple(said["version"]) < (4, 5):
        wanted.pop("seg", None)
        wanted = {name: "RGBA" if kind == "VECTOR" else kind for name, kind in wanted.items()}
    assert said["passes"] == wanted


@pytest.mark.parametrize("layout", PASSES)
def test_blender_shows_each_task_as_a_pass(tmp_path: Path, layout: str) -> None:
    expected = PASSES[layout]
    write_exr(tmp_path / "all.exr", channels_of(layout, list(expected)),
              {"colorInteropID": "lin_rec709_scene", "dmp:model": "demo"})  # fmt: skip
    said, found = composited(tmp_path, tmp_path / "all.exr")
    require_passes(said, expected)
    assert said["space"].startswith("Linear")
    for task, values in maps().items():
        if expected[task] not in said["passes"]:
            continue
        count = 1 if task in ("depth", "segmentation") else 3
        planes = np.atleast_3d(values).repeat(count if values.ndim == 2 else 1, axis=-1)
        channels = found[expected[task]]
        assert len(channels) in (count, count + 1)  # alpha, of colours
        for i in range(count):
            np.testing.assert_allclose(
                channels[i], planes[..., i], rtol=0 if count == 1 else 1e-3, atol=1e-6
            )


@pytest.mark.parametrize("task", PASSES["blender"])
def test_a_file_of_one_task_has_its_pass_too(tmp_path: Path, task: str) -> None:
    write_exr(tmp_path / "one.exr", channels_of("blender", [task]), {})
    said, _ = composited(tmp_path, tmp_path / "one.exr")
    require_passes(said, {task: PASSES["blender"][task]})
