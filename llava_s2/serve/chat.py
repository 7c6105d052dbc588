"""A conversation with a model: history, streaming, and words that cannot pose as the template's own marks."""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    LlavaForConditionalGeneration,
    LlavaProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from llava_s2.errors import InputError
from llava_s2.model.inference import (
    Message,
    assistant_message,
    context_length,
    prepare_image,
    prompt_ids,
    token_arguments,
    user_message,
)
from llava_s2.serve.tower_cache import DEFAULT_BYTES, FeatureCache, KeyedImage, embed_prompts, image_features

_LOOP = 64  # tokens


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: share of the probability that is drawn from, in (0, 1].
        max_new_tokens: bound on one answer.
        stop_repetition: whether to end an answer that says one phrase over and over.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    stop_repetition: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer and how it came about.

    Attributes:
        seconds: for all of it.
        finish: ``stop`` (the model ended it), ``repeated`` (it went round in a circle), ``length`` or ``interrupted``.
        known_images: of the conversation that did not go through the tower again.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    finish: str
    known_images: int = 0


class Chat:
    """A conversation about any number of images.

    Args:
        model: in eval mode.
        processor: its processor, whose chat template is used.
        sampling: how answers are drawn.
        cache: of the model's features of images; chats may share one.

    Attributes:
        messages: the history, as chat templates take it.
        images: those of the history, in order.
        reply: the latest answer, once its pieces have ended.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        sampling: Sampling | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self._model, self._processor, self._sampling = model, processor, sampling or Sampling()
        self._cache = FeatureCache(DEFAULT_BYTES) if cache is None else cache
        self.reply: Reply | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets messages and images."""
        self.messages: list[Message] = []
        self.images: list[KeyedImage] = []
        self._unasked: list[KeyedImage] = []

    def add_image(self, image: Image.Image) -> None:
        """Shows an image (RGB, any size) together with the next message."""
        self._unasked.append(KeyedImage(image))

    def recall(self, text: str, images: Sequence[KeyedImage], answer: str) -> None:
        """Adds to the history what was asked and answered elsewhere."""
        self.messages += [
            user_message(escape_special_tokens(text, self._processor), len(images)),
            assistant_message(escape_special_tokens(answer, self._processor)),
        ]
        self.images += images

    def ask(self, text: str, images: Sequence[KeyedImage] = ()) -> Generator[str, None, None]:
        """Answers, piece by piece.

        Closing the iterator, or an exception such as KeyboardInterrupt while it waits, stops the answer. What was
        answered until then is kept in the history; a message without any answer is not.

        Args:
            text: the user's words; an ``<image>`` or a special token in them is read as plain text.
            images: shown with this message, after those of ``add_image``.

        Raises:
            InputError: the conversation leaves no room for an answer, or see ``num_image_tokens``.
        """
        new = [*self._unasked, *images]
        message = user_message(escape_special_tokens(text, self._processor), len(new))
        messages, shown = [*self.messages, message], [*self.images, *new]
        (ids,) = prompt_ids(self._processor, [messages])
        length = len(ids)
        limit = context_length(self._model)
        if length >= limit:
            raise InputError(
                f"the conversation has {length} tokens and the model takes {limit}; clear it or shorten the message"
            )
        most = min(self._sampling.max_new_tokens, limit - length)

        start = time.perf_counter()
        inputs, known = self._inputs(ids, shown)
        generation = _Generation(self._model, self._processor, self._sampling, inputs, most)
        pieces = []
        try:
            for piece in generation.pieces():
                pieces.append(piece)
                yield piece
        finally:
            made = generation.stop()
            answer = "".join(pieces).strip()
            ended = bool(made) and made[-1] in token_arguments(self._model, self._processor)["eos_token_id"]
            finish = (
                "stop" if ended else "repeated" if self._sampling.stop_repetition and repeats(made) else "interrupted"
            )
            if len(made) == most and not ended:
                finish = "length"
            self.reply = Reply(answer, length, len(made), time.perf_counter() - start, finish, known)
            if answer:
                answered = assistant_message(escape_special_tokens(answer, self._processor))
                self.messages, self.images, self._unasked = [*messages, answered], shown, []

    @torch.inference_mode()
    def _inputs(self, ids: list[int], images: Sequence[KeyedImage]) -> tuple[dict[str, Tensor], int]:
        """What ``generate`` takes, and how many of the images were known."""
        features, known = [], 0
        for keyed in images:
            kept = self._cache.get(keyed.key)
            known += kept is not None
            if kept is None:
                kept = image_features(self._model, prepare_image(self._processor, keyed.image)[None])[0]
                self._cache.put(keyed.key, kept)
            features.append(kept)
        prompt = torch.tensor([ids], device=self._model.device)
        mask = torch.ones_like(prompt)
        return {"inputs_embeds": embed_prompts(self._model, prompt, mask, features), "attention_mask": mask}, known


