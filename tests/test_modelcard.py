"""The README of a repository: what the Hub reads of it, and what people do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmp_cli.publishing import card, release, upload
from tests.conftest import PARITY
from tests.releases import SHA256, one, tiny


def parts(readme: str) -> tuple[dict[str, Any], str]:
    _, matter, text = readme.split("---\n", 2)
    return yaml.safe_load(matter), text


@pytest.mark.parametrize(
    ("tasks", "pipeline"),
    [
        (("depth",), "depth-estimation"),
        (("segmentation",), "image-segmentation"),
        (("albedo",), "image-to-image"),
        (("depth", "segmentation"), "image-to-image"),
    ],
)
def test_front_matter(tmp_path: Path, tasks: tuple[str, ...], pipeline: str) -> None:
    matter, _ = parts(upload.readme(tiny(tmp_path, *tasks)))
    assert matter["library_name"] == "diffusers"
    assert matter["license"] == "mit"
    assert matter["pipeline_tag"] == pipeline
    assert {"lora", "diffusers", "dmp", "stable-diffusion", *tasks} == set(matter["tags"])
    assert "base_model" not in matter  # a folder of this machine is no model of the Hub


def test_front_matter_of_a_backbone_on_the_hub(tmp_path: Path) -> None:
    matter, _ = parts(upload.readme(one(tmp_path, "mit")))
    assert matter["base_model"] == "CompVis/stable-diffusion-v1-4"
    assert matter["base_model_relation"] == "adapter"


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("creativeml-openrail-m", {"license": "creativeml-openrail-m"}),
        ("not stated", {"license": "unknown"}),
        ("My Studio, 2026!", {"license": "other", "license_name": "my-studio-2026"}),
        ("other", {"license": "other", "license_name": "other"}),
        ("©", {"license": "other", "license_name": "see-the-table"}),
    ],
)
def test_licence_as_the_hub_takes_it(
    tmp_path: Path, license: str, expected: dict[str, str]
) -> None:
    matter = card.front_matter(one(tmp_path, license))
    assert {key: matter[key] for key in matter if key.startswith("license")} == expected


def test_an_assumed_base_model_is_not_told_as_a_fact(tmp_path: Path) -> None:
    found = one(tmp_path, "mit", {"dmp.base": "CompVis/stable-diffusion-v1-4 (assumed)"})
    matter, text = parts(upload.readme(found))
    assert matter["base_model"] == "CompVis/stable-diffusion-v1-4"  # what it is run on
    assert "On which base model: depth. Only the shapes were compared" in text
    assert "On which base model" not in card.text(one(tmp_path, "mit", {"dmp.base": "org/sd"}))


def test_different_licences_are_in_the_table(tmp_path: Path) -> None:
    found = tiny(tmp_path, "depth", "normals")
    mixed = replace(found, adapters=(found.adapters[0], replace(found.adapters[1], license="")))
    matter, text = parts(upload.readme(mixed))
    assert (matter["license"], matter["license_name"]) == ("other", "see-the-table")
    rows = [line for line in text.splitlines() if SHA256 in line and line.startswith("|")]
    assert "| mit |" in rows[0]
    assert "| not stated |" in rows[1]
    assert "Under which licence: normals." in text
    assert "Under which licence" not in card.text(found)


def test_the_card_says_what_the_files_are(tmp_path: Path) -> None:
    header = {"dmp.source": "a|b.bin", "dmp.source_sha256": "5" * 64, "dmp.license": "mit"}
    found = one(tmp_path, "", header)
    _, text = parts(upload.readme(found))
    assert card.MARK in text
    assert f"converted from a\\|b.bin, sha256 {'5' * 64}" in text
    assert f"`{found.adapters[0].sha256}`" in text
    assert "2311.18832" in text
    assert "8 metres per unit" in text
    assert release.stanza(found, "main", folders=False).strip() in text
    assert "--weights one.toml --model one" in text


def test_the_card_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    readme = upload.readme(tiny(tmp_path, "depth", "normals"))
    assert str(PARITY) not in readme
    assert str(tmp_path) not in readme
    assert release.BACKBONE_FOLDER in readme
    assert str(PARITY) in release.stanza(tiny(tmp_path), "main")


def test_a_header_cannot_write_the_card(tmp_path: Path) -> None:
    text = card.text(one(tmp_path, "mit", {"dmp.source": "a\n# Buy\n<script> [x](y)"}))
    assert "\n# Buy" not in text
    assert "<script>" not in text.replace("\\<script\\>", "")
