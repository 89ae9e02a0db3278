"""`dmp`, also as `python -m dmp_cli`: the command, and its end."""

import atexit
import os
import signal
import sys
from contextlib import suppress

from dmp_cli.signals import Interrupted, heed_early


def main() -> None:
    """Run `dmp`, and end the process as soon as all of it is done."""
    heed_early()
    try:
        from dmp_cli.cli import main as command  # a signal may come within that already

        command()
    except SystemExit as end:
        if "torch" in sys.modules and isinstance(end.code, int | None):
            atexit._run_exitfuncs()
            _leave(end.code or 0)
        raise
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)


def _leave(code: int) -> None:
    """End without taking torch apart, which takes more than a second and leaves nothing undone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
