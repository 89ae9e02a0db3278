"""Measures the demo model on scenes that it never saw, and prints tables in Markdown.

`python recipes/demo/measure.py SCENES WORK`                 what it reaches, by `dmp` itself
`python recipes/demo/measure.py SCENES WORK --samplers`      how it changes with steps and sampler
`python recipes/demo/measure.py SCENES WORK --tiny-decoder`  what that option of `dmp` costs
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
DECODERS = {"full": "VAE's decoder", "tiny": "tiny decoder"}  # by the folder of its maps


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


def drawn_twice(scenes: Path, work: Path, count: int, model: dict[str, str]) -> None:
    """Maps of the first scenes in the folders of DECODERS; prints how far their pictures differ."""
    both = {
        name: Predictor(list(TASKS), device="cpu", dtype="fp32", tiny_decoder=name == "tiny",
                        **model)
        for name in DECODERS
    }  # fmt: skip
    levels: dict[str, list[np.ndarray]] = {task: [] for task in TASKS}
    for image in sorted((scenes / "images").glob("*.png"))[:count]:
        prepared = both["full"].host.prepare(image)
        drawn = {name: predictor.draw([prepared])[0] for name, predictor in both.items()}
        for name, pictures in drawn.items():
            for task, picture in pictures.items():
                path = work / name / f"{image.stem}.{task}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, both[name].host.finish(task, picture, prepared))
        for task, found in levels.items():
            seen = [np.clip(drawn[name][task], -1, 1) * 127.5 for name in both]
            found.append(np.abs(seen[0] - seen[1]))
    print("| task | mean distance, levels of 255 | 99.9th percentile |\n|---|---|---|")
    for task, found in levels.items():
        print(f"| {task} | {np.mean(found):.2f} | {np.quantile(found, 0.999):.1f} |")


def decoders(scenes: Path, work: Path, count: int, model: dict[str, str]) -> None:
    """Each task's numbers on the first scenes with each decoder, as `dmp` runs it."""
    drawn_twice(scenes, work, count, model)
    print(f"| task | number | {' | '.join(DECODERS.values())} |\n|---|---|---|---|")
    for task, names in SHOWN.items():
        how = (str(scenes), "-t", task, "--json", "-q", "--skip-missing")
        told = [json.loads(dmp("eval", str(work / name), *how)) for name in DECODERS]
        for name in names:
            cells = [f"{one['metrics'][name]:.3f}" for one in told]
            print(f"| {task} | `{name}` | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--samplers", action="store_true")
    parser.add_argument("--tiny-decoder", action="store_true")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--weights")
    parser.add_argument("--model", default="demo")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    more = ["--weights", given.weights] if given.weights else []
    options = {"model": given.model} | ({"weights": given.weights} if given.weights else {})
    if given.tiny_decoder:
        decoders(given.scenes, given.work, given.count, options)
    elif given.samplers:
        samplers(given.scenes, given.count, options)
    else:
        headline(given.scenes, given.work, ["--model", given.model, *more])


if __name__ == "__main__":
    main()
