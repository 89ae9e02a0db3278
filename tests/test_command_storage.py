"""`dmp` with images from buckets and maps to them, against moto's server of S3."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmp_cli import urls
from tests import buckets
from tests.clips import numbered
from tests.conftest import Dmp, write_image
from tests.faults import outputs

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    with buckets.serve() as server, pytest.MonkeyPatch.context() as patch:
        buckets.use(server[0], patch)
        yield server


@pytest.fixture
def bucket(server: tuple[str, list[str]], photos: Path) -> buckets.Bucket:
    """A bucket with the three pictures of `photos` in the folder in/."""
    found = buckets.Bucket(*server)
    for path in photos.rglob("*.*"):
        found.write(f"in/{path.relative_to(photos).as_posix()}", path.read_bytes())
    return found


def maps(bucket: buckets.Bucket, folder: str) -> dict[str, bytes]:
    """The files of a folder of a bucket, but for what a run says of itself."""
    names = [key for key in bucket.names() if key.startswith(f"{folder}/")]
    return {
        name.removeprefix(f"{folder}/"): bucket.read(name)
        for name in names
        if "dmp-manifest" not in name
    }


def test_from_a_bucket_to_a_bucket_as_from_a_folder_to_a_folder(
    dmp: Dmp, bucket: buckets.Bucket, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    """In a process of its own: what it prints, what it leaves behind, the bytes of each file."""
    how = ("--format", "png,exr", "--range", "run", *model)
    here = tmp_path / "here"
    assert dmp("predict", "depth,seg", photos, "-o", here, *how).code == 0
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "dmp_cli", "predict", "depth,seg", f"{bucket.url}/in", "-o",
         f"{bucket.url}/out/", *how],
        env=os.environ | {"TMPDIR": str(scratch)}, capture_output=True, text=True, check=False,
        timeout=280,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert maps(bucket, "out") == outputs.maps(here)
    assert "3 of 3 images, 6 maps" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "nclosed" not in ran.stderr
    assert set(ran.stdout.splitlines()) == {
        f"{bucket.url}/out/{name}" for name in maps(bucket, "out") if "labels" not in name
    }
    assert not list(scratch.iterdir())
    everything = ran.stdout + ran.stderr + str([bucket.read(key) for key in bucket.names()])
    assert buckets.KEYS["AWS_SECRET_ACCESS_KEY"] not in everything
    assert "/dev/null" not in everything


def test_one_listing_one_get_an_image_one_put_a_map(
    dmp: Dmp, bucket: buckets.Bucket, model: tuple[str, ...]
) -> None:
    before = len(bucket.asked)
    out = f"{bucket.url}/out"
    assert dmp("predict", "depth", f"{bucket.url}/in", "-o", out, *model).code == 0
    asked = [line.split()[:2] for line in bucket.asked[before:]]
    gets = [path for verb, path in asked if verb == "GET" and "?" not in path]
    puts = [path for verb, path in asked if verb == "PUT" and path.endswith(".png")]
    assert len(gets) == len(puts) == 3
    assert len(asked) < 25


def test_what_is_done_is_not_done_again(
    dmp: Dmp, bucket: buckets.Bucket, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = f"{bucket.url}/out"
    line = ("predict", "depth,normals", f"{bucket.url}/in", "-o", out, *model)
    assert dmp(*line).code == 0
    first, before = maps(bucket, "out"), len(bucket.asked)
    ran = dmp(*line)
    assert (ran.code, ran.out) == (0, "")
    assert "3 of them there already" in ran.err
    verbs = [row.split()[0] for row in bucket.asked[before:] if ".png" in row or ".jpg" in row]
    assert not {"PUT", "GET"} & {*verbs}

    image = write_image(tmp_path / "other.png", seed=9)
    bucket.write("in/a.png", image.read_bytes())
    bucket._store.delete_object(bucket.name, "out/b.depth.png")
    before = len(bucket.asked)
    ran = dmp(*line)
    assert ran.code == 0
    asked = [row for row in bucket.asked[before:] if row.startswith("HEAD")]
    assert not [row for row in asked if "out/b." in row]  # the listing said that it is not there
    assert set(ran.out.splitlines()) == {
        f"{out}/a.depth.png", f"{out}/a.normals.png", f"{out}/b.depth.png"
    }  # fmt: skip
    again = maps(bucket, "out")
    assert {name for name in first if first[name] != again[name]} == {
        "a.depth.png", "a.normals.png"
    }  # fmt: skip
    assert "3 of them there already" in dmp(*line, "--checksum").err


@pytest.mark.parametrize("here", ["inputs", "outputs"])
def test_one_end_of_it_in_a_bucket(
    dmp: Dmp, bucket: buckets.Bucket, photos: Path, tmp_path: Path, model: tuple[str, ...],
    here: str,
) -> None:  # fmt: skip
    source = f"{bucket.url}/in/**/*.[pw]*" if here == "outputs" else str(photos)
    out = str(tmp_path / "out") if here == "outputs" else f"{bucket.url}/out"
    bucket.write("in/bad.png", b"no picture")
    (photos / "bad.png").write_bytes(b"no picture")
    ran = dmp("predict", "depth", source, "-o", out, "--json", *model)
    assert ran.code == 3
    records = [json.loads(line) for line in ran.out.splitlines()]
    failed = [record["input"] for record in records if record["status"] == "failed"]
    assert failed == [source.partition("*")[0].rstrip("/") + "/bad.png"]
    made = {row["path"] for record in records for row in record["outputs"]}
    names = {"a.depth.png", "sub/c.depth.png"} | ({"b.depth.png"} if here == "inputs" else set())
    assert made == {f"{out}/{name}" for name in names}
    assert f"failed: {failed[0]}: not an image" in ran.err


def test_a_list_of_urls(
    dmp: Dmp, bucket: buckets.Bucket, tmp_path: Path, model: tuple[str, ...]
) -> None:
    gone = f"{bucket.url}/in/gone.png"
    (tmp_path / "list").write_text(f"{bucket.url}/in/sub/c.webp\n{gone}\n")
    ran = dmp("predict", "depth", "--files-from", tmp_path / "list", "-o", tmp_path / "out", *model)
    assert ran.code == 3
    assert f"failed: {gone}: no such object" in ran.err
    assert (tmp_path / "out/c.depth.png").exists()


def test_pages_panels_and_movies(
    dmp: Dmp, bucket: buckets.Bucket, tmp_path: Path, model: tuple[str, ...]
) -> None:
    pytest.importorskip("av")
    clip = numbered(tmp_path / "clip.mp4", 3)
    bucket.write("clips/shot.mp4", clip.read_bytes())
    before = len(bucket.asked)
    line = ("predict", "depth,seg", f"{bucket.url}/clips", "-o", f"{bucket.url}/out", *model)
    ran = dmp(*line, "--contact-sheet", "--side-by-side", "--video")
    assert ran.code == 0, ran.err
    made = maps(bucket, "out")
    assert {"contact-sheet.html", "labels.json", "shot.depth.mp4", "shot.segmentation.mp4",
            "shot/000003.side-by-side.png"} <= {*made}  # fmt: skip
    assert b'href="shot/000001.depth.png"' in made["contact-sheet.html"]
    assert made["shot.depth.mp4"][4:8] == b"ftyp"
    assert f"{bucket.url}/out/shot.depth.mp4" in ran.out.splitlines()
    fetched = [row for row in bucket.asked[before:] if row.startswith("GET") and "shot.mp4" in row]
    assert len(fetched) <= 4  # to count its frames, for its frames, for the rate of each movie
    before = len(bucket.asked)
    ran = dmp(*line, "--checksum")
    assert "3 of them there already" in ran.err
    fetched = [row for row in bucket.asked[before:] if row.startswith("GET") and "shot.mp4" in row]
    assert len(fetched) <= 2  # to count its frames, and to hash it, once for all of them


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("predict depth {url}/nowhere -o out", 2, "{url}/nowhere: no such object or folder"),
        ("predict depth {url}/*.png -o out", 4, "no image found in {url}/*.png"),
        ("predict depth {empty} -o out", 4, "no image found in {empty}"),
        ("predict depth {url}-gone -o out", 6, "{url}-gone: no such bucket"),
        ("predict depth {url}/in -o {url}-gone/out", 6, "{url}-gone: no such bucket"),
        ("predict depth {url}/in -o http://host/x", 2, "http:// is not known"),
        ("predict depth ftp://host/x -o out", 2, "ftp:// is not known"),
        ("predict depth {url}/in -o {url}/in --prompt-from txt", 2, "--prompt-from looks beside"),
        ("predict depth {url}/in -o {url}/out --caption", 2, "--caption adds to a file line by"),
        ("predict depth {url}/in/a.png {url}/in/a.png/a.png -o out", 2, "no such object"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(
    dmp: Dmp, bucket: buckets.Bucket, model: tuple[str, ...], arguments: str, code: int,
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    named = {"url": bucket.url, "empty": buckets.Bucket(bucket.address, []).url}
    ran = dmp(*arguments.format(**named).split(), *model)
    assert (ran.code, ran.out) == (code, "")
    assert message.format(**named) in ran.err
    assert "loading model" not in ran.err
    assert "\n  " in ran.err or code == 3  # a hint
    assert [key for key in bucket.names() if not key.startswith("in/")] == []


def test_a_file_of_others_is_not_replaced(
    dmp: Dmp, bucket: buckets.Bucket, model: tuple[str, ...]
) -> None:
    bucket.write("out/labels.json", b"{}")
    ran = dmp("predict", "seg", f"{bucket.url}/in", "-o", f"{bucket.url}/out", *model)
    assert ran.code == 2
    assert f"{bucket.url}/out/labels.json would be overwritten" in ran.err


def test_a_dry_run_writes_nothing(dmp: Dmp, bucket: buckets.Bucket, model: tuple[str, ...]) -> None:
    ran = dmp("predict", "depth", f"{bucket.url}/in/a.png", "-o", f"{bucket.url}/out", "--dry-run",
              *model)  # fmt: skip
    assert (ran.code, ran.out) == (0, f"{bucket.url}/out/a.depth.png\n")
    assert maps(bucket, "out") == {}


def test_a_server_that_goes_away_ends_the_run(
    dmp: Dmp, bucket: buckets.Bucket, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written stays, and the same command goes on."""
    line = ("predict", "depth", f"{bucket.url}/in", "-o", f"{bucket.url}/out", *model)
    from dmp_cli import storage
    from dmp_cli.errors import ResourceError

    upload, count = storage.upload, 0

    def away(file: Path, path: Path) -> None:
        nonlocal count
        count += path.suffix == ".png"
        if count > 1:
            raise ResourceError(f"{urls.shown(path)}: the server does not answer", "run it again")
        upload(file, path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "upload", away)
        ran = dmp(*line)
    assert ran.code == 6
    assert "the server does not answer" in ran.err
    assert "Traceback" not in ran.err
    assert len(maps(bucket, "out")) == 1
    assert dmp(*line).code == 0
    assert len(maps(bucket, "out")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("engine", [("--engine", "ray"), ("--devices", "cpu,cpu")])
def test_other_engines_take_and_make_objects_too(
    bucket: buckets.Bucket, photos: Path, tmp_path: Path, model: tuple[str, ...],
    engine: tuple[str, str],
) -> None:  # fmt: skip
    if "ray" in engine:
        pytest.importorskip("ray")

    def predict(source: object, out: object, *how: str) -> subprocess.CompletedProcess[str]:
        words = ["predict", "depth", str(source), "-o", str(out), "--batch", "1", *how, *model]
        return subprocess.run(
            [sys.executable, "-m", "dmp_cli", *words], env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert predict(photos, tmp_path / "out").returncode == 0
    ran = predict(f"{bucket.url}/in", f"{bucket.url}/other", *engine)
    assert ran.returncode == 0, ran.stderr
    assert maps(bucket, "other") == outputs.maps(tmp_path / "out")
    again = predict(f"{bucket.url}/in", f"{bucket.url}/other")
    assert "3 of 3 images, 3 of them there already" in again.stderr
