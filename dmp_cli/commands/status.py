"""`dmp status`: how far the runs into an output folder are, by their manifests."""

import json as json_
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dmp_cli import standing, urls
from dmp_cli.commands.report import Talk, count, duration, plain, shown
from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.standing import Report, Standing

GOING, CUT_SHORT = 7, 8  # exit codes

_ENDS = {
    0: "done", 1: "ended by a bug", 5: "ended: no model", 6: "ended: the surroundings failed",
    130: "interrupted", 143: "interrupted",
}  # fmt: skip


def status(
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Output folder.", parser=urls.folder)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON record.")] = False,
) -> None:
    """Tell how far the runs into a folder are: done, failed and why, rate, time left.

    Exit codes: 0 everything is done, 3 but for inputs that failed, 4 no manifest, 7 a run is going
    on, 8 ended before it was done: run it again.

    watch -n 5 dmp status out/
    """
    if urls.url_of(output) is None and not output.is_dir():
        raise UsageError(f"{output}: no such folder", "name the -o of a run")
    report = standing.read(output)
    if report is None:
        raise NoInputError(f"no manifest of a run in {urls.shown(output)}", "name the -o of a run")
    code = _code(report)
    lines = [json_.dumps(_record(report, code))] if json else map(_one_line, _lines(report))
    Talk().output("\n".join(lines))
    raise typer.Exit(code)


def _one_line(text: str) -> str:
    """A text that neither breaks the line nor the output, whatever a manifest holds."""
    return plain(text).replace("\n", r"\x0a").encode(errors="backslashreplace").decode()


def _code(report: Report) -> int:
    if report.going:
        return GOING
    if not report.complete:
        return CUT_SHORT
    return 3 if any(run.failed for run in report.runs) else 0


def _lines(report: Report) -> list[str]:
    lines = [line for run in report.runs for line in _of_run(run)]
    if report.lacking:
        numbers = ", ".join(map(str, report.unbegun[:20]))
        more = ", ..." if report.lacking > 20 else ""
        lines.append(f"not begun: {count(report.lacking, 'part')}: {numbers}{more}")
    if len(report.runs) > 1:
        lines += ["in all", *_numbers(_sum(report), indent="  ")]
    for reason in report.reasons:
        inputs = count(reason.inputs, "input")
        lines.append(f"failed, {inputs}: {reason.words}")
        dots = ["..."] if reason.inputs > len(reason.names) else []
        names = [shown(Path(name)) for name in reason.names]
        lines += [f"    {name}" for name in (*names, *dots)]
    if report.older:
        what = count(report.older, "manifest")
        lines.append(f"not counted: {what} of another number of parts, older than these")
    return lines


def _of_run(run: Standing) -> list[str]:
    part = f"part {run.part[0]} of {run.part[1]}" if run.part else f"run {run.number}"
    return [f"{part}: {_state(run)}", *_numbers(_record_of(run), indent="  ")]


def _state(run: Standing) -> str:
    if run.state == "running":
        return f"running, process {run.pid}"
    if run.state == "away":
        return f"running on {run.host}, or lost with it; its last word was at {run.time}"
    if run.state == "killed":
        return f"killed, last heard of at {run.time}"
    whole = run.left == 0 or run.left is None
    if run.code == 3 or (run.code == 0 and not whole):
        return "done, but for those that failed" if whole else "ended before it was done"
    return f"{_ENDS.get(run.code or 0, 'ended')} (exit {run.code})" if run.code else "done"


def _numbers(told: dict[str, object], indent: str) -> list[str]:
    total = "" if told["total"] is None else f" of {told['total']}"
    there = f", {told['kept']} of them there before" if told["kept"] else ""
    lines = [f"done {told['done']}{total}{there}"]
    if told["failed"]:
        lines.append(f"failed {told['failed']}")
    left, rate, seconds = told["left"], told["rate"], told["seconds_left"]
    pace = f"{rate:.2f} images/s" if rate else ""
    if left:
        ahead = f"{duration(seconds)} left" if isinstance(seconds, float) else ""
        lines.append(", ".join(filter(None, (f"left {left}", pace, ahead))))
    elif pace:
        lines.append(pace)
    return [indent + line for line in lines]


def _record_of(run: Standing) -> dict[str, object]:
    facts = asdict(run)
    del facts["born"], facts["tried"]
    facts["part"] = list(run.part) if run.part else None
    rate, ahead = run.rate, run.seconds_left
    return facts | {
        "left": run.left, "state": run.state,
        "rate": None if rate is None else round(rate, 4),
        "seconds_left": None if ahead is None else round(ahead, 1),
    }  # fmt: skip


def _sum(report: Report) -> dict[str, object]:
    """All runs together: those that are going on add up their rates, and the last one ends."""
    runs = report.runs
    going = [run for run in runs if run.state in ("running", "away")]
    rates = [run.rate for run in going if run.rate]
    ahead = [run.seconds_left for run in going if run.seconds_left is not None]
    totals = [run.total for run in runs if run.total is not None]
    lefts = [run.left for run in runs if run.left is not None]
    return {
        "total": sum(totals) if len(totals) == len(runs) else None,
        "done": sum(run.done for run in runs), "kept": sum(run.kept for run in runs),
        "failed": sum(run.failed for run in runs),
        "left": sum(lefts) if len(lefts) == len(runs) else None,
        "rate": round(sum(rates), 4) if rates else None,
        "seconds_left": round(max(ahead), 1) if ahead else None,
    }  # fmt: skip


def _record(report: Report, code: int) -> dict[str, object]:
    return {
        **_sum(report), "code": code, "going": report.going, "complete": report.complete,
        "runs": [_record_of(run) for run in report.runs], "unbegun": report.unbegun,
        "lacking": report.lacking,
        "reasons": [asdict(reason) for reason in report.reasons],
    }  # fmt: skip
