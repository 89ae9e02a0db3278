"""Objects found, fetched and uploaded: against moto's server of S3."""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import cloud, files, finding, jobs, manifest, marks, storage, unfinished, urls
from dmp_cli.digests import Stamp
from dmp_cli.errors import DmpError, ImageError, ResourceError, UsageError
from dmp_cli.plan import Output
from tests import buckets
from tests.buckets import HARD_KEYS

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    with buckets.serve() as server, pytest.MonkeyPatch.context() as patch:
        buckets.use(server[0], patch)
        yield server


@pytest.fixture
def bucket(server: tuple[str, list[str]]) -> buckets.Bucket:
    storage.forget()
    return buckets.Bucket(*server)


# What there is ----------------------------------------------------------------------------

TREE = ("a.png", "b.txt", "in/c.jpg", "in/d/e.PNG", "in/d/.f.png", "in/.g/h.png", "in/d/i.json",
        "in/[j].png", "in/d//k.exr", "in/?.png", "in/", "inn.png")  # fmt: skip


@pytest.mark.parametrize(
    ("what", "recursive", "expected"),
    [
        ("in", True, "?.png [j].png c.jpg d//k.exr d/e.PNG d/i.json"),
        ("in/", True, "?.png [j].png c.jpg d//k.exr d/e.PNG d/i.json"),
        ("in", False, "?.png [j].png c.jpg"),
        ("", False, "a.png b.txt inn.png"),
        ("in/c.jpg", True, "c.jpg"),
        ("in/d/.f.png", True, ".f.png"),
        ("in/[j].png", True, "[j].png"),
        ("in/?.png", True, "?.png"),
        ("in/*.png", True, "?.png [j].png"),
        ("in/**/*.PNG", True, "d/e.PNG"),
        ("in/d/.*", True, ".f.png"),
        ("i*/c.jpg", True, "in/c.jpg"),
        ("in*.png", True, "inn.png"),
        ("in/[a-c].jpg", True, "c.jpg"),
        ("in/d*", True, ""),
        ("no*.png", True, ""),
    ],
)
def test_find(bucket: buckets.Bucket, what: str, recursive: bool, expected: str) -> None:
    bucket.fill(TREE)
    found = storage.find(f"{bucket.url}/{what}", recursive)
    names = [str(one.below).replace("/%!empty", "/") for one in found]
    assert names == expected.split()
    for one in found:
        data = bucket.read(urls.shown(one.path).removeprefix(f"{bucket.url}/"))
        assert one.stat.size == len(data)
        assert abs(one.stat.mtime / 1e9 - time.time()) < 100
        assert storage.stat(one.path) == one.stat


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("s3://{}/nowhere", UsageError, "no such object or folder"),
        ("s3://{}/a**/b", UsageError, "can only be an entire path component"),
        ("s3://{}-gone/a", ResourceError, "s3://{}-gone: no such bucket"),
        ("s3://{}-gone", ResourceError, "s3://{}-gone: no such bucket"),
    ],
)
def test_find_nothing(
    bucket: buckets.Bucket, what: str, kind: type[DmpError], message: str
) -> None:
    bucket.fill(TREE)
    with pytest.raises(kind) as caught:
        storage.find(what.format(bucket.name))
    assert message.format(bucket.name) in str(caught.value)
    assert caught.value.hint


def test_a_scheme_in_capitals(bucket: buckets.Bucket) -> None:
    bucket.fill(TREE)
    written = f"S3://{bucket.name}/b.txt"
    assert storage.find(written) == storage.find(f"{bucket.url}/b.txt")
    (found,) = jobs.find([written], urls.folder(f"S3://{bucket.name}/out"), print, tasks=["depth"])
    assert urls.shown(found.path) == f"{bucket.url}/b.txt"  # though it has no suffix of an image


def test_an_empty_bucket_has_no_input(bucket: buckets.Bucket) -> None:
    assert storage.find(bucket.url) == storage.find(f"{bucket.url}/") == []


@pytest.mark.parametrize(
    ("what", "one_level"), [("in/*.png", True), ("in/c*", True), ("in/**", False), ("i*/c*", False)]
)
def test_a_pattern_lists_no_more_than_it_means(
    bucket: buckets.Bucket, what: str, one_level: bool
) -> None:
    bucket.fill(TREE)
    assert storage.find(f"{bucket.url}/{what}")
    assert ("delimiter=/&" in bucket.asked[-1]) == one_level


