"""From a chat request to the model's input: images fetched, decoded and scaled, special tokens in texts escaped."""

import base64
import binascii
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.model.inference import Message, prepare_image
from llava_s2.model.processor import num_image_tokens
from llava_s2.serve.api import api_schema
from llava_s2.serve.api.api_errors import invalid
from llava_s2.serve.api.engine import PromptImage
from llava_s2.serve.api.sampling import Sampling
from llava_s2.serve.chat import escape_special_tokens
from llava_s2.serve.decoder_processes import LANES, DecoderProcesses, TooSlowError
from llava_s2.serve.tower_cache import FeatureCache

# No tokenizer's average is near this; what is longer need not be tokenized to know that it does not fit.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Prompt:
    """A request for the engine, but for its images.

    Attributes:
        sources: of the images: URL, and where in the request it is.
        samplings: of each choice.
        continues: whether the prompt ends inside the assistant's turn.
    """

    tokens: list[int]
    sources: list[tuple[str, str]]
    samplings: list[Sampling]
    continues: bool


@dataclass(frozen=True)
class ImageFile:
    """An image of a request: its bytes, their digest, and where in the request it is."""

    data: bytes
    key: str
    where: str


@dataclass(frozen=True)
class _Conversation:
    messages: list[Message]
    sources: list[tuple[str, str]]
    continues: bool


