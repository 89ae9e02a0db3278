"""Trains the demo model's VAE: pictures of all kinds -> latents a quarter of the size, and back.

`python recipes/demo/autoencoder.py PACKED.npy OUT`; running it again goes on. First on crops, which
are many and varied; then on whole pictures, since group norms see another mean and spread there,
and a level that is off everywhere is what metres of depth suffer from most.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from course import Course, rate  # beside this file
from diffusers import AutoencoderKL
from torch import Tensor

CONFIG = {
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 8,
    "sample_size": 128,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}
# how often each kind of picture is drawn: image, depth, normals, segmentation, albedo, shading
SHARES = (0.26, 0.16, 0.14, 0.14, 0.18, 0.12)
CROP, BATCH, RATE = 64, 32, 1.5e-3
WHOLE_BATCH, WHOLE_RATE = 8, 6e-4
NOISE, DECAY = 0.05, 0.998
HELD = 48  # scenes at the end that are never trained on


def crops(data: np.ndarray, step: int, size: int = CROP, batch: int = BATCH) -> Tensor:
    """A batch [B, 3, size, size] in [-1, 1]; which, the step alone decides."""
    rng = np.random.default_rng([1, step])
    scenes = rng.integers(len(data), size=batch)
    kinds = rng.choice(len(SHARES), size=batch, p=SHARES)
    corners = rng.integers(data.shape[2] - size + 1, size=(batch, 2))
    parts = [
        data[scene, kind, y : y + size, x : x + size]
        for scene, kind, (y, x) in zip(scenes, kinds, corners, strict=True)
    ]
    mirrored = [part[:, ::-1] if rng.random() < 0.5 else part for part in parts]
    return torch.from_numpy(np.stack(mirrored)).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss_of(vae: AutoencoderKL, pictures: Tensor, seed: int) -> Tensor:
    """A smooth absolute error of the picture that comes back, and of its coarse levels.

    The latents are kept near 1, and the decoder sees them with noise, as a UNet's errors are.
    """
    with torch.autocast(pictures.device.type, torch.bfloat16):
        latents = vae.encode(pictures).latent_dist
        noise = torch.randn(latents.mean.shape, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(pictures.device)
        back = vae.decode((latents.mean.float() + NOISE * noise).to(torch.bfloat16)).sample
    off = back.float() - pictures
    coarse = torch.sqrt(torch.nn.functional.avg_pool2d(off, 16) ** 2 + 1e-5).mean()
    error = torch.sqrt(off**2 + 1e-4).mean() + coarse
    spread = (latents.mean.float() ** 2).mean()
    variance = ((latents.logvar.float() - 2 * math.log(NOISE)) ** 2).mean()
    return error + 1e-3 * spread + 1e-4 * variance


@torch.no_grad()
def whiten(vae: AutoencoderKL, data: np.ndarray) -> None:
    """Make the latents' channels uncorrelated, of mean 0 and variance 1, inside the 1x1 convs."""
    means = [vae.encode(crops(data, -1 - i + 2**31)).latent_dist.mean for i in range(12)]
    flat = torch.cat(means).permute(1, 0, 2, 3).flatten(1).double()
    centre = flat.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    forward = (vectors / values.sqrt()).T
    count = vae.config.latent_channels
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight = quant.weight[:count, :, 0, 0].double()
    bias = quant.bias[:count].double()
    quant.weight[:count, :, 0, 0] = (forward @ weight).float()
    quant.bias[:count] = (forward @ (bias - centre[:, 0])).float()
    back = vectors * values.sqrt()
    weight = post.weight[:, :, 0, 0].double()
    post.bias += (weight @ centre[:, 0]).float()
    post.weight[:, :, 0, 0] = (weight @ back).float()


@torch.no_grad()
def report(vae: AutoencoderKL, data: np.ndarray) -> dict[str, float]:
    """PSNR in dB of each kind of picture, on the last scenes."""
    names = ("image", "depth", "normals", "segmentation", "albedo", "shading")
    found = {}
    for kind, name in enumerate(names):
        pictures = torch.from_numpy(data[-HELD:, kind].copy()).permute(0, 3, 1, 2) / 127.5 - 1
        back = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
        found[name] = round(float(-10 * torch.log10(((back - pictures) ** 2).mean() / 4)), 2)
    return found


def train(given: argparse.Namespace, data: np.ndarray) -> AutoencoderKL:
    """The averaged VAE, after both parts of the course."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG).to(given.device)
    average = AutoencoderKL(**CONFIG).to(given.device).requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    course = Course(given.out / "checkpoint.pt", vae, average, optimizer)
    total = given.steps + given.whole_steps
    while course.step < total:
        step = course.step
        on_crops = step < given.steps
        for group in optimizer.param_groups:
            group["lr"] = (
                rate(step, given.steps, RATE) if on_crops
                else rate(step - given.steps, given.whole_steps, WHOLE_RATE)
            )  # fmt: skip
        how = (CROP, BATCH) if on_crops else (data.shape[2], WHOLE_BATCH)
        loss = loss_of(vae, crops(data[:-HELD], step, *how).to(given.device), step)
        loss.backward()
        course.update({"loss": loss.item()}, DECAY)
        if course.step % 100 == 0 or course.step == total:
            course.save()
    return average.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2000, help="on crops")
    parser.add_argument("--whole-steps", type=int, default=700, help="on whole pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    data = np.load(given.packed, mmap_mode="r")
    vae = train(given, data)
    whiten(vae, data)
    print(json.dumps(report(vae, data)), flush=True)
    vae.save_pretrained(given.out / "vae")


if __name__ == "__main__":
    main()
