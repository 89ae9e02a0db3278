"""Which input becomes which output: rows 15, 16 and 18 to 21 of the faults."""

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from dmp_cli import jobs
from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.plan import Output
from dmp_cli.tasks import TASKS


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def notes() -> list[str]:
    return []


def touch(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(
    *inputs: str, notes: list[str] | None = None, out: str = "out", recursive: bool = True
) -> list[tuple[str, str]]:
    """What is found: (path, path below the root)."""
    note = [].append if notes is None else notes.append
    found = jobs.find(inputs, Path(out), note, recursive, tuple(TASKS))
    return [(str(item.path), str(item.below)) for item in found]


def below(*inputs: str, **options: object) -> list[str]:
    return [name for _, name in find(*inputs, **options)]  # type: ignore[arg-type]


def plan(pairs: Iterable[tuple[str, str]], *formats: str, keep_suffix: bool = False) -> list[str]:
    """The targets of (path, path below the root)."""
    inputs = [jobs.Input(Path(path), Path(name)) for path, name in pairs]
    planned = jobs.plan_targets(
        inputs, Path("out"), ("depth", "normals"), Output(formats or ("png",)), keep_suffix
    )
    return [str(target) for job in planned for target in job.targets.values()]


# Files and folders ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "in/a.jpeg", "a.weird", "none", "in/.a.png"])
def test_a_file_named_is_taken_whatever_its_name(name: str) -> None:
    touch(name)
    assert find(name) == [(name, Path(name).name)]


@pytest.mark.parametrize("suffix", sorted(jobs.SUFFIXES))
def test_every_suffix_is_found_in_a_folder(suffix: str) -> None:
    touch(f"in/a{suffix}", f"in/B{suffix.upper()}")
    assert below("in") == [f"B{suffix.upper()}", f"a{suffix}"]


def test_folder_in_sorted_order() -> None:
    touch("in/b.png", "in/a.png", "in/z/a.png", "in/c/d/a.png")
    assert find("in") == [
        ("in/a.png", "a.png"), ("in/b.png", "b.png"),
        ("in/c/d/a.png", "c/d/a.png"), ("in/z/a.png", "z/a.png"),
    ]  # fmt: skip


def test_folder_without_those_below() -> None:
    touch("in/a.png", "in/c/a.png")
    assert below("in", recursive=False) == ["a.png"]


@pytest.mark.parametrize("pattern", ["in", "in/**", "in/*", "in/**/*.jpg"])
def test_hidden_files_are_left_out(pattern: str) -> None:
    touch("in/a.jpg", "in/.hidden.jpg", "in/._a.jpg", "in/.thumbnails/a.jpg")
    assert below(pattern) == ["a.jpg"]


@pytest.mark.parametrize("pattern", ["in/.thumbs/*.jpg", "in/.*/*.jpg", "in/.thumbs"])
def test_hidden_folder_that_is_named(pattern: str) -> None:
    touch("in/.thumbs/a.jpg", "in/b.jpg")
    assert [path for path, _ in find(pattern)] == ["in/.thumbs/a.jpg"]


def test_other_suffixes_are_counted_once(notes: list[str]) -> None:
    touch("in/a.png", *(f"in/{i}.txt" for i in range(7)))
    assert below("in", notes=notes) == ["a.png"]
    assert notes == [
        "skipped 7 files without an image suffix: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ..."
    ]


@pytest.mark.parametrize("name", ["absent", "absent.png", "in/absent.png", "a" * 300, "in/a.png/b"])
def test_missing_path(name: str) -> None:
    touch("in/a.png")
    with pytest.raises(UsageError, match=name[:20]):
        find(name)


def test_one_missing_path_among_others() -> None:
    touch("a.png")
    with pytest.raises(UsageError, match=r"absent\.png: no such file"):
        find("a.png", "absent.png")


@pytest.mark.parametrize("inputs", [(), ("in",), ("in/*.png",), ("in/**/*.png", "in")])
def test_no_input(inputs: tuple[str, ...]) -> None:
    touch("in/notes.txt")
    with pytest.raises(NoInputError) as raised:
        find(*inputs)
    assert all(name in str(raised.value) for name in inputs)
    assert ".png" in raised.value.hint


def test_unreadable_folder_below_is_noted(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything: the system call is made to fail."""
    touch("in/a.png", "in/locked/b.png")
    scan = os.scandir

    def refuse(path: str) -> object:
        if "locked" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert below("in", notes=notes) == ["a.png"]
    assert notes == ["skipped in/locked: Permission denied"]
    with pytest.raises(UsageError, match="in/locked: cannot be read: Permission denied"):
        find("in/locked")


# Patterns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("shots/*/*.jpg", ["a/1.jpg", "b/1.jpg"]),
        ("shots/?/1.jpg", ["a/1.jpg", "b/1.jpg"]),
        ("shots/[ab]/1.*", ["a/1.jpg", "b/1.jpg"]),
        ("shots/a/*.jpg", ["1.jpg"]),
        ("shots/**/*.jpg", ["a/1.jpg", "b/1.jpg", "b/deep/2.jpg"]),
        ("shots/**", ["a/1.jpg", "b/1.jpg", "b/deep/2.jpg"]),
        ("**/2.jpg", ["shots/b/deep/2.jpg"]),
        ("./shots/*/1.jpg", ["a/1.jpg", "b/1.jpg"]),
        ("shots/../shots/a/*.jpg", ["1.jpg"]),
    ],
)
def test_pattern_keeps_what_stands_below_its_root(pattern: str, expected: list[str]) -> None:
    touch("shots/a/1.jpg", "shots/b/1.jpg", "shots/b/deep/2.jpg")
    assert below(pattern) == expected


def test_absolute_pattern(tmp_path: Path) -> None:
    touch("shots/a/1.jpg")
    assert find(f"{tmp_path}/shots/*/*.jpg") == [(f"{tmp_path}/shots/a/1.jpg", "a/1.jpg")]


def test_pattern_that_climbs_stays_below_the_output() -> None:
    touch("x.png", "in/sub/y.png")
    found = find("in/*/../../x.png")
    assert len(found) == 1
    assert found[0][1] == "x.png"


@pytest.mark.parametrize("name", ["a[1].png", "what?.png", "*.png"])
def test_file_named_like_a_pattern(name: str) -> None:
    touch(name, "a1.png")
    assert find(name) == [(name, name)]


def test_pattern_counts_other_suffixes(notes: list[str]) -> None:
    touch("in/a.png", "in/b.txt", "in/sub/c.png")
    assert below("in/*", notes=notes) == ["a.png"]
    assert notes == ["skipped 1 file without an image suffix: b.txt"]


# What is no plain file --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder"])
@pytest.mark.parametrize("argument", ["in", "in/*", "in/x.png"])
def test_odd_thing_named_like_an_image_is_skipped(
    notes: list[str], kind: str, argument: str
) -> None:
    touch("in/a.png")
    if kind == "fifo":
        os.mkfifo("in/x.png")
    elif kind == "folder":
        Path("in/x.png").mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("in/x.png")
    if (kind, argument) == ("folder", "in/x.png"):  # a folder that is asked for is a folder
        touch("in/x.png/b.png")
        assert below(argument) == ["b.png"]
        return
    assert below("in/a.png", argument, notes=notes) == ["a.png"]
    assert notes == ["skipped in/x.png: not a regular file"]


def test_device_is_skipped(notes: list[str]) -> None:
    with pytest.raises(NoInputError):
        find("/dev/null", notes=notes)
    assert notes == ["skipped /dev/null: not a regular file"]


@pytest.mark.parametrize("pattern", ["in", "in/**/*.png", "in/**"])
def test_loops_of_links_end(pattern: str) -> None:
    """Two loops: whoever follows them has 2 ** 40 folders before him."""
    touch("in/a.png", "in/sub/b.png")
    Path("in/sub/up").symlink_to("..")
    Path("in/sub/again").symlink_to(".")
    Path("in/round").symlink_to("round")
    assert below(pattern) == ["a.png", "sub/b.png"]


@pytest.mark.parametrize("pattern", ["in", "in/**/*.png"])
def test_links_to_folders_are_not_followed(pattern: str) -> None:
    touch("elsewhere/b.png", "in/a.png")
    Path("in/link").symlink_to("../elsewhere")
    assert below(pattern) == ["a.png"]


def test_link_to_a_folder_that_is_named_is_followed() -> None:
    touch("elsewhere/b.png")
    Path("link").symlink_to("elsewhere")
    assert find("link") == [("link/b.png", "b.png")]


def test_link_to_a_file_is_a_file() -> None:
    touch("elsewhere/b.png", "in/a.png")
    Path("in/c.png").symlink_to("../elsewhere/b.png")
    assert below("in") == ["a.png", "c.png"]


def test_link_to_nowhere_is_an_input_that_fails_later() -> None:
    Path("in").mkdir()
    Path("in/a.png").symlink_to("absent.png")
    Path("in/b.png").symlink_to("b.png")
    assert below("in") == ["a.png", "b.png"]


# Each once, and never what dmp wrote ------------------------------------------------------


def test_duplicates_once(tmp_path: Path) -> None:
    touch("in/a.png", "in/b.png")
    found = find("in/b.png", "in", "in/*.png", "./in/../in/a.png", str(tmp_path / "in/a.png"))
    assert found == [("in/b.png", "b.png"), ("in/a.png", "a.png")]


def outputs(folder: str) -> list[str]:
    return [f"{folder}/a.{task}.{ext}" for task in TASKS for ext in jobs.EXTENSIONS.values()]


@pytest.mark.parametrize("out", ["in/out", "in", "in/sub/../out", "."])
@pytest.mark.parametrize("argument", ["in", "in/**/*", "in/**"])
def test_own_outputs_are_no_inputs(out: str, argument: str) -> None:
    touch("in/a.png", "in/b.jpg", "in/sub/c.png")
    first = below(argument, out=out)
    touch(*outputs(out), *outputs(f"{out}/sub"))
    assert below(argument, out=out) == first == ["a.png", "b.jpg", "sub/c.png"]


@pytest.mark.parametrize("out", ["link/out", "link"])
@pytest.mark.parametrize("argument", ["in", "link"])
def test_own_outputs_behind_a_link(out: str, argument: str) -> None:
    touch("in/a.png")
    Path("link").symlink_to("in")
    touch(*outputs(out))
    assert below(argument, out=out) == ["a.png"]
    assert below(argument, out=out.replace("link", "in")) == ["a.png"]


def test_outputs_elsewhere_and_pictures_in_the_output_folder_are_inputs() -> None:
    touch("in/a.depth.png", "out/photo.png", "outer/b.depth.png")
    assert below("in", "out", "outer") == ["a.depth.png", "photo.png", "b.depth.png"]


def test_only_own_outputs_are_no_input() -> None:
    touch("out/a.depth.png")
    with pytest.raises(NoInputError):
        find("out")


# Lists ------------------------------------------------------------------------------------


def listed(*lines: str, notes: list[str] | None = None) -> list[tuple[str, str]]:
    found = jobs.from_list(lines, Path("out"), [].append if notes is None else notes.append)
    return [(str(item.path), str(item.below)) for item in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.png", "a.png"),
        ("in/sub/a.png", "in/sub/a.png"),
        ("./in/a.png", "in/a.png"),
        ("../a.png", "a.png"),
        ("in/../../a.png", "a.png"),
        ("in/../a.png", "a.png"),
        ("/etc/a.png", "a.png"),
        ("/tmp/../a.png", "a.png"),
        ("-a.png", "-a.png"),
        (" a.png ", " a.png "),
    ],
)
def test_list_keeps_folders_but_stays_below_the_output(line: str, expected: str) -> None:
    assert listed(line) == [(str(Path(line)), expected)]
    target = plan(listed(line))[0]
    assert os.path.abspath(target).startswith(os.path.abspath("out") + os.sep)


@pytest.mark.parametrize("line", ["absent/..", "..", ".", "/", "absent/../.."])
def test_hostile_line_of_a_list_stays_below_the_output(line: str) -> None:
    try:
        targets = plan(listed(line))
    except NoInputError:
        return
    assert all(os.path.abspath(t).startswith(os.path.abspath("out") + os.sep) for t in targets)


def test_list_keeps_what_is_not_there_for_the_report() -> None:
    assert listed("absent.png", "a\0b.png") == [
        ("absent.png", "absent.png"), ("a\0b.png", "a\0b.png")
    ]  # fmt: skip


def test_list_leaves_out_blank_lines_duplicates_and_folders(notes: list[str]) -> None:
    touch("in/a.png")
    assert listed("", "in/a.png", "in", "./in/a.png", "", notes=notes) == [("in/a.png",) * 2]
    assert notes == ["skipped in: not a regular file"]


@pytest.mark.parametrize("lines", [(), ("",), ("", "")])
def test_empty_list(lines: tuple[str, ...]) -> None:
    with pytest.raises(NoInputError, match="names no file"):
        listed(*lines)


# Targets ----------------------------------------------------------------------------------


def test_a_target_for_each_task_and_format() -> None:
    assert plan([("in/sub/a.png", "sub/a.png")], "png", "npy") == [
        "out/sub/a.depth.png", "out/sub/a.depth.npy",
        "out/sub/a.normals.png", "out/sub/a.normals.npy",
    ]  # fmt: skip


def test_a_job_knows_its_source_and_keys() -> None:
    item = jobs.Input(Path("in/a.png"), Path("a.png"))
    (job,) = jobs.plan_targets([item], Path("out"), ("depth",), Output(("npy",)))
    targets = {("depth", "npy"): Path("out/a.depth.npy")}
    assert job == jobs.Job(Path("in/a.png"), targets, name="a.png")


@pytest.mark.parametrize(
    ("one", "other"),
    [("a.png", "a.jpg"), ("a.png", "A.jpg"), ("A.png", "a.png"), ("sub/a.png", "SUB/a.webp"),
     ("straße.png", "STRASSE.jpg")],
)  # fmt: skip
def test_collision_names_both(one: str, other: str) -> None:
    pairs = [(f"in/{one}", one), ("in/between.png", "between.png"), (f"in/{other}", other)]
    with pytest.raises(UsageError, match=f"in/{one} and in/{other} would both") as raised:
        plan(pairs)
    assert "--keep-suffix" in raised.value.hint


@pytest.mark.parametrize(
    ("one", "other"),
    [("a.png", "b.png"), ("a.b.png", "a.c.png"), ("sub/a.png", "a.png"), ("a.png", "a.b.png"),
     ("a.png", "a.png.png")],
)  # fmt: skip
def test_distinct_names_keep_distinct_targets(one: str, other: str) -> None:
    targets = plan([(one, one), (other, other)], "png", "npy")
    assert len({target.casefold() for target in targets}) == 8


def test_dotted_names() -> None:
    assert plan([("a.b.png", "a.b.png"), ("a.c.png", "a.c.png")])[::2] == [
        "out/a.b.depth.png", "out/a.c.depth.png"
    ]  # fmt: skip


def test_keep_suffix() -> None:
    pairs = [("in/a.png", "a.png"), ("in/a.jpg", "a.jpg")]
    assert plan(pairs, keep_suffix=True)[::2] == ["out/a.png.depth.png", "out/a.jpg.depth.png"]


def test_keep_suffix_does_not_help_names_equal_but_for_case() -> None:
    with pytest.raises(UsageError, match="would both be written"):
        plan([("a.png", "a.png"), ("A.PNG", "A.PNG")], keep_suffix=True)


def test_two_roots_with_one_name() -> None:
    touch("one/a.png", "two/a.png")
    with pytest.raises(UsageError, match=r"one/a\.png and two/a\.png"):
        plan(find("one", "two"))


ODD = ["a\nb.png", "-x.png", "--help.png", "海 ü.png", os.fsdecode(b"caf\xe9.png"),
       "n" * 247 + ".png", " .png", "a..png", "'\"$(x).png", "%s{0}.png"]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_names(name: str) -> None:
    touch(f"in/{name}")
    found = find("in")
    assert found == [(f"in/{name}", name)]
    assert plan(found)[0] == f"out/{name.removesuffix('.png')}.depth.png"
    assert below("in/*") == [name]
