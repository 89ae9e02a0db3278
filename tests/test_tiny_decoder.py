"""--tiny-decoder: another decoder in place of the VAE's, which decides the maps as weights do."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders import vae
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmp_cli import catalogue, decoders, digests, host, jobs, manifest, predict, weights
from dmp_cli.backbone import Backbone
from dmp_cli.deciding import Deciding
from dmp_cli.device import choose
from dmp_cli.errors import ModelError, UsageError
from dmp_cli.plan import Output, Plan, Settings
from dmp_cli.predict import Predictor
from dmp_cli.publishing import release
from tests import backbones
from tests import hub as hubs
from tests.conftest import PARITY, Dmp, write_image, write_weights
from tests.test_offline import Machine
from tests.test_offload import turning

SD = PARITY / "sd-tiny"
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder that fits the tiny backbone."""
    return backbones.make_tiny_decoder(tmp_path_factory.mktemp("made") / "decoder")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "decoder"))


@pytest.fixture
def with_tiny(folder: Path) -> Path:
    """The weights file of model `tiny`, which has it, and of `bare`, which has none."""
    file = write_weights(folder.parent / "tiny.toml", with_key(folder))
    bare = (
        file.read_text()
        .replace("models.tiny", "models.bare")
        .replace(with_key(folder), "size = 64")
    )
    file.write_text(f"{file.read_text()}\n{bare}")
    return file


def with_key(folder: Path, more: str = "") -> str:
    """What an entry says of the decoder in a folder."""
    return f"size = 64\ntiny_decoder = {{ path = {json.dumps(str(folder))}{more} }}"


