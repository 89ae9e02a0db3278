"""The bundled model on scenes that it never saw: what it reaches, and what would break it.

The guard of the whole path from weights.toml to the map. Its bounds are what the model reaches on
these scenes with little room, and each fault below has to cross one of them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

import dmp_cli
from dmp_cli import Predictor
from dmp_cli.metrics import confusion, counted, labels, measure
from dmp_cli.scenes.render import Frame
from dmp_cli.scenes.write import Order, frame
from dmp_cli.tasks import TASKS, ade20k

PACKAGED = Path(dmp_cli.__file__).parent / "demo"
SCENES = [frame(Order(8, seed=20002, size=192), index)[0] for index in range(8)]
# (metric, at most) or, for those that grow with quality, (metric, at least)
BOUNDS = {
    "depth": ("abs_rel", 0.10),
    "normals": ("mean_angle", 14.0),
    "segmentation": ("miou", 0.60),
    "albedo": ("rmse_srgb", 0.09),
    "shading": ("rmse", 0.09),
}


OFFICIAL = {"steps": 5, "spacing": "leading", "final": "z"}  # all of the schedule counts
OFFICIAL_BOUNDS = {"depth": ("abs_rel", 0.25), "normals": ("mean_angle", 25.0)}


def numbers(scenes: list[Frame], **options: Any) -> dict[str, float]:
    """The headline metric of each task, over the scenes."""
    predictor = Predictor(list(TASKS), **{"model": "demo", "dtype": "fp32", **options})
    maps = [predictor(scene.image) for scene in scenes]
    found = {}
    for name, (metric, _) in BOUNDS.items():
        pairs = [(made[name], scene.maps[name]) for made, scene in zip(maps, scenes, strict=True)]
        found[name] = _score(name, metric, pairs)
    return found


def _score(name: str, metric: str, pairs: list[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    kind = TASKS[name].measured
    here = [counted(kind, truth) for _, truth in pairs]
    if kind == "labels":
        tables = [
            confusion(made[at], truth[at], len(ade20k().names))
            for (made, truth), at in zip(pairs, here, strict=True)
        ]
        return labels(np.sum(tables, axis=0))[metric]
    each = [
        measure(kind, made[at], truth[at])[metric]
        for (made, truth), at in zip(pairs, here, strict=True)
    ]
    return float(np.mean(each))


def crossed(found: Mapping[str, float], official: bool = False) -> set[str]:
    """The tasks whose bound is not kept."""
    return {
        name
        for name, (metric, bound) in (OFFICIAL_BOUNDS if official else BOUNDS).items()
        if (found[name] < bound if metric == "miou" else found[name] > bound)
    }


def test_every_task_keeps_its_bound() -> None:
    found = numbers(SCENES)
    assert crossed(found) == set(), found


def weights_with(folder: Path, line: str, task: str = "") -> Path:
    """A weights file that changes the demo model by one line."""
    table = f"[models.demo.tasks.{task}]" if task else "[models.demo]"
    path = folder / "weights.toml"
    path.write_text(f"{table}\n{line}\n")
    return path


def changed_lora(folder: Path, factor: float) -> Path:
    """The demo's LoRA of depth with its up matrices times a factor."""
    with safe_open(PACKAGED / "loras/depth.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    scaled = {key: value * (factor if "lora_B" in key else 1) for key, value in tensors.items()}
    save_file(scaled, folder / "depth.safetensors")
    return weights_with(folder, 'lora = { path = "depth.safetensors" }', "depth")


def changed_backbone(folder: Path, config: str, **values: Any) -> Path:
    """The demo's backbone with other values in one of its configurations."""
    shutil.copytree(PACKAGED, folder / "backbone")
    path = folder / "backbone" / config
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return weights_with(folder, 'backbone = { path = "backbone" }')


FAULTS = {
    "another task's LoRA": lambda folder: {
        "weights": weights_with(folder, 'lora = { packaged = "demo/loras/depth.safetensors" }',
                                "normals")
    },
    "a LoRA that does nothing": lambda folder: {"weights": changed_lora(folder, 0)},
    "a LoRA at twice its strength": lambda folder: {"weights": changed_lora(folder, 2)},
    "another noise schedule": lambda folder: {
        "weights": changed_backbone(folder, "scheduler/scheduler_config.json",
                                    beta_schedule="linear"),
        **OFFICIAL,
    },
    "another prediction": lambda _: {"prediction": "epsilon"},
    "the first time step in place of the last": lambda _: {"spacing": "leading"},
    "latents at another scale": lambda folder: {
        "weights": changed_backbone(folder, "vae/config.json", scaling_factor=0.18215)
    },
    "a flipped axis": lambda folder: {
        "weights": weights_with(folder, 'normals = "directx"', "normals")
    },
    "another scale of depth": lambda folder: {
        "weights": weights_with(folder, "scale = 10.0", "depth")
    },
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_crosses_a_bound(fault: str, tmp_path: Path) -> None:
    options = FAULTS[fault](tmp_path)
    assert crossed(numbers(SCENES, **options), official="steps" in options) != set()


@pytest.mark.parametrize(
    "turned",
    [
        lambda image: image[..., ::-1],  # blue first
        lambda image: image[::-1],  # upside down
        lambda image: 255 - image,
    ],
)
def test_a_picture_read_wrongly_crosses_a_bound(
    turned: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    scenes = [Frame(np.ascontiguousarray(turned(one.image)), one.maps) for one in SCENES]
    assert crossed(numbers(scenes)) != set()


def test_with_the_official_five_steps_it_keeps_bounds_too() -> None:
    found = numbers(SCENES, **OFFICIAL)
    assert crossed(found, official=True) == set(), found


def test_it_is_small_enough_for_the_package() -> None:
    files = [path for path in PACKAGED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    assert {path.parts[len(PACKAGED.parts)] for path in files} == {
        "unet", "vae", "text_encoder", "tokenizer", "scheduler", "loras",
    }  # fmt: skip
