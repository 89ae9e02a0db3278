"""Predictor: images -> maps. The one path that the command, the engines and the API all take."""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image

from dmp_cli import allocation, decoders, header, sources, store, tasks, weights
from dmp_cli.backbone import Backbone, read_schedule
from dmp_cli.catalogue import DECODER
from dmp_cli.device import choose, for_network, lost, memory, out_of_memory
from dmp_cli.diffusion import Sampling, sample
from dmp_cli.errors import DeviceError, ImageError, ResourceError, UsageError
from dmp_cli.host import TOO_LONG, Again, Array, Drawn, Host, Prepared, completed
from dmp_cli.networks.fetching import fetch, send
from dmp_cli.networks.loading import quiet
from dmp_cli.plan import Options, Plan, Settings
from dmp_cli.sources import Source
from dmp_cli.weights import Recipe

NOT_FINITE = "the output is not finite in"
_Found = dict[str, tuple[Array, bool]]  # of an image, by task: what was drawn, is it finite
_RESERVE, _PER_IMAGE = 3 << 30, 1 << 30  # bytes of a CUDA device; per 512 x 512 image
_MOST = 8  # images at once, chosen automatically


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
        if self.placement.device.type == "cpu" and not plan.low_memory:
            allocation.keep_freed()
        self._single = False
        return self

    @classmethod
    def around(cls, backbone: Backbone, recipe: Recipe) -> "Predictor":
        """A predictor of one task with a backbone whose UNet has the LoRA on it, in training."""
        self = cls.__new__(cls)
        self._take(Host(Plan((recipe.task,)), {recipe.task: recipe}), backbone)
        self.notes, self.batch, self._single, self._switches = (), 1, True, False
        return self

    def _open(self, plan: Plan) -> None:
        host = completed(plan)
        try:
            backbone, digests, self.notes = _load(host.recipes, plan)
            self._take(replace(host, digests=digests), backbone)
            self.batch = plan.together or self._batch_for_memory()
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            raise ResourceError(
                f"the model cannot be loaded on {plan.device}: {_first_line(error)}",
                f"free the accelerator's memory, or use {_sparing(plan)}--device cpu",
            ) from error

    def _take(self, host: Host, backbone: Backbone) -> None:
        self.placement, self._backbone, self._switches = backbone.placement, backbone, True
        self._turn = Lock()  # of one batch at a time the device is told what to do
        self._asked = Lock()  # a tokenizer is not for several threads
        # where the device computes by itself, the next batch is begun before the last is fetched
        alone = backbone.placement.device.type == "cuda" and not backbone.placement.in_turns
        self.at_once = 2 if alone else 1
        where = str(self.placement.device), self.placement.dtype_name
        self.host = replace(host, multiple=backbone.multiple).ran_on(*where)
        self.plan, self.recipes = host.plan, host.recipes

    def through(self, wrap: Callable[[Backbone], Backbone]) -> "Predictor":
        """The same with something else in place of its backbone, to see what that is asked for."""
        other = copy(self)
        other._backbone = wrap(self._backbone)
        return other

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
        prepared = self.host.prepare(image, prompt)
        drawn = self.draw([prepared])[0]
        maps = {task: self.host.finish(task, drawn[task], prepared) for task in self.plan.tasks}
        return maps[self.plan.tasks[0]] if self._single else maps

    def draw(
        self, batch: Sequence[Prepared], names: Sequence[str] | None = None
    ) -> list[dict[str, Drawn]]:
        """What the network draws for images of equal shape: by task, for each image.

        Several threads may call it: `at_once` of them keep a device busy.

        `names` are tasks of the plan; without it all of them.

        Out of memory, the batch is halved for good. What is not finite is drawn again in float32,
        each image by itself. One for which that is no better, or for which alone there is no
        memory, has an ImageError in place of its picture. DeviceError if the device is lost.
        """
        wanted = self.plan.tasks if names is None else names
        try:
            with self._turn:
                begun = self._begin(batch, wanted)
            drawn = begun()  # another thread may give the device its next batch meanwhile
            return [self._mended(image, found) for image, found in zip(batch, drawn, strict=True)]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                if lost(error):
                    raise _lost(error) from error
                raise
        if len(batch) == 1:
            why = f"out of memory on {self.placement.device}"
            failed = ImageError(why, f"use {_sparing(self.plan)}a smaller --size", again=True)
            return [dict.fromkeys(wanted, failed)]
        self.batch = min(self.batch, (len(batch) + 1) // 2)
        pieces: list[dict[str, Drawn]] = []
        while len(pieces) < len(batch):  # a piece may make the batch smaller again
            pieces += self.draw(batch[len(pieces) :][: self.batch], wanted)
        return pieces

    @torch.inference_mode()
    def _begin(self, batch: Sequence[Prepared], names: Sequence[str]) -> Callable[[], list[_Found]]:
        """Have the device draw; what this gives waits for it, and for no later batch."""
        recipes = [self.recipes[task] for task in names]
        latents = {}
        for size in {recipe.size for recipe in recipes}:
            stacked = np.stack([image.pictures[size] for image in batch])
            pixels = send(torch.from_numpy(stacked), self.placement.device).permute(0, 3, 1, 2)
            latents[size] = self._backbone.encode(pixels.float() / 127.5 - 1)
        sampled = [self._sample(recipe, latents[recipe.size], batch) for recipe in recipes]
        decoded = [self._backbone.decode(one) for one in sampled]
        whole = torch.stack([one.isfinite().flatten(1).all(1) for one in decoded])
        wait = fetch([whole, *(one.permute(0, 2, 3, 1) for one in decoded)])

        def found() -> list[_Found]:
            finite, *pictures = wait()
            return [
                {
                    task: (picture[row].astype(np.float32, copy=False), bool(well[row]))
                    for task, picture, well in zip(names, pictures, finite, strict=True)
                }
                for row in range(len(batch))
            ]

        return found

    def _mended(self, image: Prepared, found: _Found) -> dict[str, Drawn]:
        """What was drawn of an image; what is not finite of it, drawn again in float32."""
        mended: dict[str, Drawn] = {task: picture for task, (picture, _) in found.items()}
        broken = [task for task, (_, finite) in found.items() if not finite]
        dtype = self.placement.dtype_name
        if not broken or dtype == "fp32":
            return mended | {task: _not_finite(task, dtype) for task in broken}
        try:
            with self._turn, self._backbone.widened():
                again = self._begin([image], broken)()[0]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            why = f"{dtype}, and there is no memory for fp32"
            return mended | {task: _not_finite(task, why) for task in broken}
        for task, (picture, finite) in again.items():
            mended[task] = Again(picture) if finite else _not_finite(task, f"{dtype}, nor in fp32")
        return mended

    def _sample(
        self, recipe: Recipe, latents: torch.Tensor, batch: Sequence[Prepared]
    ) -> torch.Tensor:
        if self._switches:
            self._backbone.use_lora(recipe.task)
        prompts = [recipe.prompt if one.prompt is None else one.prompt for one in batch]
        # with a text, the recipe's guidance may be another; it is the same for every text
        guidance = next((weights.prompted(recipe, text).guidance for text in prompts if text), 1.0)
        return sample(
            lambda z, t: self._backbone.predict(z, t, prompts, guidance),
            latents,
            self._backbone.schedule,
            sampling(recipe),
        )

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt has more tokens than the network takes."""
        with self._asked:
            return self._backbone.cuts(prompt)


def _not_finite(task: str, dtype: str) -> ImageError:
    hint = "if that is so of every image, see `dmp weights verify`"
    return ImageError(f"{task}: {NOT_FINITE} {dtype}", hint)


def _sparing(plan: Plan) -> str:
    """What comes first of what to do about memory."""
    return "" if plan.low_memory else "--low-memory or "


def _lost(error: Exception) -> DeviceError:
    return DeviceError(
        f"the accelerator failed: {_first_line(error)}",
        "see whether `dmp doctor` still finds it, then run it again",
    )


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


def _size(folder: Path, variant: str | None) -> int:
    """Bytes of the UNet's file; 0 if there is none, which whoever loads it will say."""
    file = sources.weight_file(folder, "unet", variant)
    return file.stat().st_size if file.is_file() else 0


def _load(
    chosen: Mapping[str, Recipe], plan: Plan
) -> tuple[Backbone, dict[str, str], tuple[str, ...]]:
    """The backbone with each task's LoRA on it, the sha256s as Host has them, and remarks."""
    first = next(iter(chosen.values()))
    placement = choose(plan.device, plan.dtype, plan.low_memory)
    folder, variant = find_backbone(first.backbone, placement.dtype_name == "fp16")
    placement = for_network(placement, plan.dtype, _size(folder, variant))
    files = {task: _lora_file(recipe, folder) for task, recipe in chosen.items()}
    schedule = read_schedule(folder)
    for recipe in chosen.values():
        schedule.timesteps(sampling(recipe))  # refuses steps that are not there
    prompts = [recipe.prompt for recipe in chosen.values()]
    tiny = decoders.folder(first.decoder) if first.decoder else None
    backbone = Backbone.load(folder, placement, prompts, variant, tiny)
    digests = {DECODER: sources.sha256(tiny / decoders.WEIGHTS)} if tiny else {}
    for task, path in files.items():
        backbone.add_lora(task, path)
        digests[task] = sources.sha256(path)
    cut = tuple(
        f"the prompt of {recipe.task} {TOO_LONG}"
        for recipe in chosen.values()
        if recipe.prompt and backbone.cuts(recipe.prompt)
    )
    return backbone, digests, cut + _of_others(files, folder, variant)