@pytest.mark.parametrize("length", [195, 197, 199, 200, 500])
def test_a_name_may_be_longer_than_one_of_a_file(bucket: buckets.Bucket, length: int) -> None:
    name = "n" * length
    bucket.fill([f"in/{name}.png"])
    (found,) = storage.find(f"{bucket.url}/in/{name}.png")
    assert found == storage.find(f"{bucket.url}/in")[0]
    inputs = [finding.Input(found.path, found.below)]
    (job,) = jobs.plan_targets(inputs, urls.folder(f"{bucket.url}/out"), ["depth"], Output())
    assert urls.shown(job.targets["depth", "png"]) == f"{bucket.url}/out/{name}.depth.png"


def test_what_is_deleted_is_not_known_any_more(bucket: buckets.Bucket) -> None:
    bucket.fill(["a.png"])
    (found,) = storage.find(bucket.url)
    assert files.exists(found.path)
    files.remove(found.path)
    assert not files.exists(found.path)


def test_ten_thousand_objects_are_listed_at_once(bucket: buckets.Bucket) -> None:
    bucket.fill([f"many/{i:05d}.png" for i in range(10_000)])
    before = len(bucket.asked)
    start = time.monotonic()
    found = storage.find(f"{bucket.url}/many")
    assert len(found) == 10_000
    assert found[9_999].below == Path("09999.png")
    assert time.monotonic() - start < 60  # both sides, in one process: 2 s alone on a machine
    assert len(bucket.asked) - before <= 13


def test_inputs_of_a_bucket(bucket: buckets.Bucket, tmp_path: Path) -> None:
    """Suffixes and hidden names count as they do in folders; outputs of dmp are passed over."""
    bucket.fill((*TREE, "in/c.depth.png", "in/clip.mp4"))
    told: list[str] = []
    root = bucket.url
    found = jobs.find([f"{root}/in", f"{root}/b.txt"], urls.folder(f"{root}/in"), told.append,
                      tasks=["depth"])  # fmt: skip
    assert [urls.shown(one.path).removeprefix(root) for one in found] == [
        "/in/?.png", "/in/[j].png", "/in/c.jpg", "/in/clip.mp4", "/in/d//k.exr", "/in/d/e.PNG",
        "/b.txt",
    ]  # fmt: skip
    assert told == [
        f"passed over 1 output of dmp in {root}/in",
        "skipped 1 file without an image suffix: i.json",
    ]


def test_a_list_may_name_urls(bucket: buckets.Bucket, tmp_path: Path) -> None:
    lines = [f"{bucket.url}/x/a.png", "b.png", f"{bucket.url}/x/c.png"]
    found = jobs.from_list(lines, tmp_path, print)
    assert [str(one.below) for one in found] == ["a.png", "b.png", "c.png"]
    assert urls.shown(found[0].path) == lines[0]


@pytest.mark.parametrize("out", ["here", "bucket"])
def test_no_input_is_overwritten_and_no_name_leads_out(
    bucket: buckets.Bucket, tmp_path: Path, out: str
) -> None:
    root = bucket.url
    bucket.fill(["in/../../up.png", "in/a.png", "in/x//b.png"])
    found = storage.find(f"{root}/in/")
    inputs = [finding.Input(one.path, one.below) for one in found]
    inputs.append(finding.Input(urls.mirror(f"{root}/in/../../up.png"), Path("%!dots/up.png")))
    folder = urls.folder(f"{root}/in") if out == "bucket" else tmp_path / "out"
    todo = jobs.plan_targets(inputs, folder, ["depth"], Output())
    targets = [next(iter(job.targets.values())) for job in todo]
    assert len(targets) == 3
    for target in targets:
        assert Path(os.path.normpath(target)).is_relative_to(folder)
    clash = [finding.Input(urls.mirror(f"{root}/in/a.depth.png"), Path("z.png")), inputs[0]]
    if out == "bucket":
        with pytest.raises(UsageError, match=f"input {root}/in/a.depth.png would be overwritten"):
            jobs.plan_targets(clash, folder, ["depth"], Output())


# To and fro -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in HARD_KEYS if not set(key) & {"\0", "\n"}])
def test_there_and_back(bucket: buckets.Bucket, key: str, tmp_path: Path) -> None:
    if key.strip("/") == "" or len(key.encode()) > 1024:
        pytest.skip("no key of S3")
    path = urls.mirror(f"{bucket.url}/{key}")
    if not key.endswith("/"):
        files.write_bytes(path, key.encode())
        assert bucket.read(key) == key.encode()
        assert storage.uploaded(path) == (
            len(key.encode()), hashlib.sha256(key.encode()).hexdigest()
        )  # fmt: skip
        with storage.fetched(path) as file:
            assert file.read_bytes() == key.encode()
        assert not file.exists()
        assert storage.read_bytes(path, 1) == key.encode()[:1]
        files.remove(path)
        assert not files.exists(path)
    assert not storage.listing(urls.mirror(f"{bucket.url}"))


