"""Predictor: the path that the command, the engine and the API take."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dmp_cli
from dmp_cli import images, tasks
from dmp_cli.backbone import Backbone
from dmp_cli.errors import DmpError, ImageError, ModelError, ResourceError, UsageError
from dmp_cli.host import Again, Prepared
from dmp_cli.plan import Options, Plan, Settings
from dmp_cli.predict import Predictor, plan_of
from tests.conftest import TASKS, apart, write_image, write_weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "w.toml", "size = 64")


@pytest.fixture(scope="module")
def depth(weights_file: Path) -> Predictor:
    return Predictor("depth", model="tiny", weights=weights_file)


@pytest.fixture(scope="module")
def every(weights_file: Path) -> Predictor:
    return Predictor(TASKS, model="tiny", weights=weights_file)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_image(tmp_path / "a.png", 50, 70)


def test_one_task_gives_a_map_of_the_images_size(depth: Predictor, photo: Path) -> None:
    found = depth(photo)
    assert (found.shape, found.dtype) == ((50, 70), np.float32)
    assert found.min() >= 0
    assert found.std() > 0


def test_path_array_and_pillow_image_are_the_same_image(depth: Predictor, photo: Path) -> None:
    picture = Image.open(photo)
    expected = depth(str(photo))
    assert np.array_equal(depth(picture), expected)
    assert np.array_equal(depth(np.asarray(picture)), expected)
    assert np.array_equal(depth(np.asarray(picture) / 255.0), expected)


def test_several_tasks_give_maps_by_task(every: Predictor, photo: Path) -> None:
    maps = every(photo)
    assert tuple(maps) == TASKS
    assert {name: found.shape for name, found in maps.items()} == {
        "depth": (50, 70), "normals": (50, 70, 3), "segmentation": (50, 70),
        "albedo": (50, 70, 3), "shading": (50, 70),
    }  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(maps["normals"], axis=-1), 1, atol=1e-5)
    assert maps["segmentation"].dtype == np.uint8
    for name in ("albedo", "shading"):
        assert 0 <= maps[name].min() <= maps[name].max() <= 1


def test_the_image_is_encoded_once_for_all_tasks(
    every: Predictor, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = every._backbone.encode
    monkeypatch.setattr(every._backbone, "encode", lambda x: calls.append(len(x)) or encode(x))
    every(photo)
    assert calls == [1]


def test_ids_are_decoded_before_they_are_resized(every: Predictor, photo: Path) -> None:
    prepared = every.host.prepare(photo)
    drawn = every.draw([prepared])[0]["segmentation"]
    assert not isinstance(drawn, ImageError)
    small = tasks.find("segmentation").decode(drawn, tasks.Coding())
    found = every.host.finish("segmentation", drawn, prepared)
    assert np.array_equal(found, images.resize(small, (50, 70), nearest=True))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_batch_changes_nothing(depth: Predictor, tmp_path: Path, size: int) -> None:
    prepared = [
        depth.host.prepare(write_image(tmp_path / f"{i}.png", 64, 96, i)) for i in range(size)
    ]
    together = depth.draw(prepared)
    for image, drawn in zip(prepared, together, strict=True):
        alone = depth.host.finish("depth", depth.draw([image])[0]["depth"], image)
        found = depth.host.finish("depth", drawn["depth"], image)
        assert np.linalg.norm(found - alone) / np.linalg.norm(alone) < 1e-5


def test_the_same_image_gives_the_same_map(
    depth: Predictor, photo: Path, weights_file: Path
) -> None:
    again = Predictor("depth", model="tiny", weights=weights_file)
    assert np.array_equal(depth(photo), again(photo))


def test_settings_are_used(depth: Predictor, photo: Path, weights_file: Path) -> None:
    other = Predictor("depth", model="tiny", weights=weights_file, steps=1, spacing="trailing")
    assert other.recipes["depth"].steps == 1
    assert not np.array_equal(other(photo), depth(photo))


def test_a_prompt_changes_the_map_and_turns_guidance_on(
    depth: Predictor, photo: Path, weights_file: Path
) -> None:
    other = Predictor("depth", model="tiny", weights=weights_file, prompt="a room")
    assert other.recipes["depth"].guidance == 2.0
    assert not np.array_equal(other(photo), depth(photo))


def test_an_image_may_have_its_own_prompt(
    depth: Predictor, photo: Path, weights_file: Path
) -> None:
    prompted = Predictor("depth", model="tiny", weights=weights_file, prompt="a room")
    plain = depth(photo)
    assert np.array_equal(depth(photo, prompt="a room"), prompted(photo))
    assert np.array_equal(prompted(photo, prompt=""), plain)
    assert np.array_equal(depth(photo, "a hall"), prompted(photo, "a hall"))
    assert not np.array_equal(depth(photo, "a hall"), prompted(photo))
    assert np.array_equal(depth(photo), plain)


def test_a_prompt_of_an_image_takes_the_guidance_that_is_stated(
    depth: Predictor, photo: Path, weights_file: Path
) -> None:
    asked = Predictor("depth", model="tiny", weights=weights_file, guidance=1.0)
    found = asked(photo, "a room")
    assert not np.array_equal(found, depth(photo, "a room"))
    assert not np.array_equal(found, asked(photo))


def test_prompts_of_a_batch_are_each_images_own(depth: Predictor, tmp_path: Path) -> None:
    texts = ["a room", "", None, "a hall"]
    path = write_image(tmp_path / "a.png", 64, 96)
    together = depth.draw([depth.host.prepare(path, text) for text in texts])
    for text, drawn in zip(texts, together, strict=True):
        image = depth.host.prepare(path, text)
        found, alone = depth.host.finish("depth", drawn["depth"], image), depth(path, text)
        assert np.linalg.norm(found - alone) / np.linalg.norm(alone) < 1e-5


def test_tasks_of_one_model_may_see_other_sizes(tmp_path: Path, photo: Path) -> None:
    path = write_weights(tmp_path / "w.toml", "size = 64", ("depth", "normals"))
    path.write_text(path.read_text() + "\nsize = 96\n")
    both = Predictor("depth,normals", model="tiny", weights=path)
    assert sorted(both.host.prepare(photo).pictures) == [64, 96]
    assert both(photo)["normals"].shape == (50, 70, 3)


def test_the_axes_of_normals_can_be_chosen(photo: Path, weights_file: Path) -> None:
    gl = Predictor("normals", model="tiny", weights=weights_file)(photo)
    cv = Predictor("normals", model="tiny", weights=weights_file, axes="opencv")(photo)
    np.testing.assert_allclose(cv, gl * (1, -1, -1), atol=1e-6)


def test_the_options_of_python_are_the_fields_of_plan_and_settings() -> None:
    fields = {*Settings.__dataclass_fields__, *Plan.__dataclass_fields__}
    of_files = {"tasks", "settings", "output", "readers", "writers", "in_flight"}
    assert set(Options.__annotations__) == fields - of_files


# What is not finite -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(weights_file: Path) -> Predictor:
    return Predictor("depth,normals", model="tiny", weights=weights_file, dtype="bf16", steps=2)


Hook = Callable[[torch.nn.Module, tuple[Any, ...], Any], Any]


@contextmanager
def hooked(predictor: Predictor, part: str, hook: Hook) -> Iterator[None]:
    """A hook on the output of a part of the backbone, as a layer that overflows there has it."""
    backbone = predictor._backbone
    network = backbone._unet if part == "unet" else getattr(backbone._vae, part)
    handle = network.mid_block.resnets[0].conv1.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def overflow(value: float, always: bool = False) -> Hook:
    """Of three pictures the second gets a value, in float32 only if `always`."""
    passed = 0

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
        nonlocal passed
        if not always and output.dtype == torch.float32:
            return None
        first, passed = passed, passed + len(output)
        changed = output.clone()
        for row in range(len(output)):
            if (first + row) % 3 == 1 or (output.dtype == torch.float32 and len(output) == 1):
                changed[row, 0, 0, 0] = value
        return changed

    return hook


def stored(predictor: Predictor) -> list[tuple[torch.dtype, tuple[int, ...], torch.Tensor]]:
    """The networks' numbers, with the type and the layout that they are held in."""
    return [(held.dtype, held.stride(), held.clone()) for held in predictor._backbone._held()]


