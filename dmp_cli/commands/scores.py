"""What an evaluation prints: a table for people, a record for scripts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmp_cli.commands.report import count, shown
from dmp_cli.metrics import METRICS

if TYPE_CHECKING:
    from dmp_cli.answers import Answer
    from dmp_cli.evaluate import Run

CLASSES_SHOWN = 20


@dataclass(frozen=True)
class Scores:
    """A run, and what was asked to be told of it."""

    run: "Run"
    answer: "Answer | None"
    worst: int
    settings: dict[str, Any]
    missing: tuple[Path, ...] = ()


def record(scores: Scores) -> dict[str, Any]:
    """Everything, in values that JSON has."""
    run = scores.run
    numbers, trivial = run.numbers(), run.trivial()
    first = run.task.metrics[0]
    return {
        "task": run.task.name,
        "images": len(run.rows),
        "pixels": sum(row.pixels for row in run.rows),
        "averaged": "over all pixels" if run.task.labels else "over images",
        "headline": {name: numbers[name] for name in run.task.metrics},
        "metrics": numbers,
        "higher_is_better": [name for name in numbers if METRICS[name].higher],
        "baseline": _baseline(scores, trivial),
        "classes": run.classes(),
        "worst": [
            {
                "name": row.match.name,
                "prediction": str(row.match.prediction),
                "truth": str(row.match.truth),
                first: row.numbers[first],
            }
            for row in run.worst(scores.worst)
        ],
        "failed": [
            {"prediction": str(row.match.prediction), "error": row.error} for row in run.failed
        ],
        "missing": [str(path) for path in scores.missing],
        "settings": scores.settings,
    }


def _baseline(scores: Scores, trivial: dict[str, float]) -> dict[str, Any] | None:
    if scores.answer is None:
        return None
    value = scores.answer.value
    return {
        "name": scores.answer.name,
        "value": None if value is None else value.tolist(),
        "metrics": trivial,
    }


def lines(scores: Scores) -> Iterator[str]:
    """The table: what was compared, each number, classes, the worst images."""
    run = scores.run
    pixels = sum(row.pixels for row in run.rows)
    how = "over all pixels" if run.task.labels else "averaged over images"
    yield f"{run.task.name}: {count(len(run.rows), 'image')}, {pixels:,} pixels, {how}"
    if (aligned := scores.settings["align"]) != "none":
        yield f"each prediction fitted to its truth before: {aligned}"
    yield ""
    yield from _numbers(scores)
    if run.task.labels:
        yield ""
        yield from _classes(run)
    if scores.worst and len(run.rows) > 1:
        first = run.task.metrics[0]
        yield ""
        yield f"worst {first}"
        for row in run.worst(scores.worst):
            yield f"  {_number(row.numbers[first]):>9}  {shown(row.match.prediction)}"


def _number(value: float) -> str:
    """Four digits that count."""
    return f"{value:.4g}" if value == 0 or not 1e-4 <= abs(value) < 1e4 else f"{value:#.4g}"


def _numbers(scores: Scores) -> Iterator[str]:
    run = scores.run
    numbers, trivial = run.numbers(), run.trivial()
    title = scores.answer.name if scores.answer else ""
    width = max(len(title), 9)
    head = f"  {'':<20}  {'value':>9}" + (f"  {title:>{width}}" if title else "")
    yield f"{head}  better  unit"
    for name in (*run.task.metrics, *(name for name in numbers if name not in run.task.metrics)):
        mark = "*" if name in run.task.metrics else " "
        beside = f"  {_number(trivial[name]):>{width}}" if title else ""
        metric = METRICS[name]
        better = "higher" if metric.higher else "lower"
        row = f"{mark} {name:<20}  {_number(numbers[name]):>9}{beside}  {better:<6}  {metric.unit}"
        yield row.rstrip()


def _classes(run: "Run") -> Iterator[str]:
    """IoU of the most frequent classes of the truth, and how much of it they are."""
    there = [row for row in run.classes() if row["pixels"]]
    there.sort(key=lambda row: -int(row["pixels"]))
    total = sum(int(row["pixels"]) for row in there)
    yield f"  {'class':<20}  {'iou':>9}  {'of pixels':>9}"
    for row in there[:CLASSES_SHOWN]:
        share = f"{int(row['pixels']) / total:.1%}"
        yield f"  {row['name']:<20}  {row['iou']:>9.4f}  {share:>9}"
    if len(there) > CLASSES_SHOWN:
        yield f"  and {len(there) - CLASSES_SHOWN} more: --json has all"
