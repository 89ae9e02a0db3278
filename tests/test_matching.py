"""Which files belong together, in the layouts that people have."""

from pathlib import Path

import pytest

from dmp_cli import matching
from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.tasks import find


def lay(root: Path, names: str) -> Path:
    """A folder with empty files of these names."""
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(tmp_path: Path, pred: str, truth: str, task: str = "depth") -> dict[str, tuple[str, str]]:
    """name -> prediction and truth, as paths below their folders."""
    out, data = lay(tmp_path / "out", pred), lay(tmp_path / "data", truth)
    return {
        one.name: (str(one.prediction.relative_to(out)), str(one.truth.relative_to(data)))
        for one in matching.find(out, data, find(task)).matches
    }


@pytest.mark.parametrize(
    ("pred", "truth", "pairs"),
    [
        ("a.depth.npy", "a.npy", {"a": ("a.depth.npy", "a.npy")}),
        ("a.depth.npy", "a.depth.exr", {"a": ("a.depth.npy", "a.depth.exr")}),
        ("a.png", "a.png", {"a": ("a.png", "a.png")}),
        ("sub/a.depth.npy", "sub/a.png", {"sub/a": ("sub/a.depth.npy", "sub/a.png")}),
        # the root of a data set, in either layout
        ("a.depth.npy", "depth/a.npy images/a.png", {"a": ("a.depth.npy", "depth/a.npy")}),
        ("a.depth.npy", "a.png a.depth.png", {"a": ("a.depth.npy", "a.depth.png")}),
        (
            "a.depth.npy",
            "images/a.png images/a.depth.png",
            {"a": ("a.depth.npy", "images/a.depth.png")},
        ),
        # maps of other tasks beside it
        ("a.depth.npy a.normals.npy a.seg.png", "a.npy", {"a": ("a.depth.npy", "a.npy")}),
        # what dmp predict wrote of a whole data set, with --keep-suffix, and as 16-bit picture
        ("images/a.depth.npy", "depth/a.npy", {"a": ("images/a.depth.npy", "depth/a.npy")}),
        ("a.jpg.depth.npy", "a.npy", {"a": ("a.jpg.depth.npy", "a.npy")}),
        ("a.depth.16.png", "a.npy", {"a": ("a.depth.16.png", "a.npy")}),
        # names with dots, endings in capitals, a folder and a file of one name
        ("v1.2.depth.npy", "v1.2.npy", {"v1.2": ("v1.2.depth.npy", "v1.2.npy")}),
        ("A.depth.NPY", "A.PNG", {"A": ("A.depth.NPY", "A.PNG")}),
        (
            "a.npy a/b.npy",
            "a.npy a/b.npy",
            {"a": ("a.npy", "a.npy"), "a/b": ("a/b.npy", "a/b.npy")},
        ),
        # hidden files and files of other kinds are passed over
        ("a.npy .b.npy .c/d.npy dmp-manifest.jsonl", "a.npy .b.npy", {"a": ("a.npy", "a.npy")}),
    ],
)
def test_layouts(tmp_path: Path, pred: str, truth: str, pairs: dict[str, tuple[str, str]]) -> None:
    assert found(tmp_path, pred, truth) == pairs


@pytest.mark.parametrize(("word", "folder"), [("seg", "seg"), ("segmentation", "segmentation")])
def test_the_alias_of_a_task_will_do(tmp_path: Path, word: str, folder: str) -> None:
    expected = {"a": (f"a.{word}.npy", f"{folder}/a.png")}
    assert found(tmp_path, f"a.{word}.npy", f"{folder}/a.png", "segmentation") == expected


@pytest.mark.parametrize(
    ("formats", "best"),
    [
        ("png 16.png exr npz npy", "npy"),
        ("png 16.png exr npz", "npz"),
        ("png 16.png exr", "exr"),
        ("png 16.png tif", "tif"),
        ("png 16.png", "16.png"),
    ],
)
def test_float_data_is_read_before_pictures(tmp_path: Path, formats: str, best: str) -> None:
    names = " ".join(f"a.depth.{form}" for form in formats.split())
    assert found(tmp_path, names, "a.npy")["a"][0] == f"a.depth.{best}"


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    assert list(found(tmp_path, "c.npy a.npy b/a.npy", "b/a.npy c.npy a.npy")) == ["a", "b/a", "c"]


