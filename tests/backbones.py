"""Tiny Stable Diffusion folders, random, in the shapes of their repositories on the Hub.

Configurations hold the fields that those repositories hold, with small numbers, so what they leave
out is left out here as well. What the repositories have beside is there too: extra folders, files
in half precision, pickles (here of noise: whoever reads one fails).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from dmp_cli.lora import PROJECTIONS
from dmp_cli.untrained import write_tokenizer

Config = dict[str, Any]
State = dict[str, Tensor]

BETAS: Config = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "trained_betas": None,
}  # fmt: skip
UNET: Config = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "attention_head_dim": 2, "block_out_channels": [8, 16], "center_input_sample": False,
    "cross_attention_dim": 24, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 4,
    "out_channels": 4, "sample_size": 64, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
VAE: Config = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4, "out_channels": 3,
    "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
TEXT: Config = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0,
    "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 24,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 48,
    "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 1, "projection_dim": 24,
    "torch_dtype": "float32", "transformers_version": "4.22.0.dev0", "vocab_size": 514,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What a repository has that others have not."""

    seed: int
    scheduler: Config
    unet: Config = field(default_factory=dict)
    vae: Config = field(default_factory=dict)
    text: Config = field(default_factory=dict)
    pad: str = "<|endoftext|>"
    old: bool = False  # the older names of the VAE's attention, files beside, a buffer too many


SD15 = Shape(
    seed=15,
    scheduler={
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False,
    },
    old=True,
)  # fmt: skip
# The text encoder of SD 2.x has a layer less than it was trained with: its last but one gives the
# embeddings, and its configuration says so by `num_hidden_layers` alone.
SD21 = Shape(
    seed=21,
    scheduler={
        "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "clip_sample": False,
        "prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1,
    },
    unet={
        "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [1, 2],
        "cross_attention_dim": 32, "dual_cross_attention": False, "num_class_embeds": None,
        "only_cross_attention": False, "sample_size": 96, "upcast_attention": True,
        "use_linear_projection": True,
    },
    vae={"sample_size": 768, "scaling_factor": 0.18215},
    text={
        "hidden_act": "gelu", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "projection_dim": 16,
    },
    pad="!",
)  # fmt: skip
# A community model: other weights, saved by a later diffusers with another scheduler.
TUNED = Shape(
    seed=7,
    scheduler={
        "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.17.0.dev0",
        "clip_sample": False, "interpolation_type": "linear", "prediction_type": "epsilon",
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "timestep_spacing": "leading", "use_karras_sigmas": False, "rescale_betas_zero_snr": False,
    },
    vae={"scaling_factor": 0.18215, "force_upcast": True},
    text={"num_hidden_layers": 1},
)  # fmt: skip
SHAPES = {"sd15": SD15, "sd21": SD21, "tuned": TUNED}


def make(folder: Path, shape: Shape) -> Path:
    """A backbone of that shape in a new folder, which is returned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        unet = UNet2DConditionModel.from_config(UNET | shape.unet)
        vae = AutoencoderKL.from_config(VAE | shape.vae)
        text = CLIPTextModel(CLIPTextConfig(**(TEXT | shape.text)))
    _write(folder / "unet", "diffusion_pytorch_model", UNET | shape.unet, unet.state_dict(), shape)
    state = vae.state_dict()
    state = {_old_name(key): value for key, value in state.items()} if shape.old else state
    _write(folder / "vae", "diffusion_pytorch_model", VAE | shape.vae, state, shape)
    # transformers 5 leaves out this prefix; files on the Hub have it
    state = {f"text_model.{key}": value for key, value in text.state_dict().items()}
    if shape.old:
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    _write(folder / "text_encoder", "model", TEXT | shape.text, state, shape)
    _write_tokenizer(folder / "tokenizer", shape.pad)
    write_config(folder / "scheduler/scheduler_config.json", BETAS | shape.scheduler)
    write_config(folder / "model_index.json", _index(shape))
    if shape.old:
        write_config(folder / "safety_checker/config.json", {"model_type": "clip"})
        write_config(folder / "feature_extractor/preprocessor_config.json", {"crop_size": 224})
        (folder / "safety_checker/pytorch_model.bin").write_bytes(b"noise")
        (folder / "v1-5-pruned-emaonly.safetensors").write_bytes(b"noise")
    return folder


def _old_name(key: str) -> str:
    """The name that diffusers had for a weight of the VAE's attention until its version 0.16."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in names.items():
        key = key.replace(f".{new}.", f".{old}.")
    return key


