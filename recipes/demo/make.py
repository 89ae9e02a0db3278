"""Makes the bundled model `demo` from nothing: `python recipes/demo/make.py WORK`.

Every stage is skipped once its result is there, and a stage that was cut off goes on, so the same
command resumes. At the end the model stands in WORK/demo; `--install` copies it into dmp_cli/demo.
docs/demo.md tells what it is and how long it took.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent.parent / "dmp_cli" / "demo"
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae", "loras")


def stage(result: Path, *words: object) -> None:
    """Run a command that leaves `result`, unless it is there."""
    if result.exists():
        print(f"there: {result}", flush=True)
        return
    command = [sys.executable, *map(str, words)]
    print(" ".join(command), flush=True)
    # threads that wait must not spin: other processes on the machine would slow them tenfold
    subprocess.run(command, check=True, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})


def install(model: Path) -> None:
    """Copy the model's files into the package."""
    for part in PARTS:
        shutil.rmtree(PACKAGE / part, ignore_errors=True)
        shutil.copytree(model / part, PACKAGE / part)
    size = sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file())
    print(f"{PACKAGE}: {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--vae-whole-steps", type=int, default=700)
    parser.add_argument("--unet-steps", type=int, default=4000)
    parser.add_argument("--install", action="store_true")
    given = parser.parse_args()
    work = given.work
    work.mkdir(parents=True, exist_ok=True)
    train, packed = work / "train", work / f"train-{given.scenes}.npy"
    scenes = ("-m", "dmp_cli", "data", "scenes")
    stage(packed, *scenes, train, "--count", given.scenes, "--seed", 1)
    stage(packed, HERE / "pack.py", train, packed)
    stage(work / "heldout", *scenes, work / "heldout", "--count", 200, "--seed", 20002)
    stage(work / "autoencoder/vae", HERE / "autoencoder.py", packed, work / "autoencoder",
          "--steps", given.vae_steps, "--whole-steps", given.vae_whole_steps)  # fmt: skip
    stage(work / "demo/finished", HERE / "backbone.py", packed, work / "autoencoder/vae",
          work / "demo", "--steps", given.unet_steps)  # fmt: skip
    if given.install:
        install(work / "demo")
        stage(work / "measured", HERE / "measure.py", work / "heldout", work / "measured")


if __name__ == "__main__":
    main()
