"""Makes the bundled model `demo` from nothing: `python recipes/demo/make.py WORK`.

A stage that was cut off goes on, and one that is done is not done again, unless what it or a stage
before it is asked for has changed: so the same command resumes. WORK/model is the model in the
end, and WORK/decoder has its tiny decoder; `--install` copies both into dmp_cli/demo and measures
them. docs/demo.md tells what it is and how long it took.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import tomlkit
from safetensors import safe_open
from safetensors.torch import save_file

from dmp_cli import decoders
from dmp_cli.catalogue import DECODER
from dmp_cli.digests import sha256
from dmp_cli.tasks import TASKS

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent.parent / "dmp_cli" / "demo"
WEIGHTS = HERE.parent.parent / "weights.toml"
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
DMP = ("-m", "dmp_cli")
DEPTH = "lora-depth-map"  # the folder of depth's LoRA once the map itself has trained it


class Stages:
    """Runs commands one after the other; a note beside each result says what it was asked for."""

    def __init__(self) -> None:
        self._asked = ""

    def __call__(self, result: Path, *words: object) -> None:
        """Run a command that leaves `result`."""
        command = [sys.executable, *map(str, words)]
        self._asked += " ".join(command[1:]) + "\n"
        begun, done = (result.with_name(f"{result.name}.{mark}") for mark in ("begun", "done"))
        if done.exists() and done.read_text() == self._asked:
            print(f"there: {result}", flush=True)
            return
        if begun.exists() and begun.read_text() != self._asked:
            shutil.rmtree(result) if result.is_dir() else result.unlink(missing_ok=True)
        begun.write_text(self._asked)
        print(" ".join(command), flush=True)
        # threads that wait must not spin: other processes on the machine would slow them tenfold
        subprocess.run(command, check=True, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
        begun.rename(done)


def assemble(work: Path, model: Path) -> None:
    """Put the finished model's files into one folder, as the package has them."""
    shutil.rmtree(model, ignore_errors=True)
    for part in PARTS:
        shutil.copytree(work / "backbone" / part, model / part)
    (model / "loras").mkdir()
    for task in TASKS:
        lora = work / (DEPTH if task == "depth" else f"lora-{task}")
        with safe_open(lora / "pytorch_lora_weights.safetensors", "pt") as file:
            halves = {key: file.get_tensor(key).half() for key in file.keys()}  # noqa: SIM118
            save_file(halves, model / "loras" / f"{task}.safetensors", file.metadata())


def install(model: Path, decoder: Path) -> None:
    """Replace the package's model and its tiny decoder, and state the hashes of the new ones."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(model, PACKAGE)
    shutil.copytree(decoder, PACKAGE / DECODER)
    for path in PACKAGE.rglob("*.json"):  # without the folder that it was made in
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None):
            path.write_text(json.dumps(config, indent=2) + "\n")
    for path in PACKAGE.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes for the owner alone
    state_hashes()
    size = sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file())
    print(f"{PACKAGE}: {size / 1e6:.2f} MB")


def state_hashes() -> None:
    """Write the sha256s that weights.toml states of the package's files into it."""
    entries = tomlkit.parse(WEIGHTS.read_text())
    demo = entries["models"]["demo"]
    for task in TASKS:
        source = demo["tasks"][task]["lora"]
        source["sha256"] = sha256(PACKAGE.parent / source["packaged"])
    stated = demo["backbone"].setdefault("sha256", tomlkit.table())
    for part in sorted(PACKAGE.glob("*/*.safetensors")):
        if part.parent.name in PARTS:
            stated[f"{part.parent.name}/{part.name}"] = sha256(part)
    folder = PACKAGE / DECODER
    demo[DECODER]["sha256"] = {name: sha256(folder / name) for name in decoders.FILES}
    WEIGHTS.write_text(tomlkit.dumps(entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--vae-whole-steps", type=int, default=700)
    parser.add_argument("--unet-steps", type=int, default=10_800)
    parser.add_argument("--lora-steps", type=int, default=30)
    parser.add_argument("--map-steps", type=int, default=1500)
    parser.add_argument("--decoder-steps", type=int, default=8000)
    parser.add_argument("--install", action="store_true")
    given = parser.parse_args()
    work, stage = given.work, Stages()
    work.mkdir(parents=True, exist_ok=True)
    train, packed, vae = work / "train", work / "train.npy", work / "autoencoder"
    stage(work / "heldout", *DMP, "data", "scenes", work / "heldout",
          "--count", 200, "--seed", 20002)  # fmt: skip
    stage(train, *DMP, "data", "scenes", train, "--count", given.scenes, "--seed", 1)
    stage(packed, HERE / "pack.py", train, packed)
    stage(vae, HERE / "autoencoder.py", packed, vae, "--steps", given.vae_steps,
          "--whole-steps", given.vae_whole_steps)  # fmt: skip
    backbone = work / "backbone"
    stage(backbone, HERE / "backbone.py", packed, vae / "vae", backbone,
          "--steps", given.unet_steps)  # fmt: skip
    how = ("--backbone", backbone, "--size", 128, "--no-flip", "--sampling-steps", 1,
           "--spacing", "trailing", "--final", "y0", "--mixed-precision", "no")  # fmt: skip
    for task in TASKS:  # the last steps of each LoRA alone, as anybody's are trained
        lora = work / f"lora-{task}"
        stage(lora, *DMP, "train", task, train, "-o", lora, *how,
              "--init", backbone / "loras" / f"{task}.safetensors", "--batch", 16, "--lr", 1e-4,
              "--steps", given.lora_steps, "--timesteps", "900-999")  # fmt: skip
    stage(work / DEPTH, *DMP, "train", "depth", train, "-o", work / DEPTH, *how,
          "--init", work / "lora-depth", "--batch", 8, "--lr", 5e-4, "--loss", "map", "--rank", 24,
          "--steps", given.map_steps)  # fmt: skip
    model, decoder = work / "model", work / "decoder"
    assemble(work, model)
    stage(decoder, HERE / "decoder.py", packed, model, decoder, "--steps", given.decoder_steps)
    if given.install:
        install(model, decoder / DECODER)
        stage(work / "measured", HERE / "measure.py", work / "heldout", work / "measured")
        stage(work / "beside", HERE / "measure.py", work / "heldout", work / "beside",
              "--tiny-decoder", "--count", 200)  # fmt: skip


if __name__ == "__main__":
    main()
