"""Measures the demo model on scenes that it never saw, and prints tables in Markdown.

`python recipes/demo/measure.py SCENES WORK`              what docs/demo.md shows, by `dmp` itself
`python recipes/demo/measure.py SCENES WORK --samplers`   how it changes with steps and sampler
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from dmp_cli import Predictor, maps
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--samplers", action="store_true")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--weights")
    parser.add_argument("--model", default="demo")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    more = ["--weights", given.weights] if given.weights else []
    if given.samplers:
        options = {"model": given.model} | ({"weights": given.weights} if given.weights else {})
        samplers(given.scenes, given.count, options)
    else:
        headline(given.scenes, given.work, ["--model", given.model, *more])


if __name__ == "__main__":
    main()
