"""The thread that owns the model: takes requests as they come and continues all their answers together."""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.model.inference import token_arguments
from llava_s2.serve.api.batch import Batch
from llava_s2.serve.api.metrics import Metrics
from llava_s2.serve.api.sampling import Drawn, Sampling, draw
from llava_s2.serve.api.text import AnswerText
from llava_s2.serve.features import FeatureCache, image_features

logger = logging.getLogger("llava_s2.serve")

_PREFILL_TOKENS = 4096  # read at once, padding counted; the answers that are running wait for it


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt: ``features`` (tokens, hidden) where they are known, else ``pixels`` (1, 3, S, S)."""

    key: str
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Begun:
    """The request has its place in the batch."""


@dataclass(frozen=True)
class Piece:
    """Some more of an answer; the tokens may be some whose text is still kept back."""

    text: str
    drawn: list[Drawn]


@dataclass(frozen=True)
class End:
    """The end of an answer: ``stop``, ``length``, or why there is none (``cancelled``, ``timeout``, ``error``)."""

    reason: str


Event = Begun | Piece | End


@dataclass(eq=False)
class Job:
    """A request on its way through the engine.

    Attributes:
        prompt: token ids, image placeholders expanded.
        pictures: of the placeholders, in order.
        sampling: how the answer is drawn.
        deadline: in ``time.monotonic()``.
        tell: gets ``Begun``, each ``Piece`` and then ``End``, or only ``End``, in the engine's thread.
        seconds: of each stage, filled as the job goes on; ``decode`` once it has ended.
    """

    prompt: Sequence[int]
    pictures: Sequence[Picture]
    sampling: Sampling
    deadline: float
    tell: Callable[[Event], None]
    created: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    new_tokens: int = 0
    cached_pictures: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def most_tokens(self) -> int:
        return len(self.prompt) + self.sampling.max_new_tokens


@dataclass(eq=False)
class _Answer:
    job: Job
    text: AnswerText
    chance: random.Random
    begun: float
    token: int = -1
    ended: bool = False


class Engine:
    """Continuous batching.

    Args:
        model: in eval mode.
        processor: its processor.
        cache: of features.
        metrics: what to count in.
        max_batch: answers that run at the same time.
        max_batch_tokens: bound on what the batch's cache can grow to, rows times the longest row; one answer alone may
            be longer.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        cache: FeatureCache,
        metrics: Metrics,
        *,
        max_batch: int,
        max_batch_tokens: int,
    ) -> None:
        self._tokenizer: Any = processor.tokenizer
        self._cache, self._metrics = cache, metrics
        self._max_batch, self._max_batch_tokens = max_batch, max_batch_tokens
        arguments = token_arguments(model, processor)
        self._ends: list[int] = arguments["eos_token_id"]
        self._suppressed: list[int] = arguments["suppress_tokens"]
        self._model, self._batch = model, Batch(model)
        self._answers: list[_Answer] = []  # of the batch's rows
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after the answers that are under way or wait."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue."""
        with self._changed:
            self._waiting.append(job)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._answers or self._stopping):
                    self._changed.wait()
                if not (self._waiting or self._answers):
                    return
                new = self._admitted()
            try:
                if new:
                    self._begin(new)
                if self._answers:
                    self._continue()
            except Exception:  # out of memory, say: those under way are lost, those who wait are not
                logger.exception("the batch failed")
                lost = {*new, *(answer.job for answer in self._answers)}
                self._answers = []
                self._batch.clear()
                for job in lost:
                    job.tell(End("error"))
            self._metrics.running.set(len(self._answers))

    def _admitted(self) -> list[Job]:
        """Takes from the queue, in its order, what there is room for."""
        new: list[Job] = []
        still: deque[Job] = deque()
        while self._waiting:
            job = self._waiting.popleft()
            if reason := _over(job):
                self._end_job(job, reason)
            elif not still and self._fits([*new, job]):
                new.append(job)
            else:
                still.append(job)
        self._waiting = still
        self._metrics.waiting.set(len(still))
        return new

    def _fits(self, new: list[Job]) -> bool:
        jobs = [*(answer.job for answer in self._answers), *new]
        reads = len(new) * max(len(job.prompt) for job in new)
        most = len(jobs) * max(job.most_tokens for job in jobs)
        few_enough = len(jobs) <= self._max_batch and most <= self._max_batch_tokens
        return (few_enough or len(jobs) == 1) and (reads <= _PREFILL_TOKENS or len(new) == 1)

    def _begin(self, jobs: list[Job]) -> None:
        begun = time.monotonic()
        features = [[self._features(job, picture) for picture in job.pictures] for job in jobs]
        seen = time.monotonic()
        logits = self._batch.add([job.prompt for job in jobs], features)
        self._metrics.batch_size.observe(len(jobs))
        read = time.monotonic()
        answers = [
            _Answer(job, AnswerText(self._tokenizer, job.sampling.stop), random.Random(job.sampling.seed), read)
            for job in jobs
        ]
        for job in jobs:
            job.pictures = ()  # their pixels are not needed any more
            job.tell(Begun())
            job.seconds["queue"] = begun - job.created
            job.seconds["prefill"] = read - seen
            self._metrics.queue_time.observe(job.seconds["queue"])
            self._metrics.first_token_time.observe(read - job.created)
            self._metrics.prompt_tokens.inc(len(job.prompt))
        self._answers += answers
        self._draw(logits, answers)
        self._drop_ended()

    def _features(self, job: Job, picture: Picture) -> Tensor:
        known = picture.features if picture.features is not None else self._cache.get(picture.key)
        if known is not None:
            job.cached_pictures += 1
            self._metrics.cache_hits.inc()
            return known
        assert picture.pixels is not None
        start = time.monotonic()
        with torch.inference_mode():
            features = image_features(self._model, picture.pixels)[0]
        took = time.monotonic() - start
        job.seconds["tower"] = job.seconds.get("tower", 0.0) + took
        self._metrics.tower_time.observe(took)
        self._metrics.cache_misses.inc()
        self._cache.put(picture.key, features)
        self._metrics.cache_bytes.set(self._cache.bytes)
        return features

    def _continue(self) -> None:
        for answer in self._answers:
            if reason := _over(answer.job):
                self._end(answer, reason)
        self._drop_ended()
        if self._answers:
            logits = self._batch.step([answer.token for answer in self._answers])
            self._metrics.batch_size.observe(len(self._answers))
            self._draw(logits, self._answers)
            self._drop_ended()

    def _draw(self, logits: Tensor, answers: list[_Answer]) -> None:
        samplings, chances = [answer.job.sampling for answer in answers], [answer.chance for answer in answers]
        drawn = draw(logits, samplings, chances, self._suppressed)
        for answer, one in zip(answers, drawn, strict=True):
            self._take(answer, one)

    def _take(self, answer: _Answer, drawn: Drawn) -> None:
        job = answer.job
        answer.token = drawn.token
        job.new_tokens += 1
        self._metrics.completion_tokens.inc()
        ended = drawn.token in self._ends
        text = "" if ended else answer.text.feed(drawn.token)
        told = [drawn] if job.sampling.top_logprobs is not None and not ended else []
        if text or told:
            job.tell(Piece(text, told))
        if ended or answer.text.stopped:
            self._end(answer, "stop")
        elif job.new_tokens >= job.sampling.max_new_tokens:
            self._end(answer, "length")

    def _end(self, answer: _Answer, reason: str) -> None:
        job, answer.ended = answer.job, True
        job.seconds["decode"] = time.monotonic() - answer.begun
        if reason in ("stop", "length"):
            if rest := answer.text.finish():
                job.tell(Piece(rest, []))
            if answer.text.stopped:
                reason = "stop"
        self._end_job(job, reason)

    def _end_job(self, job: Job, reason: str) -> None:
        if reason in ("cancelled", "timeout"):
            self._metrics.cancelled.labels("hung up" if reason == "cancelled" else reason).inc()
        self._metrics.request_time.observe(time.monotonic() - job.created)
        job.tell(End(reason))

    def _drop_ended(self) -> None:
        rows = [row for row, answer in enumerate(self._answers) if not answer.ended]
        if len(rows) < len(self._answers):
            self._batch.keep(rows)
            self._answers = [self._answers[row] for row in rows]


def _over(job: Job) -> str | None:
    """Why a job need not go on, if so."""
    if job.cancelled:
        return "cancelled"
    return "timeout" if time.monotonic() > job.deadline else None
