"""Predictor: images -> maps. The one path that the command, the engines and the API all take."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dmp_cli import classes, header, images, sources, store, tasks, weights
from dmp_cli.backbone import Backbone, quiet, read_schedule
from dmp_cli.device import Placement, choose, memory, out_of_memory
from dmp_cli.diffusion import Sampling, sample
from dmp_cli.errors import ImageError, ResourceError, UsageError
from dmp_cli.outputs import panels
from dmp_cli.plan import Options, Plan, Settings
from dmp_cli.sources import Source
from dmp_cli.weights import Recipe

Array = NDArray[Any]
Drawn = Array | ImageError  # what the network drew: float32 [h, w, 3] around [-1, 1]

TOO_LONG = "is longer than the 77 tokens that the network takes: the rest is cut"
_RESERVE, _PER_IMAGE = 3 << 30, 1 << 30  # bytes of a CUDA device; per 512 x 512 image
_MOST = 8  # images at once, chosen automatically
_LARGEST = 16_000_000  # pixels of the network's picture with size 0


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it: uint8 [h, w, 3] for each `size` that a task asks for."""

    height: int  # of the upright input
    width: int
    pictures: Mapping[int, Array]
    notes: tuple[str, ...] = ()
    prompt: str | None = None  # of this image, "" for none; None: that of the recipe
    shown: Array | None = None  # the input for pictures that show it beside its maps

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """Images of equal shape can be one batch."""
        return tuple(picture.shape for picture in self.pictures.values())


