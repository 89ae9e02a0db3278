"""Distils the demo model's VAE decoder into a tiny one, in the class of diffusers behind TAESD.

`python recipes/demo/decoder.py PACKED.npy MODEL OUT`; running it again goes on. MODEL is the folder
of the finished model, LoRAs included: what the tiny decoder learns from are the latents that the
UNet draws with each of them, and what the VAE's decoder makes of those.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from course import Course, rate  # beside this file
from diffusers import AutoencoderTiny
from torch import Tensor

from dmp_cli.backbone import Backbone
from dmp_cli.catalogue import DECODER
from dmp_cli.device import choose
from dmp_cli.diffusion import Sampling, sample
from dmp_cli.tasks import TASKS

CONFIG = {
    "latent_channels": 8,
    "decoder_block_out_channels": (32, 32, 32),
    "num_decoder_blocks": (4, 2, 0),
    "encoder_block_out_channels": (1,),  # the class wants an encoder; nothing uses it
    "num_encoder_blocks": (0,),
}
ONE_STEP = Sampling(steps=1, spacing="trailing", final="y0")
SHARES = {"depth": 0.28, "normals": 0.2, "segmentation": 0.2, "albedo": 0.16, "shading": 0.16}
DRAWN, TRUE = 0.6, 0.15  # of the latents: the UNet's, and those of true maps; the rest is between
ROWS, TOGETHER = 4000, 8
HELD = 160  # rows at the end that are never trained on
BATCH, RATE, DECAY = 8, 2e-3, 0.998
CHECKPOINT = 200


class Distilled:
    """Latents, and the pictures that the VAE's decoder makes of them: fp16 in two files."""

    def __init__(self, folder: Path, rows: int, side: int) -> None:
        """Opens the files, or makes them empty; `side` is of a picture. SystemExit for others."""
        folder.mkdir(parents=True, exist_ok=True)
        shape = (CONFIG["latent_channels"], side // 4, side // 4)
        self.latents = _opened(folder / "latents.npy", (rows, *shape))
        self.pictures = _opened(folder / "pictures.npy", (rows, 3, side, side))

    def fill(self, packed: np.ndarray, backbone: Backbone) -> None:
        """Compute the rows that are not there yet, of scenes that the model was trained on."""
        for start in range(0, len(self.latents), TOGETHER):
            rows = slice(start, start + TOGETHER)
            if self.pictures[rows].any():
                continue
            count, rng = len(self.latents[rows]), np.random.default_rng([3, start])
            task = str(rng.choice(list(SHARES), p=list(SHARES.values())))
            pictures = packed[rng.integers(len(packed) - 48, size=count)]
            latents = draw(backbone, pictures, task, rng).half()
            self.latents[rows] = latents.cpu().numpy()
            self.pictures[rows] = backbone.decode(latents.float(), TOGETHER).cpu().numpy()
            print(json.dumps({"rows": start + count, "task": task}), flush=True)

    def __call__(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Latents [B, C, h, w] and pictures [B, 3, H, W], float32."""
        found = (kept[rows].astype(np.float32) for kept in (self.latents, self.pictures))
        latents, pictures = map(torch.from_numpy, found)
        return latents, pictures


def _opened(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if not path.exists():
        return np.lib.format.open_memmap(path, "w+", np.float16, shape)
    kept = np.lib.format.open_memmap(path, "r+")
    if kept.shape != shape:  # made with other --rows, or of scenes of another size
        raise SystemExit(f"{path} is {kept.shape}, not {shape}: name another OUT")
    return kept


def draw(backbone: Backbone, pictures: np.ndarray, task: str, rng: np.random.Generator) -> Tensor:
    """[B, C, h, w] of packed pictures [B, 6, S, S, 3]: what the UNet draws, or nearer the truth."""
    both = pictures[:, [0, 1 + list(TASKS).index(task)]]
    pixels = torch.from_numpy(both).permute(1, 0, 4, 2, 3).float() / 127.5 - 1
    x, true = (backbone.encode(part) for part in pixels)
    backbone.use_lora(task)
    y = sample(backbone.predict, x, backbone.schedule, ONE_STEP)
    part = np.clip((rng.random(len(x)) - DRAWN) / (1 - DRAWN - TRUE), 0, 1)
    weight = torch.from_numpy(part).float().to(y.device)[:, None, None, None]
    return y + weight * (true - y)


def loss_of(decoder: AutoencoderTiny, latents: Tensor, pictures: Tensor) -> Tensor:
    """The absolute error of the picture, of its steps from pixel to pixel, of its coarse levels."""
    with torch.autocast(latents.device.type, torch.bfloat16):
        drawn = decoder.decode(latents.to(memory_format=torch.channels_last)).sample
    off = drawn.float() - pictures
    steps = off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean()
    coarse = torch.nn.functional.avg_pool2d(off, 8).abs().mean()
    return off.abs().mean() + 0.5 * steps + coarse


def train(given: argparse.Namespace, distilled: Distilled) -> AutoencoderTiny:
    """The averaged decoder."""
    torch.manual_seed(0)
    network, average = (AutoencoderTiny(**CONFIG).to(given.device) for _ in range(2))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    course = Course(given.out / "checkpoint.pt", network, average.requires_grad_(False), optimizer)
    while course.step < given.steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(course.step, given.steps, RATE, 100)
        rng = np.random.default_rng([4, course.step])
        pair = distilled(rng.integers(len(distilled.latents) - HELD, size=BATCH))
        loss = loss_of(network, *(part.to(given.device) for part in pair))
        loss.backward()
        course.update({"loss": loss.item()}, DECAY)
        if course.step % CHECKPOINT == 0 or course.step == given.steps:
            course.save()
    return average.cpu()


@torch.no_grad()
def report(decoder: AutoencoderTiny, distilled: Distilled) -> dict[str, float]:
    """How far the two decoders' pictures are apart, in levels of 255, on rows never trained on."""
    latents, pictures = distilled(np.arange(len(distilled.latents) - HELD, len(distilled.latents)))
    ours = torch.cat([decoder.decode(part).sample for part in latents.split(BATCH)])
    levels = (ours.clamp(-1, 1) - pictures.clamp(-1, 1)).abs().numpy() * 127.5
    return {"mean": round(float(levels.mean()), 3),
            "99.9 %": round(float(np.quantile(levels, 0.999)), 2)}  # fmt: skip


def loaded(model: Path, device: str) -> Backbone:
    """The finished model with all its LoRAs."""
    backbone = Backbone.load(model, choose(device, "fp32"))
    for task in TASKS:
        backbone.add_lora(task, model / "loras" / f"{task}.safetensors")
    return backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    packed = np.load(given.packed, mmap_mode="r")
    distilled = Distilled(given.out, given.rows, packed.shape[2])
    distilled.fill(packed, loaded(given.model, given.device))
    decoder = train(given, distilled).half()
    decoder.save_pretrained(given.out / DECODER)
    print(json.dumps(report(decoder.float(), distilled)), flush=True)


if __name__ == "__main__":
    main()
