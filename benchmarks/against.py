"""dmp against the algorithm written plainly and against Marigold: time, accuracy and counts.

    python benchmarks/against.py                                   # the bundled model
    python benchmarks/against.py --model full --weights FOLDER/weights.toml   # see full_scale.py

Each way is loaded in a process of its own, which then waits; images go to one after the other in
turns (A B C, C B A, ...), so that what else the machine does hits all alike. Beside each time
stands how far what was drawn in it is from float32 of the same weights and settings. benchmarks/
README.md says what the columns are.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import against_tables
import numpy as np
from contestants import Contestant, started
from PIL import Image, ImageOps

from dmp_cli import catalogue, tasks
from dmp_cli.device import choose
from dmp_cli.images import fitted_size
from dmp_cli.plan import FAST

Record = dict[str, Any]

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = "dmp --fast --tiny-decoder"
# way, dtype, and what it takes instead of the settings that are asked for
WAYS: dict[str, tuple[str, str, Record]] = {
    "official fp32": ("official", "fp32", {}),
    "official half": ("official", "half", {}),
    "marigold fp32": ("marigold", "fp32", {}),
    "marigold half": ("marigold", "half", {}),
    "dmp": ("dmp", "auto", {}),
    "dmp --fast": ("dmp", "auto", FAST),
    TINY: ("dmp", "auto", FAST | {"tiny_decoder": True}),
}
USUAL = "official fp32,official half,marigold half,dmp,dmp --fast"
GATE = 0.5, 3.0  # levels of 255: the mean and the 99.9th percentile


@dataclass(frozen=True)
class Case:
    """What is compared at once: tasks, and images of one size."""

    tasks: tuple[str, ...]
    images: tuple[str, ...]
    size: str
    given: argparse.Namespace

    def spec(self, name: str, reference: bool = False) -> Record:
        """What a way is to load, as ways.Spec takes it."""
        way, dtype, instead = WAYS[name]
        given = self.given
        settings = {
            "sampler": "ddim", "steps": given.steps, "spacing": given.spacing,
            "final": given.final, "size": given.size,
        }  # fmt: skip
        if way == "dmp":
            dtype, way = given.dtype, "official" if reference else way
        return {
            "way": way, "dtype": "fp32" if reference else dtype, "tasks": self.tasks,
            "model": given.model, "weights": given.weights, "device": given.device,
            "settings": settings | instead, "reference": reference,
        }  # fmt: skip


def compare(case: Case, folder: Path) -> list[Record]:
    """Measure every way of a case, in turns; what each drew is then held against its reference."""
    with ExitStack() as stack:
        ways = []
        for name in case.given.ways:
            _say(f"{case.size}, {len(case.tasks)} tasks: {name} is loaded")
            ways.append(stack.enter_context(started(name, case.spec(name), folder)))
        for one in ways:
            _warm(one, case, folder)
        for turn in range(case.given.turns):
            for one in ways if turn % 2 == 0 else ways[::-1]:
                _turn(one, case, folder, turn)
    different = {} if case.given.no_gate else _differences(ways, case, folder)
    return [_record(one, ways, case, different.get(one.name)) for one in ways]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _warm(one: Contestant, case: Case, folder: Path) -> None:
    """The first image, and its counts; on a GPU all images first, then the counts of all."""
    some = case.images if one.loaded["card"] else case.images[:1]
    out = str(folder / f"{one.name} warm")
    if one.loaded["card"]:
        one.ask({"images": some, "out": out})
    counts = one.ask({"images": some, "out": out, "count": True})["counts"]
    shares = {"idle"}
    one.counts = {
        name: value if name in shares else value / len(some) for name, value in counts.items()
    }


def _turn(one: Contestant, case: Case, folder: Path, turn: int) -> None:
    out = folder / f"{one.name} {turn}"
    keep = case.given.gate_images if turn == 0 and not case.given.no_gate else 0
    one.blocks.append(one.ask({"images": case.images, "out": str(out), "keep": keep}))
    if keep:
        one.kept = out.with_suffix(".npz")
    seconds = one.blocks[-1]["seconds"]
    if not case.given.no_alone:
        image = case.images[turn % len(case.images)]
        one.alone.append(one.ask({"images": [image], "out": f"{out} alone"})["seconds"])
    _say(f"turn {turn + 1}: {one.name} {seconds / len(case.images):.3g} s an image")


def _differences(
    ways: Sequence[Contestant], case: Case, folder: Path
) -> dict[str, tuple[float, float]]:
    """For each way the mean and 99.9th percentile of its difference to float32, in levels."""
    exact: dict[str, Path] = {}
    found = {}
    for one in ways:
        spec = case.spec(one.name, reference=True)
        key = json.dumps(spec)
        if key not in exact:
            _say(f"the float32 of {one.name}")
            exact[key] = folder / f"exact {len(exact)}.npz"
            images = case.images[: case.given.gate_images]
            with started("reference", spec, folder) as reference:
                out = str(exact[key].with_suffix(""))
                reference.ask({"images": images, "out": out, "keep": len(images)})
        if one.kept:
            found[one.name] = _difference(one.kept, exact[key])
    return found


def _difference(some: Path, exact: Path) -> tuple[float, float]:
    with np.load(some) as here, np.load(exact) as there:
        if set(here) != set(there):
            raise SystemExit(f"{some}: not the maps of the reference")
        each = np.concatenate([np.abs(here[key] - there[key]).ravel() for key in there])
    return float(each.mean()), float(np.quantile(each, 0.999))


def _seen(size: str, short: int) -> tuple[int, int]:
    """(height, width) of what the network sees of a picture of WIDTHxHEIGHT."""
    width, height = (int(side) for side in size.split("x"))
    seen: tuple[int, int] = fitted_size(height, width, short, 8)
    return seen


def _record(
    one: Contestant, ways: Sequence[Contestant], case: Case, different: tuple[float, float] | None
) -> Record:
    """All that is told of a way in a case."""
    count = len(case.images)
    seconds = [block["seconds"] for block in one.blocks]
    each = [value for block in one.blocks for value in block["each"]]
    rate = count / median(seconds)
    record: Record = {
        "way": one.name, "tasks": case.tasks, "size": case.size,
        "seen": _seen(case.size, one.loaded["network_size"]), **one.loaded,
        "settings": case.spec(one.name)["settings"], "seconds": seconds,
        "images_per_second": rate, "maps_per_second": rate * len(case.tasks),
        "p50": float(np.quantile(each, 0.5)), "p95": float(np.quantile(each, 0.95)),
        "alone": median(one.alone) if one.alone else None,
        "cpu_per_image": median(block["cpu"] for block in one.blocks) / count,
        "host_gib": max(block["host_gib"] for block in one.blocks),
        "device_gib": max(block["device_gib"] for block in one.blocks),
        "counts": one.counts,
        "ratios": {
            other.name: sorted(
                theirs["seconds"] / ours["seconds"]
                for theirs, ours in zip(other.blocks, one.blocks, strict=True)
            )
            for other in ways
            if other.name.startswith("official")
        },
    }  # fmt: skip
    record["floor_share"] = against_tables.floor_share(record, case.given.tflops)
    if different:
        held = all(value <= most for value, most in zip(different, GATE, strict=True))
        record |= {"mean": different[0], "p999": different[1], "held": held}
    return record


# What goes in, what comes out -------------------------------------------------------------


def photographs(folder: Path, count: int, size: str) -> tuple[str, ...]:
    """`count` different JPEGs of WIDTHxHEIGHT, cut from the examples."""
    width, height = (int(side) for side in size.split("x"))
    sources = sorted((*EXAMPLES.glob("*.jpg"), *EXAMPLES.glob("*.png")))
    folder.mkdir()
    made = []
    for index in range(count):
        with Image.open(sources[index % len(sources)]) as source:
            picture = source.convert("RGB")
        shift = 0.5 + 0.4 * (index // len(sources) % 2)  # where the picture is cut
        fitted = ImageOps.fit(picture, (width, height), centering=(shift, shift))
        made.append(folder / f"image-{index:03d}.jpg")
        fitted.save(made[-1], quality=92)
    return tuple(map(str, made))


def _tasks(text: str) -> tuple[str, ...]:
    """Task names with commas, or `all`."""
    names = tuple(tasks.TASKS) if text == "all" else text
    return tuple(row.name for row in tasks.find_several(names))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="demo")
    add("--weights", help="weights file that has the model, with a LoRA for each task")
    add(
        "--ways",
        help=f"with commas, of: {', '.join(WAYS)}; default: {USUAL}, and the last if the model has "
        "a tiny decoder",
    )
    add(
        "--tasks", action="append", type=_tasks, help="with commas, or all; default: depth, and all"
    )
    add("--input", action="append", metavar="WxH", help="default: 512x512, and 1920x1080")
    add("--images", type=int, default=4, help="in a block")
    add("--turns", type=int, default=3, help="blocks of each way")
    add("--steps", type=int, default=5)
    add("--spacing", default="leading")
    add("--final", default="z")
    add("--size", type=int, help="short side that the network sees; default: the model's")
    add("--dtype", default="auto", help="of dmp")
    add("--device", default="auto")
    add("--gate-images", type=int, default=2, help="images that are held against float32")
    add("--no-gate", action="store_true", help="hold nothing against float32")
    add("--no-alone", action="store_true", help="time no image by itself")
    add(
        "--tflops", type=float,
        help="in half precision, for the floor; default: of a card that is known, else measured",
    )  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures")
    given = parser.parse_args()
    model = catalogue.load(given.weights)["models"].get(given.model, {})
    usual = f"{USUAL},{TINY}" if catalogue.DECODER in model else USUAL
    given.ways = [name.strip() for name in (given.ways or usual).split(",")]
    unknown = set(given.ways) - set(WAYS)
    if unknown:
        parser.error(f"--ways: unknown {sorted(unknown)}")
    return given


def main() -> None:
    """Measure each pair of tasks and size, and print the tables of each as it is done."""
    given = _arguments()
    machine = against_tables.machine()
    if given.tflops is None and choose(given.device).device.type == "cpu":
        given.tflops = machine["tflops"] = against_tables.tflops_of_cpu()
    print(against_tables.heading(machine, given), flush=True)
    records: list[Record] = []
    for names in given.tasks or [("depth",), tuple(tasks.TASKS)]:
        for size in given.input or ["512x512", "1920x1080"]:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                images = photographs(folder / "images", given.images, size)
                found = compare(Case(names, images, size, given), folder)
            print(against_tables.tables(found), flush=True)
            records += found
            if given.json:
                given.json.write_text(
                    json.dumps({"machine": machine, "records": records}, indent=1)
                )


if __name__ == "__main__":
    main()
