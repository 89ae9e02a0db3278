"""--low-memory: parts of the backbone in turns on the device, one image at once, the same maps."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Linear, Sequential

from dmp_cli import allocation, device, host, jobs, predict
from dmp_cli.backbone import Backbone
from dmp_cli.commands.run_options import RunOptions
from dmp_cli.deciding import Deciding
from dmp_cli.device import Placement
from dmp_cli.engines import local, ray_data
from dmp_cli.engines.ray_cluster import Cluster
from dmp_cli.errors import ImageError, ResourceError
from dmp_cli.host import Again, Prepared
from dmp_cli.networks.offload import Turns
from dmp_cli.plan import Plan
from dmp_cli.predict import Predictor
from tests.conftest import PARITY, Dmp, apart, write_image
from tests.faults.outputs import maps
from tests.faults.process import uncovered
from tests.test_lora import STATE, saved

SD = PARITY / "sd-tiny"
BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "device_memory.py"
NAMES = ("depth", "normals", "albedo")
PARTS = ("encoder", "unet", "decoder")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose tasks have a LoRA each, as options of Predictor."""
    folder = tmp_path_factory.mktemp("model")
    lines = ["[models.tiny]", f"backbone = {{ path = {json.dumps(str(SD))} }}", "size = 64"]
    for number, task in enumerate(NAMES):
        state = {key: value * (1 - number / 5) for key, value in STATE.items()}
        saved(folder / f"{task}.safetensors", state)
        lines += [f"[models.tiny.tasks.{task}]", f'lora = {{ path = "{task}.safetensors" }}']
    (folder / "weights.toml").write_text("\n".join(lines))
    return {"model": "tiny", "weights": folder / "weights.toml", "steps": 2, "device": "cpu"}


def turning(kind: str = "cpu") -> Callable[..., Placement]:
    """In place of `device.choose`: a device on which parts take turns as they do on CUDA.

    On the CPU what comes in is a copy, so that numbers can be compared. On `meta` nothing has a
    number, but where it is can be told.
    """

    def choose(where: str, dtype: str, low_memory: bool) -> Placement:
        found = device.choose(where, dtype)
        return replace(found, device=torch.device(kind), in_turns=low_memory)

    return choose


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "choose", turning())


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing can be fetched from there."""

    def fetch(tensors: Sequence[Tensor]) -> Callable[[], list[Any]]:
        whole, *pictures = (tuple(one.shape) for one in tensors)
        return lambda: [np.ones(whole, bool), *(np.zeros(one, np.float32) for one in pictures)]

    monkeypatch.setattr(predict, "choose", turning("meta"))
    monkeypatch.setattr(predict, "fetch", fetch)


def pictures_of(predictor: Predictor, folder: Path, count: int = 2) -> list[Prepared]:
    paths = [write_image(folder / f"{seed}.png", 64, 64, seed) for seed in range(count)]
    return [predictor.host.prepare(path) for path in paths]


def modules(backbone: Backbone, part: str) -> list[Any]:
    vae = backbone._vae
    return {
        "encoder": [vae.encoder, vae.quant_conv],
        "unet": [backbone._unet],
        "decoder": [vae.post_quant_conv, vae.decoder],
    }[part]


def numbers(backbone: Backbone) -> dict[str, int]:
    """Where each number of the networks lies, by name."""
    networks = {"unet": backbone._unet, "vae": backbone._vae}
    return {
        f"{which}.{name}": held.data_ptr()
        for which, network in networks.items()
        for name, held in (*network.named_parameters(), *network.named_buffers())
    }


def places(backbone: Backbone) -> dict[str, set[tuple[str, torch.dtype]]]:
    """Where the numbers of each part are, and in which types."""
    return {
        part: {
            (held.device.type, held.dtype)
            for module in modules(backbone, part)
            for held in (*module.parameters(), *module.buffers())
        }
        for part in PARTS
    }


@contextmanager
def watched(backbone: Backbone) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What computes, and where all parts are meanwhile, each time."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def hook(part: str) -> Any:
        return lambda *_: seen.append((part, places(backbone)))

    handles = [
        module.register_forward_hook(hook(part))
        for part in PARTS
        for module in modules(backbone, part)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def entries(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that come in from now on, one after the other."""
    turns, seen = backbone._turns, list[str]()
    assert turns
    enter = turns.enter
    monkeypatch.setattr(turns, "enter", lambda part: seen.append(part) or enter(part))
    return seen