def pictures_of(predictor: Predictor, folder: Path, count: int = 3) -> list[Prepared]:
    paths = [write_image(folder / f"{i}.png", 64, 64, i) for i in range(count)]
    return [predictor.host.prepare(path) for path in paths]


@pytest.fixture(scope="module")
def exact(weights_file: Path) -> Predictor:
    return Predictor("depth,normals", model="tiny", weights=weights_file, dtype="fp32", steps=2)


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    ("part", "value"), [("unet", float("nan")), ("unet", float("inf")), ("decoder", -np.inf)]
)
def test_what_overflows_is_drawn_again_in_float32(
    half: Predictor, exact: Predictor, tmp_path: Path, part: str, value: float
) -> None:
    prepared = pictures_of(half, tmp_path)
    before, weights_before = half.draw(prepared), stored(half)
    with hooked(half, part, overflow(value)):
        drawn = half.draw(prepared)
    wanted = exact.draw(prepared[1:2])[0]
    for task in ("depth", "normals"):
        again = drawn[1][task]
        assert isinstance(again, Again)
        assert again.picture.dtype == np.float32
        near = apart(before[1][task], wanted[task])  # the rounding of weights and of numbers
        assert 0 < apart(again.picture, wanted[task]) < near  # of the weights alone
        map_ = half.host.finish(task, again, prepared[1])
        assert np.array_equal(map_, half.host.finish(task, again.picture, prepared[1]))
        for neighbour in (0, 2):
            assert np.array_equal(drawn[neighbour][task], before[neighbour][task])
    for (dtype, strides, values), (was, lay, held) in zip(
        stored(half), weights_before, strict=True
    ):
        assert (dtype, strides) == (was, lay)
        assert torch.equal(values, held)
    for found, was in zip(half.draw(prepared), before, strict=True):
        assert all(np.array_equal(found[task], was[task]) for task in found)


