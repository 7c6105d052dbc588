"""Fetching what a stranger's URL names, without reaching what only this machine can reach."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from llava_s2.errors import InputError
from llava_s2.serve.decoder_processes import MAX_BYTES

_REDIRECTS = 3
_UNICAST = ipaddress.ip_network("2000::/3")  # all that is public of IPv6; what translates to IPv4 lies beside it


# Not public, whatever this Python's ipaddress says of them: versions differ.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
            *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
            *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
        ),
    )
)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, and does not lead into another net by what it carries."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _UNICAST:
            return False
    return not any(ip in network for network in _SPECIAL if network.version == ip.version)


def fetch(
    url: str, *, max_bytes: int = MAX_BYTES, seconds: float = 10.0, allowed: Callable[[str], bool] = is_public
) -> bytes:
    """Gets a file over http or https.

    A name is looked up once, all its addresses must be allowed, and it is one of them that is connected to, so no
    second look-up can lead elsewhere; each of at most three redirects goes the same way. No proxy, cookie or credential
    is used.

    Args:
        url: http or https.
        max_bytes: of the body; reading ends beyond it.
        seconds: for everything together, but that looking up a name has the system's own limit.
        allowed: whether an IP address may be connected to.

    Raises:
        InputError: another kind of URL, an address that is not allowed, no answer 200, too large, or too slow.
    """
    deadline = time.monotonic() + seconds
    for _ in range(_REDIRECTS + 1):
        target = _checked(url)
        backend = _CheckedBackend(allowed, deadline)
        try:
            with httpcore.ConnectionPool(network_backend=backend) as pool:
                body, location = _get(pool, target, max_bytes, deadline)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            if time.monotonic() >= deadline or isinstance(error, httpcore.TimeoutException):
                raise InputError(f"did not come within {seconds:g} seconds") from None
            raise InputError(f"could not be fetched ({type(error).__name__})") from None
        if body is not None:
            return body
        url = urljoin(target, location)
    raise InputError(f"redirects more than {_REDIRECTS} times")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usual = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        _ = parts.port  # parsed only now
    except ValueError:
        usual = False
    if not usual or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError("is not an http or https URL of ASCII characters without a user's name")
    return url


def _get(pool: httpcore.ConnectionPool, url: str, max_bytes: int, deadline: float) -> tuple[bytes | None, str]:
    """The body, or else where to look instead."""
    left = max(deadline - time.monotonic(), 0.01)
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), left)
    headers = [("User-Agent", "llava-s2"), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
    with pool.stream("GET", url, headers=headers, extensions={"timeout": timeouts}) as response:
        if response.status in (301, 302, 303, 307, 308):
            locations = [value for name, value in response.headers if name.lower() == b"location"]
            return None, locations[0].decode("latin-1") if locations else ""
        if response.status != 200:
            raise InputError(f"answered with status {response.status}")
        body = bytearray()
        for piece in response.iter_stream():
            body += piece
            if len(body) > max_bytes:
                raise InputError(f"is larger than {max_bytes / (1 << 20):g} MB")
        return bytes(body), ""


class _CheckedBackend(httpcore.NetworkBackend):
    """Connects to addresses that are allowed, until the deadline."""

    def __init__(self, allowed: Callable[[str], bool], deadline: float) -> None:
        self._allowed, self._deadline = allowed, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not all(map(self._allowed, addresses)):
            raise InputError("leads to an address that is not public")
        for at, address in enumerate(addresses):
            try:
                stream = httpcore.SyncBackend().connect_tcp(address, port, timeout, local_address, socket_options)
                break
            except httpcore.ConnectError:
                if at == len(addresses) - 1:
                    raise
        return _TimedStream(stream, self._deadline)


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every step gets only what is left of the time: a limit on each step lets a drip go on."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._left())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, self._left()), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout
        return left