def test_what_has_no_counterpart_is_told(tmp_path: Path) -> None:
    out, data = lay(tmp_path / "out", "a.npy b.npy c.npy"), lay(tmp_path / "data", "b.npy d.npy")
    matched = matching.find(out, data, find("depth"))
    assert [one.name for one in matched.matches] == ["b"]
    assert matched.missing == (data / "d.npy",)
    assert matched.spare == (out / "a.npy", out / "c.npy")
    assert not matched.by_name


def test_if_no_folder_agrees_names_alone_are_matched(tmp_path: Path) -> None:
    out = lay(tmp_path / "out", "run/a.depth.npy run/b.depth.npy run/x/c.depth.npy run/c.depth.npy")
    data = lay(tmp_path / "data", "test/depth/a.npy test/depth/b.npy test/depth/c.npy")
    matched = matching.find(out, data, find("depth"))
    assert [one.prediction.name for one in matched.matches] == ["a.depth.npy", "b.depth.npy"]
    assert matched.by_name
    assert [path.name for path in matched.missing] == ["c.npy"]  # two have its name


def test_two_suffixes_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    pred = "a.jpg.depth.npy a.png.depth.npy b.depth.npy"
    assert list(found(tmp_path, pred, "a.npy b.npy")) == ["b"]


def test_two_files(tmp_path: Path) -> None:
    lay(tmp_path, "x.depth.npy y.png")
    (only,) = matching.find(tmp_path / "x.depth.npy", tmp_path / "y.png", find("depth")).matches
    assert (only.name, only.prediction.name, only.truth.name) == ("y", "x.depth.npy", "y.png")


def test_masks_and_images(tmp_path: Path) -> None:
    out, data = lay(tmp_path / "out", "a.npy s/b.npy"), lay(tmp_path / "data", "a.npy s/b.npy")
    masks = lay(tmp_path / "masks", "a.png s/b.npy c.png")
    lay(data, "images/a.jpg images/s/b.webp images/a.depth.png")
    lay(data / "depth", "a.npy s/b.npy")
    matched = matching.find(out, data, find("depth"), masks, data)
    assert [one.mask for one in matched.matches] == [masks / "a.png", masks / "s/b.npy"]
    shots = data / "images"
    assert [one.image for one in matched.matches] == [shots / "a.jpg", shots / "s/b.webp"]
    one_for_all = matching.find(out, data, find("depth"), masks / "a.png")
    assert {one.mask for one in one_for_all.matches} == {masks / "a.png"}


@pytest.mark.parametrize("what", ["mask", "images"])
def test_a_truth_without_mask_or_image_is_refused(tmp_path: Path, what: str) -> None:
    maps, place = lay(tmp_path / "maps", "a.npy b.npy c.npy"), lay(tmp_path / "place", "a.png")
    with pytest.raises(UsageError, match="for b and 1 more"):
        matching.find(maps, maps, find("depth"), **{what: place})


@pytest.mark.parametrize(
    ("pred", "truth", "kind", "words"),
    [
        ("nothing", "data", UsageError, "nothing: no such file"),
        ("out", "nothing", UsageError, "nothing: no such file"),
        ("out/a.npy", "data", UsageError, "one is a file and the other a folder"),
        ("empty", "data", NoInputError, "has no maps of depth"),
        ("other", "data", NoInputError, "has the name of one"),
        ("normals", "data", NoInputError, "has no maps of depth"),
    ],
)
def test_what_cannot_be_matched(
    tmp_path: Path, pred: str, truth: str, kind: type[Exception], words: str
) -> None:
    lay(tmp_path, "out/a.npy data/a.npy other/z.npy empty/note.txt normals/a.normals.npy")
    with pytest.raises(kind, match=words):
        matching.find(tmp_path / pred, tmp_path / truth, find("depth"))
