"""Which input becomes which output: rows 15, 16 and 18 to 21 of the faults."""

import os
import socket
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import jobs, marks
from dmp_cli.errors import NoInputError, UsageError
from dmp_cli.outputs import legend, writers
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
    assert {".png", ".exr", ".mp4"} <= {*raised.value.hint.split()}


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


@pytest.mark.parametrize("argument", ["out", "out/*.png", "out/a.depth.png"])
def test_only_own_outputs_are_no_input(argument: str) -> None:
    touch("out/a.depth.png")
    with pytest.raises(NoInputError, match="no image but outputs of dmp in out") as raised:
        find(argument)
    assert raised.value.hint == "choose another -o"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.depth.png"], "passed over 1 output of dmp in in"),
        (["a.depth.png", "a.seg.png", "a.normals.exr"], "passed over 2 outputs of dmp in in"),
    ],
)
def test_outputs_that_are_passed_over_are_counted(
    notes: list[str], names: list[str], expected: str
) -> None:
    touch("in/a.jpg", *(f"in/{name}" for name in names))
    find("in", out="in", notes=notes)
    assert notes == [expected]


def test_an_output_that_is_named_is_told_with_what_to_do(notes: list[str]) -> None:
    touch("in/a.jpg", "in/a.depth.png")
    assert below("in/a.jpg", "in/a.depth.png", out="in", notes=notes) == ["a.jpg"]
    assert notes == [
        "passed over a.depth.png: an output of dmp in in; "
        "choose another -o to predict from what dmp wrote"
    ]


def test_a_legend_is_told_by_its_text_not_by_its_name(notes: list[str]) -> None:
    touch("in/a.png")
    Image.new("RGB", (8, 8)).save("in/labels.png")
    assert below("in", out="in", notes=notes) == ["a.png", "labels.png"]
    legend.write(Path("in"))
    legend.write(Path("in/earlier"))
    assert below("in", out="in", notes=notes) == ["a.png"]
    assert notes[-1] == "skipped 2 files without an image suffix: labels.json, labels.json"


def exr(path: str, text: dict[str, str]) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    plane = writers.Channel("Y", np.zeros((2, 2)), "half")
    writers.write_exr(Path(path), [plane], text)


def test_layers_of_a_file() -> None:
    exr("a.exr", {"dmp:Task": "depth,albedo", "z": "dmp:Task"})
    exr("b.exr", {"z": "dmp:Task"})
    touch("c.exr")
    found = [marks.layers(Path(name)) for name in ("a.exr", "b.exr", "c.exr", "d.exr", "a.png")]
    assert found == [("depth", "albedo"), (), (), (), ()]


@pytest.mark.parametrize("form", [("exr",), ("png", "exr")])
def test_layers_replace_no_file_of_others(form: tuple[str, ...]) -> None:
    exr("in/plate.exr", {})
    item = jobs.Input(Path("in/plate.png"), Path("plate.png"))

    def planned(tasks: tuple[str, ...], merged: bool) -> list[jobs.Job]:
        return jobs.plan_targets([item], Path("in"), tasks, Output(form, merged=merged))

    with pytest.raises(UsageError, match=r"in/plate\.exr would be overwritten, and dmp did not"):
        planned(("depth", "albedo"), True)
    assert planned(("depth", "albedo"), False)
    assert planned(("depth",), True)
    exr("in/plate.exr", {"dmp:Task": "depth"})
    assert planned(("depth", "albedo"), True)


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


def test_list_of_own_outputs_says_so(notes: list[str]) -> None:
    touch("a.jpg")
    tasks = tuple(TASKS)
    jobs.from_list(
        ["a.jpg", "out/a.depth.png", "out/b.depth.png"], Path("out"), notes.append, tasks
    )
    assert notes == [
        "passed over a.depth.png, b.depth.png: outputs of dmp in out; "
        "choose another -o to predict from what dmp wrote"
    ]
    with pytest.raises(NoInputError, match="names no image but outputs of dmp in out"):
        jobs.from_list(["out/a.depth.png"], Path("out"), notes.append, tasks)


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
    assert dict(job.targets) == targets


LOOKS = [
    Output(formats, merged=merged, side_by_side=side)
    for formats in (("png",), ("png", "png16", "exr", "npy", "tiff", "tiff16"))
    for merged in (False, True)
    for side in (False, True)
]