def test_an_object_says_what_it_holds(bucket: buckets.Bucket) -> None:
    for name in ("a.png", "b.html", "c.json"):
        files.write_bytes(urls.mirror(f"{bucket.url}/{name}"), b"x")
    kinds = [bucket.kind(name) for name in ("a.png", "b.html", "c.json")]
    assert kinds == ["image/png", "text/html", "application/json"]


def test_what_is_fetched_has_the_time_of_the_object(bucket: buckets.Bucket) -> None:
    bucket.fill(["a.png"])
    found = storage.find(f"{bucket.url}/a.png")[0]
    with storage.fetched(found.path) as file:
        assert file.stat().st_mtime_ns == found.stat.mtime
        assert file.suffix == ".png"
    storage.forget()  # as in a process that did not list it
    with storage.fetched(found.path) as file:
        assert file.stat().st_mtime_ns == found.stat.mtime


def test_a_full_disk_is_not_blamed_on_the_bucket(
    bucket: buckets.Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> Path:
        link = tmp_path / "full"
        link.symlink_to("/dev/full")
        return link

    bucket.fill(["a.png"])
    path = urls.mirror(f"{bucket.url}/a.png")
    held = storage.outgoing(path)
    monkeypatch.setattr(storage, "outgoing", lambda one: held if one == path else full(one))
    with pytest.raises(ResourceError, match=r"temporary files in .*No space left") as caught:
        storage.hold(path)
    assert "TMPDIR" in caught.value.hint


def test_a_folder_of_temporary_files_that_is_gone(
    bucket: buckets.Bucket, request: pytest.FixtureRequest
) -> None:
    bucket.fill(["a.png"])
    path = urls.mirror(f"{bucket.url}/a.png")
    shutil.rmtree(unfinished.scratch())
    request.addfinalizer(unfinished.scratch().mkdir)
    with pytest.raises(ResourceError, match=r"temporary files in .*No such file") as caught:
        storage.hold(path)
    assert "TMPDIR" in caught.value.hint
    with pytest.raises(ResourceError) as caught:
        files.write_bytes(path, b"x")
    assert "TMPDIR" in caught.value.hint


def test_a_path_of_this_machine_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"x")
    with storage.fetched(file) as same:
        assert same == file
    assert file.exists()
    storage.release(storage.hold(file))
    assert file.exists()


def test_threads_share_what_is_fetched(bucket: buckets.Bucket) -> None:
    bucket.fill(["clip.mp4"])
    path = urls.mirror(f"{bucket.url}/clip.mp4")
    inside = threading.Barrier(8)
    before = len(bucket.asked)

    def use_it(_: int) -> Path:
        with storage.fetched(path) as file:
            inside.wait(20)
            assert file.read_bytes() == b"clip.mp4"
        return file

    with ThreadPoolExecutor(8) as pool:
        used = set(pool.map(use_it, range(8)))
    assert len(used) == 1
    assert not used.pop().exists()
    assert sum(line.startswith("GET") for line in bucket.asked[before:]) == 1
    assert not storage._held


def test_what_is_not_there_fails_alone_and_for_each_thread(bucket: buckets.Bucket) -> None:
    path = urls.mirror(f"{bucket.url}/gone.png")

    def use_it(_: int) -> str:
        with pytest.raises(ImageError) as caught, storage.fetched(path):
            pass
        return str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(use_it, range(8))) == {"no such object"}
    assert not storage._held
    assert not any(unfinished.scratch().iterdir())


def test_a_write_that_fails_leaves_nothing(bucket: buckets.Bucket) -> None:
    path = urls.mirror(f"{bucket.url}/a.png")

    def broken(file: Any) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.write(path, broken)
    assert not files.exists(path)
    assert not any(unfinished.scratch().iterdir())


