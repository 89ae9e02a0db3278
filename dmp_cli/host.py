"""Host: the side of a prediction without networks: file -> network's picture; drawing -> map."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmp_cli import classes, images, tasks, weights
from dmp_cli.errors import ImageError
from dmp_cli.outputs import panels
from dmp_cli.plan import Plan
from dmp_cli.weights import Recipe

Array = NDArray[Any]

TOO_LONG = "is longer than the 77 tokens that the network takes: the rest is cut"
_LARGEST = 16_000_000  # pixels of the network's picture with size 0


@dataclass(frozen=True)
class Again:
    """What was drawn a second time, in float32: in half precision it was not finite."""

    picture: Array


# What the network drew: float32 [h, w, 3] around [-1, 1]
Drawn = Array | Again | ImageError


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


@dataclass(frozen=True)
class Host:
    """What reading and writing need to know of a run. Plain values: it can be sent to a worker."""

    plan: Plan
    recipes: Mapping[str, Recipe]  # by task, completed
    multiple: int = 8  # of which the sides of the network's picture are multiples
    # sha256 of each task's LoRA, and as `tiny_decoder` of that one's weights if it draws
    digests: Mapping[str, str] = field(default_factory=dict)
    device: str = ""  # where the network ran; "" before that is known
    dtype: str = ""

    @cached_property
    def _classes(self) -> dict[str, tuple[int, ...] | None]:
        return {
            task: classes.parse_classes(self.plan.classes or recipe.classes)
            for task, recipe in self.recipes.items()
        }

    def ran_on(self, device: str, dtype: str) -> "Host":
        """The same, knowing where the network runs."""
        return replace(self, device=device, dtype=dtype)

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
            fitted = images.fitted_size(height, width, size, self.multiple)
            if size == 0 and fitted[0] * fitted[1] > self.largest(0):
                raise ImageError(f"{width}x{height} is too large for --size 0; give a --size")
            pictures[size] = images.fit(pixels.rgb, fitted)
        shown = images.fit(pixels.rgb, panels.lowered(height, width)) if self._shows() else None
        return Prepared(height, width, pictures, pixels.notes, prompt, shown)

    def largest(self, size: int) -> int:
        """Pixels that the network's picture has at most, for a `size`."""
        return images.BUDGET * size * size or _LARGEST

    def _shows(self) -> bool:
        return bool(self.plan.output.thumbnail or self.plan.output.side_by_side)

    def finish(self, task: str, drawn: Drawn, image: Prepared) -> Array:
        """The map that a drawn picture stands for, at the size of the input. Any thread.

        Decoded at the network's size and then resized: ids must not be mixed, and a map of one
        channel is a third of the work.
        """
        if isinstance(drawn, ImageError):
            raise drawn
        picture = drawn.picture if isinstance(drawn, Again) else drawn
        row, recipe = tasks.find(task), self.recipes[task]
        coding = tasks.Coding(
            recipe.scale, recipe.normals, self.plan.axes, self._classes[task], recipe.bright
        )
        decoded = row.decode(picture, coding)
        full = images.resize(decoded, (image.height, image.width), nearest=row.labels)
        return tasks.unit_vectors(full) if row.unit_length else full


def completed(plan: Plan) -> Host:
    """The host of a plan, with what its LoRA files say of themselves. Loads no torch."""
    recipes = {one.task: weights.completed(one) for one in weights.recipes(plan)}
    return Host(plan, recipes)
