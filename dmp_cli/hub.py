"""The Hub through its own client: what its cache holds, and what a server has to bring."""

import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from errno import EACCES, EDQUOT, EINVAL, ENOSPC, ENOSYS, EPERM, EROFS
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from dmp_cli.connection import away, offline, scrub
from dmp_cli.download import Answer, Moved, download
from dmp_cli.errors import ModelError, ResourceError
from dmp_cli.files import in_words

_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT = re.compile("[0-9a-f]{40}")
_TIMEOUT = 10.0  # seconds between two signs of life
_PHASES = ("connect", "read", "write", "pool")  # of a request, each with a time limit of its own
_BUSY = (408, 429, 500, 502, 503, 504)
Answered = TypeVar("Answered")


@dataclass(frozen=True)
class Repository:
    """A repository at a revision, and the command that fetches what is wanted of it."""

    name: str
    revision: str | None = None
    command: str = field(default="dmp weights pull", compare=False)

    @property
    def at(self) -> str:
        """The revision by name."""
        return self.revision or "main"


@dataclass(frozen=True)
class File:
    """A file of a repository: its path there, bytes, and hash (sha256 or git blob id)."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """Files of a repository at a commit, as a server lists them."""

    repository: Repository
    commit: str
    files: tuple[File, ...]

    def matching(self, patterns: Iterable[str]) -> "Listing":
        """Those whose path fits a pattern."""
        wanted = list(patterns)
        fits = [row for row in self.files if any(fnmatchcase(row.name, one) for one in wanted)]
        return replace(self, files=tuple(fits))


def cache() -> Path:
    """The folder in which the Hub's client keeps its downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def require(repository: Repository, name: str) -> None:
    """ModelError if no server can be asked for a file: offline, or away for two seconds."""
    why = unreachable()
    if why:
        raise ModelError(
            f"{repository.name}: {name} at revision {repository.at} is not on this machine, "
            f"and {why}",
            f"once there is a connection, run: {repository.command}",
        )


def unreachable() -> str | None:
    """Why no server can be asked, known within two seconds."""
    from huggingface_hub import constants

    if offline():
        return "dmp is offline (--offline or HF_HUB_OFFLINE)"
    return away(constants.ENDPOINT)


# The cache --------------------------------------------------------------------------------


def cached(repository: Repository, name: str) -> Path | None:
    """A file in the cache; no server is asked, for a branch either."""
    library = client()
    with _as_model_error(repository, name):
        found = library.try_to_load_from_cache(repository.name, name, revision=repository.revision)
        return Path(found) if isinstance(found, str) else None


def snapshot(repository: Repository, patterns: Sequence[str]) -> Path | None:
    """The cache's folder of a revision; None if it is not there, or known to lack a file."""
    library = client()
    with _as_model_error(repository, "files"):
        try:
            return Path(
                library.snapshot_download(
                    repository.name, revision=repository.revision, local_files_only=True,
                    allow_patterns=list(patterns),
                )
            )  # fmt: skip
        except library.errors.LocalEntryNotFoundError:
            return None


def digest_of(path: Path) -> str | None:
    """The hash that a file of the cache should have: its blob is named by it."""
    if not path.is_symlink():
        return None
    name = path.readlink().name  # one step: a blob may itself be a link to a store of the client's
    return name if _HASH.fullmatch(name) else None


def drop(path: Path) -> None:
    """Delete a file from the cache, so that it is fetched again."""
    if path.is_symlink():
        (path.parent / path.readlink()).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def forget(commits: Iterable[str]) -> int:
    """Delete revisions from the cache; the bytes that this frees."""
    library = client()
    try:
        strategy = library.scan_cache_dir().delete_revisions(*commits)
    except library.errors.CacheNotFound:
        return 0
    strategy.execute()
    return int(strategy.expected_freed_size)


# The server -------------------------------------------------------------------------------


def listing(repository: Repository, name: str = "the list of its files") -> Listing:
    """What a server has at a revision. ModelError, naming `name`, if it cannot be had."""
    with _as_model_error(repository, name):
        api = online().HfApi()
        how = {"revision": repository.at, "files_metadata": True, "timeout": _TIMEOUT}
        info = _patiently(lambda: api.model_info(repository.name, **how))
        if not _COMMIT.fullmatch(str(info.sha)):
            raise ValueError(f"the server states no commit but {info.sha!r}")
        return Listing(repository, info.sha, tuple(_files(api, repository, info)))