def test_what_lies_in_a_bucket_is_told_apart(bucket: buckets.Bucket) -> None:
    root = urls.mirror(f"{bucket.url}")
    bucket.write("room.exr", marks.MARK + b"\0string\0" + b"\5\0\0\0depth")
    bucket.write("other.exr", b"v/1")
    bucket.write("labels.json", b'{"convention": "' + marks.LEGEND.encode())
    bucket.write("labels.png", b"")
    assert marks.layers(root / "room.exr") == ("depth",)
    assert [marks.foreign(root / name) for name in
            ("room.exr", "other.exr", "labels.json", "labels.png", "gone.exr")] == [
        False, True, False, True, False]  # fmt: skip
    both = Output(formats=("exr",), merged=True)
    for name, fine in (("room.png", True), ("gone.png", True), ("other.png", False)):
        item = finding.Input(Path(name), Path(name))
        if fine:
            assert jobs.plan_targets([item], root, ["depth", "normals"], both)
        else:
            with pytest.raises(UsageError, match=f"{bucket.url}/other.exr would be over"):
                jobs.plan_targets([item], root, ["depth", "normals"], both)


def test_check_writable(bucket: buckets.Bucket) -> None:
    files.check_writable(urls.folder(f"{bucket.url}/out/"))
    assert not storage.listing(urls.mirror(f"{bucket.url}"))
    with pytest.raises(ResourceError, match=f"output folder {bucket.url}-gone: no such"):
        files.check_writable(urls.folder(f"{bucket.url}-gone/out"))


def test_what_waits_lies_on_this_machine(bucket: buckets.Bucket) -> None:
    folder = files.hidden_folder(urls.mirror(f"{bucket.url}/out"))
    assert folder.is_dir()
    assert urls.url_of(folder) is None
    folder.rmdir()


# Manifests --------------------------------------------------------------------------------


def test_each_run_has_a_manifest_of_its_own(
    bucket: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = urls.mirror(f"{bucket.url}/out")
    assert manifest.books(out) == []
    row = {"path": "a.png", "key": "k", "size": 3, "sha256": "5"}
    told = {"input": "a", "size": 1, "mtime": 2, "sha256": "4", "error": ""}
    for run in (1, 2):
        with manifest.Manifest(out / manifest.name(None), run) as book:
            book.append("run", {})
            assert len(manifest.books(out)) == run  # there from the start
            book.append("input", told | {"outputs": [row | {"key": f"k{run}"}]})
            if run == 2:
                book._due = 0  # as half a minute later
                book.append("input", told | {"outputs": []})
                assert len(list(manifest.lines(out))) == 5
    bucket.write("out/sub/dmp-manifest.jsonl", b"{}")
    past = manifest.past(out, {"a.png"})
    assert past.runs == 2
    assert past.outputs["a.png"].key == "k2"
    assert past.outputs["a.png"].read == Stamp(1, 2, "4")
    assert len(manifest.books(out)) == 2
    assert not any(unfinished.scratch().iterdir())


# Google -----------------------------------------------------------------------------------


def test_google(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gcsfs")
    with buckets.google() as (address, objects):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        cloud.forget()
        objects |= {key: key.encode() for key in ("in/a.png", "in/x/b#1.png", "in/.c.png", "d.png")}
        found = storage.find("gs://shots/in")
        assert [str(one.below) for one in found] == ["a.png", "x/b#1.png"]
        assert found[0].stat == storage.Stat(8, 1_767_323_045 * 10**9)
        assert storage.find("gs://shots/in/x/*.png")[0].path == found[1].path
        with storage.fetched(found[1].path) as file:
            assert file.read_bytes() == b"in/x/b#1.png"
            assert file.stat().st_mtime_ns == found[1].stat.mtime
        out = urls.folder("gs://shots/out/")
        files.check_writable(out)
        files.write_bytes(out / "a.png", bytes(range(256)))
        assert objects["out/a.png"] == bytes(range(256))
        assert [urls.shown(path) for path in storage.listing(out)] == ["gs://shots/out/a.png"]
        assert storage.read_bytes(out / "a.png", 3) == b"\0\1\2"
        files.remove(out / "a.png")
        assert "out/a.png" not in objects
        assert storage.stat(urls.mirror("gs://shots/e.png")) is None
        with pytest.raises(ImageError, match="no such object"):
            storage.hold(urls.mirror("gs://shots/e.png"))
        with pytest.raises(UsageError, match="gs://shots/no: no such object or folder"):
            storage.find("gs://shots/no")
        with pytest.raises(ResourceError, match="gs://gone: no such bucket"):
            files.write_bytes(urls.mirror("gs://gone/e.png"), b"")
    assert "bucket type" not in capfd.readouterr().err  # what gcsfs warns of
