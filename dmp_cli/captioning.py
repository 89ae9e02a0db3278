"""Images -> captions, by an image-captioning model of transformers that is let go afterwards."""

import gc
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from dmp_cli import digests, hub, images, prompts, storage
from dmp_cli.device import Placement, choose, out_of_memory
from dmp_cli.download import Moved
from dmp_cli.engines.stream import batches, ordered_map
from dmp_cli.errors import ImageError, ModelError, ResourceError
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Job
from dmp_cli.networks.loading import as_model_error, quiet
from dmp_cli.plan import Plan

KINDS = ("blip", "git")  # model_type of those that caption an image without being asked a question
_FILES = ("*.json", "model*.safetensors", "vocab.txt")
_WORDS = ("tokenizer.json", "vocab.txt")
_TOKENS = 40  # at most, of a caption
_BATCH = 8  # images at once on CUDA; elsewhere one
_SIDE = 1024  # pixels: the models look at 384 or less
_HINT = (
    f"--caption-model is a repository or folder of transformers ({' or '.join(KINDS)}) with "
    "config.json, safetensors, and the files of its processor"
)

# A repository and the bytes to come -> what is told of each part
Told = Callable[[str, int], AbstractContextManager[Moved]]


class Captioner:
    """An image-captioning model on one device."""

    def __init__(self, folder: Path, placement: Placement) -> None:
        """From a folder as transformers saves it, safetensors only; no code of it is run.

        ModelError names the folder and what is wrong in it.
        """
        _check_files(folder)
        how = {"local_files_only": True, "trust_remote_code": False}
        with as_model_error(folder, _HINT), quiet(), _silent():
            self._processor = AutoProcessor.from_pretrained(folder, **how)
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, dtype=placement.dtype, output_loading_info=True, **how
            )
            if report["missing_keys"]:
                raise ModelError(f"{folder}: {sorted(report['missing_keys'])[0]} is missing", _HINT)
            self._model = model.to(placement.device).eval().requires_grad_(False)
        self._placement = placement

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """What RGB pictures show, in a line each: greedy decoding, so always the same."""
        pixels = self._processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        with _silent():
            tokens = self._model.generate(
                pixel_values=pixels.to(self._placement.device, self._placement.dtype),
                max_new_tokens=_TOKENS, do_sample=False, num_beams=1,
            )  # fmt: skip
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [prompts.tidy(text) for text in texts]


def run(todo: Sequence[Job], folder: Path, plan: Plan) -> Iterator[tuple[Job, str]]:
    """Caption the images of jobs, as each is done; one that cannot be read is left out.

    The model in `folder` runs where the plan says, and is let go at the end, whatever that is.
    ModelError for a model that cannot be loaded, ResourceError if there is no memory for it.
    """
    placement = choose(plan.device, plan.dtype)
    batch = plan.together or (_BATCH if placement.device.type == "cuda" else 1)
    captioner: Captioner | None = None
    try:
        captioner = Captioner(folder, placement)
        with closing(Clips(plan.max_pixels)) as clips:
            read = ordered_map(
                partial(_read, plan, clips), todo, plan.readers, 2 * (batch + plan.readers)
            )
            pictures = ((job, picture) for job, picture in read if picture)
            for group in batches(pictures, lambda _: None, lambda: batch, batch):
                texts = captioner([picture for _, picture in group])
                yield from ((job, text) for (job, _), text in zip(group, texts, strict=True))
    except torch.AcceleratorError as error:
        first = str(error).strip().split("\n")[0]
        raise ResourceError(f"the accelerator failed: {first}", "run it again") from error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"{folder}: not enough memory on {placement.device} to caption {batch} at once",
            "use a smaller --batch or --caption-model, or --device cpu",
        ) from error
    finally:
        captioner = None
        gc.collect()
        if placement.device.type == "cuda":
            torch.cuda.empty_cache()


def _read(plan: Plan, clips: Clips, job: Job) -> tuple[Job, Image.Image | None]:
    """A picture of a job, small enough to be held in numbers; None if it cannot be read."""
    try:
        if job.frame is None:
            how = {"background": plan.background, "exposure": plan.exposure}
            with storage.fetched(job.source) as file:
                pixels = images.read(file, plan.max_pixels, **how).rgb  # type: ignore[arg-type]
        else:
            pixels = clips.frame(job.source, job.frame)
    except ImageError:  # told when its turn comes to be predicted
        return job, None
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    return job, picture


# The model --------------------------------------------------------------------------------


def model_folder(name: str, told: Told) -> Path:
    """The folder of a captioning model: `name` itself, or a Hub repository's, fetched if need be.

    `told` hears of what has to be fetched. ModelError names what is not to be had, or a file of
    the Hub's cache that is damaged.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII):
        raise ModelError(f"--caption-model {name}: no such folder", _HINT)
    repository = hub.Repository(name, command=f"hf download {name} --exclude '*.bin' '*.h5'")
    folder = hub.snapshot(repository, _FILES)
    if folder and _is_whole(folder):
        _check_hashes(folder)
        return folder
    hub.require(repository, "config.json")
    listing = hub.listing(repository).matching(_FILES)
    wanted = replace(listing, files=tuple(row for row in listing.files if "/" not in row.name))
    if not any(row.name.endswith(".safetensors") for row in wanted.files):
        raise ModelError(f"{name}: holds no safetensors, and no pickle is read", _HINT)
    to_come = sum(hub.lacking(wanted).values())
    hub.check_room(to_come)
    with told(name, to_come) as moved:
        return hub.fetch(wanted, moved)


def _is_whole(folder: Path) -> bool:
    """Whether the weights that a folder should have are there; the loader tells of the rest."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return all((folder / name).is_file() for name in ("config.json", *names))


def _check_hashes(folder: Path) -> None:
    """ModelError for the first file of the cache that has not the hash by which it is kept."""
    stated = {path: [known] for path in sorted(folder.iterdir()) if (known := hub.digest_of(path))}
    for path, (expected, found) in digests.wrong(stated).items():
        raise ModelError(
            f"{path}: wrong hash: expected {expected}, found {found}",
            f"it is damaged: delete {path.resolve()}, then run the same command again",
        )


def _check_files(folder: Path) -> None:
    """ModelError for a model that answers questions, is none of images, or has no words."""
    with as_model_error(folder, _HINT):
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in KINDS:
        raise ModelError(f"{folder}: a model of kind {kind!r} does not caption images", _HINT)
    if not any((folder / name).is_file() for name in _WORDS):  # transformers would make up a few
        raise ModelError(f"{folder}: holds neither {' nor '.join(_WORDS)}", _HINT)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep remarks of transformers on settings that it does not use out of the user's terminal."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
