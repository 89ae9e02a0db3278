"""Run as a process: imports what a run imports, then forks a `dmp` for each line it is sent.

Each line is a JSON object: argv, env, patch (Python to run first), out and err (files), timeout
(seconds, then SIGALRM). The answer is a line with code, seconds, cpu and memory.
"""

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def _become(order: dict[str, Any]) -> None:
    """What a fresh process would have."""
    os.environ.clear()
    os.environ.update(order["env"])
    for number, name in ((1, "out"), (2, "err")):
        opened = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.alarm(order["timeout"])
    sys.argv = order["argv"]


def _forked() -> dict[str, Any] | None:
    """In each child its order; in the parent None, once there are no more orders."""
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        begun, child = time.monotonic(), os.fork()
        if not child:
            return order
        _, status, usage = os.wait4(child, 0)
        told = {
            "code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begun,
            "cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss << 10,
        }  # fmt: skip
        print(json.dumps(told), flush=True)
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
    if order := _forked():
        _become(order)
        _run(order["patch"], main)
    os._exit(0)