def _files(api: Any, repository: Repository, info: Any) -> Iterator[File]:
    """The files of a commit, of which some mirrors tell the names alone until they are asked."""
    from huggingface_hub.hf_api import RepoFile

    rows = [(row.rfilename, row) for row in info.siblings or ()]
    if not rows or any(row.size is None or not (row.lfs or row.blob_id) for _, row in rows):
        how = {"recursive": True, "revision": info.sha}
        tree = _patiently(lambda: list(api.list_repo_tree(repository.name, **how)))
        rows = [(row.path, row) for row in tree if isinstance(row, RepoFile)]
    for name, row in rows:
        if row.lfs:
            yield File(name, row.lfs.size, row.lfs.sha256)
        else:
            yield File(name, row.size, row.blob_id)


def _patiently(ask: Callable[[], Answered]) -> Answered:
    """Ask a server that is busy, or slow, a second time and a third."""
    for wait in (1, 2):
        try:
            return ask()
        except Exception as error:
            if not _transient(error):
                raise
            time.sleep(wait)
    return ask()


def lacking(wanted: Listing) -> dict[File, int]:
    """The files that are not in the cache, with the bytes that have to come."""
    blobs = _blobs(wanted.repository)
    folder = blobs.parent / "snapshots" / wanted.commit
    return {
        file: file.size - _partial(blobs, file)
        for file in wanted.files
        if not (blobs / file.digest).exists() and not (folder / file.name).exists()
    }


def _partial(blobs: Path, file: File) -> int:
    path = blobs / f"{file.digest}.incomplete"
    return min(path.stat().st_size, file.size) if path.exists() else 0


def _blobs(repository: Repository) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return cache() / repo_folder_name(repo_id=repository.name, repo_type="model") / "blobs"


def check_room(bytes_to_come: int) -> None:
    """ResourceError if the disk of the cache has less space than that."""
    folder = next(one for one in (cache(), *cache().parents) if one.exists())
    free = shutil.disk_usage(folder).free
    if free < bytes_to_come:
        raise ResourceError(
            f"{cache()}: {in_words(bytes_to_come)} have to be fetched, "
            f"and {in_words(free)} are free",
            "free some space, or set HF_HOME to a folder on a larger disk",
        )


def fetch(wanted: Listing, moved: Moved = lambda _: None) -> Path:
    """Bring the files of a listing into the cache, each checked by its hash; the folder.

    Blobs are fetched and linked here: the client neither goes on with a file after it was stopped
    nor looks at hashes, and it names a blob as the server's ETag says, whatever that is. What is
    linked it takes as it is. ModelError, ResourceError for a full disk.
    """
    repository, blobs = wanted.repository, _blobs(wanted.repository)
    for file in lacking(wanted):
        with _as_model_error(repository, file.name):
            if not _HASH.fullmatch(file.digest):
                raise ValueError(f"the server states no hash of it but {file.digest!r}")
            ask = _asking(repository, wanted.commit, file.name)
            download(blobs / file.digest, file.size, file.digest, ask, _transient, moved)
    for file in wanted.files:
        with _as_model_error(repository, file.name):
            _link(blobs, wanted.commit, file)
    with _as_model_error(repository, wanted.files[0].name):
        names = [escape(file.name) for file in wanted.files]
        folder = Path(
            online().snapshot_download(
                repository.name, revision=repository.at, allow_patterns=names
            )
        )
        if folder.name != wanted.commit:
            raise ValueError(f"it moved from commit {wanted.commit} while it was fetched")
        for file in wanted.files:
            path = folder / file.name
            if path.is_symlink() and digest_of(path) != file.digest:
                drop(folder / file.name)
                raise ValueError(f"the server sent another {file.name} than it had stated")
    return folder


