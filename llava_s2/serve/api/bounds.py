"""The outermost layers of the app: failures in the API's shape, and bounds on what a connection may cost."""

import asyncio
import contextlib
import ctypes
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_s2.serve.api.api_errors import ApiError, stopping
from llava_s2.serve.api.metrics import Metrics

logger = logging.getLogger("llava_s2.serve")

AT_END = "llava_s2.at_end"
"""Where in a request's scope the ``ExitStack`` is that closes when the request is answered or given up."""
BODY = "llava_s2.body"
"""Where in a request's scope its ``Body`` is."""
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

_DISCARD_SECONDS = 5.0
_LARGE = 1 << 20


class ClientGone(Exception):
    """The client hung up before its request was whole: there is nobody to answer."""


class Body:
    """A request's body, counted as held until it is dropped; ``is_large`` where its end should free memory."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_large = False

    def drop(self) -> None:
        """Forgets it."""
        self.data = bytearray()


class Boundary:
    """The outermost ASGI layer: every failure gets the API's shape, is counted, and what was begun is stopped. Each
    response carries the request's ``x-request-id``, or a new one.

    Args:
        app: what is behind it.
        metrics: what to count in.
        paths: to count by; others are counted together, or a stranger could make endless many.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        # A slash at the end means nothing (a redirect would forget a proxy's https); of HEAD the server sends no body.
        scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        if scope["method"] == "HEAD":
            scope["method"] = "GET"
        status = 0
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with contextlib.ExitStack() as at_end:
            try:
                await self._app({**scope, AT_END: at_end}, receive, watched)
            except ClientGone:
                pass
            except ApiError as error:
                await JSONResponse(error.body(), error.status, error.headers)(scope, receive, watched)
            except asyncio.TimeoutError:
                logger.warning("a client did not take its answer")
            except asyncio.CancelledError:  # the server stops, and this client has stood still
                if not status:
                    await JSONResponse(stopping().body(), 503, stopping().headers)(scope, receive, watched)
            except Exception:
                logger.exception("request %s failed", request_id)
                if status:
                    raise
                failed = ApiError(500, "the server failed; its log says why", code="internal_error")
                await JSONResponse(failed.body(), 500)(scope, receive, watched)
            finally:
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._metrics.responses.labels(path, str(status or "none")).inc()


class Bounds:
    """ASGI middleware that reads a request's body whole, within bounds, and puts a ``Body`` into ``scope[BODY]``.

    Args:
        app: what is behind it.
        max_body: bytes of one body.
        max_bodies: bytes of all bodies that are held at the same time.
        body_seconds: for a body to arrive.
        send_seconds: for a client to take each piece of an answer.
    """

    def __init__(
        self, app: ASGIApp, *, max_body: int, max_bodies: int, body_seconds: float, send_seconds: float
    ) -> None:
        self._app = app
        self._max_body, self._max_bodies = max_body, max_bodies
        self._body_seconds, self._send_seconds = body_seconds, send_seconds
        self._bodies: set[Body] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), self._send_seconds)

        body = Body()
        self._bodies.add(body)
        try:
            await self._read(scope, receive, body)
            await self._app({**scope, BODY: body}, receive, send_in_time)
        finally:
            self._bodies.remove(body)
            if body.is_large and not any(other.is_large for other in self._bodies):
                asyncio.get_running_loop().run_in_executor(None, _give_back_memory)

    async def _read(self, scope: Scope, receive: Receive, body: Body) -> None:
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:  # of which proxies choose either
            raise ApiError(400, "both Content-Length and Transfer-Encoding", headers={"Connection": "close"})
        declared = headers.get("content-length", "")
        too_large = ApiError(413, f"the body is larger than {self._max_body} bytes", code="body_too_large")
        if declared.isdigit() and int(declared) > self._max_body:
            if "expect" not in headers:
                await _discard(receive)
            raise too_large
        deadline = asyncio.get_running_loop().time() + self._body_seconds
        more = True
        while more:
            left = deadline - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0))
            except asyncio.TimeoutError:
                raise ApiError(
                    408,
                    f"the body did not arrive within {self._body_seconds:g} seconds",
                    code="request_timeout",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            more = message.get("more_body", False)
            body.data += piece
            body.is_large |= len(body.data) > _LARGE
            if len(body.data) > self._max_body:
                refusal = too_large
            elif sum(len(held.data) for held in self._bodies) > self._max_bodies:
                refusal = ApiError(
                    429, "too many large requests at the same time", code="overloaded", headers={"Retry-After": "2"}
                )
            else:
                continue
            body.drop()
            if more:
                await _discard(receive)
            raise refusal


def _give_back_memory() -> None:
    """Has the C library return what is free: what large bodies and images took, it would keep."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


async def _discard(receive: Receive) -> None:
    """Takes in what still comes, for a while: most clients read no answer while they send."""

    async def rest() -> None:
        more = True
        while more:
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)

    try:
        await asyncio.wait_for(rest(), _DISCARD_SECONDS)
    except asyncio.TimeoutError:
        return
