"""Other backbones and a neighbouring method, by weights.toml alone; what does not fit is refused.

Backbones are those of tests/backbones.py, in the shapes of SD 1.5, SD 2.1 and a community model.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmp_cli import catalogue, tasks
from dmp_cli.backbone import Backbone, read_schedule
from dmp_cli.device import choose
from dmp_cli.errors import ModelError
from dmp_cli.networks.loading import quiet
from tests import backbones
from tests.conftest import Dmp, apart, write_image

SIDE = 64
PROMPT = "a room"
Folders = dict[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A backbone of each shape, and beside it `NAME.safetensors`, a LoRA that fits it."""
    root = tmp_path_factory.mktemp("backbones")
    for name, shape in backbones.SHAPES.items():
        backbones.make_lora(root / f"{name}.safetensors", backbones.make(root / name, shape))
    return {name: root / name for name in backbones.SHAPES}


def lora_of(folder: Path) -> Path:
    return folder.with_suffix(".safetensors")


def entry(backbone: Path, lora: Path, settings: str) -> str:
    """A weights file with the model `mine`, for depth."""
    return (
        f"[models.mine]\nbackbone = {{ path = {json.dumps(str(backbone))} }}\n{settings}\n"
        f"[models.mine.tasks.depth]\nlora = {{ path = {json.dumps(str(lora))} }}\n"
    )


# Plain diffusers ----------------------------------------------------------------------------


def pipeline(folder: Path, lora: Path) -> Any:
    """diffusers' own pipeline from the folder, the LoRA loaded into it by diffusers."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns that these configurations are old
    with quiet():
        made = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
            local_files_only=True, use_safetensors=True,
        )  # fmt: skip
        state = {f"unet.{key}": value for key, value in load_file(lora).items()}
        made.load_lora_weights(state, adapter_name="task")
    logging.set_verbosity(level)
    return made


@torch.inference_mode()
def drawn_by_hand(
    made: Any, image: Path, draw: Callable[[Any, Tensor], Tensor]
) -> NDArray[np.float32]:
    """[h, w, 3] as the VAE decodes it; `draw` gets the pipeline and the latents of the image."""
    pixels = np.asarray(Image.open(image).convert("RGB"), np.float32) / 127.5 - 1
    factor = made.vae.config.scaling_factor
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    x = made.vae.encode(picture).latent_dist.mode() * factor
    decoded = made.vae.decode(draw(made, x) / factor).sample
    return np.asarray(decoded[0].permute(1, 2, 0))


def words(made: Any, prompt: str) -> Tensor:
    return torch.as_tensor(made.encode_prompt(prompt, "cpu", 1, False)[0])


def ddim(
    folder: Path, prediction: str, prompt: str = "", guidance: float = 1.0, steps: int = 5
) -> Callable[[Any, Tensor], Tensor]:
    """Sampling with diffusers' scheduler, as its configuration has the betas."""
    scheduler = DDIMScheduler.from_pretrained(
        folder, subfolder="scheduler", prediction_type=prediction, clip_sample=False,
        timestep_spacing="leading",
    )  # fmt: skip

    def draw(made: Any, z: Tensor) -> Tensor:
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            output = made.unet(z, t, encoder_hidden_states=words(made, "")).sample
            if prompt:
                prompted = made.unet(z, t, encoder_hidden_states=words(made, prompt)).sample
                output = output + guidance * (prompted - output)
            z = scheduler.step(output, t, z).prev_sample
        return z

    return draw


def one_call(t: int, prompt: str) -> Callable[[Any, Tensor], Tensor]:
    """What the UNet says of the image itself, with a prompt and without guidance."""
    return lambda made, x: made.unet(x, t, encoder_hidden_states=words(made, prompt)).sample


# Backbones ----------------------------------------------------------------------------------


CASES = [
    ("sd15", "v_prediction", ""),
    ("sd15", "epsilon", PROMPT),
    ("sd21", "epsilon", ""),
    ("sd21", "v_prediction", PROMPT),
    ("tuned", "sample", PROMPT),
]


