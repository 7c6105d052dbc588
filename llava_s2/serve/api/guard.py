"""Bounds on what a connection may cost: size and time of a request's body, time to take the answer."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_s2.serve.api.errors import ApiError

_DISCARD_SECONDS = 5.0


class ClientGone(Exception):
    """The client hung up before its request was whole: there is nobody to answer."""


class Body:
    """A request's body, counted as held until it is dropped."""

    def __init__(self) -> None:
        self.data = bytearray()

    def drop(self) -> None:
        """Forgets it."""
        self.data = bytearray()


class Guard:
    """ASGI middleware that reads a request's body whole, within bounds, and puts a ``Body`` into ``scope[Guard.KEY]``.

    Args:
        app: what is behind it.
        max_body: bytes of one body.
        max_bodies: bytes of all bodies that are held at the same time.
        body_seconds: for a body to arrive.
        send_seconds: for a client to take each piece of an answer.
    """

    KEY = "llava_s2.body"

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
            await self._app({**scope, self.KEY: body}, receive, send_in_time)
        finally:
            self._bodies.remove(body)

    async def _read(self, scope: Scope, receive: Receive, body: Body) -> None:
        headers = Headers(scope=scope)
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
