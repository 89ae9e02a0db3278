"""A Hub that takes uploads, for tests: into git repositories that tests/hub.py can serve.

Large files go where git-lfs keeps them and a pointer into the commit, as on the real Hub.
"""

import base64
import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from dmp_cli.publishing.card import LICENSES

TOKEN = "hf_" + "a1B2c3D4" * 4  # may write below org and studio, but not below other
BASIC = "Basic bWU6aHVzaA=="  # me:hush in the address, which the client sends in a token's place
READ_ONLY = "hf_" + "z9Y8x7W6" * 4
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


@dataclass
class Server:
    """What a running server holds, and what tests may change and look at."""

    root: Path
    address: str = ""
    private: set[str] = field(default_factory=set)
    faults: dict[str, int] = field(default_factory=dict)  # name of a step -> status, 0: hangs up
    asked: list[str] = field(default_factory=list)  # names of steps, as they came
    warnings: list[str] = field(default_factory=list)  # said of every README

    def folder(self, repo: str) -> Path:
        return self.root / "mirror" / "models" / repo

    def git(self, repo: str, *words: str, stdin: bytes | None = None) -> bytes | None:
        """What git prints, or None if it fails."""
        if not self.folder(repo).is_dir():
            return None
        ran = subprocess.run(
            ["git", *words], cwd=self.folder(repo), input=stdin, capture_output=True, check=False
        )
        return ran.stdout if ran.returncode == 0 else None

    def head(self, repo: str, revision: str = "main") -> str | None:
        """The commit of a branch or of a commit's id; None if it is not there."""
        found = self.git(repo, "rev-parse", "--verify", "-q", f"{revision}^{{commit}}")
        return found.decode().strip() if found else None

    def commits(self, repo: str, revision: str = "main") -> list[str]:
        return (self.git(repo, "log", "--format=%s", revision) or b"").decode().splitlines()

    def files(self, repo: str, revision: str = "main") -> list[str]:
        listed = self.git(repo, "ls-tree", "-r", "--name-only", revision) or b""
        return listed.decode().splitlines()

    def blob(self, repo: str, revision: str, name: str) -> bytes | None:
        return self.git(repo, "cat-file", "blob", f"{revision}:{name}")

    def make(self, repo: str) -> None:
        self.folder(repo).mkdir(parents=True)
        self.git(repo, "init", "-q", "-b", "main")
        self.commit(repo, "main", "initial commit", {".gitattributes": b"*.safetensors lfs\n"})

    def commit(self, repo: str, branch: str, title: str, files: dict[str, bytes]) -> str:
        """One commit on a branch, by one stream: it is there whole or not at all."""
        parent = self.head(repo, branch)
        lines = [
            f"commit refs/heads/{branch}\ncommitter t <t@localhost> now\n".encode(),
            b"data %d\n%s\n" % (len(title.encode()), title.encode()),
            f"from {parent}\n".encode() if parent else b"",
        ]
        for name, content in files.items():
            lines.append(b"M 100644 inline %s\n" % json.dumps(name).encode())
            lines.append(b"data %d\n%s\n" % (len(content), content))
        stream = b"".join(lines)
        done = self.git(repo, "fast-import", "--quiet", "--date-format=now", stdin=stream)
        assert done is not None
        commit = self.head(repo, branch)
        assert commit is not None
        return commit

    def large(self, repo: str, digest: str) -> Path:
        objects = self.folder(repo) / ".git" / "lfs" / "objects"
        return objects / digest[:2] / digest[2:4] / digest