# the maps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_pictures_are_the_same_bytes(
    model: dict[str, Any], tmp_path: Path, on_cpu: None, dtype: str
) -> None:
    plain = Predictor(NAMES, **model, dtype=dtype)
    spared = Predictor(NAMES, **model, dtype=dtype, low_memory=True)
    prepared = [replace(one, prompt="a hall") for one in pictures_of(plain, tmp_path)]
    for _ in range(2):  # the second begins with the LoRA that the first ended with
        wanted, found = plain.draw(prepared), spared.draw(prepared)
        for here, there in zip(wanted, found, strict=True):
            assert set(here) == set(there) == set(NAMES)
            assert all(np.array_equal(here[task], there[task]) for task in NAMES)
    assert not np.array_equal(wanted[0]["depth"], wanted[0]["albedo"])


def test_a_run_with_it_goes_on_with_what_one_without_made(
    dmp: Dmp, photos: Path, tmp_path: Path, model: dict[str, Any]
) -> None:
    words = ("--weights", model["weights"], "--model", "tiny", "--steps", "1", "--device", "cpu")
    asked = ("predict", "depth,normals", photos, *words, "--format", "png,npy")
    assert dmp(*asked, "-o", tmp_path / "a").code == 0
    ran = dmp(*asked, "-o", tmp_path / "b", "--low-memory")
    assert "batches of 1, freed memory given back" in ran.err
    assert maps(tmp_path / "a") == maps(tmp_path / "b")
    again = dmp(*asked, "-o", tmp_path / "a", "--low-memory")
    assert (again.code, again.out) == (0, "")
    assert "3 of them there already" in again.err


