"""The outermost layer of the app."""

import asyncio
import logging
from contextlib import ExitStack

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_s2.serve.api.errors import ApiError
from llava_s2.serve.api.guard import ClientGone
from llava_s2.serve.api.metrics import Metrics

logger = logging.getLogger("llava_s2.serve")

AT_END = "llava_s2.at_end"
"""Where in a request's scope the ``ExitStack`` is that closes when the request is answered or given up."""


class Boundary:
    """The outermost ASGI layer: every failure gets the API's shape, is counted, and what was begun is stopped.

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
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with ExitStack() as at_end:
            try:
                await self._app({**scope, AT_END: at_end}, receive, watched)
            except ClientGone:
                pass
            except ApiError as error:
                await JSONResponse(error.body(), error.status, error.headers)(scope, receive, watched)
            except asyncio.TimeoutError:
                logger.warning("a client did not take its answer")
            except Exception:
                logger.exception("a request failed")
                if status:
                    raise
                failed = ApiError(500, "the server failed; its log says why", code="internal_error")
                await JSONResponse(failed.body(), 500)(scope, receive, watched)
            finally:
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._metrics.responses.labels(path, str(status or "none")).inc()
