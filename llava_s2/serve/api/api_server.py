"""uvicorn, with what it lacks: a time limit on headers, errors in the API's shape, a stop that finishes work."""

import asyncio
import json
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava_s2.serve.api.api_errors import ApiError

_HEADER_SECONDS = 10.0
_MAX_CONNECTIONS = 512
_GIVE_UP_SECONDS = 5.0  # for answers that are cut to tell so


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 whose requests' headers must arrive in time, on a bounded number of connections."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > _MAX_CONNECTIONS and not self._close_an_idle_one():
            self._refuse(ApiError(429, "too many connections", code="overloaded"))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_came()
        elif self._head_timer is None and not self.transport.is_closing():
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def _close_an_idle_one(self) -> bool:
        """Makes room for a new connection at the cost of the one that has asked nothing for the longest time."""
        idle = [
            other for other in self.connections if isinstance(other, BoundedProtocol) and other._head_timer is not None
        ]
        idle.remove(self)
        if not idle:
            return False
        oldest = min(idle, key=lambda other: other._head_timer.when() if other._head_timer else 0.0)
        oldest.transport.abort()
        return True

    def _expect_head(self) -> None:
        late = ApiError(408, f"the headers did not arrive within {_HEADER_SECONDS:g} seconds", code="request_timeout")
        self._head_timer = self.loop.call_later(_HEADER_SECONDS, self._refuse, late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: ApiError) -> None:
        """Answers outside of any request, and closes."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body()).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            head = h11.Response(status_code=error.status, headers=list(headers.items()))
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class DrainingServer(uvicorn.Server):
    """Stops in order at SIGTERM or Ctrl-C: refuses what is new, ends when all is answered or when its time is over; a
    second signal ends it now.

    Args:
        config: uvicorn's.
        begin: called at the first signal.
        give_up: called when the time for the answers is over, to end those that are still under way.
        is_idle: whether all is answered.
        seconds: for the answers.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        begin: Callable[[], None],
        give_up: Callable[[], None],
        is_idle: Callable[[], bool],
        seconds: float,
    ) -> None:
        super().__init__(config)
        self._begin, self._give_up, self._is_idle, self._seconds = begin, give_up, is_idle, seconds
        self._draining = False
        self._give_up_at = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining:
            self.should_exit = self.force_exit = True
        else:
            self._give_up_at = time.monotonic() + self._seconds
            self._begin()
        self._draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._draining and time.monotonic() > self._give_up_at:
            self._give_up()
        if self._draining and (self._is_idle() or time.monotonic() > self._give_up_at + _GIVE_UP_SECONDS):
            self.should_exit = True
        return await super().on_tick(counter)


def make_server(
    app: Any,
    host: str,
    port: int,
    *,
    begin_drain: Callable[[], None],
    give_up: Callable[[], None],
    is_idle: Callable[[], bool],
    drain_seconds: float = 30.0,
) -> DrainingServer:
    """A server of an ASGI app over HTTP/1.1; ``run`` it in the main thread."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return DrainingServer(config, begin_drain, give_up, is_idle, drain_seconds)
