"""`dmp`, also as `python -m dmp_cli`: the command, and its end."""

import atexit
import os
import sys
from contextlib import suppress

from dmp_cli.cli import main as command


def main() -> None:
    """Run `dmp`, and end the process as soon as all of it is done."""
    try:
        command()
    except SystemExit as end:
        if "torch" in sys.modules and isinstance(end.code, int | None):
            atexit._run_exitfuncs()
            _leave(end.code or 0)
        raise


def _leave(code: int) -> None:
    """End without taking torch apart, which takes more than a second and leaves nothing undone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
