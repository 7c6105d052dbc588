"""Who may ask: bearer keys, and which addresses the server may listen on without them."""

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_s2.errors import InputError
from llava_s2.serve.api.api_errors import ApiError

_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_OPEN = {"/health"}
LOCAL_NAMES = ["localhost", "127.0.0.1", "[::1]", "::1"]
"""By which a request must name this machine where no key is asked for: a web page that has its own name lead to
127.0.0.1 could otherwise ask through its visitor's browser."""


def read_keys(path: str | Path) -> list[bytes]:
    """Digests of the keys in a file.

    Args:
        path: a key a line, in plain or as ``sha256:`` and its digest in hexadecimal; lines that begin with # are left
            out.

    Raises:
        InputError: the file cannot be read, holds no key, or one too short to withstand guessing.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); --api-key-file names a file of one key a line") from None
    digests = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if digest := _DIGEST.fullmatch(key):
            digests.append(bytes.fromhex(digest[1]))
        elif len(key) < 16:
            raise InputError(
                f"{path}: line {number}: a key needs 16 characters or more; openssl rand -hex 24 makes one"
            )
        else:
            digests.append(hashlib.sha256(key.encode()).digest())
    if not digests:
        raise InputError(f"{path}: holds no key; openssl rand -hex 24 makes one")
    return digests


def is_loopback(host: str) -> bool:
    """Whether a host's name or address stands for this machine alone.

    Raises:
        InputError: no such host.
    """
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: no such address ({error})") from None
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


class Access:
    """ASGI middleware that lets in who knows a key.

    Args:
        app: what is behind it.
        keys: digests; without any, everybody may ask.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in _OPEN:
            kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            digest = hashlib.sha256(key.strip().encode("utf-8", "replace")).digest()
            # All are compared, each in constant time, so that the time tells nothing.
            matches = [hmac.compare_digest(digest, known) for known in self._keys]
            if kind.lower() != "bearer" or not any(matches):
                raise ApiError(
                    401,
                    "no valid key; send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        await self._app(scope, receive, send)
