"""Whether a folder in diffusers' layout is a Stable Diffusion that dmp runs, by its config files.

A network of another kind often loads without an error, and then fails late or draws nonsense. So
what such networks have is refused by its name, before gigabytes are read. What is not stated in a
config file has the default of the class in diffusers or transformers that reads it.
"""

import json
from pathlib import Path
from typing import Any

from dmp_cli.errors import ModelError

Config = dict[str, Any]

_NEEDED = (
    "a plain text-to-image Stable Diffusion 1.x or 2.x is needed, not one for inpainting or "
    "editing, and not XL, 3 or a distilled one with inputs of its own"
)
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
# What a network has beside latents, time and words, or beside one factor for its latents: dmp would
# leave it out. With the values that mean "nothing".
_UNKNOWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "unet": {
        "addition_embed_type": (None,),  # Stable Diffusion XL: "text_time"
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "encoder_hid_dim_type": (None,),
        "encoder_hid_dim": (None,),
        "time_cond_proj_dim": (None,),  # latent consistency models: the strength of guidance
    },
    "vae": {
        "shift_factor": (None, 0),  # Stable Diffusion 3
        "latents_mean": (None,),
        "latents_std": (None,),
        "use_quant_conv": (None, True),
        "use_post_quant_conv": (None, True),
    },
}


def check(folder: Path) -> None:
    """ModelError with the folder of the part and what in it dmp does not support.

    What a config file that is missing or broken raises, it raises.
    """
    parts = ("unet", "vae", "text_encoder")
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in parts}
    for part, name in _CLASSES.items():
        found = configs[part].get("_class_name", name)
        if found != name:
            raise _refused(folder / part, f"its class is {found}, not {name}")
        for key, nothing in _UNKNOWN[part].items():
            if configs[part].get(key) not in nothing:
                raise _refused(folder / part, f"{key} {configs[part][key]!r} is not supported")
    _check_fit(folder, configs["unet"], configs["vae"], configs["text_encoder"])


def _check_fit(folder: Path, unet: Config, vae: Config, text: Config) -> None:
    """That the parts fit each other: an inpainting model has more channels, and so on."""
    latents = vae.get("latent_channels", 4)
    takes, gives = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if (takes, gives) != (latents, latents):
        raise _refused(
            folder, f"its UNet takes {takes} channels and gives {gives}, its VAE has {latents}"
        )
    if (vae.get("in_channels", 3), vae.get("out_channels", 3)) != (3, 3):
        raise _refused(folder / "vae", "its pictures have other channels than red, green and blue")
    words, width = text.get("hidden_size", 512), unet.get("cross_attention_dim", 1280)
    if words != width:
        raise _refused(
            folder, f"its text encoder gives {words} values for a word, its UNet takes {width}"
        )


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(f"{path}: {why}", _NEEDED)
