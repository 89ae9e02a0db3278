"""What the tests of training share: a folder of pairs, and runs on the tiny random backbone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from dmp_cli import untrained
from dmp_cli.plan import Settings
from dmp_cli.store import home
from dmp_cli.train import events as ev
from dmp_cli.train import loop
from dmp_cli.train.job import job_of
from dmp_cli.train.settings import Course, Training

SIZE = 32


def write_pairs(folder: Path, count: int = 4, size: int = SIZE) -> Path:
    """Smooth random pictures, with maps of every kind that follow from their colours."""
    for name in ("images", "depth", "normals", "segmentation", "albedo", "shading"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        rgb = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
        Image.fromarray(rgb).save(folder / f"images/{index}.png")
        colour = (rgb / 255).astype(np.float32)
        vectors = colour * 2 - 0.99
        np.save(folder / f"depth/{index}.npy", 1 + 4 * colour.mean(axis=-1))
        np.save(folder / f"normals/{index}.npy",
                vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))  # fmt: skip
        np.save(folder / f"segmentation/{index}.npy", rgb[..., 0] // 64)
        np.save(folder / f"albedo/{index}.npy", colour)
        np.save(folder / f"shading/{index}.npy", colour.mean(axis=-1))
        lines.append(json.dumps({"file_name": f"images/{index}.png", "text": f"room {index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def small_backbone() -> Path:
    """A random backbone with a quarter of the attentions of `untrained`: made once, loaded fast."""
    folder = home() / "small"
    if folder.exists():
        return folder
    part = Path(mkdtemp(dir=untrained.make(home() / "untrained").parent))
    for name in ("scheduler", "tokenizer", "text_encoder"):
        shutil.copytree(home() / "untrained" / name, part / name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=4,
            cross_attention_dim=32, norm_num_groups=8, sample_size=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
    unet.save_pretrained(part / "unet")
    vae.save_pretrained(part / "vae")
    part.rename(folder)
    return folder


def training(data: Path, output: Path, **changes: Any) -> Training:
    """A short run; `changes` are fields of Training, Course and Settings."""
    settings = Settings(size=changes.pop("size", SIZE), steps=changes.pop("sampling_steps", 1))
    for name in ("prediction", "prompt", "guidance", "spacing", "final", "sampler", "timestep"):
        settings = replace(settings, **{name: changes.pop(name, None)})
    course = Course(steps=4, batch=2, learning_rate=1e-2)
    for name in [name for name in changes if name in Course.__dataclass_fields__]:
        course = replace(course, **{name: changes.pop(name)})
    asked = Training(
        "depth", data, output, course, backbone=small_backbone(), settings=settings, device="cpu",
        checkpoint_every=100,
    )  # fmt: skip
    return replace(asked, **changes)


def run(asked: Training, until: int | None = None) -> list[ev.Event]:
    """The events of a run; it is dropped, as if it was killed, after step `until`."""
    seen: list[ev.Event] = []
    for event in loop.run(job_of(asked)):
        seen.append(event)
        if isinstance(event, ev.Stepped) and event.step == until:
            break
    return seen


def losses(seen: list[ev.Event]) -> list[float]:
    """The loss of each step."""
    return [event.loss for event in seen if isinstance(event, ev.Stepped)]


def only(seen: list[ev.Event], kind: type[Any]) -> list[Any]:
    """The events of one kind."""
    return [event for event in seen if isinstance(event, kind)]
