"""Files of this machine, their hashes, and what is wrong with them."""

import hashlib
import shutil
from pathlib import Path

import pytest

from dmp_cli import catalogue, digests, hub, sources, weights
from dmp_cli.commands import fetch
from dmp_cli.errors import ModelError
from dmp_cli.sources import Source
from tests.conftest import TASKS

PARITY = Path(__file__).parent / "parity"
LORA = PARITY / "lora" / "full" / "pytorch_lora_weights.safetensors"
SHA256 = hashlib.sha256(LORA.read_bytes()).hexdigest()
PARTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Source(repo="a/b", revision="c0ffee", file="d.safetensors"), "a/b/d.safetensors@c0ffee"),
        (Source(repo="a/b"), "a/b@main"),
        (Source(path=Path("/x")), "/x"),
        (Source(made="tiny"), "made by dmp (tiny)"),
    ],
)
def test_source_in_words(source: Source, expected: str) -> None:
    assert str(source) == expected


@pytest.mark.parametrize("name", sources.LORA_NAMES)
def test_lora_in_a_folder(tmp_path: Path, name: str) -> None:
    shutil.copy(LORA, tmp_path / name)
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"a pickle")
    assert sources.lora_file(Source(path=tmp_path)) == tmp_path / name


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_lora_of_any_name(tmp_path: Path, sha256: str | None) -> None:
    path = tmp_path / "depth.safetensors"
    shutil.copy(LORA, path)
    assert sources.lora_file(Source(path=path, sha256=sha256)) == path


