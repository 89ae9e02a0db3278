"""A Ray cluster: joined by its address, or started on this machine for a run and gone with it."""

import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dmp_cli.errors import DmpError, ResourceError, UsageError

_ANSWER = 5  # seconds in which a cluster has to answer; Ray itself waits for minutes
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a late call would start another cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning that this will be so
}
_PASSED = ("DMP_", "HF_", "AWS_", "STORAGE_", "OMP_")  # variables that workers need as well
_SECRET = ("TOKEN", "SECRET", "KEY", "PASS")  # Ray shows what it is given to whoever asks
# asks for the number of a cluster; Ray ends its process when there is none
_ASK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).cluster_id"


@dataclass(frozen=True)
class Cluster:
    """What a run finds in a cluster."""

    nodes: int
    gpus: float
    joined: bool  # it was there before the run, and stays
    memory: float = 0.0  # bytes that tasks may reserve on the node with least; 0: not told


def require() -> None:
    """UsageError unless Ray Data is installed."""
    if not (importlib.util.find_spec("ray") and importlib.util.find_spec("pyarrow")):
        raise UsageError("--engine ray needs ray", "pip install 'dmp-predict[ray]'")


@contextmanager
def connected(address: str | None, store: int, verbose: bool = False) -> Iterator[Cluster]:
    """Join the cluster at an address, or at $RAY_ADDRESS; else start one for the time of the block.

    `store` is the memory in bytes for what goes from one worker to the next, of a cluster that is
    started. ResourceError if no cluster is there or none can be started, UsageError for an address
    that is none. Unless `verbose`, Ray prints nothing.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check(address)
    hushed = {} if verbose else {"RAY_BACKEND_LOG_LEVEL": "fatal"}
    for name, value in (_QUIET | hushed).items():
        os.environ.setdefault(name, value)
    if address not in ("auto", "local"):
        _ask(address)
    import ray

    _spare_stdout(verbose)
    folder = None if address != "local" else Path(tempfile.mkdtemp(prefix="dmp-ray-", dir=_short()))
    try:
        with _signals_kept(), nullcontext() if verbose else _quiet():
            _init(address, folder, store, verbose)
        _hush(verbose)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        gpus = sum(node["Resources"].get("GPU", 0.0) for node in nodes)
        memory = min((node["Resources"].get("memory", 0.0) for node in nodes), default=0.0)
        yield Cluster(len(nodes), gpus, folder is None, memory)
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _short() -> str | None:
    """A temporary folder whose name is short: below it lie sockets, of 107 bytes at most."""
    return None if len(tempfile.gettempdir()) < 30 else "/tmp"


def _check(address: str) -> None:
    """Refuse what is no address, and one where nobody listens."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"--ray-address {address}: must be HOST:PORT of the head node, auto, or local",
            "`ray start --head` prints it; ray:// is not supported: run dmp on a node",
        )
    try:
        socket.create_connection((host, int(port)), _ANSWER / 2).close()
    except OSError as error:
        raise _absent(address, error.strerror or str(error)) from error


def _ask(address: str) -> None:
    """ResourceError unless what listens there is Ray."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK, address],
            capture_output=True, check=False, timeout=_ANSWER,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _absent(address, "no answer") from error
    if done.returncode:
        raise _absent(address, "what listens there is no Ray, or of another version")


def _absent(address: str, why: str) -> ResourceError:
    return ResourceError(
        f"no Ray cluster at {address}: {why}",
        "check the address, or start one: `ray start --head`; docs/ray.md",
    )


def _init(address: str, folder: Path | None, store: int, verbose: bool) -> None:
    import ray

    how: dict[str, Any] = {"runtime_env": {"env_vars": _variables()}}
    if folder:
        cores = os.cpu_count() or 1
        how = {
            "num_cpus": max(cores, 2),  # one reads while another writes
            "object_store_memory": store, "include_dashboard": False,
            "_temp_dir": str(folder), "_node_ip_address": "127.0.0.1",
        }  # fmt: skip
    level = logging.INFO if verbose else logging.CRITICAL
    try:
        ray.init(address=address, log_to_driver=verbose, logging_level=level, **how)
    except DmpError:
        raise
    except Exception as error:  # of every kind: a node that does not come up is a plain one
        why = " ".join(str(error).split())[:300]
        if folder is None:
            raise _absent(address, why) from error
        raise ResourceError(f"Ray does not start: {why}", "try --engine local") from error


def _variables() -> dict[str, str]:
    """Of this environment, what a worker on another machine needs. No secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PASSED) and not any(word in name for word in _SECRET)
    }


def _hush(verbose: bool) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if not verbose:
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, what Ray's C++ prints is lost; what dmp writes to standard error is not."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    before = sys.stderr
    with Path(os.devnull).open("w") as nowhere, os.fdopen(kept, "w", errors="replace") as ours:
        os.dup2(nowhere.fileno(), 2)
        if _writes_to_2(before):
            sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = before
            os.dup2(kept, 2)


def _writes_to_2(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):  # it stands for no file
        return False


def _spare_stdout(verbose: bool) -> None:
    """Ray prints what happens to nodes and workers on standard output, where results alone go."""
    import ray._private.worker as driver

    # Ray has no setting for this: if a version calls it otherwise, then nothing changes
    function = getattr(driver, "print_to_stdstream", None)

    def elsewhere(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        if verbose and function:
            function({**data, "is_err": True}, ignore_prefix)

    driver.print_to_stdstream = elsewhere


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Within, Ray would take SIGTERM for itself, and end the process with 15: it may not."""
    import ray._private.utils as taking

    # Ray has no setting for this: if a version does it otherwise, it is undone at the end at least
    function = getattr(taking, "set_sigterm_handler", None)
    ours = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if ours else ()
    before = {number: signal.getsignal(number) for number in numbers}
    taking.set_sigterm_handler = lambda *_: None
    try:
        yield
    finally:
        if function:
            taking.set_sigterm_handler = function
        for number, handler in before.items():
            signal.signal(number, handler)