class RefusedError(Exception):
    """An answer that is not 200: its status and what it says."""

    def __init__(self, status: int, why: str, code: str = "") -> None:
        super().__init__(why)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    """One request: found in ROUTES, answered in JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer in two parts would wait 40 ms between them
    hub: Server

    def log_message(self, *words: object) -> None:
        """Nothing on standard error."""

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_HEAD(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def do_PUT(self) -> None:
        self.handle_one("PUT")

    def handle_one(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        for wanted, pattern, step, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if wanted == method and found:
                self.hub.asked.append(step)
                if self.hub.faults.get(step) == 0:
                    self.close_connection = True
                    return
                try:
                    if step in self.hub.faults:
                        raise RefusedError(self.hub.faults[step], f"no {step} today")
                    self.send(200, answer(self, body, *found.groups()))
                except RefusedError as refused:
                    said = {"error": str(refused), "errors": [{"message": str(refused)}]}
                    self.send(refused.status, said, {"X-Error-Code": refused.code})
                return
        self.send(404, {"error": f"no {method} {path}"})

    def send(self, status: int, said: Any, headers: dict[str, str] | None = None) -> None:
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        if isinstance(said, bytes):
            digest = hashlib.sha1(b"blob %d\0%s" % (len(said), said)).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": self.path.split("/")[4]}
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def may_write(self, repo: str) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given == BASIC:
            return
        if given not in (TOKEN, READ_ONLY):
            raise RefusedError(401, "Invalid username or password.")
        if given != TOKEN or not repo.startswith(("org/", "studio/")):
            raise RefusedError(403, f"You don't have the rights to write to {repo}")

    def commit_of(self, repo: str, revision: str = "main") -> str:
        there = self.hub.folder(repo).is_dir()
        seen = repo not in self.hub.private or TOKEN in self.headers.get("Authorization", "")
        if not there or not seen:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        commit = self.hub.head(repo, revision)
        if commit is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


def _info(self: _Handler, body: bytes, repo: str, revision: str = "main") -> Any:
    commit = self.commit_of(repo, revision)
    return {
        "id": repo, "sha": commit, "private": repo in self.hub.private, "tags": [],
        "siblings": [{"rfilename": name} for name in self.hub.files(repo, commit)],
    }  # fmt: skip


def _create(self: _Handler, body: bytes) -> Any:
    asked = json.loads(body)
    repo = f"{asked['organization']}/{asked['name']}"
    self.may_write(repo)
    if self.hub.folder(repo).is_dir():
        raise RefusedError(409, "You already created this model repo")
    self.hub.make(repo)
    if asked.get("visibility") == "private":
        self.hub.private.add(repo)
    return {"url": f"{self.hub.address}/{repo}"}


def _branch(self: _Handler, body: bytes, repo: str, branch: str) -> Any:
    self.may_write(repo)
    if self.hub.head(repo, branch):
        raise RefusedError(409, "Reference already exists")
    self.hub.git(repo, "branch", branch, self.commit_of(repo))
    return {}


def _validate(self: _Handler, body: bytes) -> Any:
    """The rules of the Hub that matter here; its own server has more."""
    matter = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.S)
    data = yaml.safe_load(matter[1]) if matter else None
    if not isinstance(data, dict) or data.get("license") not in LICENSES | {"other"}:
        raise RefusedError(400, '"license" must be one of a list')
    if data["license"] == "other" and not re.fullmatch("[a-z0-9.-]+", data["license_name"]):
        raise RefusedError(400, '"license_name" does not fit')
    return {"warnings": [{"message": text} for text in self.hub.warnings]}


def _preupload(self: _Handler, body: bytes, repo: str, revision: str) -> Any:
    commit = self.commit_of(repo, revision)
    self.may_write(repo)
    return {
        "files": [_plan(self.hub, repo, commit, one["path"]) for one in json.loads(body)["files"]]
    }


def _plan(hub: Server, repo: str, commit: str, name: str) -> dict[str, Any]:
    content = hub.blob(repo, commit, name)
    large = name.endswith(".safetensors")
    oid = None
    if content is not None and large:
        oid = content.decode().splitlines()[1].removeprefix("oid sha256:")
    elif content is not None:
        oid = hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
    mode = "lfs" if large else "regular"
    return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def _batch(self: _Handler, body: bytes, repo: str) -> Any:
    self.may_write(repo)
    objects = json.loads(body)["objects"]
    for one in objects:
        if not self.hub.large(repo, one["oid"]).exists():
            one["actions"] = {"upload": {"href": f"{self.hub.address}/put/{repo}/{one['oid']}"}}
    return {"transfer": "basic", "objects": objects}


def _put(self: _Handler, body: bytes, repo: str, digest: str) -> Any:
    if hashlib.sha256(body).hexdigest() != digest:
        raise RefusedError(400, "the content has another sha256")
    path = self.hub.large(repo, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return {}


def _commit(self: _Handler, body: bytes, repo: str, branch: str) -> Any:
    self.may_write(repo)
    head, *operations = (json.loads(line) for line in body.splitlines())
    if head["value"].get("parentCommit", "") not in ("", self.commit_of(repo, branch)):
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    files = {}
    for one in operations:
        value = one["value"]
        if one["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif one["key"] == "lfsFile" and self.hub.large(repo, value["oid"]).exists():
            size = self.hub.large(repo, value["oid"]).stat().st_size
            files[value["path"]] = POINTER.format(value["oid"], size).encode()
        else:
            raise RefusedError(400, f"cannot commit {one}")
    commit = self.hub.commit(repo, branch, head["value"]["summary"], files)
    return {"commitOid": commit, "commitUrl": f"{self.hub.address}/{repo}/commit/{commit}"}


def _resolve(self: _Handler, body: bytes, repo: str, revision: str, name: str) -> Any:
    content = self.hub.blob(repo, self.commit_of(repo, revision), name)
    if content is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound")
    return content


_REPO = r"/([\w.-]+/[\w.-]+)"
Answer = Callable[..., Any]
ROUTES: list[tuple[str, str, str, Answer]] = [
    ("POST", "/api/repos/create", "create", _create),
    ("POST", "/api/validate-yaml", "validate", _validate),
    ("POST", f"/api/models{_REPO}/branch/(.+)", "branch", _branch),
    ("POST", f"/api/models{_REPO}/preupload/(.+)", "preupload", _preupload),
    ("POST", f"/api/models{_REPO}/commit/(.+)", "commit", _commit),
    ("GET", f"/api/models{_REPO}/revision/(.+)", "info", _info),
    ("GET", f"/api/models{_REPO}", "info", _info),
    ("POST", rf"{_REPO}\.git/info/lfs/objects/batch", "batch", _batch),
    ("PUT", f"/put{_REPO}/([0-9a-f]{{64}})", "put", _put),
    ("GET", f"{_REPO}/resolve/([^/]+)/(.+)", "resolve", _resolve),
]


def connect(hub: Server, home: Path, patch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
    """Let the client of this process use the server; it has read its environment long ago."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
    }.items():
        patch.setattr(constants, name, value)
    patch.setenv("HF_HUB_OFFLINE", "0")
    patch.setenv("HF_TOKEN", token or "")


@contextmanager
def serve(root: Path) -> Iterator[Server]:
    """Run the server over the repositories below `root`."""
    hub = Server(root)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
