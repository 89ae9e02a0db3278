"""A prompt for each image: a .txt beside it, a column of metadata; what reaches the file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import prompts
from dmp_cli.errors import ResourceError, UsageError
from dmp_cli.jobs import Job, find, plan_targets
from dmp_cli.plan import Output
from tests.conftest import Dmp, write_image, write_weights

Files = dict[str, str]


def jobs_in(root: Path, out: Path) -> list[Job]:
    found = find([str(root)], out, lambda _: None)
    return plan_targets(found, out, ["depth"], Output())


@pytest.fixture
def todo(photos: Path, tmp_path: Path) -> list[Job]:
    """Jobs of a.png, b.jpg and sub/c.webp."""
    return jobs_in(photos, tmp_path / "out")


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def lines(*entries: dict[str, object]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def entry(name: str, text: object, column: str = "text") -> dict[str, object]:
    return {"file_name": name, column: text}


# Found ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.txt": " ein Zimmer,\n grün \n"}, ["ein Zimmer, grün", None, None]),
        ({"a.txt": "no", "a.png.txt": "yes"}, ["yes", None, None]),
        ({"b.txt": "\ufeffmarked", "sub/c.txt": ""}, [None, "marked", ""]),
        ({"c.txt": "elsewhere", "sub/c.webp.txt": "here"}, [None, None, "here"]),
    ],
    ids=["tidied", "the whole name first", "empty", "its own folder"],
)
def test_a_text_beside_an_image(
    photos: Path, todo: list[Job], files: Files, expected: list[str | None]
) -> None:
    write(photos, files)
    assert [job.prompt for job in prompts.find(todo, "txt").jobs] == expected


@pytest.mark.parametrize(
    ("files", "column", "expected"),
    [
        ({"metadata.jsonl": lines(entry("a.png", "x"), entry("sub/c.webp", "z"))}, "text",
         ["x", None, "z"]),
        ({"metadata.jsonl": lines(entry("./sub//c.webp", " z\n z"))}, "text", [None, None, "z z"]),
        ({"metadata.jsonl": lines(entry("a.png", "x", "caption"), entry("b.jpg", 3, "n"))},
         "caption", ["x", None, None]),
        ({"metadata.jsonl": lines(entry("a.png", ""), entry("b.jpg", None))}, "text",
         ["", None, None]),
        ({"metadata.jsonl": lines(entry("sub/c.webp", "far"), entry("b.jpg", "y")),
          "sub/metadata.jsonl": lines(entry("c.webp", "near"))}, "text", [None, "y", "near"]),
        ({"metadata.jsonl": lines(entry("sub/c.webp", "far")),
          "sub/metadata.jsonl": lines(entry("d.webp", "other"))}, "text", [None, None, "far"]),
        ({"metadata.csv": 'file_name,text\na.png,"a room, with ""art"""\nb.jpg\n'}, "text",
         ['a room, with "art"', None, None]),
        ({"metadata.jsonl": lines(entry("gone.png", "x"), entry("a.png", "x"))}, "text",
         ["x", None, None]),
    ],
    ids=["below", "path", "column", "empty", "nearest", "above", "csv", "of no image"],
)  # fmt: skip
def test_a_column_of_metadata(
    photos: Path, todo: list[Job], files: Files, column: str, expected: list[str | None]
) -> None:
    write(photos, files)
    assert [job.prompt for job in prompts.find(todo, column).jobs] == expected


def test_metadata_of_a_data_set_may_count_from_its_images(tmp_path: Path) -> None:
    write_image(tmp_path / "data/images/a.png")
    write(tmp_path / "data", {"metadata.jsonl": lines(entry("a.png", "x"))})
    (job,) = prompts.find(jobs_in(tmp_path / "data", tmp_path / "out"), "text").jobs
    assert job.prompt == "x"


def test_nothing_above_the_root_is_read(photos: Path, tmp_path: Path) -> None:
    write(tmp_path, {"metadata.jsonl": lines(entry("photos/a.png", "x"))})
    found = prompts.find(jobs_in(photos, tmp_path / "out"), "text")
    assert {job.prompt for job in found.jobs} == {None}


