"""Chat requests, from their body to their answer."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from llava_s2.serve.api import schema
from llava_s2.serve.api.boundary import AT_END
from llava_s2.serve.api.engine import Begun, End, Event, Job
from llava_s2.serve.api.errors import ApiError
from llava_s2.serve.api.guard import Body, ClientGone, Guard
from llava_s2.serve.api.logprobs import TokenTexts
from llava_s2.serve.api.prepare import Prepared
from llava_s2.serve.api.service import Service

T = TypeVar("T")


class Chats:
    """Chat requests, from their body to their answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._texts = TokenTexts(service.tokenizer)
        self._places = asyncio.Semaphore(service.limits.prepared)
        self._local = ThreadPoolExecutor(2, "prepare")
        self._remote = ThreadPoolExecutor(8, "fetch")  # other hosts' slowness holds up nobody else

    async def answer(self, request: Request) -> Response:
        """Answers one request; stops when its client hangs up.

        Raises:
            ApiError: see ``docs/serve.md``.
            ClientGone: the client hung up.
        """
        service, body = self._service, request.scope[Guard.KEY]
        at_end: ExitStack = request.scope[AT_END]
        if service.draining:
            raise ApiError(503, "the server is stopping", code="draining", headers={"Connection": "close"})
        if service.under_way >= service.limits.batch + service.limits.queue:
            raise ApiError(
                429, f"{service.under_way} requests wait already", code="queue_full", headers={"Retry-After": "1"}
            )
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the Content-Type must be application/json", code="unsupported_media_type")
        service.under_way += 1
        at_end.callback(self._left)
        deadline = time.monotonic() + service.limits.seconds
        chat = _Chat(service, self._texts)
        await _unless_gone(request, self._begin(chat, body, deadline, at_end))
        if chat.stream:
            return StreamingResponse(
                chat.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        return JSONResponse(await _unless_gone(request, chat.completion()))

    def _left(self) -> None:
        self._service.under_way -= 1

    async def _begin(self, chat: "_Chat", body: Body, deadline: float, at_end: ExitStack) -> None:
        """Brings a request to where its answer begins."""
        loop = asyncio.get_running_loop()
        await _before(deadline, self._places.acquire())
        try:
            asked = await _before(deadline, loop.run_in_executor(self._local, schema.parse, body.data))
            body.drop()
            chat.take_options(asked)
            self._service.check_model(asked.model)
            pool = self._remote if self._service.preparer.fetches(asked) else self._local
            prepared = await _before(deadline, loop.run_in_executor(pool, self._service.preparer.prepare, asked))
            at_end.callback(chat.begin(prepared, deadline, loop))
            await chat.first()
        finally:
            self._places.release()


class _Chat:
    """One answer on its way to the client."""

    def __init__(self, service: Service, texts: TokenTexts) -> None:
        self._service, self._texts = service, texts
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self.stream = self._usage_wanted = self._logprobs_wanted = False

    def take_options(self, asked: schema.ChatRequest) -> None:
        self.stream = bool(asked.stream)
        self._usage_wanted = bool(asked.stream_options and asked.stream_options.include_usage)
        self._logprobs_wanted = bool(asked.logprobs)

    def begin(self, prepared: Prepared, deadline: float, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Hands the request to the engine. Returns what stops it."""

        def tell(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        # Not the whole: its pictures would stay in memory as long as the answer takes.
        self._read, self._image_tokens = len(prepared.prompt), prepared.image_tokens
        self._pictures, self._prepare_seconds = len(prepared.pictures), prepared.seconds
        self._job = Job(prepared.prompt, prepared.pictures, prepared.sampling, deadline, tell)
        self._service.engine.submit(self._job)
        return self._stop

    def _stop(self) -> None:
        self._job.cancelled = True

    async def first(self) -> None:
        """Waits until the request has its place in the batch."""
        event = await self._events.get()
        if isinstance(event, End):
            raise _failure(event.reason)

    async def completion(self) -> dict[str, Any]:
        """The whole answer."""
        text, tokens = "", []
        while True:
            event = await self._events.get()
            if isinstance(event, End):
                break
            if not isinstance(event, Begun):
                text += event.text
                tokens += event.drawn
        if event.reason not in ("stop", "length"):
            raise _failure(event.reason)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._texts.logprobs(tokens) if self._logprobs_wanted else None,
            "finish_reason": event.reason,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self._usage(),
            "timings": self._timings(),
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events. What goes wrong now is told as an event: the status is sent already."""
        yield self._chunk({"role": "assistant", "content": ""})
        while True:
            event = await self._events.get()
            if isinstance(event, End):
                break
            if not isinstance(event, Begun):
                logprobs = self._texts.logprobs(event.drawn) if self._logprobs_wanted else None
                yield self._chunk({"content": event.text}, logprobs)
        if event.reason not in ("stop", "length"):
            yield _sse(_failure(event.reason).body())
            return
        yield self._chunk({}, finish=event.reason, timings=self._timings())
        if self._usage_wanted:
            yield _sse({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.model,
            "system_fingerprint": None,
        }

    def _chunk(self, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self._usage_wanted else {}
        return _sse({**self._head("chat.completion.chunk"), "choices": [choice], **usage, **more})

    def _usage(self) -> dict[str, Any]:
        read, new = self._read, self._job.new_tokens
        return {
            "prompt_tokens": read,
            "completion_tokens": new,
            "total_tokens": read + new,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": self._image_tokens},
        }

    def _timings(self) -> dict[str, Any]:
        seconds = {"prepare": self._prepare_seconds, "tower": 0.0, **self._job.seconds}
        return {
            **{stage: round(took, 6) for stage, took in seconds.items()},
            "pictures": self._pictures,
            "cached_pictures": self._job.cached_pictures,
        }


def _sse(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def _failure(reason: str) -> ApiError:
    return _late() if reason == "timeout" else ApiError(500, "the model failed", code="model_failed")


def _late() -> ApiError:
    return ApiError(504, "the answer was not ready in time; ask for fewer tokens or try later", code="timeout")


async def _before(deadline: float, work: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(work, max(deadline - time.monotonic(), 0))
    except asyncio.TimeoutError:
        raise _late() from None


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Waits for the work, and gives it up when the client hangs up."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
