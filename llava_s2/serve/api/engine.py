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
from llava_s2.serve.api.sampling import Row, SampledToken, Sampling, sample
from llava_s2.serve.api.text import AnswerText
from llava_s2.serve.tower_cache import FeatureCache, image_features

logger = logging.getLogger("llava_s2.serve")

_PREFILL_TOKENS = 4096  # read at once, padding counted; the answers that are running wait for it
_TOWER_IMAGES = 4  # through the tower at once; the answers that are running wait for it
_STOP_SECONDS = 20.0
_MOST_PASSES = 8  # how often smaller requests may be taken before one for which there is no room
_HEADROOM = 16  # tokens that an answer finds room for when it is taken up


@dataclass(frozen=True)
class PromptImage:
    """An image of a prompt: ``features`` (tokens, hidden) where they are known, else ``pixels`` (1, 3, S, S)."""

    key: str
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Started:
    """The request has its place in the batch."""


@dataclass(frozen=True)
class Delta:
    """Some more of an answer; the tokens may be some whose text is still kept back."""

    text: str
    tokens: list[SampledToken]


@dataclass(frozen=True)
class End:
    """The end of an answer: ``stop``, ``length``, or why there is none (``cancelled``, ``draining``, ``timeout``,
    ``error``)."""

    reason: str


Event = Started | Delta | End


@dataclass(eq=False)
class Job:
    """A request on its way through the engine.

    Attributes:
        prompt: token ids, image placeholders expanded.
        images: of the placeholders, in order.
        sampling: how the answer is sampled.
        deadline: in ``clock``.
        on_event: gets ``Started``, each ``Delta`` and then ``End``, or only ``End``, in the engine's thread.
        continues: whether the prompt ends inside the assistant's turn.
        clock: seconds, as ``time.monotonic``.
        stop_reason: set, from any thread, to end the answer: ``cancelled`` or ``draining``.
        seconds: of each stage, filled as the job goes on; ``decode`` once it has ended.
    """

    prompt: Sequence[int]
    images: Sequence[PromptImage]
    sampling: Sampling
    deadline: float
    on_event: Callable[[Event], None]
    continues: bool = False
    clock: Callable[[], float] = time.monotonic
    stop_reason: str | None = None
    new_tokens: int = 0
    cached_images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.created = self.clock()

    def over(self) -> str | None:
        """Why it need not go on, if so."""
        return self.stop_reason or ("timeout" if self.clock() > self.deadline else None)


class _Answer:
    """A job's answer so far, in the batch or waiting for a place there."""

    def __init__(self, job: Job, tokenizer: Any) -> None:
        self.job = job
        self.text = AnswerText(tokenizer, job.sampling.stop, job.prompt if job.continues else ())
        self.rng = random.Random(job.sampling.seed)
        self.tokens: list[int] = []
        self.features: list[Tensor] | None = None
        self.begun: float | None = None
        self.passed = 0
        self.ended = False

    @property
    def length(self) -> int:
        return len(self.job.prompt) + len(self.tokens)

    def row(self) -> Row:
        return Row(self.job.sampling, self.rng, self.job.prompt, self.tokens)