def test_it_decides_no_output(photos: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    plan = Plan(("depth",), model="tiny", weights=str(model["weights"]))
    found = jobs.find([str(photos)], tmp_path, print)
    todo = jobs.plan_targets(found, tmp_path, plan.tasks, plan.output)
    keys = [
        Deciding.of(host.completed(one), todo).key(todo[0], ("depth", "png"))
        for one in (plan, replace(plan, low_memory=True), replace(plan, exposure=1.0))
    ]
    assert keys[0] == keys[1] != keys[2]


# turns --------------------------------------------------------------------------------------


def test_while_a_part_computes_the_others_wait(
    model: dict[str, Any], tmp_path: Path, on_meta: None
) -> None:
    predictor = Predictor(NAMES, **model, low_memory=True)
    backbone = predictor._backbone
    prepared = pictures_of(predictor, tmp_path)
    with watched(backbone) as seen:
        predictor.draw(prepared)
    for part, found in seen:
        there = {name for name, held in found.items() if held == {("meta", torch.float32)}}
        assert there == {part}
        assert all(found[other] == {("cpu", torch.float32)} for other in {*PARTS} - there)
    calls = Counter(part for part, _ in seen)  # of the VAE's parts, two modules each
    each = len(prepared) * len(NAMES)
    assert calls == {"encoder": 2, "unet": 2 * len(NAMES), "decoder": 2 * each}


@pytest.mark.parametrize("names", [NAMES[:1], NAMES])
def test_each_part_comes_in_once_a_batch(
    model: dict[str, Any], tmp_path: Path, on_meta: None, monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
) -> None:  # fmt: skip
    predictor = Predictor(names, **model, low_memory=True)
    seen, prepared = entries(predictor._backbone, monkeypatch), pictures_of(predictor, tmp_path)
    predictor.draw(prepared)
    assert seen == [*PARTS]
    predictor.draw(prepared)
    assert seen == [*PARTS, *PARTS]


def test_what_waited_is_back_and_the_same(
    model: dict[str, Any], tmp_path: Path, on_cpu: None
) -> None:
    predictor = Predictor(NAMES, **model, low_memory=True)
    backbone = predictor._backbone
    backbone.use_lora(NAMES[-1])
    before = numbers(backbone)
    assert {f"unet.{name}.weight" for name in backbone.shapes} < set(before)
    predictor.draw(pictures_of(predictor, tmp_path))
    assert numbers(backbone) != before  # the decoder stays until the next batch
    backbone._settle()
    assert numbers(backbone) == before


@pytest.mark.parametrize("where", ["entering", "computing"])
def test_after_an_error_in_the_middle_all_is_as_before(
    model: dict[str, Any], tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    predictor = Predictor(NAMES[:2], **model, low_memory=True)
    backbone, prepared = predictor._backbone, pictures_of(predictor, tmp_path, 1)
    wanted = predictor.draw(prepared)[0]
    backbone._settle()
    before, calls = numbers(backbone), Counter[str]()

    def fails(result: Any, at: int) -> Any:
        calls["all"] += 1
        if calls["all"] == at:
            raise ValueError("in the middle")
        return result

    with monkeypatch.context() as patch:
        if where == "entering":  # the middle of the UNet
            count = sum(1 for one in modules(backbone, "encoder") for _ in one.parameters())
            turns = backbone._turns
            assert turns
            copied = turns._copied
            patch.setattr(turns, "_copied", lambda held: fails(copied(held), count + 40))
        else:  # the second task
            forward = backbone._unet.forward
            patch.setattr(backbone._unet, "forward", lambda *a, **b: fails(forward(*a, **b), 4))
        with pytest.raises(ValueError, match="in the middle"):
            predictor.draw(prepared)
    if where == "entering":
        assert backbone._turns
        assert backbone._turns.inside is None
        backbone.use_lora(NAMES[1])
        assert numbers(backbone) == before
    found = predictor.draw(prepared)[0]
    assert all(np.array_equal(found[task], wanted[task]) for task in wanted)
    backbone._settle()
    assert numbers(backbone) == before


def test_buffers_take_part_and_a_part_keeps_its_own_modules() -> None:
    network, other = Sequential(Linear(2, 2), BatchNorm1d(2)), Linear(2, 2)
    turns = Turns({"a": [network], "b": [other]}, lambda held: held + 1)
    state = {name: held.clone() for name, held in network.state_dict().items()}
    kept = [*network.parameters(), *network.buffers()]
    turns.enter("a")
    assert all(torch.equal(held, state[name] + 1) for name, held in network.state_dict().items())
    assert not any(held.requires_grad for held in network.parameters())
    turns.leave()
    turns.leave()
    now = [*network.parameters(), *network.buffers()]
    assert all(one is held for one, held in zip(now, kept, strict=True))


# float32 again ------------------------------------------------------------------------------


def test_in_float32_too_one_part_at_a_time_is_there(
    model: dict[str, Any], tmp_path: Path, on_meta: None
) -> None:
    predictor = Predictor("depth", **model, dtype="bf16", low_memory=True)
    backbone, prepared = predictor._backbone, pictures_of(predictor, tmp_path, 1)
    predictor.draw(prepared)
    with backbone.widened(), watched(backbone) as seen:
        predictor.draw(prepared)
    assert {part for part, _ in seen} == {*PARTS}
    for part, found in seen:
        assert found.pop(part) == {("meta", torch.float32)}
        assert all(held == {("cpu", torch.bfloat16)} for held in found.values())
    with watched(backbone) as seen:
        predictor.draw(prepared)
    assert all(found[part] == {("meta", torch.bfloat16)} for part, found in seen)


def test_what_overflows_is_drawn_again(model: dict[str, Any], tmp_path: Path, on_cpu: None) -> None:
    def overflow(_: Any, __: Any, output: Tensor) -> Tensor:
        return output if output.dtype == torch.float32 else output * torch.inf

    plain = Predictor(NAMES, **model, dtype="bf16")
    spared = Predictor(NAMES, **model, dtype="bf16", low_memory=True)
    prepared = pictures_of(plain, tmp_path, 1)
    before, sound = numbers(spared._backbone), spared.draw(prepared)[0]
    drawn = []
    for predictor in (plain, spared):
        layer = predictor._backbone._unet.mid_block.resnets[0].conv1
        handle = layer.register_forward_hook(overflow)
        drawn.append(predictor.draw(prepared)[0])
        handle.remove()
    for task in NAMES:
        wanted, found = (one[task] for one in drawn)
        assert isinstance(wanted, Again)
        assert isinstance(found, Again)
        assert apart(found.picture, wanted.picture) < 1e-4  # sums in another order: the layout
    assert all(np.array_equal(spared.draw(prepared)[0][task], sound[task]) for task in NAMES)
    spared._backbone._settle()
    layers = {f"unet.{name}.weight" for name in spared._backbone.shapes}
    now = numbers(spared._backbone)
    assert all(now[name] == before[name] for name in set(before) - layers)


# the option ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, 0), ({"low_memory": True}, 1), ({"low_memory": True, "batch": "3"}, 3),
     ({"batch": "3"}, 3)],
)  # fmt: skip
def test_batches_are_of_one_image_unless_said_otherwise(
    given: dict[str, Any], expected: int
) -> None:
    plan = RunOptions(Path("out"), **given).plan(("depth",))
    assert (plan.low_memory, plan.together) == (given.get("low_memory", False), expected)
    way = ray_data.way_for(plan, Cluster(1, 1, joined=False), 1.0, 0.0)
    assert way.batch == (expected or 8)


