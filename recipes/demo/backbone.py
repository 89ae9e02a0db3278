"""Trains the demo model's UNet together with a LoRA for each task, from nothing.

`python recipes/demo/backbone.py PACKED.npy VAE OUT`; running it again goes on.
A step is one batch of each task, its LoRA switched on; the UNet learns from all of them. The loss
is that of `dmp train`: v-prediction on `sqrt(a_t) y + sqrt(1 - a_t) x`.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from course import Course, rate  # beside this file
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dmp_cli.diffusion import Schedule, mix, velocity
from dmp_cli.lora import PROJECTIONS
from dmp_cli.tasks import TASKS
from dmp_cli.untrained import SCHEDULER, write_tokenizer

UNET = {
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (64, 96, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "sample_size": 32,
}
RANK, RATE, DECAY = 8, 1e-3, 0.999
SHARES = {"depth": 16, "normals": 4, "segmentation": 12, "albedo": 4, "shading": 4}
LAST = 0.7  # of the samples are at the last time step, where a sampler with one step is
CHECKPOINT = 100


class Latents:
    """Latents of the packed pictures, computed when they are first asked for: fp16 on disk."""

    def __init__(self, packed: np.ndarray, vae: AutoencoderKL, path: Path) -> None:
        side = packed.shape[2] // 4
        shape = (*packed.shape[:2], vae.config.latent_channels, side, side)
        mode = "r+" if path.exists() else "w+"
        self.packed, self.vae = packed, vae
        self.kept = np.lib.format.open_memmap(path, mode, np.float16, shape)

    @torch.no_grad()
    def __call__(self, scenes: np.ndarray, kind: int) -> Tensor:
        """[B, C, h, w] float32 of one kind of picture: 0 the image, then the tasks in order."""
        missing = [scene for scene in scenes if not self.kept[scene, kind, 0, 0, :2].any()]
        if missing:
            pictures = torch.from_numpy(self.packed[missing, kind]).permute(0, 3, 1, 2)
            pictures = (pictures.float() / 127.5 - 1).to(self.vae.device)
            self.kept[missing, kind] = self.vae.encode(pictures).latent_dist.mode().cpu().half()
        return torch.from_numpy(self.kept[scenes, kind].astype(np.float32))


def empty_prompt(out: Path) -> Tensor:
    """Make text encoder, tokenizer and scheduler, and embed the empty prompt: [1, 77, D]."""
    if not (out / "tokenizer").exists():
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=514, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, projection_dim=32, bos_token_id=512, eos_token_id=513,
            pad_token_id=513,
        ))  # fmt: skip
        text.half().save_pretrained(out / "text_encoder")
        (out / "scheduler").mkdir(exist_ok=True)
        (out / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
        write_tokenizer(out / "tokenizer", 514)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(out / "text_encoder").float().eval()
    tokens = tokenizer("", padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids)[0]


def fresh_unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**UNET)
    for task in TASKS:
        unet.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(PROJECTIONS),
                       init_lora_weights="gaussian"), task,
        )  # fmt: skip
    return unet.train()


def loss_of(
    unet: UNet2DConditionModel, pair: tuple[Tensor, Tensor], words: Tensor, rng: np.random.Generator
) -> Tensor:
    """Mean squared error of the velocity for latents x of images and y of maps."""
    x, y = pair
    steps = rng.integers(1000, size=len(x))
    steps[rng.random(len(x)) < LAST] = 999
    t = torch.from_numpy(steps).to(x.device)
    alpha = Schedule.from_config(SCHEDULER).alphas.to(x.device)[t][:, None, None, None]
    with torch.autocast(x.device.type, torch.bfloat16):
        output = unet(mix(y, x, alpha), t, encoder_hidden_states=words.expand(len(x), -1, -1))
    return (output.sample.float() - velocity(y, x, alpha)).square().mean()


def train_step(
    unet: UNet2DConditionModel, latents: Latents, words: Tensor, step: int
) -> dict[str, float]:
    """One batch of each task; gradients are left on the parameters."""
    losses, total = {}, sum(SHARES.values())
    for kind, (task, count) in enumerate(SHARES.items(), 1):
        rng = np.random.default_rng([2, step, kind])
        scenes = rng.integers(len(latents.packed) - 48, size=count)
        unet.set_adapter(task)
        pair = latents(scenes, 0).to(words.device), latents(scenes, kind).to(words.device)
        loss = loss_of(unet, pair, words, rng)
        (loss * count / total).backward()
        losses[task] = loss.item()
    return losses


def trained(unet: torch.nn.Module) -> list[torch.nn.Parameter]:
    for parameter in unet.parameters():
        parameter.requires_grad_(True)
    return list(unet.parameters())


@torch.no_grad()
def save(average: UNet2DConditionModel, out: Path) -> None:
    """Write the averaged UNet without its LoRAs, and the LoRAs, in fp16."""
    for task in TASKS:
        state = get_peft_model_state_dict(average, adapter_name=task)
        (out / "loras").mkdir(parents=True, exist_ok=True)
        plain = {f"unet.{key}": value.half().cpu().contiguous() for key, value in state.items()}
        save_file(plain, out / "loras" / f"{task}.safetensors")
    bare = UNet2DConditionModel(**UNET)
    bare.load_state_dict({
        key.replace(".base_layer", ""): value.cpu()
        for key, value in average.state_dict().items() if ".lora_" not in key
    })  # fmt: skip
    bare.half().save_pretrained(out / "unet")


def train(given: argparse.Namespace, latents: Latents) -> None:
    """Train, and leave UNet and LoRAs in OUT at each checkpoint."""
    words = empty_prompt(given.out).to(given.device)
    unet, average = (fresh_unet().to(given.device) for _ in range(2))
    optimizer = torch.optim.AdamW(trained(unet), RATE, betas=(0.9, 0.99), weight_decay=1e-2)
    course = Course(given.out / "checkpoint.pt", unet, average.requires_grad_(False), optimizer)
    while course.step < given.steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(course.step, given.steps, RATE, 100)
        course.update(train_step(unet, latents, words, course.step), DECAY)
        if course.step % CHECKPOINT == 0 or course.step == given.steps:
            course.save()
            save(average, given.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path)
    parser.add_argument("vae", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10_800)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(given.vae, given.out / "vae", dirs_exist_ok=True)
    vae = AutoencoderKL.from_pretrained(given.vae).half().float().eval().to(given.device)
    packed = np.load(given.packed, mmap_mode="r")
    train(given, Latents(packed, vae, given.out / "latents.npy"))
    vae.half().save_pretrained(given.out / "vae")


if __name__ == "__main__":
    main()