class _Generation:
    """``generate`` in a thread of its own, so that whoever reads the pieces can stop it."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        sampling: Sampling,
        inputs: dict[str, Tensor],
        max_new_tokens: int,
    ) -> None:
        self._streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stopped = _Stopped(sampling.stop_repetition)
        self._ids: list[int] = []
        self._error: BaseException | None = None
        drawn = sampling.temperature > 0
        arguments = {
            **inputs,
            "do_sample": drawn,
            "temperature": float(sampling.temperature) if drawn else None,
            "top_p": float(sampling.top_p) if drawn else None,
            "top_k": None,
            "max_new_tokens": max_new_tokens,
            **token_arguments(model, processor),
            "streamer": self._streamer,
            "stopping_criteria": StoppingCriteriaList([self._stopped]),
        }
        self._thread = threading.Thread(target=self._run, args=(model, arguments), daemon=True)
        self._thread.start()

    def _run(self, model: LlavaForConditionalGeneration, arguments: dict[str, Any]) -> None:
        try:
            output = model.generate(**arguments)  # type: ignore[misc]
            self._ids = output[0].tolist()  # only what is new: the prompt went in as embeddings
        except Exception as error:
            self._error = error
            self._streamer.end()  # or the reader would wait for ever

    def pieces(self) -> Iterator[str]:
        """The text as it comes; raises what ``generate`` raised."""
        yield from (piece for piece in self._streamer if piece)
        if self._error:
            raise self._error

    def stop(self) -> list[int]:
        """Ends the generation, if it goes on, after its current token. Returns the new token ids."""
        self._stopped.event.set()
        self._thread.join()
        return self._ids


class _Stopped(StoppingCriteria):
    def __init__(self, stop_repetition: bool) -> None:
        self.event, self._stop_repetition = threading.Event(), stop_repetition

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        stopped = self.event.is_set() or (self._stop_repetition and repeats(input_ids[0, -_LOOP:].tolist()))
        return torch.full((len(input_ids),), stopped, device=input_ids.device)  # type: ignore[return-value]


def repeats(ids: Sequence[int]) -> bool:
    """Whether an answer's last ``_LOOP`` tokens are one phrase over and over, four times or more."""
    tail = list(ids[-_LOOP:])
    return len(tail) == _LOOP and any(tail[period:] == tail[:-period] for period in range(1, _LOOP // 4 + 1))


def escape_special_tokens(text: str, processor: LlavaProcessor) -> str:
    """The text with a space put inside whatever the tokenizer would read as a token of its own.

    So ``<image>`` becomes ``< image>`` and ``<|im_end|>`` ``< |im_end|>``: still readable, to people and to the model,
    and no tokenizer's normalization brings the mark back, as one that drops zero-width characters could.
    """
    text = text.encode("utf-8", "replace").decode()  # halves of surrogate pairs, from a terminal that is not UTF-8
    tokenizer = processor.tokenizer
    added = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens, processor.image_token}
    marks = [mark for mark in added if len(mark) > 1 and not mark.isspace()]
    while found := [mark for mark in marks if mark in text]:
        longest = max(found, key=len)
        text = text.replace(longest, f"{longest[0]} {longest[1:]}")
    return text
