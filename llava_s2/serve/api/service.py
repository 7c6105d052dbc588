"""What the server works with, put together from a model and limits."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from llava_s2.serve.api.engine import Engine
from llava_s2.serve.api.errors import ApiError
from llava_s2.serve.api.metrics import Metrics
from llava_s2.serve.api.prepare import Preparer
from llava_s2.serve.features import DEFAULT_BYTES, FeatureCache

_MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; the first seven are the command's flags.

    Attributes:
        batch, batch_tokens: answers that run together, and rows times the longest row of their cache.
        queue: requests that wait.
        pictures: of one request.
        new_tokens: of an answer whose request names no bound.
        seconds: a request may take.
        cache_bytes: of pictures' features.
        prepared: requests that wait for the engine with their pictures as tensors.
        body, bodies: bytes of one request, and of all that are held.
        body_seconds, send_seconds: for a body to arrive, and for a client to take each piece of an answer.
    """

    batch: int = 32
    batch_tokens: int = 16384
    queue: int = 64
    pictures: int = 8
    new_tokens: int = 512
    seconds: float = 300
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
            fetch: gets a remote picture; without it, only data URLs are taken.

        Raises:
            InputError: the processor gives each picture another number of tokens.
        """
        cache, metrics = FeatureCache(limits.cache_bytes), Metrics()
        engine = Engine(model, processor, cache, metrics, max_batch=limits.batch, max_batch_tokens=limits.batch_tokens)
        preparer = Preparer(
            model,
            processor,
            cache,
            max_pictures=limits.pictures,
            max_new_tokens=limits.new_tokens,
            fetch=fetch,
        )
        return cls(name, engine, preparer, processor.tokenizer, metrics, limits)

    def check_model(self, name: str) -> None:
        """Raises ApiError where a request names another model."""
        if name != self.model:
            raise ApiError(404, f"no model of that name; there is {self.model}", code="model_not_found", param="model")
