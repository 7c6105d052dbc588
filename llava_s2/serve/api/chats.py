"""Chat requests, from their body to their answer."""

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessage, chat_completion, chat_completion_chunk
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.completion_usage import PromptTokensDetails

from llava_s2.serve.api import api_schema
from llava_s2.serve.api.api_errors import ApiError, late, stopping
from llava_s2.serve.api.bounds import AT_END, BODY, Body, ClientGone
from llava_s2.serve.api.engine import Delta, End, Event, Job, PromptImage
from llava_s2.serve.api.logprobs import TokenTexts
from llava_s2.serve.api.prepare import Prompt
from llava_s2.serve.api.sampling import SampledToken
from llava_s2.serve.api.service import Service
from llava_s2.serve.decoder_processes import LANES, TooSlowError

T = TypeVar("T")
_MOST_SLOW = 8


class Chats:
    """Chat requests, from their body to their answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._texts = TokenTexts(service.tokenizer)
        self._places = asyncio.Semaphore(service.limits.prepared)
        self._lanes = [asyncio.Semaphore(lane.count) for lane in LANES]
        self._slow = 0  # requests that wait for the last lane
        self._parsing = ThreadPoolExecutor(1, "parse")  # images hold up no text
        self._loading = ThreadPoolExecutor(1, "load")
        self._fetching = ThreadPoolExecutor(8, "fetch")  # other hosts' slowness holds up nobody else
        self._decoding = ThreadPoolExecutor(sum(lane.count for lane in LANES), "decode")

    async def answer(self, request: Request) -> Response:
        """Answers one request; stops when its client hangs up.

        Raises:
            ApiError: see ``docs/serve.md``.
            ClientGone: the client hung up.
        """
        service, body = self._service, request.scope[BODY]
        at_end: ExitStack = request.scope[AT_END]
        if service.draining:
            raise stopping()
        if service.under_way >= service.limits.batch + service.limits.queue:
            rounds = service.under_way / service.limits.batch
            seconds = min(max(math.ceil(service.engine.seconds_per_answer * rounds), 1), 60)
            raise ApiError(
                429,
                f"{service.under_way} requests wait already",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        _check_json(request)
        service.under_way += 1
        at_end.callback(self._left)
        deadline = service.clock() + service.limits.seconds
        chat = _Chat(service, self._texts)
        await self._unless_gone(request, self._begin(chat, body, deadline, at_end))
        if chat.asked.stream:
            return StreamingResponse(
                chat.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        completion = await self._unless_gone(request, chat.completion())
        return Response(completion.model_dump_json(exclude_unset=True), media_type="application/json")

    async def tokenize(self, request: Request) -> api_schema.TokenizeResponse:
        """What a text or a conversation is made of. Raises ApiError."""
        _check_json(request)
        body, preparer = request.scope[BODY], self._service.preparer
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self._parsing, api_schema.parse_tokenize, body.data)
        self._service.check_model(asked.model)
        tokens = await loop.run_in_executor(self._parsing, preparer.tokenize, asked)
        return api_schema.TokenizeResponse(count=len(tokens), max_model_len=preparer.context, tokens=tokens)

    def _left(self) -> None:
        self._service.under_way -= 1

    async def _unless_gone(self, request: Request, work: Awaitable[T]) -> T:
        """Waits for the work, and gives it up when the client hangs up, or the server does."""

        async def hung_up() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
        given_up = asyncio.ensure_future(self._service.given_up.wait())
        try:
            await asyncio.wait({task, gone, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientGone if gone.done() else stopping()
        finally:
            task.cancel()
            gone.cancel()
            given_up.cancel()

    async def _begin(self, chat: "_Chat", body: Body, deadline: float, at_end: ExitStack) -> None:
        """Brings a request to where its answer begins."""
        service, preparer = self._service, self._service.preparer

        async def in_pool(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
            return await service.before(deadline, asyncio.get_running_loop().run_in_executor(pool, work, *arguments))

        start = time.monotonic()
        asked = await in_pool(self._parsing, api_schema.parse_chat, body.data)
        body.drop()
        service.check_model(asked.model)
        prompt = await in_pool(self._parsing, preparer.read, asked)
        asked = asked.model_copy(update={"messages": []})  # or their images stay in memory as long as the answer takes
        images: list[PromptImage] = []
        holds_place = False
        try:
            if prompt.sources:
                body.is_large = True  # a small file may be a large image
                pool = self._fetching if preparer.fetches(prompt) else self._loading
                files = await in_pool(pool, preparer.load, prompt)
                prompt.sources.clear()
                for lane, turn in enumerate(self._lanes):
                    if lane == len(LANES) - 1 and self._slow >= _MOST_SLOW:
                        raise _too_many_slow()
                    self._slow += lane == len(LANES) - 1
                    try:
                        await service.before(deadline, turn.acquire())  # costs the files' memory, and nobody's time
                    except ApiError:
                        raise _too_many_slow() from None
                    finally:
                        self._slow -= lane == len(LANES) - 1
                    try:
                        await service.before(deadline, self._places.acquire())
                        holds_place = True
                        images = await in_pool(self._decoding, preparer.see, files, lane)
                        break
                    except TooSlowError:
                        self._places.release()
                        holds_place = False
                    finally:
                        turn.release()
                del files
            at_end.callback(chat.begin(asked, prompt, images, time.monotonic() - start, deadline))
            await chat.first()
        finally:
            if holds_place:
                self._places.release()


class _Chat:
    """The answer to one request, of one or several choices, on its way to the client."""

    asked: api_schema.ChatRequest

    def __init__(self, service: Service, texts: TokenTexts) -> None:
        self._service, self._texts = service, texts
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def begin(
        self,
        asked: api_schema.ChatRequest,
        prompt: Prompt,
        images: list[PromptImage],
        seconds: float,
        deadline: float,
    ) -> Callable[[], None]:
        """Hands the request to the engine, each choice by itself. Returns what stops it."""
        loop = asyncio.get_running_loop()

        def listener(choice: int) -> Callable[[Event], None]:
            def on_event(event: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

            return on_event

        self.asked, self._read, self._prepare_seconds, self._images = asked, len(prompt.tokens), seconds, len(images)
        clock = self._service.clock
        self._jobs = [
            Job(prompt.tokens, images, sampling, deadline, listener(choice), prompt.continues, clock)
            for choice, sampling in enumerate(prompt.samplings)
        ]
        for job in self._jobs:
            self._service.engine.submit(job)
        return self._stop

    def _stop(self) -> None:
        for job in self._jobs:
            job.stop_reason = job.stop_reason or "cancelled"

    async def first(self) -> None:
        """Waits until the request has its place in the batch."""
        _, event = await self._events.get()
        if isinstance(event, End):
            raise _failure(event.reason)

    async def _next(self) -> AsyncIterator[tuple[int, Delta | End]]:
        """What comes of every choice, to the end of the last. Raises ApiError where one fails."""
        open_choices = len(self._jobs)
        while open_choices:
            choice, event = await self._events.get()
            if isinstance(event, End):
                open_choices -= 1
                if event.reason not in ("stop", "length"):
                    self._stop()
                    raise _failure(event.reason)
            if isinstance(event, Delta | End):
                yield choice, event

    async def completion(self) -> api_schema.Completion:
        """The whole answer."""
        texts = [""] * len(self._jobs)
        tokens: list[list[SampledToken]] = [[] for _ in self._jobs]
        reasons: list[Any] = [""] * len(self._jobs)
        async for choice, event in self._next():
            if isinstance(event, End):
                reasons[choice] = event.reason
            else:
                texts[choice] += event.text
                tokens[choice] += event.tokens
        choices = [
            chat_completion.Choice(
                index=index,
                message=ChatCompletionMessage(role="assistant", content=text, refusal=None),
                logprobs=chat_completion.ChoiceLogprobs(content=self._texts.logprobs(of), refusal=None)
                if self.asked.logprobs
                else None,
                finish_reason=reason,
            )
            for index, (text, of, reason) in enumerate(zip(texts, tokens, reasons, strict=True))
        ]
        return api_schema.Completion(
            **self._head, object="chat.completion", choices=choices, usage=self._usage(), timings=self._timings()
        )

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events. What goes wrong now is told as an event: the status is sent already."""
        for choice in range(len(self._jobs)):
            yield self._chunk(choice, ChoiceDelta(role="assistant", content=""))
        try:
            async for choice, event in self._next():
                if isinstance(event, End):
                    more: dict[str, Any] = {"timings": self._timings()} if choice == 0 else {}
                    yield self._chunk(choice, ChoiceDelta(), finish=event.reason, **more)
                else:
                    yield self._chunk(choice, ChoiceDelta(content=event.text), event.tokens)
        except ApiError as error:
            yield _sse(json.dumps(error.body()))
            return
        if self._with_usage:
            yield self._sse_chunk([], usage=self._usage())
        yield b"data: [DONE]\n\n"

    @property
    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "created": self._created, "model": self._service.model, "system_fingerprint": None}

    @property
    def _with_usage(self) -> bool:
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    def _chunk(
        self, index: int, delta: ChoiceDelta, tokens: Sequence[SampledToken] = (), finish: Any = None, **more: Any
    ) -> bytes:
        logprobs = None
        if self.asked.logprobs and tokens:
            logprobs = chat_completion_chunk.ChoiceLogprobs(content=self._texts.logprobs(tokens), refusal=None)
        choice = chat_completion_chunk.Choice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)
        return self._sse_chunk([choice], **({"usage": None} if self._with_usage else {}), **more)

    def _sse_chunk(self, choices: list[chat_completion_chunk.Choice], **more: Any) -> bytes:
        chunk = api_schema.Chunk(**self._head, object="chat.completion.chunk", choices=choices, **more)
        return _sse(chunk.model_dump_json(exclude_unset=True))

    def _usage(self) -> CompletionUsage:
        new = sum(job.new_tokens for job in self._jobs)
        each = self._service.preparer.image_tokens
        return CompletionUsage(
            prompt_tokens=self._read,
            completion_tokens=new,
            total_tokens=self._read + new,
            prompt_tokens_details=PromptTokensDetails.model_validate(
                {"cached_tokens": each * self._jobs[0].cached_images, "image_tokens": each * self._images}
            ),
        )

    def _timings(self) -> api_schema.Timings:
        job = self._jobs[0]
        seconds = {"prepare": self._prepare_seconds, "tower": 0.0, **job.seconds}
        rounded = {stage: round(took, 6) for stage, took in seconds.items()}
        return api_schema.Timings(**rounded, images=self._images, cached_images=job.cached_images)


def _too_many_slow() -> ApiError:
    """Images that take seconds to decode have one process; who cannot wait for it must come again."""
    return ApiError(
        429, "too many images that take long to decode wait already", code="overloaded", headers={"Retry-After": "10"}
    )


def _check_json(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the Content-Type must be application/json", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "the body must come without a Content-Encoding", code="unsupported_media_type")


def _sse(data: str) -> bytes:
    return b"data: " + data.encode() + b"\n\n"


def _failure(reason: str) -> ApiError:
    if reason == "draining":
        return stopping()
    return late() if reason == "timeout" else ApiError(500, "the model failed", code="model_failed")
