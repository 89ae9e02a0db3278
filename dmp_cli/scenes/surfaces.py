"""Which colours and materials things in a scene may have."""

from collections.abc import Sequence

import numpy as np

from dmp_cli.scenes.materials import Colour, Material
from dmp_cli.scenes.shapes import Part
from dmp_cli.scenes.world import class_id

WOODS = ((0.42, 0.24, 0.12), (0.30, 0.16, 0.08), (0.55, 0.38, 0.22), (0.62, 0.50, 0.34))


def any_colour(rng: np.random.Generator, low: float = 0.08, high: float = 0.85) -> Colour:
    """Any hue, more often pale than strong; linear reflectance."""
    hue, strength = rng.random(), rng.beta(1.3, 1.6)
    value = rng.uniform(low, high)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    red, green, blue = value * (1 - strength * (1 - wheel))
    return float(max(red, 0.02)), float(max(green, 0.02)), float(max(blue, 0.02))


def near(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    red, green, blue = (np.clip(c * rng.uniform(1 - spread, 1 + spread), 0.02, 0.9) for c in colour)
    return float(red), float(green), float(blue)


def surface_of(
    rng: np.random.Generator, patterns: Sequence[str], colour: Colour, size: tuple[float, float]
) -> Material:
    pattern = str(rng.choice(patterns))
    spread = rng.uniform(0.15, 0.7)
    return Material(
        pattern, colour, near(rng, colour, spread), float(rng.uniform(*size)),
        int(rng.integers(1 << 16)), float(rng.choice([0, 0, 0, 0.15, 0.4])),
    )  # fmt: skip


def part_of(label: str, material: Material) -> Part:
    return Part(class_id(label), material)


def object_surface(rng: np.random.Generator) -> Material:
    patterns = ("plain", "plain", "cloud", "speckle", "checker", "stripes", "dots", "wood", "waves")
    return surface_of(rng, patterns, any_colour(rng), (0.12, 0.5))


def wooden(rng: np.random.Generator) -> Material:
    colour = WOODS[rng.integers(len(WOODS))] if rng.random() < 0.7 else any_colour(rng)
    return surface_of(rng, ("wood", "plain", "speckle", "planks"), colour, (0.2, 0.6))