def test_all_frames_of_a_clip_have_its_text(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.jsonl": lines(entry("walk.mp4", "a walk"))})
    frames = [Job(tmp_path / "walk.mp4", {}, frame, "walk.mp4") for frame in range(3)]
    assert [job.prompt for job in prompts.find(frames, "text").jobs] == ["a walk"] * 3
    assert prompts.images(frames) == frames[:1]


@pytest.mark.parametrize(
    ("files", "where", "message"),
    [
        ({"metadata.jsonl": lines(entry("a.png", "x"))}, "txet",
         r"metadata\.jsonl has no column 'txet'"),
        ({"metadata.jsonl": lines(entry("a.png", "x"))}, "file_name", "has no column 'file_name'"),
        ({"metadata.jsonl": "\n"}, "text", "has no column 'text'"),
        ({"metadata.csv": "file_name,text\na.png,x\n"}, "txet", r"metadata\.csv has no column"),
        ({"metadata.jsonl": lines(entry("a.png", 5))}, "text", "line 1: text is not a string"),
        ({"metadata.jsonl": '{"file_name": "a.png", "text": "\\ud800"}'}, "text",
         "line 1: text is not valid Unicode"),
        ({"metadata.jsonl": lines(entry("a.png", "x")) + "{"}, "text", "line 2: Expecting"),
        ({"metadata.csv": "name,text\na.png,x\n"}, "text", "line 2: no file_name"),
        ({"metadata.csv": 'file_name,text\na.png,"x\n'}, "text", "line 1: unexpected end"),
        ({"a.txt": "x" * 1_000_001}, "txt", r"a\.txt: more than 1000000 bytes"),
        ({}, " ", "--prompt-from names nothing"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_used(
    photos: Path, todo: list[Job], files: Files, where: str, message: str
) -> None:
    write(photos, files)
    with pytest.raises(UsageError, match=message) as error:
        prompts.find(todo, where)
    assert error.value.hint


def test_a_text_that_is_not_utf8_is_told(photos: Path, todo: list[Job]) -> None:
    (photos / "a.txt").write_bytes(b"Gr\xfcn")
    with pytest.raises(UsageError, match=r"a\.txt: cannot be read: .*utf-8"):
        prompts.find(todo, "txt")


def test_a_missing_column_names_those_that_are_there(photos: Path, todo: list[Job]) -> None:
    write(photos, {"metadata.jsonl": lines(entry("a.png", "x") | {"label": 1})})
    with pytest.raises(UsageError) as error:
        prompts.find(todo, "caption")
    assert "columns there: text, label;" in error.value.hint


@pytest.mark.parametrize(
    ("files", "where", "message", "hint"),
    [
        ({}, "txt", "no image has a text in a .txt file", "a.png.txt and a.txt"),
        ({}, "text", "no image has a text in metadata.jsonl or metadata.csv", "sub"),
        ({"metadata.jsonl": lines(entry("z.png", "x"))}, "text", "photos/metadata.jsonl",
         "counted from that file's folder"),
    ],
)  # fmt: skip
def test_no_text_at_all_says_where_was_looked(
    photos: Path, todo: list[Job], files: Files, where: str, message: str, hint: str
) -> None:
    write(photos, files)
    with pytest.raises(UsageError) as error:
        prompts.require_some(prompts.find(todo, where))
    assert message in str(error.value)
    assert hint in error.value.hint


# Kept -------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, todo: list[Job]) -> Path:
    path = tmp_path / "captions.jsonl"
    for job in todo[:2]:
        prompts.keep(path, job, "blip", f"a {job.source.stem}")
    return path


def stems(found: dict[Path, str]) -> dict[str, str]:
    return {path.stem: text for path, text in found.items()}


def test_captions_are_kept_in_the_form_of_metadata(file: Path, todo: list[Job]) -> None:
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["file_name"], one["text"]) for one in entries] == [
        ("a.png", "a a"), ("b.jpg", "a b")
    ]  # fmt: skip
    assert stems(prompts.kept(file, todo, "blip")) == {"a": "a a", "b": "a b"}


def test_captions_of_other_files_or_models_are_not_taken(file: Path, todo: list[Job]) -> None:
    assert prompts.kept(file, todo, "git") == {}
    write_image(todo[0].source, 40, 40, seed=9)
    assert stems(prompts.kept(file, todo, "blip")) == {"b": "a b"}


def test_a_caption_by_hand_is_taken_and_the_last_one_counts(file: Path, todo: list[Job]) -> None:
    with file.open("a") as more:
        more.write(lines(entry("a.png", "mine"), entry("sub/c.webp", "too")).rstrip("\n"))
    found = stems(prompts.kept(file, todo, "any"))
    assert found == {"a": "mine", "c": "too"}
    prompts.keep(file, todo[1], "any", "new")
    assert stems(prompts.kept(file, todo, "any")) == found | {"b": "new"}


def test_a_line_that_was_not_finished_is_cut_off(file: Path, todo: list[Job]) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert stems(prompts.kept(file, todo, "blip")) == {"a": "a a"}
    prompts.keep(file, todo[1], "blip", "a b")
    assert file.read_bytes() == whole


def test_a_file_of_another_form_is_refused(file: Path, todo: list[Job]) -> None:
    file.write_text("a list of captions\n")
    with pytest.raises(UsageError, match=r"captions\.jsonl: line 1"):
        prompts.kept(file, todo, "blip")
    assert file.read_text() == "a list of captions\n"


def test_captions_that_cannot_be_written_end_the_run(tmp_path: Path, todo: list[Job]) -> None:
    with pytest.raises(ResourceError, match="cannot be written"):
        prompts.keep(tmp_path, todo[0], "blip", "x")


def test_an_image_that_is_gone_keeps_its_line(file: Path, todo: list[Job]) -> None:
    todo[0].source.unlink()
    assert "a" in stems(prompts.kept(file, todo, "blip"))


def test_texts_fill_only_what_is_empty(todo: list[Job]) -> None:
    first = [replace(todo[0], prompt=""), *todo[1:]]
    filled = prompts.fill(first, {job.source: "new" for job in todo[:2]})
    assert [job.prompt for job in filled] == ["", "new", None]


# Through the command ----------------------------------------------------------------------


def settings(path: Path) -> str:
    with Image.open(path) as image:
        return str(image.info["Settings"])


def test_each_map_says_its_own_prompt(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    write(photos, {"a.txt": "a room", "b.txt": "", "sub/other.txt": "0 0.5 0.5 1 1"})
    ran = dmp("predict", "depth", photos, "-o", out, "--prompt-from", "txt", "--prompt", "a hall",
              *model)  # fmt: skip
    assert ran.code == 0
    assert "prompt='a room' guidance=2.0" in settings(out / "a.depth.png")
    assert "prompt" not in settings(out / "b.depth.png")
    assert "prompt='a hall' guidance=2.0" in settings(out / "sub/c.depth.png")
    assert "no text in a .txt file for 1 of 3 images: the prompt 'a hall' stands in" in ran.err
    assert ran.err.count("model tiny states no prompt for depth") == 1


def test_one_text_for_all_is_the_same_as_a_prompt(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    names = ("a.png", "b.jpg", "sub/c.webp")
    write(photos, {"metadata.jsonl": lines(*(entry(name, "a room") for name in names))})
    how = ("--format", "npy,png", "--batch", "2", *model)
    one = dmp("predict", "depth", photos, "-o", tmp_path / "one", "--prompt", "a room", *how)
    each = dmp("predict", "depth", photos, "-o", tmp_path / "each", "--prompt-from", "text", *how)
    assert (one.code, each.code) == (0, 0)
    assert "no text" not in each.err
    every = (tmp_path / "one").rglob("*.*.*")
    written = sorted(path.relative_to(tmp_path / "one") for path in every)
    assert len(written) == 6
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "each" / name).read_bytes()


def test_a_prompt_of_the_entry_stands_in(dmp: Dmp, photos: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.toml", 'size = 64\nprompt = "a bedroom"', ("depth",))
    write(photos, {"a.txt": "long " * 90})
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", "--prompt-from", "txt",
              "--model", "tiny", "--weights", weights, "--steps", "1")  # fmt: skip
    assert ran.code == 0
    assert "for 2 of 3 images: the prompt 'a bedroom' stands in" in ran.err
    assert "no prompt of its own" not in ran.err
    assert ran.err.count("a.png: its prompt is longer than the 77 tokens") == 1
    assert "prompt='a bedroom'" in settings(tmp_path / "out/b.depth.png")


def test_a_text_is_never_taken_unasked(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    write(photos, {"a.txt": "0 0.5 0.5 1 1", "metadata.jsonl": lines(entry("b.jpg", "x"))})
    assert dmp("predict", "depth", photos, "-o", tmp_path / "out", *model).code == 0
    for name in "ab":
        assert "prompt" not in settings(tmp_path / f"out/{name}.depth.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt-from", "txt"), "no image has a text"),
        (("--prompt-from", "text"), "metadata.jsonl or metadata.csv"),
        (("--caption-model", "somewhere"), "--caption-model is of no use alone"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_makes_no_sense_is_told_before_anything_is_written(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...],
    options: tuple[str, ...], message: str, more: tuple[str, ...],
) -> None:  # fmt: skip
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", *options, *more, *model)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_prompts_differ_within_a_batch(dmp: Dmp, tmp_path: Path, model: tuple[str, ...]) -> None:
    for index, text in enumerate(("a room", "", "a hall", None)):
        write_image(tmp_path / f"in/{index}.png", 48, 64, seed=0)
        if text is not None:
            write(tmp_path / "in", {f"{index}.txt": text})
    how = ("--prompt-from", "txt", "--format", "npy", *model)
    maps = {}
    for batch in (1, 4):
        out = tmp_path / f"out{batch}"
        assert dmp("predict", "depth", tmp_path / "in", "-o", out, "--batch", batch, *how).code == 0
        maps[batch] = np.stack([np.load(out / f"{index}.depth.npy") for index in range(4)])
    for alone, together in zip(maps[1], maps[4], strict=True):
        assert np.linalg.norm(together - alone) / np.linalg.norm(alone) < 1e-5
    first, empty, other, unstated = maps[1]
    assert np.array_equal(empty, unstated)
    assert not np.allclose(first, other, rtol=1e-4)
    assert not np.allclose(first, empty, rtol=1e-4)
