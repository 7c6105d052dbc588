"""What the server works with, put together from a model and limits."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from llava_s2.serve.api import api_schema
from llava_s2.serve.api.api_errors import ApiError, late
from llava_s2.serve.api.engine import Engine
from llava_s2.serve.api.metrics import Metrics
from llava_s2.serve.api.prepare import Preparer
from llava_s2.serve.decoder_processes import DecoderProcesses
from llava_s2.serve.tower_cache import DEFAULT_BYTES, FeatureCache

T = TypeVar("T")
_MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; the first eight are the command's flags.

    Attributes:
        batch, batch_tokens: answers that run together, and rows times the longest row of their cache.
        queue: requests that wait.
        images: of one request.
        new_tokens: of an answer whose request names no bound.
        seconds: a request may take.
        drain_seconds: for answers to end once the server stops.
        cache_bytes: of images' features.
        prepared: requests that wait for the engine with their images as tensors.
        body, bodies: bytes of one request, and of all that are held.
        body_seconds, send_seconds: for a body to arrive, and for a client to take each piece of an answer.
    """

    batch: int = 32
    batch_tokens: int = 16384
    queue: int = 64
    images: int = 8
    new_tokens: int = 512
    seconds: float = 300
    drain_seconds: float = 30
    cache_bytes: int = DEFAULT_BYTES
    prepared: int = 16
    body: int = 40 * _MB
    bodies: int = 256 * _MB
    body_seconds: float = 30
    send_seconds: float = 60


@dataclass
class Service:
    """What the routes work with.

    Attributes:
        model: the name it is served by.
        engine, preparer, tokenizer, metrics: of the model.
        limits: of the server.
        draining: whether new requests are refused.
        under_way: chat requests that are not answered yet.
        given_up: set when their time is over, too.
        clock: seconds, as ``time.monotonic``; requests' deadlines are in it.
    """

    model: str
    engine: Engine
    preparer: Preparer
    tokenizer: PreTrainedTokenizerFast
    metrics: Metrics
    limits: Limits
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    under_way: int = 0
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def build(
        cls,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        name: str,
        limits: Limits,
        fetch: Callable[[str], bytes] | None = None,
    ) -> "Service":
        """Puts a service together; its engine is not started.

        Args:
            model, processor: what answers.
            name: it is served by.
            limits: of the server.
            fetch: gets a remote image; without it, only data URLs are taken.

        Raises:
            InputError: the processor gives each image another number of tokens.
        """
        cache, metrics = FeatureCache(limits.cache_bytes), Metrics()
        engine = Engine(model, processor, cache, metrics, max_batch=limits.batch, max_batch_tokens=limits.batch_tokens)
        preparer = Preparer(
            model,
            processor,
            cache,
            DecoderProcesses(),
            max_images=limits.images,
            max_new_tokens=limits.new_tokens,
            fetch=fetch,
        )
        return cls(name, engine, preparer, processor.tokenizer, metrics, limits)

    def close(self) -> None:
        """Ends the engine and the decoders."""
        self.preparer.decoders.close()
        self.engine.stop()

    def give_up(self) -> None:
        """Ends all that is under way, wherever it is; in the event loop's thread."""
        self.given_up.set()
        self.engine.stop_all("draining")

    def check_model(self, name: str | None) -> None:
        """Raises ApiError where a request names another model."""
        if name is not None and name != self.model:
            raise ApiError(404, f"no model of that name; there is {self.model}", code="model_not_found", param="model")

    def card(self) -> api_schema.ModelCard:
        """What ``/v1/models`` tells of the model."""
        return api_schema.ModelCard(
            id=self.model,
            object="model",
            created=self.created,
            owned_by="llava-s2",
            max_model_len=self.preparer.context,
        )

    async def before(self, deadline: float, work: Awaitable[T]) -> T:
        """Waits for some of a request's work. Raises ApiError where it is not done in time."""
        try:
            return await asyncio.wait_for(work, max(deadline - self.clock(), 0))
        except asyncio.TimeoutError:
            raise late() from None
