"""From what was asked for to a job: the recipe and the pairs, checked as far as without torch."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dmp_cli import catalogue, data, tasks, weights
from dmp_cli.data import Pair
from dmp_cli.errors import UsageError
from dmp_cli.tasks import Task
from dmp_cli.train.settings import Training, check
from dmp_cli.weights import Recipe

_HELD_OUT = 2  # the stream of random numbers that chooses them; draws.py has 0 and 1


@dataclass(frozen=True)
class Job:
    """A training run with everything found and checked that can be without a network."""

    training: Training
    task: Task
    recipe: Recipe
    pairs: tuple[Pair, ...]
    held: tuple[Pair, ...]  # for validation

    @property
    def model(self) -> str:
        """What the LoRA is called in OUT/weights.toml."""
        return self.training.name or plain_name(self.training.output)

    @property
    def prompted(self) -> bool:
        """Whether any sample has a prompt."""
        return self.training.course.captions or bool(self.recipe.prompt)

    def prompt(self, pair: Pair) -> str:
        """What the network is told with a pair."""
        return (self.training.course.captions and pair.prompt) or self.recipe.prompt

    @property
    def flips(self) -> bool:
        """Whether pairs are mirrored half of the time."""
        asked = self.training.course.flip
        return self.task.flip if asked is None else asked


def job_of(training: Training) -> Job:
    """Check what was asked for and find the pairs; errors as of settings.check and data.pairs."""
    task = tasks.find(training.task)
    check(training, task)
    if training.name in catalogue.packaged()["models"]:
        raise UsageError(
            f"--name {training.name}: dmp has a model of that name, whose settings would win",
            "choose another name",
        )
    table = catalogue.load(training.weights)
    recipe = weights.to_train(
        table, task.name, training.model, training.settings, training.backbone
    )
    command = weights.asked(recipe.model, [], training.weights)
    recipe = replace(
        weights.fetched_by(recipe, command),
        scale=training.scale or recipe.scale,
        normals=training.normals or recipe.normals,
    )
    if training.course.loss == "map" and recipe.prompt and recipe.guidance != 1:
        raise UsageError("--loss map predicts without guidance", "give --guidance 1")
    pairs = data.pairs(training.data, task, training.skip_missing)
    held: list[Pair] = []
    if training.validation:
        held = data.pairs(training.validation, task, training.skip_missing)
    if training.hold_out:
        pairs, held = _split(pairs, training.hold_out, training.course.seed)
    return Job(training, task, recipe, tuple(pairs), tuple(held))


def plain_name(output: Path) -> str:
    """A name for the model, after the output folder; not that of a model that dmp has itself."""
    plain = re.sub("[^a-z0-9_-]+", "-", output.absolute().name.lower()).strip("-") or "mine"
    return f"my-{plain}" if plain in catalogue.packaged()["models"] else plain


def _split(pairs: list[Pair], count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held out) pairs, each in their order."""
    if count >= len(pairs):
        raise UsageError(f"--hold-out {count}: there are only {len(pairs)} pairs")
    order = np.random.default_rng([seed, _HELD_OUT]).permutation(len(pairs))
    out = set(order[:count].tolist())
    return (
        [pair for i, pair in enumerate(pairs) if i not in out],
        [pair for i, pair in enumerate(pairs) if i in out],
    )
