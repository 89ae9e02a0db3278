"""A Hub of its own for tests: olah on loopback, serving git repositories made on the spot."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

CONFIG = """
[basic]
host = "127.0.0.1"
port = {port}
repos-path = "{root}/cache"
mirrors-path = ["{root}/mirror"]

[accessibility]
offline = true
"""


def missing() -> str:
    """What is not there to run the server with, or nothing."""
    absent = [] if shutil.which("git") else ["git"]
    absent += [] if importlib.util.find_spec("olah") else ["olah"]
    return ", ".join(absent)


def commit(root: Path, repo: str, files: dict[str, Path]) -> str:
    """Make the repository ORG/NAME of these files below `root`; returns the commit's id."""
    folder = root / "mirror" / "models" / repo
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)

    def git(*words: str) -> str:
        who = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "gc.auto=0")
        ran = subprocess.run(
            ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
        )
        return ran.stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "files")
    return git("rev-parse", "HEAD")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Run olah over the repositories below `root`; yields its address."""
    port = free_port()
    (root / "olah.toml").write_text(CONFIG.format(port=port, root=root))
    code = "from olah.server import cli; cli()"
    environment = {key: value for key, value in os.environ.items() if "COV" not in key}
    with (root / "olah.out").open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", code, "--config", "olah.toml", "--log-path", "logs"],
            cwd=root, env=environment, stdout=out, stderr=out,
        )  # fmt: skip
        try:
            _wait(server, port, root / "olah.out")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"olah did not start:\n{log.read_text(errors='replace')[-2000:]}")


@dataclass(frozen=True)
class Hub:
    """The address of a running server, and the commit that it serves of each repository."""

    address: str
    commits: dict[str, str]


class _Faulty(BaseHTTPRequestHandler):
    """A Hub that does one thing wrong, whatever it is asked for: the first part of the path."""

    protocol_version = "HTTP/1.1"
    size = 100_000

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *words: object) -> None:
        """Nothing on standard error."""

    def answer(self, body: bool) -> None:
        fault = self.path.split("/")[1]
        status = {"loop": 302, "cut": 200, "short": 200, "closed": 200}.get(fault) or int(fault)
        if fault == "closed":
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("X-Repo-Commit", "0" * 40)
        length = self.size if status == 200 else 0
        if fault == "loop":
            self.send_header("Location", self.path)
        if fault == "short" and body:
            length //= 2
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if body and status == 200:
            self.wfile.write(bytes(length // 2 if fault == "cut" else length))
            self.close_connection = fault == "cut"


@contextmanager
def faulty() -> Iterator[str]:
    """Run a server of faults; yields its address, to which the fault is appended."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Faulty) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
