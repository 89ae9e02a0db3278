"""docs/weights.md: its guides run as they stand, against a Hub on loopback."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import hub as hubs
from tests import hub_writes
from tests.conftest import PARITY, write_image

PAGE = (Path(__file__).parent.parent / "docs" / "weights.md").read_text()
BACKBONE = "CompVis/stable-diffusion-v1-4"
LORA = PARITY / "lora" / "full"
TEXTED = [f"bedroom/{task}-text" for task in ("depth", "normal", "seg", "albedo", "shading")]
NAMES = ("depth-hypersim-notext", "normal-scene100-notext", *TEXTED)
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


def guide(name: str) -> str:
    """The commands of a guide, its blocks one after the other."""
    found = re.findall(rf"<!-- guide: {name} -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return "".join(found)


@dataclass(frozen=True)
class Person:
    """Somebody with an empty home, who types what a guide says."""

    home: Path
    weights: Path  # the paper's models on the small backbone of the tests
    typed: Path  # has the program `dmp`

    def types(self, text: str, endpoint: str, **more: str) -> str:
        """Run commands; what they printed on both streams."""
        paths = [str(self.typed), str(Path(sys.executable).parent), os.environ["PATH"]]
        inherited = {key: value for key, value in os.environ.items() if "HF_" not in key}
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=self.home,
            env=inherited | {
                "PATH": os.pathsep.join(paths), "HOME": str(self.home),
                "DMP_HOME": str(self.home / "kept"), "HF_HOME": str(self.home / "hf"),
                "HF_ENDPOINT": endpoint,
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
                "NO_PROXY": "127.0.0.1", "DMP_WEIGHTS": str(self.weights),
            } | more,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    def map(self, task: str = "depth") -> bytes:
        return (self.home / "out" / f"a.{task}.png").read_bytes()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the repositories of the Hub lie."""
    return tmp_path_factory.mktemp("guides")


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[hubs.Hub]:
    """A server with the backbone that the packaged entries name, but small."""
    if hubs.missing():
        pytest.skip(f"no {hubs.missing()} here")
    tiny = PARITY / "sd-tiny"
    files = {str(path.relative_to(tiny)): path for path in tiny.rglob("*") if path.is_file()}
    commits = {BACKBONE: hubs.commit(root, BACKBONE, files)}
    with hubs.serve(root) as address:
        yield hubs.Hub(address, commits, root)


@pytest.fixture
def person(tmp_path: Path, hub: hubs.Hub, typed: Path) -> Person:
    """With photos, the archive of a Drive folder, and the backbone fetched."""
    write_image(tmp_path / "photos" / "a.png")
    (tmp_path / "Downloads").mkdir()
    with zipfile.ZipFile(tmp_path / "Downloads/DMP-20260101T000000Z-001.zip", "w") as archive:
        for name in NAMES:
            archive.write(LORA / "pytorch_lora_weights.bin", f"DMP/{name}/pytorch_lora_weights.bin")
    source = f'{{ repo = "{BACKBONE}", revision = "{hub.commits[BACKBONE]}" }}'
    small = "".join(
        f"[models.{name}]\nbackbone = {source}\nsize = 64\n" for name in ("dmp", "dmp-paper")
    )
    (tmp_path / "small.toml").write_text(small)
    person = Person(tmp_path, tmp_path / "small.toml", typed)
    # so that the LoRAs are checked against the small backbone, not against the real one's shapes
    person.types("dmp weights pull dmp", hub.address)
    return person


def test_get_the_papers_weights(person: Person, hub: hubs.Hub) -> None:
    printed = person.types(guide("paper"), hub.address)
    assert person.map("normals")
    assert "model demo" not in printed
    assert person.types("dmp predict shading photos -o out", NOWHERE)
    assert person.map("shading")


def test_a_farm_without_a_network(person: Person, hub: hubs.Hub) -> None:
    person.types("dmp weights pull dmp", hub.address, HF_HOME=str(person.home / "farm" / "hf"))
    person.types(guide("fetch"), hub.address)
    person.types(guide("farm").replace("--dtype fp16", "--dtype fp32"), NOWHERE)
    assert person.map()
    assert not (person.home / "kept" / "weights.toml").exists()


def test_a_model_of_ones_own(person: Person, hub: hubs.Hub) -> None:
    (person.home / "my-sd").symlink_to(PARITY / "sd-tiny")
    (person.home / "my-depth.safetensors").symlink_to(LORA / "pytorch_lora_weights.safetensors")
    person.types(guide("mine"), NOWHERE)
    assert person.map()
    assert not list((person.home / "kept").rglob("*.safetensors"))


def test_a_mirror(person: Person, hub: hubs.Hub, root: Path, tmp_path: Path) -> None:
    person.types("dmp weights import ~/Downloads/DMP*.zip", NOWHERE)
    with hub_writes.serve(root) as writes:
        person.types(guide("mirror"), writes.address, HF_TOKEN=hub_writes.TOKEN)
        assert writes.private == {"studio/dmp-weights"}
    person.types("dmp predict depth photos -o own", NOWHERE)
    (person.home / "kept").rename(tmp_path / "gone")  # as for the others
    person.types(guide("mirror-use"), hub.address)
    assert person.map() == (person.home / "own" / "a.depth.png").read_bytes()
