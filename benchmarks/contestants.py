"""The ways of against.py, each in a process of its own: seen from inside, and from outside."""

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmp_cli import allocation

if TYPE_CHECKING:
    from ways import Way

Record = dict[str, Any]

# In the process of a way ------------------------------------------------------------------


def serve() -> None:
    """Load the way that the first line of standard input says, then do what the next lines ask."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not come between the answers

    def answer(record: Record) -> None:
        print(json.dumps(record), file=answers, flush=True)

    asked = json.loads(sys.stdin.readline())
    if asked["way"] == "dmp":  # as its command does
        allocation.ask_for_large_pages()
    start = time.perf_counter()
    import torch
    import ways

    spec = ways.Spec(**asked | {"tasks": tuple(asked["tasks"])})
    imported = time.perf_counter()
    way = ways.load(spec)
    loaded = time.perf_counter()
    cuda = way.where.endswith("cuda")
    answer({
        "imports": imported - start, "load": loaded - imported, "where": way.where,
        **ways.shape(spec), "card": torch.cuda.get_device_name() if cuda else "",
        "threads": torch.get_num_threads(),
    })  # fmt: skip
    for line in sys.stdin:
        answer(_done(way, json.loads(line), cuda))


def _done(way: "Way", asked: Record, cuda: bool) -> Record:
    """One block: its seconds and CPU seconds, or with `count` what was counted in it."""
    import counts
    import torch

    paths, out = [Path(name) for name in asked["images"]], Path(asked["out"])
    found: Counter[str] = Counter()
    traced: Record = {}
    with ExitStack() as stack:
        if asked.get("count"):
            stack.enter_context(counts.counted(found))
            if cuda:
                stack.enter_context(counts.traced(traced))
        start, spent = time.perf_counter(), time.process_time()
        each, pictures = way.run(paths, out, asked.get("keep", 0))
        end, used = time.perf_counter(), time.process_time()
    if pictures:
        kept: dict[str, Any] = dict(pictures)
        np.savez(out.with_suffix(".npz"), **kept)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": end - start, "each": each, "cpu": used - spent, "counts": {**found, **traced},
        "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30,
        "device_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
    }  # fmt: skip


# In the process that asks -----------------------------------------------------------------


@dataclass
class Contestant:
    """A way in its process, and all that was measured of it."""

    name: str
    process: "subprocess.Popen[str]"
    log: Path
    loaded: Record = field(default_factory=dict)
    blocks: list[Record] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # seconds of blocks of one image
    counts: Record = field(default_factory=dict)  # of an image
    kept: Path | None = None

    def ask(self, what: Record) -> Record:
        """Have the process do something; SystemExit with the end of its log if it ends."""
        if self.process.stdin is None or self.process.stdout is None:
            raise ValueError("the process has no pipes")
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended:\n{self.log.read_text()[-2000:]}")
        answer: Record = json.loads(line)
        return answer


@contextmanager
def started(name: str, spec: Record, folder: Path) -> Iterator[Contestant]:
    """A way, loaded; its process ends with the block."""
    log = folder / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=file, text=True,
        )  # fmt: skip
    try:
        one = Contestant(name, process, log)
        one.loaded = one.ask(spec)
        yield one
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


if __name__ == "__main__":
    serve()