class Predictor:
    """A backbone and the LoRAs of one or several tasks, loaded once, for image after image.

    >>> depth = Predictor("depth", model="dmp", steps=5)("room.jpg")  # float32 [H, W], metres
    >>> maps = Predictor("depth,normals")(picture)  # {"depth": ..., "normals": ...}
    """

    def __init__(self, tasks: str | Sequence[str], **options: Unpack[Options]) -> None:
        """`tasks`: names with commas, or a list of them. `options`: fields of Plan and Settings.

        Most used: model, weights (a file), device, dtype, steps, size, prompt, axes. Raises
        UsageError for what makes no sense, ModelError for a model that is not to be had or not
        valid, ResourceError for a device that is not there.
        """
        self._open(plan_of(tasks, **options))
        self._single = isinstance(tasks, str) and "," not in tasks

    @classmethod
    def from_plan(cls, plan: Plan) -> "Predictor":
        """The predictor that a plan asks for, as an engine makes it in its worker."""
        self = cls.__new__(cls)
        self._open(plan)
        self._single = False
        return self

    @classmethod
    def around(cls, backbone: Backbone, recipe: Recipe) -> "Predictor":
        """A predictor of one task with a backbone that has its LoRA, named as the task, on it."""
        self = cls.__new__(cls)
        self._describe(Plan((recipe.task,)), [recipe])
        self.placement, self._backbone = backbone.placement, backbone
        self.digests, self.notes, self.batch, self._single = {}, (), 1, True
        return self

    def _describe(self, plan: Plan, recipes: Sequence[Recipe]) -> None:
        self.plan = plan
        self._tasks = {name: tasks.find(name) for name in plan.tasks}
        self.recipes = {recipe.task: recipe for recipe in recipes}
        self._classes = {
            recipe.task: classes.parse_classes(plan.classes or recipe.classes) for recipe in recipes
        }

    def _open(self, plan: Plan) -> None:
        self._describe(plan, [weights.completed(recipe) for recipe in weights.recipes(plan)])
        try:
            self.placement = choose(plan.device, plan.dtype)
            self._backbone, self.digests, self.notes = _load(self.recipes, self.placement)
            self.batch = plan.batch or self._batch_for_memory()
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            raise ResourceError(
                f"the model cannot be loaded on {plan.device}: {_first_line(error)}",
                "free the accelerator's memory, or use --device cpu",
            ) from error

    def _batch_for_memory(self) -> int:
        available = memory(self.placement.device)
        if available is None:
            return 1
        area = max(recipe.size or 1024 for recipe in self.recipes.values()) ** 2
        each = _PER_IMAGE * area / 512**2
        return int(min(max((available[0] - _RESERVE) // each, 1), _MOST))

    def __call__(self, image: Image.Image | Array | str | Path, prompt: str | None = None) -> Any:
        """The map of an image, at its size: a numpy array as tasks.py describes it for the task.

        `image` is a path, a Pillow image, or an array [H, W, 3] (uint8, uint16, or sRGB-coded
        floats in [0, 1]). `prompt` is of this image alone, "" for none; without it that of the
        predictor is taken. With several tasks, a dict of maps by task. Raises ImageError.
        """
        prepared = self.prepare(image, prompt)
        drawn = self.draw([prepared])[0]
        maps = {task: self.finish(task, drawn[task], prepared) for task in self.plan.tasks}
        return maps[self.plan.tasks[0]] if self._single else maps

    def prepare(
        self, image: Image.Image | Array | str | Path, prompt: str | None = None
    ) -> Prepared:
        """Read an image, turn it upright and bring it to the network's size. Any thread."""
        behind = self.plan.background
        if isinstance(image, str | Path):
            pixels = images.read(
                Path(image), self.plan.max_pixels, background=behind, exposure=self.plan.exposure
            )
        elif isinstance(image, Image.Image):
            pixels = images.upright(image, background=behind)
        else:
            pixels = images.from_array(np.asarray(image), background=behind)
        height, width = pixels.rgb.shape[:2]
        pictures = {}
        for size in sorted({recipe.size for recipe in self.recipes.values()}):
            fitted = images.fitted_size(height, width, size, self._backbone.multiple)
            if fitted[0] * fitted[1] > max(_LARGEST, images.BUDGET * size * size):
                raise ImageError(f"{width}x{height} is too large for --size 0; give a --size")
            pictures[size] = images.fit(pixels.rgb, fitted)
        shown = images.fit(pixels.rgb, panels.lowered(height, width)) if self._shows() else None
        return Prepared(height, width, pictures, pixels.notes, prompt, shown)

    def _shows(self) -> bool:
        return bool(self.plan.output.thumbnail or self.plan.output.side_by_side)

    def draw(self, batch: Sequence[Prepared]) -> list[dict[str, Drawn]]:
        """What the network draws for images of equal shape: by task, for each image.

        Out of memory, the batch is halved for good. An image whose result is not finite, or for
        which alone there is no memory, has an ImageError in place of its picture.
        """
        try:
            return self._draw(batch)
        except torch.AcceleratorError as error:
            raise ResourceError(
                f"the accelerator failed: {_first_line(error)}", "run it again"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if len(batch) == 1:
            failed = ImageError(f"out of memory on {self.placement.device}", "use a smaller --size")
            return [dict.fromkeys(self.plan.tasks, failed)]
        half = (len(batch) + 1) // 2
        self.batch = min(self.batch, half)
        return self.draw(batch[:half]) + self.draw(batch[half:])

    @torch.inference_mode()
    def _draw(self, batch: Sequence[Prepared]) -> list[dict[str, Drawn]]:
        drawn: list[dict[str, Drawn]] = [{} for _ in batch]
        latents = {}
        for task, recipe in self.recipes.items():
            if recipe.size not in latents:
                pictures = np.stack([image.pictures[recipe.size] for image in batch])
                pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
                latents[recipe.size] = self._backbone.encode(pixels.float() / 127.5 - 1)
            prompts = [recipe.prompt if one.prompt is None else one.prompt for one in batch]
            decoded = self._backbone.decode(self._sample(recipe, latents[recipe.size], prompts))
            for result, picture in zip(
                drawn, decoded.permute(0, 2, 3, 1).cpu().numpy(), strict=True
            ):
                finite = bool(np.isfinite(picture).all())
                result[task] = picture if finite else self._not_finite(task)
        return drawn

    def _not_finite(self, task: str) -> ImageError:
        dtype = self.placement.dtype_name
        return ImageError(f"{task}: the output is not finite in {dtype}", "try --dtype fp32")

    def _sample(
        self, recipe: Recipe, latents: torch.Tensor, prompts: Sequence[str]
    ) -> torch.Tensor:
        self._backbone.use_lora(recipe.task)
        # with a text, the recipe's guidance may be another; it is the same for every text
        guidance = next((weights.prompted(recipe, text).guidance for text in prompts if text), 1.0)
        return sample(
            lambda z, t: self._backbone.predict(z, t, prompts, guidance),
            latents,
            self._backbone.schedule,
            sampling(recipe),
        )

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt has more tokens than the network takes. The thread of `draw` only."""
        return self._backbone.cuts(prompt)

    def finish(self, task: str, drawn: Drawn, image: Prepared) -> Array:
        """The map that a drawn picture stands for, at the size of the input. Any thread.

        Decoded at the network's size and then resized: ids must not be mixed, and a map of one
        channel is a third of the work.
        """
        if isinstance(drawn, ImageError):
            raise drawn
        row, recipe = self._tasks[task], self.recipes[task]
        coding = tasks.Coding(
            recipe.scale, recipe.normals, self.plan.axes, self._classes[task], recipe.bright
        )
        decoded = row.decode(drawn, coding)
        full = images.resize(decoded, (image.height, image.width), nearest=row.labels)
        return tasks.unit_vectors(full) if row.unit_length else full


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]


def sampling(recipe: Recipe) -> Sampling:
    """How a recipe samples, as the equations take it."""
    return Sampling(**{key: getattr(recipe, key) for key in Sampling.__dataclass_fields__})


def plan_of(names: str | Sequence[str], **options: Unpack[Options]) -> Plan:
    """A plan from task names and the fields of Plan and Settings; UsageError for an unknown one."""
    given: dict[str, Any] = dict(options)
    unknown = sorted(set(given) - set(Options.__annotations__))
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!r}")
    settings = {key: given.pop(key) for key in Settings.__dataclass_fields__ if key in given}
    if given.get("weights") is not None:
        given["weights"] = os.fspath(given["weights"])
    rows = tasks.find_several(names)
    return Plan(tuple(row.name for row in rows), settings=Settings(**settings), **given)


def find_backbone(source: Source, half: bool) -> tuple[Path, str | None]:
    """(folder, variant) of a backbone on this machine, its hashes checked where known.

    It is fetched or made if need be.
    """
    if not source.made:
        found = sources.backbone_folder(source, half)
        sources.check(source, sources.backbone_stated(source, half))
        return found
    from dmp_cli import untrained

    with quiet():
        return untrained.make(store.home() / "untrained"), None


def _lora_file(recipe: Recipe, backbone: Path) -> Path:
    if not recipe.lora.made:
        return sources.lora_file(recipe.lora)
    from dmp_cli import untrained

    return untrained.make_lora(backbone / f"{recipe.lora.made}.safetensors", backbone)


def _of_others(files: Mapping[str, Path], folder: Path, variant: str | None) -> tuple[str, ...]:
    """A remark on each LoRA whose file says that it was trained on another UNet than a folder's.

    No refusal: in half precision, or saved anew, the same weights are another file.
    """
    told = {path: header.read(path).get("backbone_sha256") for path in files.values()}
    if not any(told.values()):
        return ()
    used = sources.weight_file(folder, "unet", variant)
    here = sources.sha256(used)
    strange = {path: other for path, other in told.items() if other not in (None, here)}
    if strange:  # perhaps the other precision, which lies beside it
        beside = {sources.sha256(path) for path in used.parent.glob("*.safetensors")}
        strange = {path: other for path, other in strange.items() if other not in beside}
    return tuple(
        f"{path} was trained on a UNet with sha256 {other}, and {used} has {here}: unless those "
        "are the same weights in another precision, its maps mean nothing"
        for path, other in strange.items()
    )


def _load(
    chosen: Mapping[str, Recipe], placement: Placement
) -> tuple[Backbone, dict[str, str], tuple[str, ...]]:
    """The backbone with each task's LoRA on it, the sha256 of each LoRA file, and remarks."""
    first = next(iter(chosen.values()))
    folder, variant = find_backbone(first.backbone, placement.dtype_name == "fp16")
    files = {task: _lora_file(recipe, folder) for task, recipe in chosen.items()}
    schedule = read_schedule(folder)
    for recipe in chosen.values():
        schedule.timesteps(sampling(recipe))  # refuses steps that are not there
    prompts = [recipe.prompt for recipe in chosen.values()]
    backbone = Backbone.load(folder, placement, prompts, variant)
    digests = {}
    for task, path in files.items():
        backbone.add_lora(task, path)
        digests[task] = sources.sha256(path)
    cut = tuple(
        f"the prompt of {recipe.task} {TOO_LONG}"
        for recipe in chosen.values()
        if recipe.prompt and backbone.cuts(recipe.prompt)
    )
    return backbone, digests, cut + _of_others(files, folder, variant)
