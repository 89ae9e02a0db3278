"""Captions by a model of transformers: a tiny one with random weights, made on the spot."""

import json
import os
import shutil
import subprocess
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
)

from dmp_cli import captioning, hub
from dmp_cli.captioning import Captioner
from dmp_cli.device import choose
from dmp_cli.download import Moved
from dmp_cli.engines import local
from dmp_cli.errors import ModelError, ResourceError
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Job
from dmp_cli.plan import Plan
from tests import clips
from tests import hub as server
from tests.conftest import Dmp, write_image

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
PLAN = Plan(("depth",))


def make_blip(folder: Path) -> Path:
    """A BLIP whose captions depend on the picture: its weights are far from zero."""
    folder.mkdir()
    words = [*MARKS, *(f"word{index}" for index in range(58))]
    (folder / "words").write_text("\n".join(words))
    tokenizer = BertTokenizer(vocab=str(folder / "words"), bos_token="[DEC]")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "projection_dim": 16}  # fmt: skip
    text = small | {
        "vocab_size": 64, "encoder_hidden_size": 16, "max_position_embeddings": 64,
        "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    vision = small | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.7)
    model.save_pretrained(folder)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture
def broken(blip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(blip, tmp_path / "broken"))


@contextmanager
def untold(name: str, size: int) -> Iterator[Moved]:
    yield lambda _: None


def jobs_of(*paths: Path) -> list[Job]:
    return [Job(path, {}, name=path.name) for path in paths]


def captions(todo: list[Job], folder: Path, plan: Plan = PLAN) -> dict[str, str]:
    return {job.name: text for job, text in captioning.run(todo, folder, plan)}


# The model --------------------------------------------------------------------------------


def test_a_caption_depends_on_the_picture_and_on_nothing_else(blip: Path) -> None:
    captioner = Captioner(blip, choose("cpu"))
    pictures = [Image.new("RGB", (50, 3), "red"), Image.radial_gradient("L").convert("RGB")]
    together = captioner(pictures)
    assert len(set(together)) == 2
    assert captioner(pictures) == together
    assert [captioner([picture])[0] for picture in pictures] == together
    for text in together:
        assert 1 <= len(text.split()) <= 40
        assert "[" not in text


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))


