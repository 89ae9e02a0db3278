"""A Hub of its own for tests: olah on loopback, serving git repositories made on the spot."""

import hashlib
import importlib.util
import json
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
from typing import ClassVar

CONFIG = """
[basic]
host = "127.0.0.1"
port = {port}
repos-path = "{root}/cache"
mirrors-path = ["{root}/mirror"]

[accessibility]
offline = true
"""


PARITY = Path(__file__).parent / "parity"
LORA = PARITY / "lora" / "full" / "pytorch_lora_weights.safetensors"
SHA256 = hashlib.sha256(LORA.read_bytes()).hexdigest()
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


def environment(home: Path, address: str, offline: bool = False) -> dict[str, str]:
    """What makes the client of another process use a server, and a cache of its own."""
    return os.environ | {
        "HF_HOME": str(home),
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


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
    root: Path  # of the repositories


COMMIT = "c" * 40  # of the faulty server
NAME = "loras/depth.safetensors"
DATA = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(DATA).hexdigest()


PARTS = (
    "unet/diffusion_pytorch_model.safetensors", "unet/config.json", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
    "text_encoder/config.json", "scheduler/scheduler_config.json",
)  # fmt: skip


class _Faulty(BaseHTTPRequestHandler):
    """A Hub with the repository org/tiny that does one thing wrong: the first part of the path.

    It states the sha256 of DATA, whatever it sends.
    """

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *words: object) -> None:
        """Nothing on standard error."""

    def answer(self) -> None:
        _, fault, rest = self.path.split("/", 2)
        first = not any(line.startswith(f"{self.command} {self.path}") for line in self.asked)
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if fault == "mute":
            time.sleep(120)
        if fault in ("closed", "mute") or (
            fault == "gone" and self.command == "GET" and "resolve" in rest
        ):
            self.close_connection = True
        elif fault.isdigit() or (fault == "busy" and first):
            self.head(int(fault) if fault.isdigit() else 503, 0, Retry_After="3600")
        elif fault == "limited" and self.command == "HEAD":
            self.head(429, 0, Retry_After="3600")
        elif fault == "loop":
            self.head(302, 0, Location=self.path)
        elif rest.startswith("api/"):
            self.api(fault, rest)
        elif "resolve" in rest:
            self.file(fault, first)
        else:
            self.head(404, 0)

    def head(self, status: int, length: int, **more: str) -> None:
        self.send_response(status)
        stated = {"ETag": f'"{DIGEST}"', "X-Repo-Commit": COMMIT, "Content-Length": str(length)}
        for key, value in (stated | more).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()

    def api(self, fault: str, rest: str) -> None:
        lfs = {"oid": DIGEST, "size": len(DATA), "pointerSize": 134}
        facts = {"type": "file", "size": len(DATA), "oid": "0" * 40, "lfs": lfs}
        names = [*PARTS, "tokenizer/../../../../climbed"] if fault == "hostile" else [NAME]
        tree = [facts | {"path": name} for name in names]
        siblings = [
            {
                "rfilename": name,
                "size": len(DATA),
                "blobId": "0" * 40,
                "lfs": lfs | {"sha256": DIGEST},
            }
            for name in names
        ]
        if fault == "bare":
            siblings = [{"rfilename": name} for name in names]
        commit = "main" if fault == "unsure" else COMMIT
        info = {"id": "org/tiny", "sha": commit, "siblings": siblings}
        found = tree if "/tree/" in rest else info
        data = json.dumps(found).encode()
        self.head(200, len(data), Content_Type="application/json")
        self.wfile.write(data)

    def file(self, fault: str, first: bool) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        start = 0 if fault == "deaf" else start
        body = DATA[start:]
        if fault == "wrong":
            body = bytes(len(body))
        length = {"short": len(body) // 2, "long": len(body) + 9}.get(fault, len(body))
        named = {"climbing": "../../../../climbed", "unnamed": "abc-def"}.get(fault, DIGEST)
        self.head(206 if start else 200, length, ETag=f'"{named}"')
        if self.command == "HEAD":
            return
        if fault == "drip":
            for place in range(60):
                self.wfile.write(body[place : place + 1])
                time.sleep(0.5)
        breaks = fault == "cuts" or (fault in ("cut", "deaf") and first)
        self.wfile.write((body + bytes(9))[: length // 2 if breaks else length])
        self.close_connection = True


@contextmanager
def faulty() -> Iterator[tuple[str, list[str]]]:
    """Run a server of faults; its address, to which the fault is appended, and what it was asked.

    401, 403 ...: that status. closed: connections are. gone: those for files. busy: 503 the first
    time. loop: redirects without end. cut, cuts: half of what is left, once or always. deaf: half,
    and then everything, whatever range is asked for. short, long, wrong: other bytes than stated.
    drip: a byte now and then. mute: not a byte. limited: asked for an hour's rest where the client
    asks for links. bare: names of files alone, as some mirrors. unsure: no commit. hostile: a name
    that leads out of the cache. climbing, unnamed: an ETag that does, or that is no hash. well:
    nothing.
    """
    _Faulty.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Faulty) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", _Faulty.asked
        finally:
            server.shutdown()
