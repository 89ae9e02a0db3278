"""Trivial answers: fitted on all truths, whatever the parts they come in."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import answers, metrics
from dmp_cli.colour import linear_from_srgb
from dmp_cli.errors import ImageError
from dmp_cli.tasks import TASKS, Array, find, unit_vectors

RNG = np.random.default_rng(0)


def known(name: str) -> Array:
    """Counted pixels of a truth."""
    if name == "normals":
        return unit_vectors(RNG.normal((0.5, 0, 1), size=(900, 3)))
    if name == "segmentation":
        return RNG.choice([3, 7, 7, 9], 900).astype(np.uint8)
    if name == "albedo":
        return RNG.random((900, 3), np.float32)
    return RNG.uniform(0.5, 9, 900).astype(np.float32)


def fitted(name: str, parts: list[Array]) -> answers.Answer:
    return answers.constant(find(name), [answers.sums_of(find(name), part) for part in parts])


def test_the_constant_is_the_best_one() -> None:
    depth, normals, ids, albedo = map(known, ("depth", "normals", "segmentation", "albedo"))
    assert fitted("depth", [depth]).value == pytest.approx(np.median(depth), rel=1e-3)
    mean = normals.mean(axis=0)
    assert fitted("normals", [normals]).value == pytest.approx(mean / np.linalg.norm(mean))
    assert fitted("segmentation", [ids]).value == 7
    assert fitted("albedo", [albedo]).value == pytest.approx(albedo.mean(axis=0))
    assert fitted("shading", [depth]).value == pytest.approx(depth.mean())


@pytest.mark.parametrize("name", TASKS)
def test_it_is_one_for_all_truths(name: str) -> None:
    values = known(name)
    parts = [values[:100], values[100:100], values[100:]]  # one of them without a pixel
    whole, found = fitted(name, [values]), fitted(name, parts)
    assert found.name == whole.name
    np.testing.assert_allclose(found.value, whole.value, rtol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_a_truth_that_could_not_be_read_adds_nothing(name: str) -> None:
    values = known(name)
    sums = [np.zeros(1), answers.sums_of(find(name), values), np.zeros(1)]
    found = answers.constant(find(name), sums)
    np.testing.assert_allclose(found.value, fitted(name, [values]).value)
    assert answers.constant(find(name), [np.zeros(1)]).value is not None


@pytest.mark.parametrize("name", ["depth", "normals", "albedo", "shading"])
def test_another_constant_is_worse(name: str) -> None:
    task, truth = find(name), known(name)
    best = fitted(name, [truth])
    metric = {"depth": "abs", "normals": "mean_angle"}.get(name, "mse")
    for other in (best, answers.Answer("other", known(name)[0])):
        found = metrics.measure(task.measured, answers.as_map(other, truth), truth)
        found["abs"] = float(np.abs(other.value - truth).mean())  # what the median makes least
        if other is best:
            least = found[metric]
    assert least < found[metric]


def test_the_image_itself(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    light = linear_from_srgb(rgb / 255)
    for truth, expected in ((light, light), (light[..., 0], light.mean(axis=-1))):
        found = answers.as_map(answers.IMAGE, truth, tmp_path / "a.png")
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert answers.as_map(answers.IMAGE, light[::2, ::2], tmp_path / "a.png").shape == (6, 8, 3)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: cannot be read"):
        answers.as_map(answers.IMAGE, np.zeros((4, 4, 3)), tmp_path / "none.png")