@pytest.mark.parametrize(
    ("name", "why"),
    [("absent.safetensors", "no such LoRA file"), ("folder", "holds none of"),
     ("lora.bin", "never a pickle"), ("only-bin", "holds none of"), ("a\0b", "no such")],
)  # fmt: skip
def test_lora_that_is_not_to_be_had(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "only-bin").mkdir()
    for file in ("lora.bin", "only-bin/pytorch_lora_weights.bin"):
        (tmp_path / file).write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=why) as raised:
        sources.lora_file(Source(path=tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)
    assert raised.value.hint


def test_lora_with_a_wrong_sha256() -> None:
    with pytest.raises(ModelError) as raised:
        sources.lora_file(Source(path=LORA, sha256="0" * 64))
    message = str(raised.value)
    assert all(part in message for part in (str(LORA), f"expected {'0' * 64}", f"found {SHA256}"))


def backbone(folder: Path, *variants: str | None) -> Path:
    for part in PARTS:
        for variant in variants:
            path = folder / f"{part}{'.' + variant if variant else ''}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            (path.parent / "config.json").touch()
    for name in ("scheduler/scheduler_config.json", "tokenizer/vocab.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("there", "wanted", "half", "taken"),
    [
        ((None, "fp16"), "fp16", True, "fp16"),
        ((None, "fp16"), "fp16", False, None),
        ((None,), "fp16", True, None),
        (("fp16",), "fp16", False, "fp16"),
        ((None, "fp16"), None, True, None),
        ((None,), None, False, None),
    ],
)
def test_variant(
    tmp_path: Path, there: tuple[str | None, ...], wanted: str | None, half: bool,
    taken: str | None,
) -> None:  # fmt: skip
    folder = backbone(tmp_path / "sd", *there)
    found = sources.backbone_folder(Source(path=folder, variant=wanted), half)
    assert found == (folder, taken)


@pytest.mark.parametrize("part", PARTS)
def test_backbone_that_is_not_whole(tmp_path: Path, part: str) -> None:
    folder = backbone(tmp_path, None)
    (folder / f"{part}.safetensors").unlink()
    with pytest.raises(ModelError, match=f"{part}.safetensors is missing") as raised:
        sources.backbone_folder(Source(path=folder, variant="fp16"), half=True)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_backbone_that_is_not_there(tmp_path: Path, variant: str | None) -> None:
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.safetensors is missing"):
        sources.backbone_folder(Source(path=tmp_path / "absent", variant=variant), half=True)


# Hashes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_stated_hashes_of_a_backbone(tmp_path: Path, name: str, right: bool) -> None:
    folder = backbone(tmp_path, None)
    digest = hashlib.sha256(b"").hexdigest() if right else "1" * 64
    source = Source(path=folder, digests={name: digest})
    stated = sources.backbone_stated(source, half=False)
    assert [path for path, hashes in stated.items() if hashes] == [folder / name]
    assert len(stated) == 8
    if right:
        sources.check(source, stated)
        return
    with pytest.raises(ModelError, match=f"expected {digest}, found") as raised:
        sources.check(source, stated)
    assert str(folder / name) in str(raised.value)


def test_a_hash_of_a_file_that_is_not_taken(tmp_path: Path) -> None:
    digests = {"unet/diffusion_pytorch_model.fp16.safetensors": "1" * 64}
    source = Source(path=backbone(tmp_path, None, "fp16"), variant="fp16", digests=digests)
    sources.check(source, sources.backbone_stated(source, half=False))
    with pytest.raises(ModelError, match="wrong sha256"):
        sources.check(source, sources.backbone_stated(source, half=True))


def test_a_file_that_changed_is_hashed_anew(tmp_path: Path) -> None:
    path = tmp_path / "depth.safetensors"
    shutil.copy(LORA, path)
    source = Source(path=path, sha256=SHA256)
    assert sources.lora_file(source) == path
    path.write_bytes(LORA.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=f"expected {SHA256}, found"):
        sources.lora_file(source)


def test_the_packaged_model_is_what_the_weights_file_says() -> None:
    """The hashes that `recipes/demo/make.py --install` writes."""
    for task in TASKS:
        (recipe,) = weights.resolve(catalogue.packaged(), [task], "demo")
        assert recipe.lora.sha256
        sources.lora_file(recipe.lora)
    stated = sources.backbone_stated(recipe.backbone, half=False)
    assert {str(path.parent.name) for path, hashes in stated.items() if hashes} == {
        "unet", "vae", "text_encoder"
    }  # fmt: skip
    sources.check(recipe.backbone, stated)


def test_a_damaged_package_says_so(tmp_path: Path) -> None:
    source = Source(path=LORA, packaged="demo/loras/depth.safetensors", sha256="0" * 64)
    with pytest.raises(ModelError, match="wrong sha256") as raised:
        sources.lora_file(source)
    assert "install dmp again" in raised.value.hint


def test_a_hash_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens in the thread: who waits for it would wait for ever."""
    path = tmp_path / "depth.safetensors"
    shutil.copy(LORA, path)

    def full(self: Path, mode: str) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(MemoryError):
            digests.begin(path, SHA256).result(10)
    assert digests.sha256(path) == SHA256


def test_only_what_came_is_deleted_for_a_wrong_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same name in another repository was there before, and stays."""
    places = [Source(repo=f"org/{name}", file="depth.safetensors") for name in ("old", "new")]
    file = hub.File("depth.safetensors", 1, SHA256)
    folders = {}
    for source in places:
        folders[source.repo] = tmp_path / str(source.repo)
        folders[source.repo].mkdir(parents=True)
        (folders[source.repo] / file.name).write_bytes(b"x")
    listings = tuple(hub.Listing(source.repository, "c" * 40, (file,)) for source in places)
    monkeypatch.setattr(
        hub, "lacking", lambda one: {file: 1} if one.repository.name == "org/new" else {}
    )
    monkeypatch.setattr(hub, "check_room", lambda number: None)
    monkeypatch.setattr(hub, "fetch", lambda one, moved: folders[one.repository.name])
    for source, left in zip(places, (True, False), strict=True):
        wrong = Source(repo=source.repo, file=source.file, sha256="1" * 64)
        wish = sources.Wish(wrong, wrong.repository, (file.name,))
        with pytest.raises(ModelError, match="wrong sha256"):
            sources.Fetch((wish,), listings).run()
        assert (folders[source.repo] / file.name).exists() is left


@pytest.mark.parametrize(
    ("device", "dtype", "half"),
    [("auto", "auto", None), ("cpu", "auto", False), ("mps", "auto", False),
     ("cuda:1", "auto", True), ("auto", "fp16", True), ("cuda", "bf16", False)],
)  # fmt: skip
def test_precision_as_far_as_it_is_known(device: str, dtype: str, half: bool | None) -> None:
    assert fetch.half_of(device, dtype) is half


@pytest.mark.parametrize(
    ("there", "half", "hashed"),
    [((None, "fp16"), None, set()), ((None,), None, {None}), (("fp16",), None, {"fp16"}),
     ((None, "fp16"), False, {None}), ((None, "fp16"), True, {"fp16"})],
)  # fmt: skip
def test_no_file_is_hashed_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str | None, ...],
    half: bool | None, hashed: set[str | None],
) -> None:  # fmt: skip
    """While it is not known which precision a run takes, the files of neither are read."""
    begun: list[Path] = []
    monkeypatch.setattr(digests, "start", begun.extend)
    source = Source(path=backbone(tmp_path, *there), variant="fp16")
    fetch.ready(source, [Source(path=LORA)], half, offline=False)
    assert LORA in begun
    for variant in (None, "fp16"):
        big = {sources.weight_file(tmp_path, Path(part).parent.name, variant) for part in PARTS}
        assert len(big & set(begun)) == (3 if variant in hashed else 0)
