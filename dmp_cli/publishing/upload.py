"""A release of LoRAs -> one commit in a repository of the Hub."""

import errno
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmp_cli import __version__, hub
from dmp_cli.connection import scrub
from dmp_cli.errors import DmpError, ModelError, ResourceError, UsageError
from dmp_cli.publishing import card
from dmp_cli.publishing.release import Release

_PATIENCE = 60.0  # seconds between two signs of life of the Hub; a commit takes it some time
_LONGEST = 300  # characters of what a server says
README = "README.md"
_LOGIN = "run `hf auth login`, or put a token with the right to write into HF_TOKEN"
_AGAIN = "then run the same command again: what is there is not sent twice"
_HINTS = {
    400: "correct what the Hub does not take: --license, or the model's entry in the weights file",
    401: f"the Hub does not take this token: {_LOGIN}",
    403: "this token may not write there: choose a namespace of yours, ask for the right to write "
    f"in it, or\n{_LOGIN}",
    404: "check the name of the repository and the branch",
    409: f"somebody else changed the repository meanwhile: look at it, {_AGAIN}",
    412: f"somebody else changed the repository meanwhile: look at it, {_AGAIN}",
    413: "the Hub takes no file or commit of this size: publish fewer tasks with --task",
    429: f"the Hub wants fewer requests: wait some minutes, {_AGAIN}",
}


@dataclass(frozen=True)
class Published:
    """What is on the Hub after a push."""

    commit: str
    url: str
    private: bool
    created: bool  # the repository was not there before
    changed: bool  # there is a new commit
    notes: tuple[str, ...]  # for the person who published


def check_target(repo: str, branch: str) -> None:
    """UsageError for what cannot be the name ORG/NAME of a repository, or that of a branch."""
    if not branch or re.fullmatch("[0-9a-f]{40}", branch):
        raise UsageError(
            f"--revision {branch!r}: not the name of a branch, and nothing is added to a commit",
            "name a branch, or leave it out: main",
        )
    client = hub.client()
    try:
        client.utils.validate_repo_id(repo)
        parts = len(repo.split("/"))
    except client.errors.HFValidationError:
        parts = 0
    if parts != 2:
        raise UsageError(
            f"{repo!r} is no repository of the Hub", "write it as ORG/NAME: acme/dmp-weights"
        )


def readme(release: Release) -> str:
    """The README of a release's repository, with its front matter."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(**card.front_matter(release))
    return f"---\n{data.to_yaml()}\n---\n\n{card.text(release)}"


def push(release: Release, private: bool = False) -> Published:
    """Put the files and the README of a release on the Hub in one commit, all or nothing.

    A repository that is not there is made, and a branch. What is there already in the same form
    makes no new commit. A README that a person wrote stays. ModelError, with what to do about it,
    if the Hub does not let us, or cannot be reached.
    """
    with _told(release.repo):
        api = _api(release.repo)
        created = _make(api, release, private)
        head = api.model_info(release.repo, revision=release.branch)
        notes = [*_visibility(head, private), *_others(head, release)]
        operations = _operations(release)
        if not _may_write_readme(api, release.repo, head):
            operations = [one for one in operations if one.path_in_repo != README]
            notes += [f"its {README} was written by a person and stays as it is"]
        done, warned = _commit(api, release, operations, head.sha)
    changed = done.oid != head.sha
    return Published(
        done.oid, f"{scrub(api.endpoint)}/{release.repo}", bool(head.private), created, changed,
        (*notes, *warned),
    )  # fmt: skip


def _api(repo: str) -> Any:
    """The Hub's client with the token of this machine. ModelError if it has none, or no server."""
    why = hub.unreachable()
    if why:  # the client itself would try for 23 seconds
        raise ModelError(
            f"{repo}: nothing was published: {why}",
            "run it again when there is a connection",
        )
    client = hub.online(_PATIENCE)
    token = client.get_token()
    if not token:
        raise ModelError(f"{repo}: nothing was published: there is no token for the Hub", _LOGIN)
    return client.HfApi(token=token, library_name="dmp", library_version=__version__)


def _make(api: Any, release: Release, private: bool) -> bool:
    """Make the repository and the branch if need be; whether the repository is new."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        created = not api.model_info(release.repo)
    except RepositoryNotFoundError:
        created = True
    if created:
        api.create_repo(release.repo, private=private or None, exist_ok=True)
    if release.branch != "main":
        api.create_branch(release.repo, branch=release.branch, exist_ok=True)
    return created


def _visibility(head: Any, private: bool) -> list[str]:
    if private and not head.private:
        return ["it was there before and is public, which --private does not change"]
    return []


def _others(head: Any, release: Release) -> list[str]:
    """Tell of LoRAs of tasks that lie there from before and are no part of this release."""
    own = {adapter.file for adapter in release.adapters}
    names = {one.rfilename for one in head.siblings or ()}
    last = release.adapters[0].file.split("/")[1]
    more = sorted(name for name in names - own if re.fullmatch(rf"[a-z]+/{re.escape(last)}", name))
    return [f"{', '.join(more)} was there before and is not part of this"] if more else []


def _operations(release: Release) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    return [
        CommitOperationAdd(README, readme(release).encode()),
        *(CommitOperationAdd(adapter.file, adapter.path) for adapter in release.adapters),
    ]


def _may_write_readme(api: Any, repo: str, head: Any) -> bool:
    """Whether the README there, if any, is dmp's own, or holds nothing but front matter."""
    if README not in {one.rfilename for one in head.siblings or ()}:
        return True
    path = api.hf_hub_download(repo, README, revision=head.sha)
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return card.MARK in text or not re.sub(r"\A---\n.*?\n---\s*", "", text, flags=re.S).strip()


def _commit(
    api: Any, release: Release, operations: list[Any], parent: str
) -> tuple[Any, list[str]]:
    """Make the commit; what it is, and what the Hub says of the README."""
    tasks = ", ".join(adapter.task for adapter in release.adapters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = api.create_commit(
            release.repo, operations, commit_message=f"{release.model}: {tasks}",
            revision=release.branch, parent_commit=parent,
        )  # fmt: skip
    said = [one.message for one in caught if one.category is UserWarning]
    return done, [" ".join(str(one).split()) for one in said]


# What can go wrong ------------------------------------------------------------------------


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Tell whatever goes wrong between here and the Hub in one line, with what to do next."""
    try:
        yield
    except (DmpError, AttributeError, NameError, TypeError):  # the last three are bugs
        raise
    except Exception as error:  # of the HTTP library too, which the Hub's client changes
        raise _failure(repo, error) from error


def _failure(repo: str, error: Exception) -> DmpError:
    causes = [error]
    while isinstance(cause := causes[-1].__cause__, Exception):
        causes.append(cause)
    for one in causes:
        if getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            why = f"{repo}: publishing failed: the disk is full"
            return ResourceError(why, f"free some room, {_AGAIN}")
    answered = next((one for one in causes if hasattr(one, "server_message")), None)
    status = getattr(getattr(answered, "response", None), "status_code", 0)
    said = getattr(answered, "server_message", None) or str(answered or causes[-1])
    line = " ".join(said.split())[:_LONGEST]
    why = f"{status} {line}" if status else f"{type(causes[-1]).__name__}: {line}"
    return ModelError(f"{repo}: publishing failed: {scrub(why)}", _hint(status))


def _hint(status: int) -> str:
    if status >= 500:
        return f"the Hub is in trouble: wait some minutes, {_AGAIN}"
    return _HINTS.get(status, f"check the connection and HF_ENDPOINT, {_AGAIN}")