def test_only_the_task_that_overflows_is_drawn_again(half: Predictor, tmp_path: Path) -> None:
    prepared, last = pictures_of(half, tmp_path, 1), []

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
        last.append(output.dtype)
        return output * float("inf") if len(last) == 2 else None

    before = half.draw(prepared)[0]
    with hooked(half, "decoder", hook):
        drawn = half.draw(prepared)[0]
    assert np.array_equal(drawn["depth"], before["depth"])
    assert isinstance(drawn["normals"], Again)
    assert last == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_what_is_not_finite_in_float32_either_fails_alone(half: Predictor, tmp_path: Path) -> None:
    prepared = pictures_of(half, tmp_path)
    before = half.draw(prepared)
    with hooked(half, "unet", overflow(float("nan"), always=True)):
        drawn = half.draw(prepared)
    with pytest.raises(ImageError, match="not finite in bf16, nor in fp32"):
        half.host.finish("depth", drawn[1]["depth"], prepared[1])
    for neighbour in (0, 2):
        assert np.array_equal(drawn[neighbour]["depth"], before[neighbour]["depth"])


@pytest.mark.fault(35)
def test_in_float32_it_fails_at_once_and_alone(depth: Predictor, tmp_path: Path) -> None:
    prepared, calls = pictures_of(depth, tmp_path), []
    before = depth.draw(prepared)

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
        calls.append(len(output))
        return overflow(float("nan"), always=True)(module, inputs, output)

    with hooked(depth, "unet", hook):
        drawn = depth.draw(prepared)
    assert set(calls) == {3}
    with pytest.raises(ImageError, match=r"depth: the output is not finite in fp32$"):
        depth.host.finish("depth", drawn[1]["depth"], prepared[1])
    for neighbour in (0, 2):
        assert np.array_equal(drawn[neighbour]["depth"], before[neighbour]["depth"])


def test_without_memory_for_float32_the_image_fails_alone(half: Predictor, tmp_path: Path) -> None:
    prepared, weights_before = pictures_of(half, tmp_path), stored(half)

    def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
        if output.dtype == torch.float32:
            raise torch.OutOfMemoryError("too much")
        return overflow(float("nan"))(module, inputs, output)

    with hooked(half, "unet", hook):
        drawn = half.draw(prepared)
    with pytest.raises(ImageError, match="in bf16, and there is no memory for fp32"):
        half.host.finish("depth", drawn[1]["depth"], prepared[1])
    assert isinstance(drawn[0]["depth"], np.ndarray)
    assert half.batch == 1
    assert all(
        dtype == was and torch.equal(values, held)
        for (dtype, _, values), (was, _, held) in zip(stored(half), weights_before, strict=True)
    )


# Memory and accelerators ------------------------------------------------------------------


