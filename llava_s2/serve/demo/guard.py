"""What stands between the open net and the page: routes, sizes, patience, and what a browser may run."""

import asyncio
import base64
import hashlib
import json
import re
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD_BYTES = 20 << 20
MAX_BODY_BYTES = 1 << 20
BODY_SECONDS = 120.0
"""For a whole body to arrive, however slowly its bytes drip."""

# All that this page asks for. Gradio has more: a proxy for addresses, an API for programs, a history of runs.
_ROUTES = re.compile(
    r"/(?:$|config$|login/?$|logout$|token$|user$|theme\.css$|manifest\.json$|favicon\.ico$|robots\.txt$|assets/|static/|svelte/"
    r"|gradio_api/(?:upload$|upload_progress$|run/predict$|queue/(?:join|data)$|cancel$|reset$|heartbeat/|app_id$|startup-events$"
    r"|theme\.css$|token$|file=(?!https?:)))",
    re.IGNORECASE,
)
_LOCAL_NAME = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
_UPLOADS = "/gradio_api/upload"
_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
_POLICY = (
    "default-src 'self'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
# Of everything but the page, so that an upload opened by its address can do nothing.
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


class Guard:
    """ASGI middleware around the page's application.

    Args:
        app: what is behind it.
        local_names_only: whether a request must name this machine as localhost: a site that has its own name lead to
            127.0.0.1 could otherwise use the page through its visitor's browser.
    """

    def __init__(self, app: ASGIApp, *, local_names_only: bool = False) -> None:
        self._app, self._local_names_only = app, local_names_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if self._local_names_only and not _LOCAL_NAME.fullmatch(Headers(scope=scope).get("host", "")):
            await PlainTextResponse("open this page as localhost or 127.0.0.1", 403)(scope, receive, send)
            return
        if not _ROUTES.match(scope["path"]):
            await PlainTextResponse("not found", 404)(scope, receive, send)
            return
        body = _Body(scope, receive)
        answer = _Answer(send, body)
        if "text/html" in Headers(scope=scope).get("accept", ""):
            # The page's scripts are read below, so it must not come compressed.
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        try:
            await self._app(scope, body.receive, answer.send)
        except Exception:
            if body.refusal is None:
                raise
        if body.refusal is not None and not answer.begun:
            await body.refusal(scope, receive, send)


class _Body:
    """A request's body within bounds. Beyond them, ``refusal`` is set and the application sees a client hang up."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        self._uploads = scope["path"] == _UPLOADS
        # Room for what a form puts around a file.
        self._left = MAX_UPLOAD_BYTES + MAX_BODY_BYTES if self._uploads else MAX_BODY_BYTES
        self._seen = b""
        self._complete = False
        self.refusal: PlainTextResponse | None = None

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if self.refusal is None:
            try:
                left = self._deadline - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(self._receive(), max(left, 0))
            except TimeoutError:
                self.refusal = PlainTextResponse("the request's body took too long", 408)
            else:
                self._check(message)
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        return message

    def _check(self, message: Message) -> None:
        body = message.get("body", b"")
        self._left -= len(body)
        self._complete = not message.get("more_body", False)
        if self._left < 0:
            self.refusal = PlainTextResponse("the request's body is too large", 413)
        elif not self._uploads:
            self._seen += body
            if self._complete and _names_address(self._seen):
                self.refusal = PlainTextResponse("files are taken from the page's own uploads alone", 400)


def _names_address(body: bytes) -> bool:
    """Whether a JSON body has Gradio fetch a file from an address, as it does for whoever asks."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # the application says what is wrong with it
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]*:", path, re.IGNORECASE) and path[1:2] != ":":
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


class _Answer:
    """Adds to a response what its receiver may do with it; the page itself is held back until it is whole."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send, self._body = send, body
        self._held: list[Message] = []
        self.begun = False

    async def send(self, message: Message) -> None:
        if self._body.refusal is not None and not self.begun:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "no-referrer"
            message = {**message, "headers": headers.raw}
            if headers.get("content-type", "").startswith("text/html"):
                self._held = [message]
                return
            headers["content-security-policy"] = _FILE_POLICY
        elif self._held:
            self._held.append(message)
            if message.get("more_body", False):
                return
            await self._release()
            return
        self.begun = True
        await self._send(message)

    async def _release(self) -> None:
        start, *rest = self._held
        self._held = []
        page = b"".join(part.get("body", b"") for part in rest)
        digests = [hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(page)]
        hashes = "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
        MutableHeaders(raw=start["headers"])["content-security-policy"] = _POLICY.format(hashes=hashes)
        self.begun = True
        await self._send(start)
        await self._send({"type": "http.response.body", "body": page})
