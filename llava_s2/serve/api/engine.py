"""The thread that owns the model: takes requests as they come and continues all their answers together."""

import logging
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
from llava_s2.serve.api.sampling import SampledToken, Sampler, Sampling
from llava_s2.serve.api.text import AnswerText
from llava_s2.serve.tower_cache import FeatureCache, image_features

logger = logging.getLogger("llava_s2.serve")

_PREFILL_TOKENS = 4096  # read at once, padding counted
_TOWER_IMAGES = 4  # through the tower at once
_STALL_SECONDS = 0.5  # that the answers that are running should wait for the tower, or for prompts, at once
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
        self.sampler = Sampler(job.sampling, job.prompt)
        self.tokens: list[int] = []
        self.features: list[Tensor | None] = [image.features for image in job.images]
        self.unknown_images = 0
        self.begun: float | None = None
        self.passed = 0
        self.ended = False

    @property
    def length(self) -> int:
        return len(self.job.prompt) + len(self.tokens)

    @property
    def ready(self) -> bool:
        return all(features is not None for features in self.features)


class Engine:
    """Continuous batching. An answer takes the room that it uses, not what it may use; where that becomes too much, the
    youngest goes back to the queue and is read again later. Between two tokens of the running answers, no more images
    and prompts are taken than what should take half a second by the times measured so far, but always one.

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
        self._busy: list[_Answer] = []  # whose images, or prompts, are being read
        self._next_reading = 0.0
        self._image_seconds = self._token_seconds = 0.0  # moving averages
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.seconds_per_answer = 1.0

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
        """Ends all answers: whoever waits for them is told now, the model's work ends after the current token."""
        with self._changed:
            for answer in [*self._waiting, *self._busy, *self._answers]:
                if answer.job.stop_reason is None:
                    answer.job.stop_reason = reason
                    answer.job.on_event(End(reason))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._answers or self._stopping):
                    self._changed.wait()
                if not (self._waiting or self._answers):
                    return
            try:
                self._read()
                self._continue()
            except Exception:  # out of memory, say: those under way are lost, those who wait are not
                logger.exception("the batch failed")
                for answer in {*self._busy, *self._answers}:
                    answer.ended = True
                    answer.job.on_event(End("error"))
                self._answers = []
                self._batch.clear()
            self._busy = []
            self._metrics.running.set(len(self._answers))

    def _read(self) -> None:
        """Images and prompts of those who wait."""
        with self._changed:
            for answer in self._waiting:
                if not answer.ended and (reason := answer.job.over()):
                    self._end_job(answer.job, reason)
                    answer.ended = True
            self._waiting = deque(answer for answer in self._waiting if not answer.ended)
        begun, others_wait = time.monotonic(), bool(self._answers)
        if others_wait and begun < self._next_reading:
            return
        if len(self._answers) < self._max_batch:
            self._see()
        self._busy = self._admit()
        if self._busy:
            self._begin(self._busy)
        # Those that are running get half as long for themselves as they have waited.
        self._next_reading = time.monotonic() + (time.monotonic() - begun) / 2 if others_wait else 0.0

    def _at_once(self, most: int, seconds_each: float) -> int:
        """How many images, or tokens, may be read before the running answers go on."""
        if not (self._answers and seconds_each):
            return most
        return min(most, max(int(_STALL_SECONDS / seconds_each), 1))

    def _see(self) -> None:
        """Takes the next unknown images through the tower, those of the first in the queue first."""
        most = self._at_once(_TOWER_IMAGES, self._image_seconds)
        unseen: dict[str, Tensor] = {}
        wanted: list[tuple[_Answer, int, str]] = []
        with self._changed:
            waiting = [answer for answer in self._waiting if not answer.ready]
        for answer in waiting:
            for at, image in enumerate(answer.job.images):
                if answer.features[at] is None:
                    answer.features[at] = self._cache.get(image.key)
                if answer.features[at] is None and image.pixels is not None:
                    if image.key not in unseen:
                        if len(unseen) == most:
                            break
                        unseen[image.key] = image.pixels
                        answer.unknown_images += 1
                    wanted.append((answer, at, image.key))
        if not unseen:
            return
        self._busy, start = [answer for answer, _, _ in wanted], time.monotonic()
        with torch.inference_mode():
            found = image_features(self._model, torch.cat(list(unseen.values())))
        took = time.monotonic() - start
        known = {key: features.clone() for key, features in zip(unseen, found, strict=True)}  # or one keeps them all
        for key, features in known.items():
            self._cache.put(key, features)
        for answer, at, key in wanted:
            answer.features[at] = known[key]
        for answer in set(self._busy):
            answer.job.seconds["tower"] = answer.job.seconds.get("tower", 0.0) + took
        self._image_seconds = _averaged(self._image_seconds, took / len(unseen))
        self._metrics.tower_time.observe(took / len(unseen))
        self._metrics.cache_misses.inc(len(unseen))
        self._metrics.cache_bytes.set(self._cache.bytes)

    def _admit(self) -> list[_Answer]:
        """Takes from the queue what there is room for: in its order, but that small ones may pass a large one."""
        new: list[_Answer] = []
        passed: list[_Answer] = []
        with self._changed:
            for answer in [answer for answer in self._waiting if answer.ready]:
                if any(one.passed >= _MOST_PASSES for one in passed):
                    break
                if self._fits([*new, answer]):
                    new.append(answer)
                    self._waiting.remove(answer)
                    for one in passed:
                        one.passed += 1
                else:
                    passed.append(answer)
            self._metrics.waiting.set(len(self._waiting))
        return new

    def _fits(self, new: list[_Answer]) -> bool:
        rows, longest = len(self._answers) + len(new), max(answer.length for answer in new)
        at_once = longest * len(new) <= self._at_once(_PREFILL_TOKENS, self._token_seconds)
        room = rows * (max(self._batch.length, longest) + _HEADROOM) <= self._max_batch_tokens
        return (at_once or len(new) == 1) and ((room and rows <= self._max_batch) or rows == 1)

    def _begin(self, new: list[_Answer]) -> None:
        start = time.monotonic()
        features = [[one for one in answer.features if one is not None] for answer in new]
        logits = self._batch.add([[*answer.job.prompt, *answer.tokens] for answer in new], features)
        took = time.monotonic() - start
        self._token_seconds = _averaged(self._token_seconds, took / (len(new) * max(answer.length for answer in new)))
        self._metrics.batch_size.observe(len(new))
        for answer, shown in zip(new, features, strict=True):
            if answer.begun is not None:  # it was in the batch before
                continue
            job, answer.begun = answer.job, answer.job.clock()
            job.cached_images = len(shown) - answer.unknown_images
            job.images = ()  # their pixels are not needed any more
            job.on_event(Started())
            job.seconds["prefill"] = took
            job.seconds["queue"] = max(answer.begun - job.created - took - job.seconds.get("tower", 0.0), 0.0)
            self._metrics.queue_time.observe(job.seconds["queue"])
            self._metrics.first_token_time.observe(answer.begun - job.created)
            self._metrics.prompt_tokens.inc(len(job.prompt))
            self._metrics.image_tokens.inc(sum(map(len, shown)))
            self._metrics.cache_hits.inc(job.cached_images)
        self._answers += new
        self._sample(logits, new)
        self._drop_ended()

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

    @torch.inference_mode()
    def _sample(self, logits: Tensor, answers: list[_Answer]) -> None:
        logits[:, self._suppressed] = -float("inf")
        for answer, row in zip(answers, logits, strict=True):
            try:
                self._take(answer, answer.sampler.sample(row, answer.tokens))
            except Exception:  # its own; the others of the batch go on
                logger.exception("an answer failed")
                answer.ended = True
                self._end_job(answer.job, "error")

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
            self.seconds_per_answer = _averaged(self.seconds_per_answer, took)
        else:
            self._metrics.cancelled.labels("hung up" if reason == "cancelled" else reason).inc()
        self._metrics.request_time.observe(took)
        job.on_event(End(reason))

    def _drop_ended(self) -> None:
        rows = [row for row, answer in enumerate(self._answers) if not answer.ended]
        if len(rows) < len(self._answers):
            self._batch.keep(rows)
            self._answers = [self._answers[row] for row in rows]


def _averaged(before: float, now: float) -> float:
    """A moving average; 0 is none yet."""
    return before + 0.2 * (now - before) if before else now
