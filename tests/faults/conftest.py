"""What the tests of faults share: `dmp` as a process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import write_image, write_weights
from tests.faults.process import Command, Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Forks]]:
    """The server of forks, started when it is first asked for."""
    begun: list[Forks] = []

    def started() -> Forks:
        if not begun:
            folder = tmp_path_factory.mktemp("forks")
            begun.append(Forks(Command(folder, folder, started).environment()))
        return begun[0]

    yield started
    for server in begun:
        server.close()


@pytest.fixture
def command(tmp_path: Path, forks: Callable[[], Forks]) -> Command:
    """`dmp` as a process."""
    folder = tmp_path / "process"
    folder.mkdir()
    return Command(folder, write_weights(folder / "weights.toml", "size = 64"), forks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with four pictures, 0.png to 3.png."""
    for seed in range(4):
        write_image(tmp_path / "in" / f"{seed}.png", seed=seed)
    return tmp_path / "in"