def _write(folder: Path, name: str, config: Config, state: State, shape: Shape) -> None:
    folder.mkdir(parents=True)
    write_config(folder / "config.json", config)
    kept = {key: value.contiguous() for key, value in state.items()}
    save_file(kept, folder / f"{name}.safetensors", {"format": "pt"})
    if shape.old:
        half = {key: v.half() if v.is_floating_point() else v for key, v in kept.items()}
        save_file(half, folder / f"{name}.fp16.safetensors", {"format": "pt"})
        pickle = "pytorch_model" if name == "model" else name
        (folder / f"{pickle}.bin").write_bytes(b"noise")


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """A configuration as JSON, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n")


def change(path: Path, **changes: Any) -> None:
    """Change entries of a configuration that is there."""
    write_config(path, json.loads(path.read_text()) | changes)


def _write_tokenizer(folder: Path, pad: str) -> None:
    """As repositories have it: tokens with their properties, and once more in a map."""
    write_tokenizer(folder, TEXT["vocab_size"])

    def token(content: str) -> Config:
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False,
                "single_word": False}  # fmt: skip

    special = {
        "bos_token": token("<|startoftext|>"), "eos_token": token("<|endoftext|>"),
        "unk_token": token("<|endoftext|>"),
    }  # fmt: skip
    write_config(folder / "special_tokens_map.json", special | {"pad_token": pad})
    typed = {name: {"__type": "AddedToken", **value} for name, value in special.items()}
    write_config(
        folder / "tokenizer_config.json",
        typed | {
            "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
            "model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer",
        },
    )  # fmt: skip


def make_tiny_decoder(
    folder: Path, channels: int = 4, levels: int = 4, seed: int = 0, **changes: Any
) -> Path:
    """A random decoder in the layout of TAESD's repository, for `levels` of a VAE's blocks."""
    config: Config = {
        "_class_name": "AutoencoderTiny", "_diffusers_version": "0.20.0.dev0", "act_fn": "relu",
        "decoder_block_out_channels": [8] * levels, "encoder_block_out_channels": [4] * levels,
        "force_upcast": False, "in_channels": 3, "latent_channels": channels,
        "latent_magnitude": 3, "latent_shift": 0.5, "num_decoder_blocks": [1] * levels,
        "num_encoder_blocks": [1] * levels, "out_channels": 3, "scaling_factor": 1.0,
        "upsampling_scaling_factor": 2,
    }  # fmt: skip
    config |= changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoencoderTiny.from_config(config)
        for layer in network.decoder.modules():
            if isinstance(layer, nn.Conv2d):  # or its pictures would be nearly flat
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    folder.mkdir(parents=True)
    write_config(folder / "config.json", config)
    save_file(network.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


def _index(shape: Shape) -> Config:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"] if shape.old else [None, None]
    extractor = ["transformers", "CLIPImageProcessor"] if shape.old else [None, None]
    return {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
        "feature_extractor": extractor, "safety_checker": checker,
        "scheduler": ["diffusers", shape.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", UNET["_class_name"]],
        "vae": ["diffusers", VAE["_class_name"]],
    }  # fmt: skip


def make_lora(path: Path, backbone: Path, rank: int = 4, seed: int = 0) -> Path:
    """A random LoRA in the official layout that fits a backbone's folder."""
    config = json.loads((backbone / "unet/config.json").read_text())
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, module in UNet2DConditionModel.from_config(config).named_modules():
        if isinstance(module, nn.Linear) and name.endswith(PROJECTIONS):
            attention, to = name.removesuffix(".0").rsplit(".", 1)
            down = torch.randn(rank, module.in_features, generator=generator)
            up = torch.randn(module.out_features, rank, generator=generator)
            key = f"{attention}.processor.{to}_lora"
            state[f"{key}.down.weight"] = down / module.in_features**0.5
            state[f"{key}.up.weight"] = up / rank
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path
