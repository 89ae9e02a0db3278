"""Five tasks in one run against five runs of one task: `python benchmarks/together.py FOLDER`.

Both ways in turns, as whole processes with their start and their loading, on the bundled model
unless --model names another. Prints seconds, bytes, and the ratio of each turn.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from dmp_cli.tasks import TASKS


def run(words: list[str], folder: Path, out: Path, more: list[str]) -> None:
    """A whole `dmp` in a process of its own."""
    command = [sys.executable, "-m", "dmp_cli", *words, str(folder), "-o", str(out), "-q", *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def timed(ways: list[list[str]], folder: Path, more: list[str]) -> tuple[float, int]:
    """Seconds of several runs one after the other, and the bytes of the files they leave."""
    with tempfile.TemporaryDirectory() as out:
        start = time.monotonic()
        for words in ways:
            run(words, folder, Path(out), more)
        seconds = time.monotonic() - start
        size = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
    return seconds, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--format", default="png")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    more = ["--model", given.model, "--format", given.format]
    ratios = []
    print("| turn | predict-all | five of predict | ratio | MB |\n|---|---:|---:|---:|---:|")
    for turn in range(given.turns):
        one, size = timed([["predict-all"]], given.folder, more)
        five, _ = timed([["predict", task] for task in TASKS], given.folder, more)
        ratios.append(five / one)
        print(f"| {turn + 1} | {one:.1f} s | {five:.1f} s | {five / one:.2f} | {size / 1e6:.1f} |")
    print(f"\nmedian ratio {median(ratios):.2f}")


if __name__ == "__main__":
    main()
