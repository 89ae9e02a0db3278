"""Kills at random, then one clean run: `python benchmarks/kills.py --times 100`.

Runs of five tasks over small images are killed at moments spread over their whole life, start-up
included, and run again on the same output folder. After each kill every file under a final name
must have the bytes of an undisturbed run. In the end a run that is left alone must exit with 0 and
leave the set of files and the bytes of the undisturbed run and no `.dmp-*` file, `dmp status` must
say done, and the manifest must tell of no output twice. Prints what was killed and what was wrong.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

WAYS = {
    "local": [],
    "devices": ["--devices", "cpu,cpu"],
    "ray": ["--engine", "ray"],
}
# What is killed, and how often of a hundred times; what a worker of Ray is called is Ray's matter
VICTIMS = {
    "local": {"SIGKILL": 75, "SIGTERM": 25},
    "devices": {"SIGKILL": 50, "worker": 25, "SIGTERM": 25},
    "ray": {"SIGKILL": 60, "worker": 20, "SIGTERM": 20},
}
# Without Ray's own agents: a node ends with them, and the run with its only node
WORKER = {"devices": re.compile("spawn_main"), "ray": re.compile(r"^ray::(?!\w*Agent)")}
OPTIONS = ["--model", "demo", "--size", "64", "--steps", "1", "--format", "png,exr"]
MOST = 8  # kills on one output folder
LONG = 300.0  # seconds after which a process hangs
DRAIN = 12.0  # seconds for what SIGTERM leaves to do: 10 and the time to start a reply

Bytes = dict[str, bytes]


@dataclass
class Way:
    """One way to run, and what came of killing it."""

    name: str
    images: Path
    temporary: Path
    whole: float = 0.0  # seconds of an undisturbed run
    expected: Bytes = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)  # by victim and stage
    codes: Counter[str] = field(default_factory=Counter)  # how what was killed ended
    clean: int = 0
    faults: list[str] = field(default_factory=list)

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """`dmp predict-all` as a process; what it says goes to a file beside OUT."""
        words = [sys.executable, "-m", "dmp_cli", "predict-all", str(self.images), "-o", str(out)]
        with Path(f"{out}.log").open("ab") as log:
            return subprocess.Popen(
                [*words, *OPTIONS, *WAYS[self.name]], stdout=subprocess.DEVNULL, stderr=log
            )

    def fault(self, out: Path, what: str) -> None:
        """Note what was wrong, and show it at once."""
        self.faults.append(f"{out.name}: {what}")
        print(f"WRONG: {self.name}: {out.name}: {what}", file=sys.stderr, flush=True)


def files(out: Path) -> Bytes:
    """The files under final names below OUT, but for manifests."""
    found = (path for path in out.rglob("*") if path.is_file())
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in found
        if not path.name.startswith((".dmp-", "dmp-manifest"))
    }


def records(out: Path, kind: str) -> list[dict[str, object]]:
    """The records of a kind in all manifests of OUT; a line that was cut is none."""
    found = []
    for path in out.glob("dmp-manifest*.jsonl"):
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found += [record] if record["kind"] == kind else []
    return found


def stages(out: Path) -> tuple[int, int]:
    """How many runs have begun by the manifests, and how many images they have seen."""
    return len(records(out, "run")), len(records(out, "input"))


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:  # it has ended
        return []
    return [one for child in map(int, text.split()) for one in (child, *below(child))]


def workers(way: Way, pid: int) -> list[int]:
    """Those of them that do the work."""
    found = []
    for one in below(pid):
        try:
            words = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if WORKER[way.name].search(words):
            found.append(one)
    return found


# One kill -------------------------------------------------------------------------------------


def kill(way: Way, out: Path, draw: random.Random) -> bool:
    """Start a run and kill it at a random moment; False if it ended before that."""
    victims = VICTIMS[way.name]
    victim = draw.choices(list(victims), list(victims.values()))[0]
    moment = draw.uniform(0, way.whole)
    before = stages(out)
    start = time.monotonic()
    process = way.start(out)
    try:
        code = process.wait(moment)
    except subprocess.TimeoutExpired:
        pass
    else:
        if code:
            way.fault(out, f"ended by itself with {code} after {moment:.1f} s")
        if not before[0]:  # the first may have been slow, and moments past the end kill nothing
            way.whole = min(way.whole, time.monotonic() - start)
        return False
    begun = stages(out)
    told = _strike(way, process, victim, draw)
    stage = "starting" if begun[0] == before[0] else "loading"
    stage = "predicting" if begun[1] > before[1] else stage
    way.kills[f"{told}, {stage}"] += 1
    _wait(way, out, process, told, stage)
    compare(way, out, whole=False)
    return True


def _strike(way: Way, process: subprocess.Popen[bytes], victim: str, draw: random.Random) -> str:
    """Kill what was chosen; the process itself where it has no worker yet. What was killed."""
    if victim == "worker":
        found = workers(way, process.pid)
        if found:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(draw.choice(found), signal.SIGKILL)
            return "worker"
        victim = "SIGKILL"
    process.send_signal(signal.Signals[victim])
    return victim


def _wait(way: Way, out: Path, process: subprocess.Popen[bytes], victim: str, stage: str) -> None:
    """Wait for the end of what was struck, and see whether it is one that was promised."""
    start = time.monotonic()
    try:
        code = process.wait(LONG)
    except subprocess.TimeoutExpired:
        process.kill()
        way.fault(out, f"{victim}, {stage}: hangs")
        return
    took = time.monotonic() - start
    name = signal.Signals(-code).name if code < 0 else f"exit {code}"
    way.codes[f"{victim}, {stage}: {name}"] += 1
    print(f"{way.name} {way.kills.total()}: {victim}, {stage}: {name}", file=sys.stderr, flush=True)
    # 0: the last batch was in flight, or another worker did the rest. 6: none was left, or one was
    # lost while it loaded
    # -15: the signal came before dmp could heed it, in the first half second
    allowed = {"SIGKILL": (-9, 0), "SIGTERM": (143, -15, 0), "worker": (0, 6)}[victim]
    if code not in allowed:
        way.fault(out, f"{victim}, {stage}: {name}")
    if victim == "SIGTERM" and took > DRAIN:
        way.fault(out, f"SIGTERM, {stage}: {took:.1f} s to the end")


# What must be so ------------------------------------------------------------------------------


def compare(way: Way, out: Path, whole: bool) -> None:
    """Each file is that of the undisturbed run; as a `whole`, none is missing."""
    found = files(out)
    strange = sorted(found.keys() - way.expected.keys())
    if strange:
        way.fault(out, f"{_some(strange)}: not among the files of an undisturbed run")
    other = [name for name, data in found.items() if way.expected.get(name, data) != data]
    if other:
        way.fault(out, f"{_some(other)}: other bytes")
    missing = way.expected.keys() - found.keys()
    if whole and missing:
        way.fault(out, f"{_some(sorted(missing))}: missing")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def finish(way: Way, out: Path) -> None:
    """The clean run, and all that must be so after it."""
    code = way.start(out).wait(LONG)
    way.clean += 1
    if code:
        way.fault(out, f"clean run: exit {code}")
    compare(way, out, whole=True)
    left = [path.relative_to(out).as_posix() for path in out.rglob(".dmp-*")]
    if left:
        way.fault(out, f"left: {', '.join(left)}")
    told = subprocess.run(
        [sys.executable, "-m", "dmp_cli", "status", str(out)], check=False, capture_output=True
    )
    if told.returncode or b": done" not in told.stdout:
        way.fault(out, f"status: exit {told.returncode}: {told.stdout.decode()}")
    _check_once(way, out)


def _check_once(way: Way, out: Path) -> None:
    """No output was made again once the manifest said that it is there."""
    made: Counter[str] = Counter()
    for record in records(out, "input"):
        rows = record["outputs"]
        assert isinstance(rows, list)
        if record["status"] != "done":
            way.fault(out, f"{record['input']}: {record['error']}")
        made.update({row["path"] for row in rows if row["size"] is not None})
    twice = [name for name, times in made.items() if times > 1]
    if twice:
        way.fault(out, f"{_some(twice)}: made twice")


# All of it ------------------------------------------------------------------------------------


def measure(way: Way, times: int, seed: int) -> None:
    """An undisturbed run, then kills on one output folder after the other."""
    draw = random.Random(f"{seed} {way.name}")
    start = time.monotonic()
    first = way.temporary / f"{way.name}-undisturbed"
    code = way.start(first).wait(LONG)
    way.whole = time.monotonic() - start
    if code:
        raise SystemExit(f"{way.name}: exit {code}\n{Path(f'{first}.log').read_text()}")
    way.expected = files(first)
    number, on_this = 0, 0
    while way.kills.total() < times:
        out = way.temporary / f"{way.name}-{number}"
        on_this += 1
        if not kill(way, out, draw) or on_this >= MOST:
            finish(way, out)
            number, on_this = number + 1, 0
    if on_this:
        finish(way, out)


def draw_images(folder: Path, many: int, seed: int) -> None:
    """Pictures of noise, in folders of fifteen."""
    noise = np.random.default_rng(seed)
    for number in range(many):
        path = folder / f"{number // 15}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)


def show(ways: list[Way], tell: Callable[[str], None] = print) -> None:
    """The tables, and whether the ways agree."""
    tell("| way | an undisturbed run | kills | killed | ends | clean runs | wrong |")
    tell("|---|---:|---:|---|---|---:|---:|")
    for way in ways:
        kills = "; ".join(f"{often} {what}" for what, often in sorted(way.kills.items()))
        codes = "; ".join(f"{often} {what}" for what, often in sorted(way.codes.items()))
        tell(
            f"| {way.name} | {way.whole:.1f} s, {len(way.expected)} files | {way.kills.total()} "
            f"| {kills} | {codes} | {way.clean} | {len(way.faults)} |"
        )
    same = all(way.expected == ways[0].expected for way in ways)
    tell(f"\nthe undisturbed runs of all ways have {'the same' if same else 'OTHER'} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="kills in all")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = given.ways.split(",")
    # a run on Ray takes the longest to start: it gets half as many
    shares = {name: 1 if name == "ray" else 2 for name in names}
    each = {name: given.times * shares[name] // sum(shares.values()) for name in names}
    each[names[0]] += given.times - sum(each.values())
    with tempfile.TemporaryDirectory(prefix="dmp-kills-") as temporary:
        folder = Path(temporary)
        draw_images(folder / "images", given.images, given.seed)
        ways = [Way(name, folder / "images", folder) for name in names]
        for way in ways:
            measure(way, each[way.name], given.seed)
        show(ways)
        for way in ways:
            for fault in way.faults:
                print(f"- {way.name}: {fault}")
    sys.exit(any(way.faults for way in ways))


if __name__ == "__main__":
    main()
