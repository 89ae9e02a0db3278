"""A folder on Google Drive -> its files on this machine, by gdown."""

import re
from pathlib import Path

from dmp_cli import connection
from dmp_cli.errors import ModelError, UsageError

# Named in the README of the authors' code (shinying/dmp on GitHub, revision 69b4b18)
OFFICIAL = "https://drive.google.com/drive/folders/1R7H2x3ETkxs5bRx9gzKo4ngxtFJfGPAv"
_STEPS = (
    "by hand:\n"
    "1. open {} in a browser\n"
    "2. choose Download from the menu beside the folder's name: it comes as one or more .zip\n"
)
_TIMEOUT = (5.0, 60.0)  # seconds: to connect, between two signs of life


def check_url(url: str) -> None:
    """UsageError for what is not the address of a folder on Google Drive."""
    if not re.match(r"https://drive\.google\.com/drive/(u/\d+/)?folders/[\w-]{10,}", url):
        raise UsageError(
            f"--folder-url {url}: not the address of a Google Drive folder",
            f"it looks like {OFFICIAL}",
        )


def fetch(url: str, folder: Path) -> None:
    """Fetch all files of a folder. ModelError says how to do it by hand."""
    try:
        import gdown
    except ImportError as error:
        raise ModelError(
            "--download needs gdown, which is not installed",
            f"install it: pip install 'dmp-predict[drive]'; or {_by_hand(url)}",
        ) from error
    why = "dmp is offline" if connection.offline() else connection.away(url)
    if why:
        raise _failed(url, why)
    try:
        # cookies would be kept in a file of the user's
        gdown.download_folder(
            url=url, output=str(folder), quiet=True, use_cookies=False, timeout=_TIMEOUT, retries=2
        )
    except Exception as error:  # of requests, of the parser, of gdown: nearly every kind
        first = str(error).strip().split("\n", maxsplit=1)[0]
        raise _failed(url, connection.scrub(f"{type(error).__name__}: {first}")) from error


def _failed(url: str, why: str) -> ModelError:
    return ModelError(f"{url}: cannot be fetched: {why}", _by_hand(url))


def _by_hand(url: str) -> str:
    return f"{_STEPS.format(url)}3. dmp weights import ~/Downloads/NAME*.zip"


def choosing(url: str, commands: str) -> str:
    """How to import single files of a folder; NAME in `commands` stands for the folder."""
    return (
        f"--download takes all that is there; {_STEPS.format(url)}"
        "3. unpack them in one place: that makes a folder, here called NAME\n"
        f"4. there: {commands}"
    )
