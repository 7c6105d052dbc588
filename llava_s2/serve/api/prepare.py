"""From a chat request to the model's input: pictures fetched, checked and scaled, words that cannot pose as marks."""

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.model.inference import Message, prepare_image
from llava_s2.model.processor import num_image_tokens
from llava_s2.serve.api.engine import Picture
from llava_s2.serve.api.errors import invalid
from llava_s2.serve.api.sampling import Sampling
from llava_s2.serve.api.schema import ChatRequest, ImagePart, TextPart, UserMessage
from llava_s2.serve.chat import neutralize
from llava_s2.serve.features import FeatureCache
from llava_s2.serve.pictures import read_picture

# No tokenizer's average is near this; what is longer need not be tokenized to know that it does not fit.
_CHARACTERS_PER_TOKEN = 16
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,64};base64,", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Prepared:
    """What the engine takes, and how long it took to make, in seconds."""

    prompt: list[int]
    pictures: list[Picture]
    sampling: Sampling
    image_tokens: int
    seconds: float


class Preparer:
    """Makes requests the model's input; safe to use from several threads.

    Args:
        model, processor: that will answer.
        cache: of features: a picture in it is not decoded again.
        max_pictures: of one request.
        max_new_tokens: of an answer whose request names no bound.
        fetch: gets a remote picture's bytes; without it, only data URLs are taken.

    Raises:
        InputError: the processor gives each picture another number of tokens.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        cache: FeatureCache,
        *,
        max_pictures: int,
        max_new_tokens: int,
        fetch: Callable[[str], bytes] | None,
    ) -> None:
        self._processor, self._cache, self._fetch = processor, cache, fetch
        self._image_run = num_image_tokens(processor)
        self._context = int(model.config.get_text_config().max_position_embeddings)
        self._max_pictures, self._max_new_tokens = max_pictures, max_new_tokens

    def fetches(self, request: ChatRequest) -> bool:
        """Whether preparing the request means asking other hosts."""
        return self._fetch is not None and any(
            isinstance(part, ImagePart) and not _is_data(part.image_url.url)
            for message in request.messages
            for part in _parts(message)
        )

    def prepare(self, request: ChatRequest) -> Prepared:
        """Checks a request and makes it the model's input.

        Raises:
            ApiError: roles in an order that makes no conversation, a picture that is refused, or no room for an answer.
        """
        start = time.monotonic()
        _check_order(request)
        self._check_length(request)
        messages, sources = self._messages(request)
        if len(sources) > self._max_pictures:
            raise invalid(f"{len(sources)} pictures, and a request may have {self._max_pictures}", "messages")
        prompt = self._tokens(messages)  # before the pictures, which cost more
        room = self._context - len(prompt)
        if room < 1:
            raise _too_long(f"the conversation has {len(prompt)} tokens and the model takes {self._context}")
        pictures = [self._picture(url, where) for url, where in sources]
        most = request.max_completion_tokens or request.max_tokens or self._max_new_tokens
        stop = request.stop or []
        sampling = Sampling(
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            max_new_tokens=min(most, room),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        image_tokens = self._image_run * len(pictures)
        return Prepared(prompt, pictures, sampling, image_tokens, time.monotonic() - start)

    def _check_length(self, request: ChatRequest) -> None:
        texts = (part.text if not isinstance(part, ImagePart) else "" for m in request.messages for part in _parts(m))
        characters, most = sum(map(len, texts)), self._context * _CHARACTERS_PER_TOKEN
        if characters > most:
            raise _too_long(f"the conversation has {characters} characters; the model takes {self._context} tokens")

    def _messages(self, request: ChatRequest) -> tuple[list[Message], list[tuple[str, str]]]:
        """Messages as chat templates take them, and the pictures' URLs with where in the request they are."""
        messages: list[Message] = []
        sources: list[tuple[str, str]] = []
        for at, message in enumerate(request.messages):
            parts: list[dict[str, Any]] = []
            for number, part in enumerate(_parts(message)):
                if isinstance(part, ImagePart):
                    parts.append({"type": "image"})
                    sources.append((part.image_url.url, f"messages[{at}].content[{number}].image_url.url"))
                else:
                    parts.append({"type": "text", "text": neutralize(part.text, self._processor)})
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": parts})
        return messages, sources

    def _tokens(self, messages: list[Message]) -> list[int]:
        """The same ids as ``encode_prompts`` gives, without needing the pictures."""
        try:
            text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise invalid(f"the model's chat template refuses the conversation: {error}", "messages") from None
        mark = self._processor.image_token
        bos = self._processor.tokenizer.bos_token
        return self._processor.tokenizer(
            text.replace(mark, mark * self._image_run), add_special_tokens=not (bos and text.startswith(bos))
        )["input_ids"]

    def _picture(self, url: str, where: str) -> Picture:
        try:
            data = self._bytes(url)
            key = hashlib.sha256(data).hexdigest()
            features = self._cache.get(key)
            if features is not None:
                return Picture(key, features=features)
            image = read_picture(data, "the picture")
        except InputError as error:
            raise invalid(f"{where}: {error}", where, "invalid_image") from None
        return Picture(key, pixels=prepare_image(self._processor, image)[None])

    def _bytes(self, url: str) -> bytes:
        if _is_data(url):
            head = _DATA_URL.match(url)
            if head is None:
                raise InputError("the data URL is not data:image/...;base64,...")
            try:
                return base64.b64decode(url[head.end() :], validate=True)
            except (binascii.Error, ValueError):
                raise InputError("the data URL is not base64") from None
        if self._fetch is None:
            raise InputError("URLs are not fetched here; send the picture as a data URL (data:image/png;base64,...)")
        try:
            return self._fetch(url)
        except InputError as error:
            raise InputError(f"the URL {error}") from None


def _parts(message: Any) -> list[Any]:
    content = message.content
    return [TextPart(type="text", text=content)] if isinstance(content, str) else content


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _check_order(request: ChatRequest) -> None:
    roles = [message.role for message in request.messages]
    for at, role in enumerate(roles):
        if at and role in ("system", "developer"):
            raise invalid(f"messages[{at}]: a {role} message can only be the first", f"messages[{at}].role")
    if not isinstance(request.messages[-1], UserMessage):
        raise invalid("the last message must be a user's", f"messages[{len(roles) - 1}].role")


def _too_long(message: str) -> Exception:
    return invalid(f"{message}; shorten it", "messages", "context_length_exceeded")