@pytest.mark.parametrize(("name", "prediction", "prompt"), CASES)
def test_a_map_is_that_of_plain_diffusers(
    name: str, prediction: str, prompt: str, folders: Folders, dmp: Dmp, tmp_path: Path
) -> None:
    """The scheduler's own prediction_type plays no part: the LoRA's entry says what it predicts."""
    folder, image = folders[name], write_image(tmp_path / "a.png", SIDE, SIDE)
    settings = f'prediction = "{prediction}"\nsize = {SIDE}\nprompt = "{prompt}"'
    weights = tmp_path / "my.toml"
    weights.write_text(entry(folder, lora_of(folder), settings))
    ran = dmp(
        "predict", "depth", image, "-o", tmp_path / "out", "--weights", weights, "--model", "mine",
        "--format", "npy", "--device", "cpu", "--dtype", "fp32",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = np.load(next((tmp_path / "out").rglob("*.npy")))
    drawn = drawn_by_hand(
        pipeline(folder, lora_of(folder)), image, ddim(folder, prediction, prompt, 2.0)
    )
    expected = tasks.find("depth").decode(drawn, tasks.Coding())
    assert found.std() > 0.01
    assert apart(found, expected) < 1e-4


def test_linear_projections_take_the_same_loras(folders: Folders) -> None:
    """SD 2.x has linear layers around its attention: they are no part of a LoRA."""
    shapes = {name: Backbone.load(folders[name], choose("cpu", "fp32")).shapes for name in folders}
    assert shapes["sd15"].keys() == shapes["sd21"].keys()
    assert shapes["sd15"] == shapes["tuned"]
    different = {key for key, shape in shapes["sd15"].items() if shape != shapes["sd21"][key]}
    words_of = ("attn2.to_k", "attn2.to_v")
    assert different == {key for key in shapes["sd15"] if key.endswith(words_of)}


def test_the_schedule_is_read_from_the_backbone(folders: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    shutil.copytree(folders["sd21"] / "scheduler", folder / "scheduler")
    config = folder / "scheduler/scheduler_config.json"
    backbones.change(config, beta_end=0.02, steps_offset=0, set_alpha_to_one=True)
    schedule = read_schedule(folder)
    other = DDIMScheduler.from_pretrained(folder / "scheduler")
    assert torch.equal(schedule.alphas, other.alphas_cumprod)
    assert float(schedule.final_alpha) == 1
    assert schedule.offset == 0


# What does not fit --------------------------------------------------------------------------


def test_a_lora_of_another_stable_diffusion_is_refused(
    folders: Folders, dmp: Dmp, tmp_path: Path
) -> None:
    """Only the words of SD 2.1 are wider: the first of those matrices is the first difference."""
    weights, image = tmp_path / "my.toml", write_image(tmp_path / "a.png")
    weights.write_text(entry(folders["sd15"], lora_of(folders["sd21"]), f"size = {SIDE}"))
    ran = dmp("predict", "depth", image, "-o", tmp_path / "out", "--weights", weights,
              "--model", "mine")  # fmt: skip
    assert ran.code == 5
    said = " ".join(ran.err.split())
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k: down [4, 32]" in said
    assert "do not fit its 24 inputs and 8 outputs" in said
    assert not list(tmp_path.rglob("out/*depth*"))


@pytest.mark.parametrize("name", ["v1-5.safetensors", "v1-5.ckpt"])
def test_a_checkpoint_in_one_file_is_refused(
    name: str, folders: Folders, dmp: Dmp, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"noise")
    weights, image = tmp_path / "my.toml", write_image(tmp_path / "a.png")
    weights.write_text(entry(tmp_path / name, lora_of(folders["sd15"]), f"size = {SIDE}"))
    ran = dmp("predict", "depth", image, "-o", tmp_path / "out", "--weights", weights,
              "--model", "mine")  # fmt: skip
    assert ran.code == 5
    assert name in ran.err
    assert "from_single_file" in ran.err


Damage = Callable[[Path], None]


def config_of(part: str, **changes: Any) -> Damage:
    return lambda folder: backbones.change(folder / part / "config.json", **changes)


def scheduler(**changes: Any) -> Damage:
    return lambda folder: backbones.change(folder / "scheduler/scheduler_config.json", **changes)


def only_scheduler(**config: Any) -> Damage:
    return lambda folder: backbones.write_config(folder / "scheduler/scheduler_config.json", config)


def without(part: str, name: str, key: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / part / f"{name}.safetensors"
        state = load_file(path)
        del state[key]
        save_file(state, path, {"format": "pt"})

    return damage


REFUSED: dict[str, tuple[Damage, str]] = {
    "XL": (
        config_of("unet", addition_embed_type="text_time", addition_time_embed_dim=8),
        "unet: addition_embed_type 'text_time' is not supported",
    ),
    "unclip": (config_of("unet", class_embed_type="projection"), "class_embed_type 'projection'"),
    "upscaler": (config_of("unet", num_class_embeds=1000), "num_class_embeds 1000"),
    "consistency": (config_of("unet", time_cond_proj_dim=256), "time_cond_proj_dim 256"),
    "inpainting": (config_of("unet", in_channels=9), "takes 9 channels and gives 4, its VAE has 4"),
    "video": (
        config_of("unet", _class_name="UNetSpatioTemporalConditionModel"),
        "its class is UNetSpatioTemporalConditionModel, not UNet2DConditionModel",
    ),
    "16 channels": (
        config_of("vae", latent_channels=16), "takes 4 channels and gives 4, its VAE has 16",
    ),
    "no quant_conv": (
        config_of("vae", use_quant_conv=False, use_post_quant_conv=False),
        "vae: use_quant_conv False is not supported",
    ),
    "no weight of quant_conv": (
        without("vae", "diffusion_pytorch_model", "quant_conv.weight"),
        "quant_conv.weight is missing",
    ),
    "shift": (config_of("vae", shift_factor=0.0609), "vae: shift_factor 0.0609 is not supported"),
    "means": (config_of("vae", latents_mean=[0.0] * 4), "latents_mean"),
    "tiny VAE": (config_of("vae", _class_name="AutoencoderTiny"), "its class is AutoencoderTiny"),
    "transparent VAE": (config_of("vae", out_channels=4), "other channels than red, green"),
    "other words": (
        config_of("text_encoder", hidden_size=32),
        "its text encoder gives 32 values for a word, its UNet takes 24",
    ),
    "zero SNR": (scheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
    "cosine": (scheduler(beta_schedule="squaredcos_cap_v2"), "schedule is 'squaredcos_cap_v2'"),
    "continuous": (scheduler(timestep_type="continuous"), "its timestep_type is 'continuous'"),
    "flow": (
        only_scheduler(_class_name="FlowMatchEulerDiscreteScheduler", shift=3.0),
        "FlowMatchEulerDiscreteScheduler that is not supported: it states no beta_schedule",
    ),
    "flow with betas": (scheduler(use_flow_sigmas=True), "not supported: it is of a flow model"),
    "no betas": (
        only_scheduler(beta_schedule="linear"), "it states no beta_start and beta_end",
    ),
    "no signal left": (scheduler(trained_betas=[0.1, 1.0]), r"are not all in \(0, 1\)"),
    "no number": (scheduler(beta_start="a"), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_kind_of_network_is_refused_by_name(
    case: str, folders: Folders, tmp_path: Path
) -> None:
    damage, message = REFUSED[case]
    folder = Path(shutil.copytree(folders["tuned"], tmp_path / "sd"))
    damage(folder)
    with pytest.raises(ModelError, match=message) as raised:
        Backbone.load(folder, choose("cpu", "fp32"))
    assert str(folder) in str(raised.value)
    assert raised.value.hint


def test_a_refused_backbone_ends_the_run(folders: Folders, dmp: Dmp, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["sd15"], tmp_path / "sd"))
    REFUSED["XL"][0](folder)
    weights, image = tmp_path / "my.toml", write_image(tmp_path / "a.png")
    weights.write_text(entry(folder, lora_of(folders["sd15"]), f"size = {SIDE}"))
    ran = dmp("predict", "depth", image, "-o", tmp_path / "out", "--weights", weights,
              "--model", "mine")  # fmt: skip
    assert ran.code == 5
    assert "addition_embed_type 'text_time'" in ran.err
    assert "Stable Diffusion 1.x or 2.x is needed" in " ".join(ran.err.split())


# Intrinsic LoRA -----------------------------------------------------------------------------


INTRINSIC = catalogue.packaged()["models"]["intrinsic-lora"]
PROMPTS = {
    "depth": "depth map", "normals": "surface normal", "albedo": "albedo", "shading": "shading",
}  # fmt: skip


def test_intrinsic_lora_is_never_a_default() -> None:
    assert "intrinsic-lora" not in catalogue.packaged()["default"]
    assert "not tried" in INTRINSIC["summary"]


def test_intrinsic_lora_names_a_file_for_each_task() -> None:
    found = {task: own["lora"] for task, own in INTRINSIC["tasks"].items()}
    files = {"depth": "depth", "normals": "normal", "albedo": "albedo", "shading": "shading"}
    assert found == {
        task: {"repo": "neph1/intrinsic_lora", "file": f"intrinsic_lora_{name}.safetensors"}
        for task, name in files.items()
    }


def test_intrinsic_lora_is_one_call_at_the_last_t(
    folders: Folders, dmp: Dmp, tmp_path: Path
) -> None:
    """The packaged entry on a tiny SD 1.5 and rank 8 files: each task has its LoRA and prompt."""
    image, folder = write_image(tmp_path / "a.png", SIDE, SIDE), folders["sd15"]
    lines = [
        "[models.intrinsic-lora]",
        f"backbone = {{ path = {json.dumps(str(folder))} }}\nsize = {SIDE}",
    ]
    files = {}
    for seed, task in enumerate(PROMPTS):
        files[task] = backbones.make_lora(tmp_path / f"{task}.safetensors", folder, 8, seed)
        lines.append(f"[models.intrinsic-lora.tasks.{task}]")
        lines.append(f"lora = {{ path = {json.dumps(str(files[task]))} }}")
    weights = tmp_path / "my.toml"
    weights.write_text("\n".join(lines))
    ran = dmp(
        "predict", ",".join(PROMPTS), image, "-o", tmp_path / "out", "--weights", weights,
        "--model", "intrinsic-lora", "--format", "npy", "--device", "cpu", "--dtype", "fp32",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    for task, prompt in PROMPTS.items():
        drawn = drawn_by_hand(pipeline(folder, files[task]), image, one_call(999, prompt))
        coding = tasks.Coding(scale=1.0, emits="opencv", bright="near")
        expected = tasks.find(task).decode(drawn, coding)
        found = np.load(next((tmp_path / "out").rglob(f"*{task}*.npy")))
        assert apart(found, expected) < 1e-4, task