@pytest.mark.fault(37)
def test_out_of_memory_halves_the_batch_for_good(
    depth: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, seen = depth._backbone.encode, []

    def small(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("too much")
        return encode(x)

    prepared = [depth.host.prepare(write_image(tmp_path / f"{i}.png", 64, 64, i)) for i in range(5)]
    monkeypatch.setattr(depth, "batch", 5)
    monkeypatch.setattr(depth._backbone, "encode", small)
    drawn = depth.draw(prepared)
    assert seen == [5, 3, 2, 1, 2]
    assert depth.batch == 2
    assert all(isinstance(pictures["depth"], np.ndarray) for pictures in drawn)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("too much"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["cuda", "cpu", "numpy", "driver", "cublas"],
)
def test_out_of_memory_for_one_image_fails_that_image(
    depth: Predictor, photo: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def never(x: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(depth._backbone, "encode", never)
    with pytest.raises(ImageError, match="out of memory on cpu"):
        depth(photo)


def test_another_error_of_torch_is_a_bug(
    depth: Predictor, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(depth._backbone, "encode", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        depth(photo)


def test_a_card_that_is_full_while_loading_ends_the_run(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore lines")

    monkeypatch.setattr(Backbone, "_placed", full)
    with pytest.raises(ResourceError, match="cannot be loaded on cpu: CUDA out of memory"):
        Predictor("depth", model="tiny", weights=weights_file, device="cpu")


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure\nmore lines"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=["driver", "cublas", "cudnn"],
)
def test_a_lost_accelerator_ends_the_run(
    depth: Predictor, photo: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def lost(x: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(depth._backbone, "encode", lost)
    first = str(error).partition("\n")[0]
    with pytest.raises(ResourceError, match=f"the accelerator failed: {re.escape(first)}"):
        depth(photo)


def test_as_it_is_has_a_limit(weights_file: Path) -> None:
    whole = Predictor("depth", model="tiny", weights=weights_file, size=0)
    assert whole.host.prepare(np.zeros((50, 70, 3), np.uint8)).pictures[0].shape == (48, 72, 3)
    with pytest.raises(ImageError, match="too large for --size 0"):
        whole.host.prepare(np.zeros((4100, 4100, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"tasks": "dept"}, UsageError, "unknown task"),
        ({"model": "nope"}, UsageError, "unknown model"),
        ({"model": "dmp"}, ModelError, "no weights for depth"),
        ({"stepz": 1}, UsageError, "unknown option 'stepz'"),
        ({"steps": 1000}, UsageError, "start past the schedule's last"),
        ({"steps": 0}, UsageError, "steps 0 must be a whole number"),
        ({"sampler": "euler"}, UsageError, "must be one of ddim, oracle, onepass"),
        ({"axes": "y-up"}, UsageError, "unknown axes"),
        ({"classes": "sofa-bed"}, UsageError, "unknown class"),
        ({"device": "tpu"}, UsageError, "unknown device"),
        ({"dtype": "fp16"}, UsageError, "not for the CPU"),
        ({"weights": "/nowhere.toml"}, UsageError, "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, object], kind: type[DmpError], message: str, weights_file: Path
) -> None:
    given = {"tasks": "depth", "model": "tiny", "weights": weights_file} | options
    with pytest.raises(kind, match=message):
        Predictor(**given)  # type: ignore[arg-type]


def test_a_plan_holds_plain_values() -> None:
    import pickle

    plan = plan_of("depth,seg", steps=3, weights=Path("w.toml"), batch=2)
    assert plan == Plan(
        ("depth", "segmentation"), weights="w.toml", settings=plan.settings, batch=2
    )
    assert plan.settings.steps == 3
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_the_public_names_are_imported_when_asked_for() -> None:
    assert dmp_cli.Predictor is Predictor
    assert dmp_cli.DmpError is DmpError
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        dmp_cli.nothing_of_that_name  # noqa: B018


def test_a_sixth_task_is_a_row_and_an_entry(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = tasks.Task(
        "edges", "where it changes", "0-1",
        lambda rgb, coding: np.clip(rgb.mean(axis=-1) / 2 + 0.5, 0, 1),
        lambda edges, coding: np.repeat(edges[..., None] * 2 - 1, 3, axis=-1),
        lambda edges, view: tasks.Picture((edges * 255).astype(np.uint8)),
        ("rmse",),
    )  # fmt: skip
    monkeypatch.setitem(tasks.TASKS, "edges", row)
    path = write_weights(tmp_path / "w.toml", "size = 64", ("depth", "edges"))
    maps = Predictor("depth,edges", model="tiny", weights=path)(photo)
    assert maps["edges"].shape == (50, 70)
