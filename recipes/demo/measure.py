"""Measures the demo model on scenes that it never saw, and prints tables in Markdown.

`python recipes/demo/measure.py SCENES WORK`              what docs/demo.md shows, by `dmp` itself
`python recipes/demo/measure.py SCENES WORK --samplers`   how it changes with steps and sampler
`python recipes/demo/measure.py SCENES WORK --decoder FOLDER`   what a small decoder costs
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from dmp_cli import Predictor, maps
from dmp_cli.backbone import Backbone
from dmp_cli.metrics import counted, measure
from dmp_cli.tasks import TASKS

SHOWN = {
    "depth": ("abs_rel", "delta_1"),
    "normals": ("mean_angle",),
    "albedo": ("rmse_srgb",),
    "shading": ("rmse", "rmse_srgb"),
    "segmentation": ("miou", "pixel_accuracy"),
}
STEPS = (1, 2, 3, 5, 10)


def dmp(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dmp_cli", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def headline(scenes: Path, work: Path, model: list[str]) -> None:
    """Each task's numbers, and beside them those of a constant or of the image itself."""
    out = str(work / "maps")
    dmp("predict", ",".join(TASKS), str(scenes / "images"), "-o", out, "--format", "npy",
        "--dtype", "fp32", "--device", "cpu", "-q", *model)  # fmt: skip
    print("| task | number | demo | trivial answer |\n|---|---|---|---|")
    for task, names in SHOWN.items():
        beside = ["--images", str(scenes)] if task == "albedo" else ["--baseline"]
        told = json.loads(dmp("eval", out, str(scenes), "-t", task, "--json", "-q", *beside))
        (work / f"{task}.json").write_text(json.dumps(told, indent=2))
        for name in names:
            trivial = told["baseline"]["metrics"][name]
            print(f"| {task} | `{name}` | {told['metrics'][name]:.3f} | {trivial:.3f} |")


def samplers(scenes: Path, count: int, options: dict[str, str]) -> None:
    """Depth and normals for each way to sample, on the first scenes."""
    images = sorted((scenes / "images").glob("*.png"))[:count]
    print(f"| {count} scenes | {' | '.join(f'{steps}' for steps in STEPS)} |")
    print(f"|{'---|' * (len(STEPS) + 1)}")
    ways = itertools.product(("leading", "trailing"), ("ddim", "oracle"), ("z", "y0"))
    for spacing, sampler, final in ways:
        cells = []
        for steps in STEPS:
            predict = Predictor("depth,normals", steps=steps, spacing=spacing, sampler=sampler,
                                final=final, device="cpu", dtype="fp32", **options)  # fmt: skip
            rows: dict[str, list[float]] = {"abs_rel": [], "mean_angle": []}
            for image in images:
                found = predict(image)
                for task, name in (("depth", "abs_rel"), ("normals", "mean_angle")):
                    truth = maps.read(scenes / task / image.name, TASKS[task])
                    here = counted(TASKS[task].measured, truth)
                    numbers = measure(TASKS[task].measured, found[task][here], truth[here])
                    rows[name].append(numbers[name])
            cells.append(f"{np.mean(rows['abs_rel']):.3f}, {np.mean(rows['mean_angle']):.1f}")
        print(f"| {spacing}, {sampler}, last {final} | {' | '.join(cells)} |", flush=True)


class SmallDecoder:
    """A backbone whose latents a small decoder makes pictures of."""

    def __init__(self, backbone: Backbone, small: AutoencoderTiny) -> None:
        """All but the decoder is the backbone's."""
        self._backbone, self._small = backbone, small

    def __getattr__(self, name: str) -> object:
        return getattr(self._backbone, name)

    def decode(self, latents: Tensor) -> Tensor:
        return self._small.decode(latents).sample


def drawn_twice(scenes: Path, work: Path, folder: Path, count: int, model: dict[str, str]) -> None:
    """Maps of the first scenes by both decoders, in `full` and `small`; prints their distance."""
    small = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32).eval()
    full = Predictor(list(TASKS), device="cpu", dtype="fp32", **model)
    both = {"full": full, "small": full.through(lambda backbone: SmallDecoder(backbone, small))}
    levels: dict[str, list[np.ndarray]] = {task: [] for task in TASKS}
    for image in sorted((scenes / "images").glob("*.png"))[:count]:
        prepared = full.host.prepare(image)
        drawn = {name: predictor.draw([prepared])[0] for name, predictor in both.items()}
        for name, pictures in drawn.items():
            for task, picture in pictures.items():
                path = work / name / f"{image.stem}.{task}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, full.host.finish(task, picture, prepared))
        for task, found in levels.items():
            seen = [np.clip(drawn[name][task], -1, 1) * 127.5 for name in both]
            found.append(np.abs(seen[0] - seen[1]))
    print("| task | mean distance, levels of 255 | 99.9th percentile |\n|---|---|---|")
    for task, found in levels.items():
        print(f"| {task} | {np.mean(found):.2f} | {np.quantile(found, 0.999):.1f} |")


def decoders(scenes: Path, work: Path, folder: Path, count: int, model: dict[str, str]) -> None:
    """Each task's numbers with the VAE's decoder and with a small one, one pass of the UNet."""
    drawn_twice(scenes, work, folder, count, model)
    print("| task | number | full decoder | small decoder |\n|---|---|---|---|")
    for task, names in SHOWN.items():
        how = (str(scenes), "-t", task, "--json", "-q", "--skip-missing")
        told = [json.loads(dmp("eval", str(work / name), *how)) for name in ("full", "small")]
        for name in names:
            cells = [f"{one['metrics'][name]:.3f}" for one in told]
            print(f"| {task} | `{name}` | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--samplers", action="store_true")
    parser.add_argument("--decoder", type=Path, help="a folder of diffusers' AutoencoderTiny")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--weights")
    parser.add_argument("--model", default="demo")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    more = ["--weights", given.weights] if given.weights else []
    options = {"model": given.model} | ({"weights": given.weights} if given.weights else {})
    if given.decoder:
        decoders(given.scenes, given.work, given.decoder, given.count, options)
    elif given.samplers:
        samplers(given.scenes, given.count, options)
    else:
        headline(given.scenes, given.work, ["--model", given.model, *more])


if __name__ == "__main__":
    main()