def _link(blobs: Path, commit: str, file: File) -> None:
    """Name a blob in the folder of a commit, as the client's cache is laid out.

    A disk without links is left to the client. ValueError for a name that leads out of the folder.
    """
    place = PurePosixPath(file.name)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError("the server lists a file that would lie outside of the cache")
    pointer, blob = blobs.parent / "snapshots" / commit / place, blobs / file.digest
    if blob.is_file() and not os.path.lexists(pointer):
        pointer.parent.mkdir(parents=True, exist_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError as error:
            if error.errno not in (EPERM, ENOSYS, EINVAL):
                raise


def _asking(repository: Repository, commit: str, name: str) -> Callable[[int], Any]:
    """What asks the server for a file from an offset on, as `download` takes it."""
    library = online()
    url = library.hf_hub_url(repository.name, name, revision=commit)

    @contextmanager
    def ask(offset: int) -> Iterator[Answer]:
        headers = library.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={offset}-"} if offset else {}
        session = library.get_session()
        with session.stream(
            "GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True
        ) as answer:
            if answer.status_code >= 400:
                answer.read()
                library.utils.hf_raise_for_status(answer)
            yield answer

    return ask


@dataclass(frozen=True)
class _Limit:
    """What lets no request wait longer than so many seconds for a sign of life."""

    seconds: float

    def __call__(self, request: Any) -> None:
        given = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            key: min(given.get(key) or self.seconds, self.seconds) for key in _PHASES
        }


def _calm(answer: Any) -> None:
    """Take away how long a busy server wants to be left alone: the client would sleep so long."""
    for key in ("Retry-After", "RateLimit"):
        if key in answer.headers:
            del answer.headers[key]


def online(patience: float = _TIMEOUT) -> Any:
    """The Hub's library, told to wait for no server without end.

    It states no time limit in most of its requests, which overrides that of its session.
    `patience` is in seconds, between two signs of life.
    """
    library = client()
    session = library.get_session()
    before = [one for one in session.event_hooks["request"] if not isinstance(one, _Limit)]
    after = [one for one in session.event_hooks["response"] if one is not _calm]
    session.event_hooks = {"request": [*before, _Limit(patience)], "response": [*after, _calm]}
    return library


def client() -> Any:
    """The Hub's library, told to print nothing."""
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    library: Any = huggingface_hub
    library.utils.logging.set_verbosity(50)  # above errors: what matters of them is in ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an environment variable keeps its bars
        disable_progress_bars()
    return library


def _transient(error: Exception) -> bool:
    """Whether asking again may help: a busy server, or a connection that broke or timed out."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in _BUSY
    library = type(error).__module__.startswith("httpx")  # httpx or httpx2, as the client takes
    return library and type(error).__name__ != "TooManyRedirects"


@contextmanager
def _as_model_error(repository: Repository, name: str) -> Iterator[None]:
    """Whatever goes wrong names repository, file and revision, and what to do next."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the client: about disks and links
            yield
    except (ModelError, ResourceError):
        raise
    except Exception as error:  # of the HTTP library too, which the Hub's client changes
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EACCES, EROFS):
            raise ResourceError(
                f"{cache()} cannot be written: {error.strerror}",
                "make room, or set HF_HOME to a folder that can be written; "
                f"then run: {repository.command}",
            ) from error
        reason = error.__cause__ or error  # what the client says itself names no cause
        first = str(reason).strip().split("\n")[0]
        own = type(reason).__module__ == "builtins"  # in words for the user already
        raise ModelError(
            f"{repository.name}: {name} at revision {repository.at} is not to be had: "
            + scrub(first if own and first else f"{type(reason).__name__}: {first}"),
            _hint(repository, reason),
        ) from error


def _hint(repository: Repository, reason: BaseException) -> str:
    status = getattr(getattr(reason, "response", None), "status_code", None)
    again = f"run: {repository.command}"
    if status in (401, 403):
        return (
            "check the name of the repository; if it is private or gated, run `hf auth login` "
            f"or set HF_TOKEN; then {again}"
        )
    if type(reason) is ValueError:  # of `download` and `fetch`
        return f"the server, or what lies between, sends other files than it states; later {again}"
    if status == 404 or isinstance(reason, ValueError):
        return f"check repository, file and revision in the weights file, then {again}"
    return f"check the connection, then {again}"
