"""`dmp eval` from end to end, on files that other libraries wrote."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenEXR
import pytest
import tifffile

from dmp_cli.colour import srgb_from_linear
from dmp_cli.tasks import TASKS, find, unit_vectors
from tests.conftest import PARITY, Dmp

RNG = np.random.default_rng(0)
ARRAYS = dict(np.load(PARITY / "metrics.npz"))
OFFICIAL: dict[str, Any] = json.loads((PARITY / "metrics.json").read_text())


def write_depth(path: Path, depth: Any) -> Path:
    """Metres as float data, or as millimetres in 16 bits, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, depth)
    elif path.suffix == ".npz":
        np.savez(path, depth=depth)
    elif path.suffix == ".exr":
        OpenEXR.File({}, {"Z": depth}).write(str(path))
    elif path.suffix == ".tiff":
        tifffile.imwrite(path, depth)
    else:
        cv2.imwrite(str(path), np.rint(depth * 1000).astype(np.uint16))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of four images: depth as 16-bit PNG, and predictions 10 to 40 percent too far."""
    for i in range(1, 5):
        depth = np.rint(RNG.uniform(1000, 5000, (24, 32))).astype(np.float32) / 1000
        write_depth(tmp_path / f"data/depth/{i}.png", depth)
        write_depth(tmp_path / f"out/{i}.depth.npy", depth * np.float32(1 + i / 10))
    return tmp_path


def test_the_table(dmp: Dmp, data: Path) -> None:
    ran = dmp("eval", data / "out", data / "data", "--task", "depth", "--baseline")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == "depth: 4 images, 3,072 pixels, averaged over images"
    rows = {words[0]: words for line in lines[2:] if (words := line.removeprefix("* ").split())}
    assert rows["value"][:4] == ["value", "median", "depth", "better"]
    assert rows["abs_rel"][1] == "0.2500"
    assert rows["delta_1"][1] == "0.5000"
    assert float(rows["abs_rel"][2]) > 0.25
    assert rows["abs_rel"][3] == "lower"
    assert rows["delta_1"][3] == "higher"
    starred = [line.split()[1] for line in lines if line.startswith("*")]
    assert starred == list(TASKS["depth"].metrics)
    worst = lines[lines.index("worst abs_rel") + 1 :]
    assert [Path(line.split()[1]).name[0] for line in worst] == ["4", "3", "2", "1"]
    assert max(len(line) for line in lines if "/" not in line) <= 80


def test_the_record(dmp: Dmp, data: Path) -> None:
    arguments = (data / "out", data / "data", "-t", "depth", "--range", "0,9", "--worst", 1)
    ran = dmp("eval", *arguments, "--json", "--baseline")
    found = json.loads(ran.out)
    assert found["headline"] == {name: found["metrics"][name] for name in ("abs_rel", "delta_1")}
    assert found["metrics"]["abs_rel"] == pytest.approx(0.25)
    assert (found["task"], found["images"], found["pixels"]) == ("depth", 4, 4 * 24 * 32)
    assert found["baseline"]["name"] == "median depth"
    assert found["baseline"]["value"] == pytest.approx(3, abs=0.1)
    assert list(found["baseline"]["metrics"]) == list(found["metrics"])
    assert [row["name"] for row in found["worst"]] == ["4"]
    assert (found["failed"], found["missing"], found["classes"]) == ([], [], [])
    assert found["settings"]["range"] == [0, 9]
    assert found["settings"]["truth"] == str(data / "data")


@pytest.mark.parametrize("align", ["scale", "affine"])
def test_alignment(dmp: Dmp, data: Path, align: str) -> None:
    ran = dmp("eval", data / "out", data / "data", "-t", "depth", "--align", align, "--json")
    found = json.loads(ran.out)["metrics"]
    assert found["abs_rel"] == pytest.approx(0, abs=1e-5)
    assert found["official_rel"] == pytest.approx(0.25)  # never aligned
    text = dmp("eval", data / "out", data / "data", "-t", "depth", "--align", align).out
    assert text.splitlines()[1] == f"each prediction fitted to its truth before: {align}"


@pytest.mark.parametrize("truth", [".npy", ".npz", ".exr", ".tiff", ".png"])
@pytest.mark.parametrize("pred", [".npy", ".16.png", ".exr"])
def test_depth_in_any_format(dmp: Dmp, tmp_path: Path, pred: str, truth: str) -> None:
    depth = np.rint(RNG.uniform(1000, 5000, (24, 32))).astype(np.float32) / 1000
    write_depth(tmp_path / f"out/a.depth{pred}", depth * np.float32(2))
    write_depth(tmp_path / f"truth/a{truth}", depth)
    ran = dmp("eval", tmp_path / "out", tmp_path / "truth", "-t", "depth", "--json")
    assert json.loads(ran.out)["metrics"]["abs_rel"] == pytest.approx(1, abs=1e-4)


def test_depth_in_the_units_of_kitti(dmp: Dmp, tmp_path: Path) -> None:
    depth = RNG.uniform(2, 80, (24, 32)).astype(np.float32)
    steps = np.rint(depth * 256).astype(np.uint16)
    steps[:10] = 0  # nothing measured
    cv2.imwrite(str(tmp_path / "truth.png"), steps)
    np.save(tmp_path / "pred.npy", depth)
    files = tmp_path / "pred.npy", tmp_path / "truth.png"
    found = json.loads(dmp("eval", *files, "-t", "depth", "--unit", 1 / 256, "--json").out)
    assert found["pixels"] == 14 * 32
    assert found["metrics"]["abs_rel"] < 1e-3


# the evaluation of DMP's authors -------------------------------------------------------------


def write_official(folder: Path, form: str) -> tuple[Path, Path]:
    """Prediction and truth of the parity data as files of the kind that they are evaluated from."""
    for name in ("pred", "truth"):
        (folder / name).mkdir()
        if form == "depth":
            np.save(folder / name / "0.npy", ARRAYS[f"metrics/depth/{name}"])
        elif form == "rgb":
            cv2.imwrite(str(folder / name / "0.png"), ARRAYS[f"metrics/rgb/{name}"])
        else:
            for i, ids in enumerate(ARRAYS[f"metrics/seg/{name}"]):
                if name == "pred":
                    np.save(folder / name / f"{i}.npy", ids)
                else:
                    cv2.imwrite(str(folder / name / f"{i}.png"), ids)
    return folder / "pred", folder / "truth"


@pytest.mark.parametrize(
    ("form", "task", "names"),
    [
        ("depth", "depth", {"rel": "official_rel", "delta": "official_delta_1",
                            "rmse_minmax": "official_rmse_minmax"}),
        ("rgb", "normals", {"l1": "official_l1",
                            "angular_radians_on_uncentred_colours": "official_angular"}),
        ("rgb", "albedo", {"l1": "official_l1", "mse": "official_mse"}),
        ("seg", "segmentation", {"mIoU": "official_miou", "aAcc": "pixel_accuracy"}),
    ],
)  # fmt: skip
def test_files_give_the_official_numbers(
    dmp: Dmp, tmp_path: Path, form: str, task: str, names: dict[str, str]
) -> None:
    ran = dmp("eval", *write_official(tmp_path, form), "-t", task, "--json")
    found = json.loads(ran.out)
    for theirs, ours in names.items():
        expected = OFFICIAL[f"metrics/{form}"][theirs]
        assert found["metrics"][ours] == pytest.approx(expected, abs=1e-6)
    if form == "seg":
        ious = [row["iou"] for row in found["classes"]]
        np.testing.assert_allclose(ious, ARRAYS["metrics/seg/iou"], atol=1e-6)


# other tasks ---------------------------------------------------------------------------------


def test_normals_as_pictures(dmp: Dmp, tmp_path: Path) -> None:
    truth = unit_vectors(RNG.normal(size=(40, 50, 3)))
    np.save(tmp_path / "truth.npy", truth * np.float32([1, -1, 1]))  # directx
    colours = np.rint((truth / 2 + 0.5) * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "pred.png"), colours[..., ::-1])
    files = tmp_path / "pred.png", tmp_path / "truth.npy"
    ran = dmp("eval", *files, "-t", "normals", "--axes", "directx", "--json")
    assert json.loads(ran.out)["metrics"]["mean_angle"] < 0.5
    ran = dmp("eval", *files, "-t", "normals", "--json")
    assert json.loads(ran.out)["metrics"]["mean_angle"] > 30


def test_albedo_beside_the_image(dmp: Dmp, tmp_path: Path) -> None:
    for name in ("images", "albedo", "out"):
        (tmp_path / name).mkdir()
    coded = RNG.random((24, 32, 3), np.float32)
    albedo = ((coded + 0.055) / 1.055) ** 2.4
    cv2.imwrite(str(tmp_path / "albedo/a.png"), np.rint(coded * 65535).astype(np.uint16))
    picture = srgb_from_linear(albedo * 0.5)  # in a light of one half
    cv2.imwrite(str(tmp_path / "images/a.png"), np.rint(picture * 255).astype(np.uint8))
    np.save(tmp_path / "out/a.albedo.npy", albedo[..., ::-1])
    ran = dmp("eval", tmp_path / "out", tmp_path, "-t", "albedo", "--images", tmp_path, "--json")
    found = json.loads(ran.out)
    assert found["metrics"]["rmse"] < 0.01
    assert found["baseline"]["name"] == "input image"
    assert found["baseline"]["value"] is None
    assert found["baseline"]["metrics"]["rmse"] == pytest.approx(
        np.sqrt(np.mean((albedo / 2) ** 2)), rel=0.02
    )
    assert found["baseline"]["metrics"]["si_mse"] < 1e-3


def test_segmentation_names_its_classes(dmp: Dmp, tmp_path: Path) -> None:
    truth = np.uint8([[0, 0, 0, 7], [0, 255, 3, 7]])
    pred = np.uint8([[0, 0, 3, 7], [0, 9, 3, 7]])
    cv2.imwrite(str(tmp_path / "truth.png"), truth)
    cv2.imwrite(str(tmp_path / "pred.png"), pred)
    files = tmp_path / "pred.png", tmp_path / "truth.png"
    ran = dmp("eval", *files, "-t", "seg", "--baseline")
    rows = {words[0]: words[1:] for line in ran.out.splitlines() if (words := line.split())}
    assert rows["wall"] == ["0.7500", "57.1%"]
    assert rows["bed"] == ["1.0000", "28.6%"]
    assert rows["floor"] == ["0.5000", "14.3%"]
    assert "most frequent class" in ran.out
    found = json.loads(dmp("eval", *files, "-t", "seg", "--baseline", "--json").out)
    assert found["metrics"]["miou"] == pytest.approx((0.75 + 1 + 0.5) / 3)
    assert found["baseline"]["value"] == 0
    assert found["baseline"]["metrics"]["pixel_accuracy"] == pytest.approx(4 / 7)


def test_of_many_classes_the_most_frequent_are_shown(dmp: Dmp, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(150, dtype=np.uint8)[None])
    out = dmp("eval", tmp_path / "a.npy", tmp_path / "a.npy", "-t", "seg").out
    assert "and 130 more: --json has all" in out


def test_a_task_of_ones_own(dmp: Dmp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = dataclasses.replace(
        find("shading"), name="edges", measured="values", metrics=("rmse",), aliases=()
    )
    monkeypatch.setitem(TASKS, "edges", edges)
    for name, value in (("edges/a.npy", 0.0), ("out/a.edges.npy", 0.5), ("out/a.depth.npy", 9.0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.full((24, 32), value, np.float32))
    arguments = (tmp_path / "out", tmp_path, "-t", "edges", "--baseline", "--json")
    found = json.loads(dmp("eval", *arguments).out)
    assert found["headline"] == {"rmse": 0.5}
    assert found["baseline"]["name"] == "mean value"
    assert found["baseline"]["metrics"]["rmse"] == 0


# what goes wrong -----------------------------------------------------------------------------


def test_a_truth_without_prediction(dmp: Dmp, data: Path) -> None:
    (data / "out/2.depth.npy").unlink()
    np.save(data / "out/x.depth.npy", np.ones((24, 32)))
    ran = dmp("eval", data / "out", data / "data", "-t", "depth", "--json")
    assert ran.code == 3
    assert f"no prediction for {data}/data/depth/2.png; --skip-missing accepts that" in ran.err
    assert f"without a truth, left out: {data}/out/x.depth.npy" in ran.err
    assert json.loads(ran.out)["missing"] == [f"{data}/data/depth/2.png"]
    assert json.loads(ran.out)["images"] == 3
    assert dmp("eval", data / "out", data / "data", "-t", "depth", "--skip-missing").code == 0


def test_a_file_that_fails_is_named_and_the_others_count(dmp: Dmp, data: Path) -> None:
    (data / "out/1.depth.npy").write_bytes(b"\x93NUMPY")
    cv2.imwrite(str(data / "data/depth/2.png"), np.zeros((24, 32, 3), np.uint8))
    ran = dmp("eval", data / "out", data / "data", "-t", "depth", "--json", "--baseline")
    assert ran.code == 3
    assert f"failed: {data}/out/1.depth.npy: damaged" in ran.err
    assert f"failed: {data}/data/depth/2.png: depth of 8 bits" in ran.err
    assert "2 of 4 maps failed" in ran.err
    found = json.loads(ran.out)
    assert found["images"] == 2
    assert [row["prediction"] for row in found["failed"]] == [
        f"{data}/out/1.depth.npy", f"{data}/out/2.depth.npy",
    ]  # fmt: skip


def test_pictures_to_look_at_are_refused_with_the_remedy(dmp: Dmp, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_depth(tmp_path / f"truth/{name}.npy", np.ones((24, 32), np.float32))
        (tmp_path / "out").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"out/{name}.depth.png"), np.zeros((24, 32, 3), np.uint8))
    ran = dmp("eval", tmp_path / "out", tmp_path / "truth", "-t", "depth")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.count("--format npy") == 1  # the remedy once, each file by its name
    assert ran.err.count("is a picture to look at") == 2


def test_maps_of_another_task_are_no_truth(dmp: Dmp, data: Path) -> None:
    np.save(data / "out/1.shading.npy", np.ones((24, 32), np.float32))
    ran = dmp("eval", data / "out", data / "data", "-t", "shading")
    assert (ran.code, ran.out) == (4, "")
    assert f"{data}/data has no maps of shading" in ran.err


def test_notes_are_counted(dmp: Dmp, data: Path) -> None:
    for i in (1, 2):
        np.save(data / f"out/{i}.depth.npy", np.full((12, 16), i - 1, np.float32))
    arguments = ("eval", data / "out", data / "data", "-t", "depth")
    err = dmp(*arguments).err
    assert "2 of 4 maps: prediction resized to the size of the truth" in err
    assert "1 of 4 maps: predicted depth below 0.001 m: taken as 0.001 m" in err
    assert dmp(*arguments, "-q").err == ""


def test_matching_by_name_alone_is_told(dmp: Dmp, data: Path) -> None:
    (data / "run").mkdir()
    (data / "out").rename(data / "run/out")
    ran = dmp("eval", data / "run", data / "data", "-t", "depth")
    assert ran.code == 0
    assert "matched by their names alone" in ran.err


def test_nothing_counts(dmp: Dmp, data: Path) -> None:
    ran = dmp("eval", data / "out", data / "data", "-t", "depth", "--range", "90,99")
    assert (ran.code, ran.out) == (4, "")
    assert "4 of 4 maps: no pixel of the truth counts" in ran.err
    assert "--range" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-t", "dept"], 2, "unknown task 'dept'"),
        (["-t", "depth", "--align", "shift"], 2, "unknown alignment 'shift'"),
        (["-t", "depth", "--range", "5,1"], 2, "--range 5,1"),
        (["-t", "depth", "--unit", "0"], 2, "a unit of 0.0"),
        (["-t", "depth", "--pred-unit", "nan"], 2, "a unit of nan"),
        (["-t", "depth", "--images", "data"], 2, "--images does not go with depth"),
        (["-t", "normals", "--align", "scale"], 2, "do not go with normals"),
        (["-t", "albedo", "--range", "1,2"], 2, "do not go with albedo"),
        (["-t", "normals", "--axes", "x y"], 2, "unknown axes"),
        (["-t", "normals", "--pred-axes", "blender"], 2, "unknown axes"),
        (["-t", "depth", "--mask", "none.png"], 2, "none.png: no such file"),
        (["-t", "shading"], 4, "no maps of shading"),
        (["-t", "depth", "--csv", "data/depth/1.png/x.csv"], 6, "choose another --csv"),
        (["-t", "depth", "--csv", "data"], 6, "data cannot be written: it is a folder"),
        ([], 2, "--task"),
    ],
)
def test_what_makes_no_sense(
    dmp: Dmp,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(data)
    ran = dmp("eval", "out", "data", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err


def test_the_csv(dmp: Dmp, data: Path) -> None:
    ran = dmp("eval", data / "out", data / "data", "-t", "depth", "--csv", data / "new/depth.csv")
    assert ran.code == 0
    with (data / "new/depth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["1", "2", "3", "4"]
    errors = [float(row["abs_rel"]) for row in rows]
    assert errors == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-6)
    assert rows[0]["prediction"] == f"{data}/out/1.depth.npy"


def test_it_is_plain_text_and_loads_no_torch(data: Path) -> None:
    code = (
        "import sys, dmp_cli.cli as cli; sys.argv = ['dmp', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'diffusers', 'transformers', 'peft', 'huggingface_hub'}\n"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    arguments = ["eval", "out", "data", "-t", "depth", "--baseline", "--csv", "a.csv"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=False, cwd=data,
        env={**os.environ, "COLUMNS": "40", "FORCE_COLOR": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "* abs_rel" in done.stdout
