"""How long a run takes whose 10,000 images are all done, and how long `dmp status` does.

    python benchmarks/resume.py FOLDER [COUNT]

One image is predicted by the demo model; its input, outputs and record are then copied under other
names. Prints seconds of the whole process, of the processor too, and that torch was not imported.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RUN = """import sys
from dmp_cli import cli
sys.argv[0] = "dmp"
try:
    cli.main()
finally:
    print("torch imported:", "torch" in sys.modules, file=sys.stderr)
"""


def make(folder: Path, count: int) -> None:
    """Inputs, outputs and a manifest that says that they are done."""
    photos, out = folder / "in", folder / "out"
    photos.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photos / "0.png")
    subprocess.run([sys.executable, "-c", RUN, *command(folder)], check=True)
    book = out / "dmp-manifest.jsonl"
    first, record, _ = (json.loads(line) for line in book.read_text().splitlines())
    outputs = record["outputs"]
    with book.open("w") as file:
        print(json.dumps({**first, "total": count}, separators=(",", ":")), file=file)
        for number in range(count):
            print(
                json.dumps(copy(folder, record, outputs, number), separators=(",", ":")), file=file
            )


def copy(folder: Path, record: dict[str, Any], outputs: list[Any], number: int) -> dict[str, Any]:
    """The files of the first image under another name, and the record of that."""
    source, rows = folder / "in" / f"{number}.png", []
    if number:
        shutil.copy2(folder / "in" / "0.png", source)
    for row in outputs:
        path = row["path"].replace("0.", f"{number}.", 1)
        if number:
            shutil.copy2(folder / "out" / row["path"], folder / "out" / path)
        rows.append({**row, "path": path})
    return {**record, "input": str(source.absolute()), "outputs": rows, "at": number / 10}


def command(folder: Path) -> list[str]:
    """The run."""
    return ["predict", "depth", str(folder / "in"), "-o", str(folder / "out")]


def timed(words: list[str]) -> None:
    """Run a command and print what it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False
    )
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{words[0]}: exit {done.returncode}, {seconds:.2f} s, {cpu:.2f} s of the processor")
    print((done.stderr or done.stdout).strip())


def main() -> None:
    """Make the folder if it is not there, then measure."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    if not folder.exists():
        make(folder, count)
    timed(command(folder))
    timed(["status", str(folder / "out")])


if __name__ == "__main__":
    main()