class Preparer:
    """Makes requests the model's input; safe to use from several threads.

    Args:
        model, processor: that will answer.
        cache: of features: an image in it is not decoded again.
        decoders: of images.
        max_images: of one request.
        max_new_tokens: of an answer whose request names no bound.
        fetch: gets a remote image's bytes; without it, only data URLs are taken.

    Attributes:
        context: tokens of a conversation and its answer together.
        image_tokens: of each image.

    Raises:
        InputError: the processor gives each image another number of tokens.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        cache: FeatureCache,
        decoders: DecoderProcesses,
        *,
        max_images: int,
        max_new_tokens: int,
        fetch: Callable[[str], bytes] | None,
    ) -> None:
        self._processor, self._cache, self.decoders, self._fetch = processor, cache, decoders, fetch
        self.image_tokens = num_image_tokens(processor)
        self.context = int(model.config.get_text_config().max_position_embeddings)
        self._max_images, self._max_new_tokens = max_images, max_new_tokens

    def read(self, request: api_schema.ChatRequest) -> Prompt:
        """Checks a request and makes it token ids.

        Raises:
            ApiError: a conversation that the chat template refuses, too many images, or no room for an answer.
        """
        conversation = self._conversation(request.messages, request)
        if len(conversation.sources) > self._max_images:
            raise invalid(f"{len(conversation.sources)} images, and a request may have {self._max_images}", "messages")
        tokens = self._tokens(conversation)
        room = self.context - len(tokens)
        if room < 1:
            raise _too_long(f"the conversation has {len(tokens)} tokens and the model takes {self.context}")
        samplings = [self._sampling(request, room, choice) for choice in range(request.n or 1)]
        return Prompt(tokens, conversation.sources, samplings, conversation.continues)

    def fetches(self, prompt: Prompt) -> bool:
        """Whether other hosts must be asked for the images."""
        return self._fetch is not None and not all(_is_data(url) for url, _ in prompt.sources)

    def load(self, prompt: Prompt) -> list[ImageFile]:
        """The images' bytes. Raises ApiError."""
        files = []
        for url, where in prompt.sources:
            with _refusals(where):
                data = self._bytes(url)
                files.append(ImageFile(data, hashlib.sha256(data).hexdigest(), where))
        return files

    def see(self, files: Sequence[ImageFile], lane: int) -> list[PromptImage]:
        """Decodes and scales the images of one request in a lane of the decoders.

        Raises:
            ApiError: an image is refused.
            TooSlowError: they need more time than the lane gives.
        """
        is_last = lane == len(LANES) - 1
        images = []
        for file in files:
            features = self._cache.get(file.key)
            if features is not None:
                images.append(PromptImage(file.key, features=features))
                continue
            with _refusals(file.where):
                try:
                    seconds = LANES[lane].seconds / (1 if is_last else len(files))
                    image = self.decoders.decode_in(lane, file.data, "the image", seconds).image
                except TooSlowError:
                    if is_last:
                        raise InputError("the image takes too long to decode, or is damaged; save it anew") from None
                    raise
            images.append(PromptImage(file.key, pixels=prepare_image(self._processor, image)[None]))
        return images

    def tokenize(self, request: api_schema.TokenizeRequest) -> list[int]:
        """The ids of a text, or of a conversation up to where the answer begins. Raises ApiError as `prepare` does."""
        if request.messages is not None:
            return self._tokens(self._conversation(request.messages, request))
        text = request.prompt or ""
        self._check_length(len(text))
        special = request.add_special_tokens is not False
        return self._processor.tokenizer(escape_special_tokens(text, self._processor), add_special_tokens=special)[
            "input_ids"
        ]

    def _sampling(self, request: api_schema.ChatRequest, room: int, choice: int) -> Sampling:
        most = request.max_completion_tokens or request.max_tokens or self._max_new_tokens
        return Sampling(
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=max(request.top_k or 0, 0),
            min_p=request.min_p or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            repetition_penalty=request.repetition_penalty or 1.0,
            logit_bias=request.logit_bias or {},
            seed=None if request.seed is None else request.seed + choice,
            max_new_tokens=min(most, room),
            stop=tuple(request.stop or ()),
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )

    def _check_length(self, characters: int) -> None:
        if characters > self.context * _CHARACTERS_PER_TOKEN:
            raise _too_long(f"the conversation has {characters} characters; the model takes {self.context} tokens")

    def _conversation(self, asked: Sequence[api_schema.Message], request: api_schema.Asked) -> _Conversation:
        """Messages as chat templates take them: one system message, and after it users and assistants in turn."""
        self._check_length(
            sum(
                len(part.text) for message in asked for part in message.content if isinstance(part, api_schema.TextPart)
            )
        )
        system: list[dict[str, Any]] = []
        turns: list[Message] = []
        sources: list[tuple[str, str]] = []
        for at, message in enumerate(asked):
            parts: list[dict[str, Any]] = []
            for number, part in enumerate(message.content):
                if isinstance(part, api_schema.TextPart):
                    parts.append({"type": "text", "text": escape_special_tokens(part.text, self._processor)})
                    continue
                where = f"messages[{at}].content[{number}]"
                if message.role != "user":
                    raise invalid(f"{where}: only a user shows images", where)
                parts.append({"type": "image"})
                sources.append((part.image_url.url.strip(), f"{where}.image_url.url"))
            if message.role in ("system", "developer"):
                system += [{"type": "text", "text": "\n\n"}] * bool(system) + parts
            elif turns and turns[-1]["role"] == message.role:
                turns[-1]["content"] += [{"type": "text", "text": "\n"}, *parts]
            else:
                turns.append({"role": message.role, "content": parts})
        if turns and turns[-1]["role"] == "assistant" and not any(part["text"] for part in turns[-1]["content"]):
            turns.pop()  # nothing to continue
        if not turns:
            raise invalid("there is no user's message", "messages")
        continues = turns[-1]["role"] == "assistant" and request.continue_final_message is not False
        if not continues and (request.continue_final_message or request.add_generation_prompt is False):
            name = "continue_final_message" if request.continue_final_message else "add_generation_prompt"
            raise invalid(f"{name}: there is no assistant's message at the end that could be continued", name)
        if continues:  # as one text, of which the template's end is cut off
            text = "".join(part["text"] for part in turns[-1]["content"])
            turns[-1]["content"] = [{"type": "text", "text": text}]
        messages = [{"role": "system", "content": system}] * bool(system) + turns
        return _Conversation(messages, sources, continues)

    def _tokens(self, conversation: _Conversation) -> list[int]:
        """The same ids as ``encode_prompts`` gives, without needing the images."""
        try:
            text = self._processor.apply_chat_template(
                conversation.messages,
                tokenize=False,
                add_generation_prompt=not conversation.continues,
                continue_final_message=conversation.continues,
            )
        except (TemplateError, ValueError) as error:
            raise invalid(f"the model's chat template refuses the conversation: {error}", "messages") from None
        mark, bos = self._processor.image_token, self._processor.tokenizer.bos_token
        return self._processor.tokenizer(
            text.replace(mark, mark * self.image_tokens), add_special_tokens=not (bos and text.startswith(bos))
        )["input_ids"]

    def _bytes(self, url: str) -> bytes:
        if _is_data(url):
            head, comma, body = url.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise InputError("the data URL is not data:image/...;base64,...")
            try:
                return _base64(body)
            except (binascii.Error, ValueError):
                raise InputError("the data URL is not base64") from None
        if self._fetch is None:
            raise InputError("URLs are not fetched here; send the image as a data URL (data:image/png;base64,...)")
        try:
            return self._fetch(url)
        except InputError as error:
            raise InputError(f"the URL {error}") from None


@contextlib.contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Has an image's InputError say where in the request the image is."""
    try:
        yield
    except InputError as error:
        raise invalid(f"{where}: {error}", where, "invalid_image") from None


def _base64(text: str) -> bytes:
    """Base64 of either alphabet, in lines or not, with its padding or without, percent-encoded or not."""
    if "%" in text[:4096] or "%" in text[-16:]:
        for code, letter in (("2B", "+"), ("2F", "/"), ("3D", "="), ("0A", ""), ("0D", "")):
            text = text.replace(f"%{code}", letter).replace(f"%{code.lower()}", letter)
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _too_long(message: str) -> Exception:
    return invalid(f"{message}; shorten it", "messages", "context_length_exceeded")