class Engine:
    """Continuous batching. An answer takes the room that it uses, not what it may use; where that becomes too much, the
    youngest goes back to the queue and is read again later.

    Args:
        model: in eval mode.
        processor: its processor.
        cache: of features.
        metrics: what to count in.
        max_batch: answers that run at the same time.
        max_batch_tokens: bound on the batch's cache, rows times the longest row; one answer alone may be longer.
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
        self._waiting: deque[_Answer] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._next_admission = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.seconds_per_answer = 1.0  # a moving average

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after the answers that are under way or wait; does not wait for one that does not come."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(_STOP_SECONDS)

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue."""
        with self._changed:
            self._waiting.append(_Answer(job, self._tokenizer))
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def stop_all(self, reason: str) -> None:
        """Ends all answers, after their current token."""
        with self._changed:
            for answer in [*self._waiting, *self._answers]:
                answer.job.stop_reason = reason

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._answers or self._stopping):
                    self._changed.wait()
                if not (self._waiting or self._answers):
                    return
                new = self._admit()
            try:
                if new:
                    self._begin(new)
                if self._answers:
                    self._continue()
            except Exception:  # out of memory, say: those under way are lost, those who wait are not
                logger.exception("the batch failed")
                lost = {*new, *self._answers}
                self._answers = []
                self._batch.clear()
                for answer in lost:
                    answer.job.on_event(End("error"))
            self._metrics.running.set(len(self._answers))

    def _admit(self) -> list[_Answer]:
        """Takes from the queue what there is room for: in its order, but that small ones may pass a large one."""
        new: list[_Answer] = []
        still: deque[_Answer] = deque()
        held_up = bool(self._answers) and time.monotonic() < self._next_admission
        while self._waiting:
            answer = self._waiting.popleft()
            if reason := answer.job.over():
                self._end_job(answer.job, reason)
            elif not held_up and not (still and still[0].passed >= _MOST_PASSES) and self._fits([*new, answer]):
                new.append(answer)
                for passed in still:
                    passed.passed += 1
            else:
                still.append(answer)
        self._waiting = still
        self._metrics.waiting.set(len(still))
        return new

    def _fits(self, new: list[_Answer]) -> bool:
        rows, longest = len(self._answers) + len(new), max(answer.length for answer in new)
        unseen = sum(image.features is None for answer in new for image in answer.job.images)
        at_once = longest * len(new) <= _PREFILL_TOKENS and unseen <= _TOWER_IMAGES
        room = rows * (max(self._batch.length, longest) + _HEADROOM) <= self._max_batch_tokens
        return (at_once or len(new) == 1) and ((room and rows <= self._max_batch) or rows == 1)

    def _begin(self, new: list[_Answer]) -> None:
        begun, others_wait = time.monotonic(), bool(self._answers)
        self._see(new)
        seen = time.monotonic()
        logits = self._batch.add(
            [[*answer.job.prompt, *answer.tokens] for answer in new], [answer.features or [] for answer in new]
        )
        self._metrics.batch_size.observe(len(new))
        read = time.monotonic()
        for answer in new:
            if answer.begun is not None:  # it was in the batch before
                continue
            job, answer.begun = answer.job, answer.job.clock()
            job.on_event(Started())
            job.seconds["prefill"] = read - seen
            job.seconds["queue"] = max(answer.begun - job.created - (read - begun), 0.0)
            self._metrics.queue_time.observe(job.seconds["queue"])
            self._metrics.first_token_time.observe(answer.begun - job.created)
            self._metrics.prompt_tokens.inc(len(job.prompt))
        # Those that are running get half as long for themselves as they have waited.
        self._next_admission = time.monotonic() + (read - begun) / 2 if others_wait else 0.0
        self._answers += new
        self._sample(logits, new)
        self._drop_ended()

    def _see(self, new: list[_Answer]) -> None:
        """Gives the answers the features of their images; what is new of them goes through the tower together."""
        known: dict[str, Tensor] = {}
        unseen: dict[str, Tensor] = {}
        for answer in new:
            for image in answer.job.images:
                features = image.features if image.features is not None else self._cache.get(image.key)
                if features is not None or image.key in unseen:
                    answer.job.cached_images += 1
                    self._metrics.cache_hits.inc()
                elif image.pixels is not None:
                    unseen[image.key] = image.pixels
                    self._metrics.cache_misses.inc()
                if features is not None:
                    known[image.key] = features
        keys, start = list(unseen), time.monotonic()
        for at in range(0, len(keys), _TOWER_IMAGES):
            some = keys[at : at + _TOWER_IMAGES]
            with torch.inference_mode():
                found = image_features(self._model, torch.cat([unseen[key] for key in some]))
            for key, features in zip(some, found, strict=True):
                known[key] = features.clone()  # or one that is kept keeps them all
                self._cache.put(key, known[key])
        took = time.monotonic() - start
        if unseen:
            self._metrics.tower_time.observe(took / len(unseen))
            self._metrics.cache_bytes.set(self._cache.bytes)
        for answer in new:
            if answer.features is None:
                answer.features = [known[image.key] for image in answer.job.images]
                if any(image.key in unseen for image in answer.job.images):
                    answer.job.seconds["tower"] = took
                self._metrics.image_tokens.inc(sum(map(len, answer.features)))
                answer.job.images = ()  # their pixels are not needed any more

    def _continue(self) -> None:
        for answer in self._answers:
            if reason := answer.job.over():
                self._end(answer, reason)
        self._drop_ended()
        self._make_room()
        if self._answers:
            logits = self._batch.step([answer.tokens[-1] for answer in self._answers])
            self._metrics.batch_size.observe(len(self._answers))
            self._sample(logits, self._answers)
            self._drop_ended()

    def _make_room(self) -> None:
        """Puts the youngest answers back where the batch would grow beyond its bound."""
        rows = len(self._answers)
        while rows > 1 and rows * (max(answer.length for answer in self._answers[:rows]) + 1) > self._max_batch_tokens:
            rows -= 1
        if rows < len(self._answers):
            with self._changed:
                self._waiting.extendleft(reversed(self._answers[rows:]))
            self._batch.keep(range(rows))
            self._answers = self._answers[:rows]

    def _sample(self, logits: Tensor, answers: list[_Answer]) -> None:
        sampled = sample(logits, [answer.row() for answer in answers], self._suppressed)
        for answer, one in zip(answers, sampled, strict=True):
            self._take(answer, one)

    def _take(self, answer: _Answer, sampled: SampledToken) -> None:
        job = answer.job
        answer.tokens.append(sampled.token)
        job.new_tokens += 1
        self._metrics.completion_tokens.inc()
        ended = sampled.token in self._ends
        text = "" if ended else answer.text.feed(sampled.token)
        tokens = [sampled] if job.sampling.top_logprobs is not None and not ended else []
        if text or tokens:
            job.on_event(Delta(text, tokens))
        if ended or answer.text.stopped:
            self._end(answer, "stop")
        elif job.new_tokens >= job.sampling.max_new_tokens:
            self._end(answer, "length")

    def _end(self, answer: _Answer, reason: str) -> None:
        job, answer.ended = answer.job, True
        job.seconds["decode"] = job.clock() - (answer.begun or 0.0)
        if reason in ("stop", "length"):
            if rest := answer.text.finish():
                job.on_event(Delta(rest, []))
            if answer.text.stopped:
                reason = "stop"
        self._end_job(job, reason)

    def _end_job(self, job: Job, reason: str) -> None:
        took = job.clock() - job.created
        if reason in ("stop", "length"):
            self.seconds_per_answer += 0.2 * (took - self.seconds_per_answer)
        else:
            self._metrics.cancelled.labels("hung up" if reason == "cancelled" else reason).inc()
        self._metrics.request_time.observe(took)
        job.on_event(End(reason))

    def _drop_ended(self) -> None:
        rows = [row for row, answer in enumerate(self._answers) if not answer.ended]
        if len(rows) < len(self._answers):
            self._batch.keep(rows)
            self._answers = [self._answers[row] for row in rows]