@pytest.mark.parametrize(("low", "expected"), [(False, 8), (True, 1)])
def test_much_memory_makes_no_larger_batch(
    model: dict[str, Any], monkeypatch: pytest.MonkeyPatch, low: bool, expected: int
) -> None:
    monkeypatch.setattr(predict, "memory", lambda where: (60 << 30, 80 << 30))
    assert Predictor("depth", **model, low_memory=low).batch == expected


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("predict", "depth", "in", "-o", "out"), "dmp_cli.commands.predict.run"),
        (("predict-all", "in", "-o", "out"), "dmp_cli.commands.predict_all.run"),
        (("bench", "in"), "dmp_cli.commands.bench._measured"),
        (("watch", "depth", "in", "-o", "out"), "dmp_cli.commands.watch.check_foreign"),
    ],
)
def test_every_command_that_predicts_has_it(
    dmp: Dmp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], name: str
) -> None:
    seen: list[Any] = []

    def stop(*given: Any) -> None:
        seen.extend(one for one in given if isinstance(one, Plan))
        raise ResourceError("far enough", "")

    write_image(tmp_path / "in/a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(name, stop)
    assert dmp(*words, "--model", "demo").code == dmp(*words, "--low-memory").code == 6
    assert [plan.low_memory for plan in seen] == [False, True]


def test_bench_says_that_it_was_measured_so(dmp: Dmp, photos: Path, model: dict[str, Any]) -> None:
    words = ("--weights", model["weights"], "--model", "tiny", "--steps", "1", "--seconds", "0.1")
    ran = dmp("bench", photos, *words, "--device", "cpu", "--low-memory", "-q")
    assert "cpu, fp32, batches of 1, low memory, 1 thread" in ran.out


@pytest.mark.parametrize(("kind", "turns"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_parts_take_turns_where_the_device_has_a_memory_of_its_own(
    monkeypatch: pytest.MonkeyPatch, kind: str, turns: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = device.choose(kind, low_memory=True)
    assert (found.in_turns, found.waiting.type) == (turns, "cpu" if turns else kind)
    assert device.choose(kind).waiting == torch.device(kind)


def test_a_run_says_so(model: dict[str, Any], on_cpu: None) -> None:
    plan = predict.plan_of("depth", **model)
    told: list[str] = []
    for low in (True, False):
        local.load(replace(plan, low_memory=low), told.append)
    assert [text.partition("), ")[2] for text in told] == [
        "batches of 1, parts in turn", "batches of 1",
    ]  # fmt: skip


@pytest.mark.parametrize(("low", "calls"), [(True, 0), (False, 1)])
def test_freed_memory_is_kept_only_without_it(
    model: dict[str, Any], monkeypatch: pytest.MonkeyPatch, low: bool, calls: int
) -> None:
    seen: list[None] = []
    monkeypatch.setattr(allocation, "keep_freed", lambda: seen.append(None))
    Predictor.from_plan(predict.plan_of("depth", **model, low_memory=low))
    assert len(seen) == calls


@pytest.mark.parametrize(("low", "hint"), [(False, "use --low-memory or a"), (True, "use a")])
def test_who_is_out_of_memory_hears_of_it(
    model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: bool, hint: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("too much")

    predictor = Predictor("depth", **model, low_memory=low)
    prepared = pictures_of(predictor, tmp_path, 1)
    monkeypatch.setattr(predictor._backbone, "decode", full)
    failed = predictor.draw(prepared)[0]["depth"]
    assert isinstance(failed, ImageError)
    assert failed.hint == f"{hint} smaller --size"


# what fits ----------------------------------------------------------------------------------


def test_512_pixels_fit_in_3_gb_as_counted() -> None:
    """Half a GB is left to what is not counted."""
    ran = subprocess.run(
        [sys.executable, str(BENCHMARK), "--tasks", "1", "--json"], env=uncovered(os.environ),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    half = {row["low_memory"]: row for row in rows if row["dtype"] == "fp16"}
    most = {low: max(row[part] for part in ("encode", "predict", "decode"))
            for low, row in half.items()}  # fmt: skip
    unet = 2 * 859_520_964
    assert unet < half[True]["predict"] == most[True] < 2.5e9
    assert most[True] < 0.8 * most[False]
    assert half[False]["brought"] == 0
    assert unet < half[True]["brought"] < 1.2 * unet
