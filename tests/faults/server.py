"""Run as a process: imports what a run imports, then forks a `dmp` for each order it is sent.

It listens on the socket that its only argument names, and ends when its standard input does. An
order is a line of JSON: argv, env, cwd, patch (Python to run first) and timeout (seconds, then
SIGALRM). With its first byte come the three standard streams of the `dmp`. The answer is a line
with its pid, and at its end one with code, seconds, cpu and memory. A client that goes away takes
its `dmp` with it. Several may run at once.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """What a fresh process would have."""
    os.environ.clear()
    os.environ.update(order["env"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(order["cwd"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]  # it reads the environment as it is imported
    signal.alarm(order["timeout"])
    sys.argv = order["argv"]


def _received(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The order of a client, and its streams."""
    first, streams, _, _ = socket.recv_fds(client, 1, 3)
    with client.makefile("rb") as file:
        order: dict[str, Any] = json.loads(first + file.readline())
    return order, streams


def _minded(client: socket.socket) -> dict[str, Any] | None:
    """In a child its order; in its parent None, once it has ended and the client knows how."""
    order, streams = _received(client)
    begun, child = time.monotonic(), os.fork()
    if not child:
        client.close()
        _become(order, streams)
        return order
    client.sendall(json.dumps({"pid": child}).encode() + b"\n")
    ended = os.pidfd_open(child)
    if gone := ended not in select.select([ended, client], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    if gone:
        return None
    told = {
        "code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begun,
        "cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss << 10,
    }  # fmt: skip
    client.sendall(json.dumps(told).encode() + b"\n")
    return None


def _forked(place: str) -> dict[str, Any] | None:
    """In each child its order; None in the server at its end, and in those that mind a child."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        print("listening", flush=True)
        minds: set[int] = set()
        while server in select.select([server, sys.stdin], [], [])[0]:
            client, _ = server.accept()
            if not (mind := os.fork()):
                return _minded(client)
            client.close()
            minds.add(mind)
            minds -= {one for one in minds if os.waitpid(one, os.WNOHANG)[0]}
    return None


def _run(patch: str, main: Callable[[], None]) -> NoReturn:
    """Run to the end that `main` makes, or, if there is none, to that of all threads."""
    code: Any = 0
    try:
        exec(patch, {})
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import diffusers
    import transformers

    import dmp_cli.engines.local
    from dmp_cli.__main__ import main

    # their classes come when they are first asked for
    _ = (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, transformers.CLIPTextModel)
    _ = (transformers.CLIPTokenizer, dmp_cli.engines.local)
    gc.collect()
    gc.freeze()  # or each child would copy what its collector looks at
    if order := _forked(sys.argv[1]):
        _run(order["patch"], main)
    os._exit(0)