def with_remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def without_a_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["vision_model.embeddings.class_embedding"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def with_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def without_words(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_config, "config.json"),
        (of_another_kind, "of kind 'llava' does not caption"),
        (without_a_weight, "class_embedding is missing"),
        (with_a_pickle, "cannot be loaded"),
        (cut_short, "cannot be loaded"),
        (without_words, "neither tokenizer.json nor vocab.txt"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    broken: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(broken)
    with pytest.raises(ModelError, match=message) as error:
        Captioner(broken, choose("cpu"))
    assert str(broken) in str(error.value)
    assert "--caption-model" in error.value.hint


def test_no_code_of_a_model_is_run(broken: Path) -> None:
    with_remote_code(broken)
    Captioner(broken, choose("cpu"))
    assert not (broken / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./models/blip", "--caption-model ./models/blip: no such folder"),
        ("a/b/c", "no such folder"),
        ("org/blip", "org/blip: config.json at revision main is not on this machine"),
    ],
)
def test_a_model_that_is_not_to_be_had_is_named(name: str, message: str) -> None:
    with pytest.raises(ModelError) as error:
        captioning.model_folder(name, untold)
    assert message in str(error.value)
    assert ("hf download org/blip" if name == "org/blip" else "--caption-model") in error.value.hint


@pytest.mark.skipif(bool(server.missing()), reason=f"needs {server.missing()}")
def test_a_model_of_the_hub_is_fetched_once_and_checked(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Path
) -> None:
    files = {path.name: path for path in blip.iterdir()}
    (tmp_path / "hub").mkdir()
    server.commit(tmp_path / "hub", "org/blip", files | {"other.bin": blip / "words"})
    code = (
        "import contextlib; from dmp_cli.captioning import model_folder as get\n"
        "told = lambda name, size: print(name, size) or contextlib.nullcontext(lambda _: None)\n"
        "print(get('org/blip', told)); raise SystemExit"
    )
    with server.serve(tmp_path / "hub") as address:
        at = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": ""}
        done = subprocess.run(
            [typed / "dmp"], env=os.environ | at | {"PATCH": code}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told, printed = done.stdout.splitlines()
    assert told.startswith("org/blip ")
    folder = Path(printed)
    assert {path.name for path in folder.iterdir()} == files.keys() - {"words"}

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "listing", None)  # no server is asked again
    assert captioning.model_folder("org/blip", untold) == folder
    weights = (folder / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match=r"model\.safetensors: wrong hash: expected") as error:
        captioning.model_folder("org/blip", untold)
    assert str(weights) in error.value.hint


def as_the_hub_has_it(folder: Path) -> None:
    """The settings of the processor as older files have them, and those of generation."""
    whole = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    old = whole["image_processor"] | {"processor_class": "BlipProcessor",
                                      "image_processor_type": "BlipImageProcessor"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    told = json.loads((folder / "generation_config.json").read_text())
    told |= {"max_length": 20, "num_beams": 3, "temperature": 0.3, "top_k": 5}
    (folder / "generation_config.json").write_text(json.dumps(told))


def test_an_older_layout_gives_the_same_and_says_nothing(
    blip: Path, broken: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = [Image.radial_gradient("L").convert("RGB")]
    expected = Captioner(blip, choose("cpu"))(picture)
    as_the_hub_has_it(broken)
    assert Captioner(broken, choose("cpu"))(picture) == expected
    assert capfd.readouterr() == ("", "")


# The images -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 2])
def test_images_are_captioned_in_order_but_those_that_cannot_be_read(
    blip: Path, photos: Path, batch: int
) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    write_image(photos / "large.png", 1500, 40, seed=7)
    todo = jobs_of(*(photos / name for name in ("b.jpg", "bad.png", "a.png", "large.png")))
    found = captions(todo, blip, replace(PLAN, batch=batch))
    assert list(found) == ["b.jpg", "a.png", "large.png"]
    assert all(found.values())
    assert found["a.png"] == captions(todo[2:3], blip)["a.png"]


def test_a_clip_is_captioned_by_the_frame_that_is_named(blip: Path, tmp_path: Path) -> None:
    clip = clips.numbered(tmp_path / "walk.mp4", 3)
    with closing(Clips(10**6)) as frames:
        pictures = [Image.fromarray(frames.frame(clip, number)) for number in (0, 2)]
    expected = Captioner(blip, choose("cpu"))(pictures)
    todo = [Job(clip, {}, number, "walk.mp4") for number in (0, 2)]
    assert [text for _, text in captioning.run(todo, blip, PLAN)] == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("too much"), "not enough memory on cpu to caption 1 at once"),
        (MemoryError(), "not enough memory"),
        (torch.AcceleratorError("device lost"), "device lost"),
    ],
)
def test_what_the_device_cannot_do_ends_the_run(
    blip: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(Captioner, "__call__", fails)
    with pytest.raises(ResourceError, match=message):
        captions(jobs_of(photos / "a.png"), blip)


# Through the command ----------------------------------------------------------------------


def settings(path: Path) -> str:
    with Image.open(path) as image:
        return str(image.info["Settings"])


def kept(out: Path) -> dict[str, str]:
    entries = map(json.loads, (out / "captions.jsonl").read_text().splitlines())
    return {entry["file_name"]: entry["text"] for entry in entries}


def test_captions_become_prompts_and_are_kept(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], blip: Path
) -> None:
    out, mine = tmp_path / "out", Path(shutil.copytree(blip, tmp_path / "mine"))
    (photos / "a.txt").write_text("a room")
    (photos / "bad.png").write_bytes(b"no image")
    how = ("predict", "depth", photos, "-o", out, "--caption", "--caption-model", mine,
           "--prompt-from", "txt", "--prompt", "a hall", *model)  # fmt: skip
    ran = dmp(*how)
    assert ran.code == 3
    assert f"captions for 3 images by {mine}" in ran.err
    assert "for 1 of 4 images: the prompt 'a hall' stands in" in ran.err
    assert kept(out).keys() == {"b.jpg", "sub/c.webp"}
    assert "prompt='a room'" in settings(out / "a.depth.png")
    assert f"prompt={kept(out)['b.jpg']!r} guidance=2.0" in settings(out / "b.depth.png")

    (photos / "bad.png").unlink()
    shutil.rmtree(mine)  # what is kept needs no model
    before = (out / "captions.jsonl").read_bytes()
    again = dmp(*how)
    assert again.code == 0
    assert f"2 in {out / 'captions.jsonl'} already" in again.err
    assert (out / "captions.jsonl").read_bytes() == before
    assert f"prompt={kept(out)['b.jpg']!r}" in settings(out / "b.depth.png")


def test_the_captioning_model_is_gone_before_the_backbone_comes(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], blip: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[weakref.ref[object]] = []
    alive: list[bool] = []
    opened, call = local.opened, Captioner.__call__

    def called(self: Captioner, pictures: list[Image.Image]) -> list[str]:
        seen.extend((weakref.ref(self), weakref.ref(self._model)))
        return call(self, pictures)

    def watched(*arguments: object) -> object:
        alive.extend(one() is not None for one in seen)
        return opened(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Captioner, "__call__", called)
    monkeypatch.setattr(local, "opened", watched)
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "--caption",
              "--caption-model", blip, *model)  # fmt: skip
    assert ran.code == 0
    assert alive == [False] * 6


def test_a_dry_run_captions_nothing(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "--caption", "--dry-run", *model)
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 3
    assert not (tmp_path / "out").exists()


def test_a_captioning_model_that_is_not_here_ends_the_run(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "--caption", *model)
    assert ran.code == 5
    assert "Salesforce/blip-image-captioning-large: config.json at revision main" in ran.err
    assert "run: hf download Salesforce/blip-image-captioning-large" in ran.err
    assert not list((tmp_path / "out").glob("*.png"))