@pytest.mark.parametrize("look", LOOKS)
def test_no_ending_is_the_end_of_another(look: Output) -> None:
    """So targets are one file only if their stems are: what planning relies on."""
    item = jobs.Input(Path("a.png"), Path("a.png"))
    (job,) = jobs.plan_targets([item], Path("out"), tuple(TASKS), look)
    names = {path.name.removeprefix("a") for path in job.targets.values()}
    assert not [(one, other) for one in names for other in names - {one} if other.endswith(one)]


def test_a_job_is_small_however_many_targets_it_has() -> None:
    """As paths, the 5 targets of 100,000 jobs took 370 MB."""
    items = [jobs.Input(Path(f"in/{i}.png"), Path(f"{i}.png")) for i in range(1000)]
    look = Output(("png", "png16", "exr", "npy", "tiff", "tiff16"))
    tracemalloc.start()
    todo = jobs.plan_targets(items, Path("out"), tuple(TASKS), look)
    each = tracemalloc.get_traced_memory()[0] / len(todo)
    tracemalloc.stop()
    assert len(todo[0].targets) == 30
    assert each < 1000  # bytes


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


@pytest.mark.parametrize("out", ["in", "link", "./in/../in"])
def test_a_target_below_an_input_that_is_a_file_is_refused(out: str) -> None:
    """With --keep-suffix the frames of in/c.mp4 go to in/c.mp4/, which is the clip."""
    touch("in/c.mp4")
    Path("link").symlink_to("in")
    items = [jobs.Input(Path("in/c.mp4"), Path("c.mp4"), frame) for frame in range(2)]
    with pytest.raises(
        UsageError, match=r"input .*in/c\.mp4 is no folder|link/c\.mp4 is no folder"
    ):
        jobs.plan_targets(items, Path(out), ("depth",), Output(), keep_suffix=True)
    assert jobs.plan_targets(items, Path(out), ("depth",), Output())


# Movies -----------------------------------------------------------------------------------


def movies(*inputs: str, tasks: tuple[str, ...] = ("depth",)) -> list[jobs.Movie]:
    """Of paths below in/; a clip has two frames."""
    items = [
        jobs.Input(path, Path(name), frame)
        for name in inputs
        for path in [Path("in", name)]
        for frame in (range(2) if path.suffix == ".mp4" else [None])
    ]
    return jobs.plan_movies(
        jobs.plan_targets(items, Path("out"), tasks, Output()), Path("out"), tasks
    )


def test_a_movie_for_each_clip_and_folder() -> None:
    found = movies("a.png", "s/b.png", "s/c.png", "s/d.mp4")
    assert [(str(one.target), str(one.source), one.is_clip) for one in found] == [
        ("out/sequence.depth.mp4", "in", False),
        ("out/s.depth.mp4", "in/s", False),
        ("out/s/d.depth.mp4", "in/s/d.mp4", True),
    ]
    assert [[str(path) for path in one.pictures] for one in found[1:]] == [
        ["out/s/b.depth.png", "out/s/c.depth.png"],
        ["out/s/d/000001.depth.png", "out/s/d/000002.depth.png"],
    ]


def test_a_movie_for_each_task() -> None:
    names = [one.target.name for one in movies("a.mp4", tasks=("depth", "normals"))]
    assert names == ["a.depth.mp4", "a.normals.mp4"]


@pytest.mark.parametrize(
    ("inputs", "both"),
    [
        (("a.png", "sequence/b.png"), "in and in/sequence would both"),
        (("a.mp4", "a/b.png"), "in/a.mp4 and in/a would both"),
        (("A/b.png", "a.mp4"), "in/A and in/a.mp4 would both"),
    ],
)
def test_two_movies_of_one_name(inputs: tuple[str, ...], both: str) -> None:
    with pytest.raises(UsageError, match=both) as raised:
        movies(*inputs)
    assert raised.value.hint == "run them into two folders"


def test_a_movie_replaces_no_input() -> None:
    items = [jobs.Input(Path("out/a.depth.mp4"), Path("x/b.mp4"), 0),
             jobs.Input(Path("in/a.mp4"), Path("a.mp4"), 0)]  # fmt: skip
    todo = jobs.plan_targets(items, Path("out"), ("depth",), Output())
    with pytest.raises(UsageError, match=r"input out/a\.depth\.mp4 would be overwritten"):
        jobs.plan_movies(todo, Path("out"), ("depth",))