def latents(count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def load(tiny: Path | None, dtype: str = "fp32") -> Backbone:
    return Backbone.load(SD, choose("cpu", dtype), tiny=tiny)


# What it draws ------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_it_draws_what_diffusers_draws(folder: Path, factor: float) -> None:
    backbones.change(folder / "config.json", scaling_factor=factor)
    theirs = AutoencoderTiny.from_pretrained(folder)
    for count in (1, 3):
        z = latents(count)
        expected = torch.cat([theirs.decode(one / factor).sample for one in z.split(1)])
        assert torch.equal(load(folder).decode(z), expected)
    assert float(expected.std()) > 0.1  # it is no flat picture


@torch.inference_mode()
def test_the_encoder_and_the_unet_are_the_same(made: Path) -> None:
    plain, small = load(None), load(made)
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(plain.encode(pictures), small.encode(pictures))
    assert torch.equal(plain.predict(latents(), 401), small.predict(latents(), 401))
    assert plain.multiple == small.multiple == 8


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which decoders are called."""
    called: list[str] = []

    def told(name: str, forward: Any) -> Any:
        return lambda *given: called.append(name) or forward(*given)

    for one in (vae.Decoder, vae.DecoderTiny, vae.EncoderTiny):
        monkeypatch.setattr(one, "forward", told(one.__name__, one.forward))
    return called


def test_the_decoder_of_the_vae_is_neither_called_nor_kept(
    drawn: list[str], with_tiny: Path, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "a.png")
    options: Any = {"model": "tiny", "weights": with_tiny, "device": "cpu", "fast": True}
    small = Predictor("depth,normals", **options, tiny_decoder=True)
    first, again = small(image), small(image)
    assert drawn == ["DecoderTiny"] * 4
    assert all(np.array_equal(first[task], again[task]) for task in first)
    held = small._backbone._vae
    assert not [name for name, _ in held.named_parameters() if "up_blocks" in name]
    assert held.post_quant_conv is None
    drawn.clear()
    plain = Predictor("depth,normals", **options)(image)
    assert drawn == ["Decoder"] * 2
    assert not np.array_equal(plain["depth"], first["depth"])


@torch.inference_mode()
def test_in_bf16_it_is_near_float32(made: Path) -> None:
    rounded, exact = load(made, "bf16"), load(made)
    z = torch.cat([latents(1, seed) for seed in range(4)])
    difference = (rounded.decode(z) - exact.decode(z)).abs() * 127.5
    assert 0 < float(difference.mean()) < 0.5
    types = {held.dtype for held in rounded._vae.decoder.parameters()}
    assert types == {torch.float32, torch.bfloat16}
    with rounded.widened():
        assert {held.dtype for held in rounded._vae.decoder.parameters()} == {torch.float32}
    assert torch.equal(rounded.decode(z), load(made, "bf16").decode(z))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_with_low_memory_it_draws_the_same_bytes(
    with_tiny: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "choose", turning())
    options: Any = {"model": "tiny", "weights": with_tiny, "dtype": dtype, "tiny_decoder": True}
    plain = Predictor("depth", **options, steps=1)
    spared = Predictor("depth", **options, steps=1, low_memory=True)
    image = write_image(tmp_path / "a.png")
    assert spared._backbone._turns
    assert np.array_equal(plain(image), spared(image))
    assert spared._backbone._turns.inside == "decoder"


def test_what_is_not_finite_is_drawn_again_in_float32(
    with_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = vae.DecoderTiny.forward

    def half_fails(self: Any, z: Tensor) -> Tensor:
        blocks = [held.dtype for held in self.parameters()]
        found: Tensor = forward(self, z)
        return found * float("nan") if torch.bfloat16 in blocks else found

    monkeypatch.setattr(vae.DecoderTiny, "forward", half_fails)
    options: Any = {"model": "tiny", "weights": with_tiny, "steps": 1, "tiny_decoder": True}
    small = Predictor("depth", **options, device="cpu", dtype="bf16")
    assert np.isfinite(small(write_image(tmp_path / "a.png"))).all()


# What is refused ----------------------------------------------------------------------------


def weight(name: str, **change: Any) -> Any:
    """A change of the file: a weight renamed (`to`), or of another shape."""

    def apply(folder: Path) -> None:
        state = load_file(folder / FILE)
        value = state.pop(name)
        if "to" in change:
            state[change["to"]] = value
        if "shape" in change:
            state[name] = torch.zeros(change["shape"])
        save_file(state, folder / FILE)

    return apply


def says(**changes: Any) -> Any:
    return lambda folder: backbones.change(folder / "config.json", **changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (says(latent_channels=8), "config.json: not for this backbone: it has latents of 8 "
                                  "channels, not 4"),
        (says(num_decoder_blocks=[1] * 3, decoder_block_out_channels=[8] * 3),
         "it has 4 pixels to a latent, not 8"),
        (says(upsampling_scaling_factor=4), "it has 64 pixels to a latent, not 8"),
        (says(upsampling_scaling_factor="2"), "config.json: cannot be loaded: TypeError"),
        (says(scaling_factor="1"), "config.json: cannot be loaded: TypeError"),
        (says(scaling_factor=None), "config.json: cannot be loaded: TypeError"),
        (says(scaling_factor=0), "config.json: scaling_factor must be a number above 0, not 0"),
        (says(out_channels=4), "it has pictures of 4 channels, not 3"),
        (says(shift_factor=0.1), "it has latents shifted by 0.1, not 0.0"),
        (says(_class_name="AutoencoderKL"), "config.json: its class is AutoencoderKL, not Auto"),
        (says(num_decoder_blocks=[1]), "config.json: cannot be loaded: ValueError"),
        (says(num_decoder_blocks=[1, 1, 1, 2]), "weight decoder.layers.12.bias is unknown"),
        (says(decoder_block_out_channels=[16] * 4),
         "weight decoder.layers.0.weight is (8, 4, 3, 3), not (16, 4, 3, 3)"),
        (weight("decoder.layers.0.weight"), f"{FILE}: weight decoder.layers.0.weight is missing"),
        (weight("encoder.layers.0.weight", to="decoder.more"), "weight decoder.more is unknown"),
        (weight("decoder.layers.0.weight", shape=(2, 4, 3, 3)),
         "weight decoder.layers.0.weight is (2, 4, 3, 3), not (8, 4, 3, 3)"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("[]"), "json: is not the config"),
        (lambda folder: (folder / FILE).write_bytes(b"noise"), f"{FILE}: cannot be loaded"),
        (lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-9]),
         f"{FILE}: cannot be loaded"),
    ],
)  # fmt: skip
def test_one_that_does_not_fit_or_is_not_whole(folder: Path, change: Any, told: str) -> None:
    change(folder)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "without --tiny-decoder" in caught.value.hint


def test_of_its_encoder_nothing_is_read(made: Path, folder: Path) -> None:
    whole = load_file(folder / FILE)
    half = {name: value for name, value in whole.items() if name.startswith("decoder.")}
    save_file(half, folder / FILE)
    assert len(half) < len(whole)
    with torch.inference_mode():
        assert torch.equal(load(folder).decode(latents()), load(made).decode(latents()))


@torch.inference_mode()
def test_a_file_in_half_precision_is_widened(made: Path, folder: Path) -> None:
    state = {name: value.half() for name, value in load_file(folder / FILE).items()}
    save_file(state, folder / FILE)
    found, exact = load(folder).decode(latents()), load(made).decode(latents())
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('variant = "fp16"', "models.m.tiny_decoder.variant is unknown"),
        ('made = "tiny"', "models.m.tiny_decoder.made is unknown"),
        ('file = "a.safetensors"', "models.m.tiny_decoder.file is unknown"),
        ('path = "a", repo = "a/b"', "models.m.tiny_decoder must have only one of path"),
        ('path = 1', "models.m.tiny_decoder.path must be a string"),
        ('repo = "../a"', "models.m.tiny_decoder.repo must be a name without `..`"),
        ('packaged = "../a"', "models.m.tiny_decoder.packaged must be a path inside"),
        ('repo = "a/b", sha256 = "0"', "models.m.tiny_decoder.sha256 must be a table"),
        ('repo = "a/b", sha256 = { "config.json" = "0" }', "64 hexadecimal digits"),
    ],
)  # fmt: skip
def test_its_key_is_read_strictly(text: str, told: str) -> None:
    entry = f"[models.m]\nsize = 64\ntiny_decoder = {{ {text} }}\n"
    with pytest.raises(UsageError) as caught:
        catalogue.parse(Path("w.toml"), entry)
    assert told in str(caught.value)
    assert "w.toml, line 3" in str(caught.value)


@pytest.mark.parametrize("text", ['tiny_decoder = "a"', "[models.m.tasks.depth.tiny_decoder]"])
def test_it_is_a_table_of_a_model(text: str) -> None:
    with pytest.raises(UsageError, match=r"tiny_decoder (must be a table|is unknown)"):
        catalogue.parse(Path("w.toml"), f"[models.m]\n{text}\n")


def test_an_entry_replaces_it_as_a_whole(
    tmp_path: Path, with_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = tmp_path / "over.toml"
    over.write_text('[models.tiny]\ntiny_decoder = { repo = "a/b" }\n')
    monkeypatch.setenv("DMP_WEIGHTS", str(with_tiny))
    assert catalogue.load(over)["models"]["tiny"]["tiny_decoder"] == {"repo": "a/b"}


def test_a_path_is_relative_to_its_file(folder: Path) -> None:
    file = write_weights(folder.parent / "w.toml", 'tiny_decoder = { path = "decoder" }')
    (found,) = weights.recipes(small_plan(file))
    assert found.decoder
    assert decoders.folder(found.decoder) == folder


@pytest.mark.parametrize("command", ["predict depth", "predict-all", "watch depth", "bench"])
def test_a_model_without_one_is_refused(
    dmp: Dmp, photos: Path, tmp_path: Path, with_tiny: Path, command: str
) -> None:
    out = () if command == "bench" else ("-o", tmp_path / "out")
    named = ("--weights", with_tiny, "--model", "bare")
    ran = dmp(*command.split(), photos, *out, *named, "--tiny-decoder")
    assert (ran.code, ran.out) == (5, "")
    assert "model 'bare' has no tiny decoder" in ran.err
    assert "[models.bare]\n  tiny_decoder = " in ran.err
    assert not (tmp_path / "out").exists()


def test_a_file_with_another_hash_is_refused(
    dmp: Dmp, photos: Path, tmp_path: Path, folder: Path
) -> None:
    more = f', sha256 = {{ "{FILE}" = "{"0" * 64}" }}'
    file = write_weights(tmp_path / "w.toml", with_key(folder, more))
    words = ("predict", "depth", photos, "-o", tmp_path / "out", "--weights", file)
    ran = dmp(*words, "--model", "tiny", "--steps", 1, "--tiny-decoder")
    assert (ran.code, ran.out) == (5, "")
    assert f"{folder / FILE}: wrong sha256: expected {'0' * 64}" in ran.err
    assert dmp(*words, "--model", "tiny", "--steps", 1).code == 0  # which does not need it
    for which in (("tiny",), ("tiny", "--task", "depth"), ()):
        ran = dmp("weights", "verify", *which, "--weights", file)
        assert (ran.code, ran.out) == (5, f"{folder / FILE}\n")


@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_a_folder_that_lacks_a_file(
    dmp: Dmp, photos: Path, tmp_path: Path, folder: Path, with_tiny: Path, name: str
) -> None:
    (folder / name).unlink()
    words = ("predict", "depth", photos, "-o", tmp_path / "out", "--weights", with_tiny)
    ran = dmp(*words, "--model", "tiny", "--tiny-decoder")
    assert (ran.code, ran.out) == (5, "")
    assert f"{folder}: not a whole tiny decoder: {name} is missing" in ran.err
    ran = dmp("weights", "verify", "--weights", with_tiny)
    assert (ran.code, ran.out) == (5, f"{folder / name}\n")


def test_a_folder_that_is_none(
    dmp: Dmp, photos: Path, tmp_path: Path, folder: Path, with_tiny: Path
) -> None:
    """Nothing of it is here: verify passes over what only an option needs."""
    words = ("predict", "depth", photos, "-o", tmp_path / "out", "--weights", with_tiny)
    shutil.move(folder / FILE, tmp_path / "alone")
    shutil.rmtree(folder)
    ran = dmp("weights", "verify", "tiny", "--weights", with_tiny)
    assert (ran.code, ran.out) == (0, "")
    shutil.move(tmp_path / "alone", folder)
    ran = dmp(*words, "--model", "tiny", "--tiny-decoder")
    assert (ran.code, ran.out) == (5, "")
    assert f"{folder}: is a file, not the folder of a tiny decoder" in ran.err


# What it decides ----------------------------------------------------------------------------


def small_plan(file: Path, tiny: bool = True, model: str = "tiny") -> Plan:
    settings = Settings(steps=1, tiny_decoder=tiny)
    return Plan(("depth",), model, str(file), settings, output=Output(formats=("png",)))


def key(file: Path, photos: Path, out: Path, **how: Any) -> str:
    plan = small_plan(file, **how)
    found = jobs.plan_targets(jobs.find([str(photos)], out, print), out, plan.tasks, plan.output)
    return Deciding.of(host.completed(plan), found).key(found[0], ("depth", "png"))


def test_the_key_of_an_output(photos: Path, tmp_path: Path, folder: Path, with_tiny: Path) -> None:
    def found(**how: Any) -> str:
        return key(with_tiny, photos, tmp_path / "out", **how)

    without = found(tiny=False)
    assert without == found(tiny=False, model="bare")  # as it was before there was the key
    first = found()
    assert first != without
    assert found() == first
    state = load_file(folder / FILE)
    state["decoder.layers.0.weight"] += 1
    save_file(state, folder / FILE)
    second = found()
    backbones.change(folder / "config.json", act_fn="silu")
    assert len({without, first, second, found()}) == 4
    assert found(tiny=False) == without


def test_a_stated_hash_gives_the_key_of_the_file(
    photos: Path, tmp_path: Path, folder: Path, with_tiny: Path
) -> None:
    rows = ", ".join(f'"{name}" = "{digests.sha256(folder / name)}"' for name in decoders.FILES)
    more = f", sha256 = {{ {rows} }}"
    stated = write_weights(tmp_path / "stated.toml", with_key(folder, more))
    out = tmp_path / "out"
    assert key(stated, photos, out) == key(with_tiny, photos, out)


def test_a_run_goes_on_and_makes_anew_what_another_decoder_made(
    dmp: Dmp, photos: Path, tmp_path: Path, folder: Path, with_tiny: Path
) -> None:
    out = tmp_path / "out"
    words = ("predict", "depth", photos, "-o", out, "--weights", with_tiny, "--model", "tiny")

    def made(*flags: str) -> int:
        ran = dmp(*words, "--fast", *flags)
        assert ran.code == 0, ran.err
        return len(ran.out.splitlines())

    assert [made(), made("--tiny-decoder"), made("--tiny-decoder"), made()] == [3, 3, 0, 3]
    assert made("--tiny-decoder") == 3
    before = (out / "a.depth.png").read_bytes()
    state = load_file(folder / FILE)
    state["decoder.layers.0.weight"] *= -1
    save_file(state, folder / FILE)
    assert made("--tiny-decoder") == 3
    assert (out / "a.depth.png").read_bytes() != before
    assert made("--tiny-decoder") == 0


@pytest.mark.parametrize("tiny", [True, False])
def test_the_manifest_and_the_file_say_it(
    dmp: Dmp, photos: Path, tmp_path: Path, folder: Path, with_tiny: Path, tiny: bool
) -> None:
    out = tmp_path / "out"
    words = ("--weights", with_tiny, "--model", "tiny", *(["--tiny-decoder"] if tiny else []))
    ran = dmp("predict", "depth", photos / "a.png", "-o", out, "--steps", 1, "--verbose", *words)
    assert ran.code == 0, ran.err
    assert (f"tiny decoder {folder}" in ran.err) == tiny
    record = next(row for _, row in manifest.lines(out) if row["kind"] == "input")
    with Image.open(out / "a.depth.png") as picture:
        text: Any = picture.info
    expected = digests.sha256(folder / FILE) if tiny else None
    assert record.get("tiny_decoder") == text.get("Tiny-Decoder-SHA256") == expected
    assert text.get("Tiny-Decoder") == (str(folder) if tiny else None)
    for settings in (record["settings"]["depth"], text["Settings"]):
        assert ("tiny_decoder=True" in settings) == tiny


# Files that come and go ---------------------------------------------------------------------


def test_what_there_is_of_it_is_listed_and_found(
    dmp: Dmp, tmp_path: Path, folder: Path, with_tiny: Path
) -> None:
    given = ("--weights", with_tiny)
    rows = json.loads(dmp("weights", "list", "--json", *given).out)
    (row,) = [one for one in rows if (one["model"], one["part"]) == ("tiny", "tiny_decoder")]
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert (row["source"], row["bytes"], row["here"]) == (str(folder), size, True)
    assert not [one for one in rows if (one["model"], one["part"]) == ("bare", "tiny_decoder")]
    for verb in ("path", "pull"):
        plain = dmp("weights", verb, "tiny", *given).out.splitlines()
        more = dmp("weights", verb, "tiny", *given, "--tiny-decoder").out.splitlines()
        assert set(more) - set(plain) == {str(folder)}
        ran = dmp("weights", verb, "bare", *given, "--tiny-decoder")
        assert ran.code == 5
        assert "model 'bare' has no tiny decoder" in ran.err


@pytest.mark.parametrize("verb", ["path", "pull"])
def test_without_a_model_it_is_that_of_the_one_a_run_takes(
    dmp: Dmp, folder: Path, with_tiny: Path, verb: str
) -> None:
    text = with_tiny.read_text()
    for name, found in (("tiny", str(folder)), ("bare", None)):
        with_tiny.write_text(f'default = ["{name}"]\n{text}')
        ran = dmp("weights", verb, "--tiny-decoder", "--weights", with_tiny)
        assert (ran.code, found in ran.out.splitlines()) == ((0, True) if found else (5, False))


def test_the_licence_of_a_model_is_not_said_of_it_unless_it_is_packaged(
    dmp: Dmp, tmp_path: Path, folder: Path
) -> None:
    file = write_weights(tmp_path / "w.toml", f'license = "mit"\n{with_key(folder)}')
    rows = json.loads(dmp("weights", "list", "--json", "--weights", file).out)
    said = {(row["model"], row["part"]): row["license"] for row in rows}
    assert [said["tiny", part] for part in ("backbone", "tiny_decoder")] == ["mit", "not stated"]
    assert said["demo", "tiny_decoder"] == said["demo", "backbone"] == "Apache-2.0"
    assert f"{folder} (licence: not stated)\n" in dmp("weights", "list", "--weights", file).out
    assert said["dmp", "tiny_decoder"] == "MIT"  # its source states it


@pytest.fixture
def machine(hub: hubs.Hub, tmp_path: Path) -> Machine:
    """A machine whose model has all it needs on the Hub, its weights pinned by a hash."""
    from tests.test_offline import entry

    digest = digests.sha256(hub.root / "decoder" / FILE)
    source = (
        f'repo = "org/decoder", revision = "{hub.commits["org/decoder"]}", '
        f'sha256 = {{ "{FILE}" = "{digest}" }}'
    )
    text = entry(hub.commits["org/tiny"])
    weights = tmp_path / "hub.toml"
    head = "[models.hub]\n"
    weights.write_text(text.replace(head, f"{head}tiny_decoder = {{ {source} }}\n"))
    return Machine(tmp_path, hub.address, weights)


@pytest.mark.usefixtures("typing")
def test_from_the_hub_to_a_run_without_it(machine: Machine) -> None:
    """Not fetched by a run that has no use for it; fetched, used offline, damaged, mended."""
    given = ("hub", "--weights", machine.weights)
    pull = f"dmp weights pull hub --task depth --weights {machine.weights} --tiny-decoder"
    ran = machine.predict("--tiny-decoder", "--offline")  # the backbone is missing too
    assert ran.code == 5
    assert f"once there is a connection, run: {pull}" in ran.err
    ran = machine.dmp("weights", "path", *given, "--tiny-decoder")
    assert ran.code == 5
    assert f"dmp weights pull hub --weights {machine.weights} --tiny-decoder" in ran.err
    assert machine.predict().code == 0
    assert not list((machine.folder / "hf").rglob("*org--decoder*"))
    plain = machine.map()
    assert "0 damaged" in machine.dmp("weights", "verify", *given).err
    ran = machine.predict("--tiny-decoder", "--offline")
    assert ran.code == 5
    assert f"once there is a connection, run: {pull}" in ran.err
    ran = machine.dmp(*pull.split()[1:])
    assert ran.code == 0, ran.err
    assert "fetching 2 files" in ran.err
    (kept,) = [Path(line) for line in ran.out.splitlines() if "org--decoder" in line]
    assert machine.predict("--tiny-decoder", "--offline").code == 0
    assert machine.map() != plain
    file = kept / FILE
    file.resolve().write_bytes(file.read_bytes()[:-1] + b"x")
    ran = machine.predict("--tiny-decoder", "--offline")
    assert ran.code == 5
    assert f"{file}: wrong sha256" in ran.err
    ran = machine.dmp("weights", "verify", *given, "--repair")
    assert (ran.code, ran.out) == (0, ""), ran.err
    assert machine.predict("--tiny-decoder", "--offline").code == 0
    ran = machine.dmp("weights", "remove", "hub", "--hub-cache", "--weights", machine.weights)
    assert ran.code == 0, ran.err
    assert not file.exists()


@pytest.mark.usefixtures("typing")
def test_a_run_fetches_it_and_names_what_the_repository_lacks(
    machine: Machine, hub: hubs.Hub
) -> None:
    ran = machine.predict("--tiny-decoder")
    assert ran.code == 0, ran.err
    assert "org/decoder" in ran.err
    text = machine.weights.read_text().replace(hub.commits["org/decoder"], hub.commits["org/half"])
    machine.weights.write_text(text.replace("org/decoder", "org/half"))
    ran = machine.predict("--tiny-decoder")
    assert ran.code == 5
    assert "org/half: config.json at revision" in ran.err
    assert "the repository has no such file" in ran.err
    assert "correct the weights file" in ran.err


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"repo": "a/b", "revision": "c" * 40}, {"repo": "a/b", "revision": "c" * 40}),
        ({"path": "decoder"}, None),
        ({"packaged": "demo/tiny"}, {"packaged": "demo/tiny"}),
    ],
)
def test_what_is_published_names_no_folder_of_this_machine(
    tmp_path: Path, source: dict[str, str], told: dict[str, str] | None
) -> None:
    rows = ", ".join(f"{name} = {json.dumps(value)}" for name, value in source.items())
    file = write_weights(tmp_path / "w.toml", f"tiny_decoder = {{ {rows} }}", ("depth",))
    found = release.gather(catalogue.load(file), "tiny", ["depth"], "org/x")
    text = release.stanza(found, "main", folders=False)
    table = catalogue.parse(tmp_path / "back.toml", text)["models"]["tiny"]
    stated = {key: value for key, value in table.get("tiny_decoder", {}).items() if key in source}
    assert (stated or None) == told
    assert str(tmp_path) not in text


# `dmp bench` --------------------------------------------------------------------------------


@pytest.mark.parametrize("tiny", [True, False])
def test_bench_says_which_decoder_it_measured(
    dmp: Dmp, photos: Path, with_tiny: Path, tiny: bool
) -> None:
    words = (
        "--weights",
        with_tiny,
        "--model",
        "tiny",
        "--fast",
        "--seconds",
        0.1,
        "--device",
        "cpu",
    )
    flags = ("--tiny-decoder",) if tiny else ()
    ran = dmp("bench", photos, *words, *flags)
    assert ran.code == 0, ran.err
    assert ("  decode (tiny decoder) " in ran.out) == tiny
    assert ("  decode (VAE) " in ran.out) != tiny
    if tiny:
        assert "--tiny-decoder" not in ran.out
    record = json.loads(dmp("bench", photos, *words, *flags, "--json").out)
    assert record["run"]["tiny_decoder"] is tiny
    assert ("tiny_decoder=True" in record["run"]["settings"]["depth"]) == tiny
