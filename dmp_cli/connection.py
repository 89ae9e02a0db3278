"""Whether a server may be asked and is there; what of an answer may be shown. No library."""

import os
import re
import socket
import urllib.request
from threading import Thread
from urllib.parse import urlsplit

_PROBE = 2.0  # seconds within which a server that is there takes a connection
_ADDRESSES = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_TRUE = ("1", "ON", "YES", "TRUE")  # as the Hub's client reads its variables


def go_offline() -> None:
    """Ask no server from now on, nor let any library of this process do so."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def offline() -> bool:
    """Whether no server may be asked."""
    named = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in _TRUE for value in named)


def away(address: str) -> str | None:
    """What keeps a connection from a server (or the proxy before it), known within two seconds.

    The Hub's client tries for 23 seconds before it says so.
    """
    try:
        host, port = _asked(address)
    except ValueError:  # which may quote a part of a password
        return "an address of HF_ENDPOINT, HTTP_PROXY or HTTPS_PROXY is not valid"
    found: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), 2 * _PROBE).close()
            found.append(None)
        except OSError as error:
            found.append(error.strerror or str(error))

    probe = Thread(target=connect, daemon=True)  # looking up a name knows no time limit
    probe.start()
    probe.join(_PROBE)
    why = found[0] if found else f"no answer within {_PROBE:.0f} s"
    return why and f"{host}:{port} cannot be reached: {why}"


def _asked(address: str) -> tuple[str, int]:
    """Host and port to connect to for an address: its own, or those of the proxy before it.

    ValueError if they cannot be told.
    """
    server = urlsplit(address)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(server.scheme, proxies.get("all"))
    if proxy and not urllib.request.proxy_bypass(server.hostname or ""):
        server = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if not server.hostname:
        raise ValueError("no host")
    port = server.port or {"https": 443, "socks5": 1080}.get(server.scheme, 80)
    return server.hostname, port


def scrub(text: str) -> str:
    """A text of a library without tokens and passwords."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            text = text.replace(os.environ[name].strip(), "***")
    for name in _ADDRESSES:  # what stands in an address unescaped is read as host, port or path
        address = os.environ.get(name) or os.environ.get(name.lower()) or ""
        user = re.match(r"\w+://(.*)@", address)
        for part in re.split("[:/@]", user[1]) if user else ():
            text = text.replace(part, "***") if len(part) > 2 else text
    text = re.sub(r"\bhf_\w{6,}", "hf_***", text)
    text = re.sub(r"(://[^\s'\"?]*)\?[^\s'\"]*", r"\1?...", text)  # signed addresses
    return re.sub(r"://[^/\s@]*@", "://", text)
