"""A tiny Stable Diffusion with random weights, made on the spot: to see dmp at work without any."""

import json
import secrets
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from dmp_cli import lora
from dmp_cli.errors import ResourceError

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def make(folder: Path) -> Path:
    """Make the backbone in `folder`, unless it is there, and return it; whole or not at all.

    ResourceError if the folder cannot be written.
    """
    if not folder.exists():
        temporary = _temporary(folder)
        try:
            _fill(temporary)
            temporary.replace(folder)
        except OSError as error:
            if not folder.exists():  # else another process made it meanwhile
                raise ResourceError(
                    f"{folder} cannot be written: {error.strerror}",
                    "set $DMP_HOME to a folder that can be",
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}-{secrets.token_hex(8)}.part")


def make_lora(path: Path, backbone: Path) -> Path:
    """Make a random rank-4 LoRA for that backbone, unless it is there; its name is its seed."""
    if not path.exists():
        unet = UNet2DConditionModel.from_config(
            json.loads((backbone / "unet/config.json").read_text())
        )
        generator = torch.Generator().manual_seed(sum(path.stem.encode()))
        state = {}
        for name, module in unet.named_modules():
            if name.endswith(lora.PROJECTIONS):
                down = torch.randn(4, module.in_features, generator=generator)
                up = torch.randn(module.out_features, 4, generator=generator)
                state[f"unet.{name}.lora_A.weight"] = down / module.in_features**0.5
                state[f"unet.{name}.lora_B.weight"] = up / 4
        temporary = _temporary(path)
        save_file(state, temporary)
        temporary.replace(path)
    return path


def _fill(folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32, 32, 32), attention_head_dim=4, cross_attention_dim=32,
            norm_num_groups=8, sample_size=64,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 16, 16, 16), layers_per_block=2, norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4, sample_size=512,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=514, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, projection_dim=32, bos_token_id=512, eos_token_id=513,
            pad_token_id=513,
        ))  # fmt: skip
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text.save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    write_tokenizer(folder / "tokenizer", 514)


def write_tokenizer(folder: Path, size: int) -> None:
    """A CLIP tokenizer that knows single bytes only, its vocabulary filled up to `size` words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [
        chr(256 + i) for i in range(256 - len(printable))
    ]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"<|unused{i}|>" for i in range(size - 2 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
