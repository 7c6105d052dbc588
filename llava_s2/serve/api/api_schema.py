"""Requests of the API, and what its responses have beside the fields that the ``openai`` package defines."""

import logging
import threading
from typing import Annotated, Any, Literal

from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from llava_s2.serve.api.api_errors import invalid

logger = logging.getLogger("llava_s2.serve")

MAX_MESSAGES = 1024
MAX_CHOICES = 16
_MAX_STRINGS, _MAX_CONTAINERS, _MAX_COMMAS = 50_000, 100_000, 200_000  # of a body, before anything of it is built
_INT64 = 2**63 - 1

# What would change the answer and is not done here -> the values that ask for nothing, beside null.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"], []),
    "audio": (),
    "web_search_options": (),
    "echo": (False,),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "truncate_prompt_tokens": (),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "return_tokens_as_token_ids": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "chat_template": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": ({},),
    "return_token_ids": (False,),
    # Of other servers: TGI's, llama.cpp's, SGLang's, Ollama's, Anthropic's.
    "system": ("",),
    "prompt": (),
    "input": (),
    "images": ([],),
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "num_predict": (),
    "stop_sequences": ([],),
    "stop_regex": ([], ""),
    "grammar": ("",),
    "ebnf": ("",),
    "regex": ("",),
    "json_schema": (),
    "num_beams": (1,),
    "typical_p": (1,),
    "top_a": (0,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
}
_UNLESS_NONE = {"tools": "tool_choice", "functions": "function_call"}
"""Field -> the one that says "none" where the model is not to use it."""


class _Given(BaseModel):
    """Numbers must be numbers; fields that are not known here are kept, to be told of."""

    model_config = ConfigDict(extra="allow", strict=True)


class TextPart(_Given):
    type: Literal["text"]
    text: str


class ImageUrl(_Given):
    url: str = Field(description="A data URL of an image; http(s) where the server allows it")


def _as_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(_Given):
    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_url, json_schema_input_type=ImageUrl | str)]


_UNREAD = {"text": "image_url", "image_url": "text"}
_SHOWN_BESIDE_CONTENT = (
    *("image", "images", "image_url", "image_urls", "videos", "files", "attachments", "experimental_attachments"),
)
"""Ollama's and others' places for what a message shows; without it the answer would be another."""
_PART_TYPES = {"input_text": "text", "output_text": "text", "refusal": "text", "input_image": "image_url"}


def _as_part(value: Any) -> Any:
    """A part as other servers take it too: a string, a part without its type, one of the Responses API, a refusal."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    if not isinstance(value, dict):
        return value
    given = value.get("type", next((kind for kind in ("text", "image_url") if kind in value), None))
    kind = _PART_TYPES.get(given, given) if isinstance(given, str) else given
    if isinstance(kind, str) and kind in _UNREAD and value.get(_UNREAD[kind]):
        raise ValueError(f"{_UNREAD[kind]} is not read in a part of type {kind}; send it as a part of its own")
    return {**value, "type": kind, **({"text": value.get("refusal")} if given == "refusal" else {})}


_TextOrImage = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Part = Annotated[_TextOrImage, BeforeValidator(_as_part, json_schema_input_type=_TextOrImage | str)]


def _as_parts(value: Any) -> Any:
    """A string, or null as in an answer without text, as the parts that it stands for."""
    if value is None or isinstance(value, str):
        return [{"type": "text", "text": value or ""}]
    return value


class Message(_Given):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part],
        Field(min_length=1, max_length=256),
        BeforeValidator(_as_parts, json_schema_input_type=Annotated[list[Part], Field(min_length=1)] | str | None),
    ] = Field(default_factory=lambda: list[Part]([TextPart(type="text", text="")]))
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Nobody calls tools here")

    @model_validator(mode="before")
    @classmethod
    def _check(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name in ("tool_calls", "function_call", "audio"):
            if given.get(name):
                raise ValueError(f"{name} is not supported; leave it out")
        for name in _SHOWN_BESIDE_CONTENT:
            if given.get(name):
                raise ValueError(
                    f'{name} is not read there; send each image as a part of content, {{"type": "image_url"…}}'
                )
        if given.get("content") in (None, []) and given.get("role") == "assistant":
            return {**given, "content": given.get("refusal")}  # a refusal stands in place of an answer
        if given.get("content") is None:
            raise ValueError("content is missing; only an assistant's message may be without")
        return given


def _as_integer(value: Any) -> Any:
    """``6.0`` is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Integer = Annotated[int, BeforeValidator(_as_integer, json_schema_input_type=int)]


class StreamOptions(_Given):
    include_usage: bool | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_StopString = Annotated[str, Field(min_length=1, max_length=256)]
_StopStrings = Annotated[list[_StopString], Field(max_length=16)]
_Stop = Annotated[_StopStrings, BeforeValidator(_as_list, json_schema_input_type=_StopStrings | _StopString)]


_TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Asked(_Given):
    """What every request may say."""

    model: Annotated[str, Field(max_length=512)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    continue_final_message: bool | None = Field(
        None, description="Whether the answer goes on from the assistant's message at the end; unless false, it does"
    )
    add_generation_prompt: bool | None = Field(None, description="vLLM's; false only where a message is continued")


class ChatRequest(Asked):
    """OpenAI's chat completion request, with vLLM's sampling fields. Null is the same as nothing."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[_Integer, Field(ge=1, le=_INT64)] | None = None
    max_completion_tokens: Annotated[_Integer, Field(ge=1, le=_INT64)] | None = None
    n: Annotated[_Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="0, the default, takes the likeliest token each time"
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[_Integer, Field(ge=-1, le=_INT64)] | None = Field(None, description="0 and -1: all tokens")
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    seed: Annotated[_Integer, Field(ge=-_INT64 - 1, le=_INT64)] | None = None
    logit_bias: dict[_TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: _Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Without effect unless stream")
    logprobs: bool | None = None
    top_logprobs: Annotated[_Integer, Field(ge=0, le=20)] | None = Field(None, description="Only with logprobs")


class TokenizeRequest(Asked):
    """vLLM's: what a text, or a conversation with its images, is made of."""

    prompt: str | None = None
    add_special_tokens: bool | None = None


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class Timings(BaseModel):
    """Seconds of each stage, an extension of OpenAI's response; ``tower`` is 0 where all images were known."""

    queue: float
    prepare: float = Field(description="Decoding images, making them the model's input, tokenizing")
    tower: float
    prefill: float
    decode: float
    images: int
    cached_images: int


class Completion(ChatCompletion):
    timings: Timings


class Chunk(ChatCompletionChunk):
    timings: Timings | None = None


class ModelCard(Model):
    max_model_len: int = Field(description="Tokens of a conversation and its answer together")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "draining"]


_known_by_now: set[str] = set()
_one_at_a_time = threading.Lock()


def parse_chat(body: bytes | bytearray) -> ChatRequest:
    """Reads a chat request. What is not known here and would not change the answer is logged, once a name.

    Raises:
        ApiError: not JSON, not this schema, or something that would change the answer and is not done here; ``param``
            says where.
    """
    request = _parse(ChatRequest, body)
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs is only taken with logprobs: true", "top_logprobs")
    more = request.model_extra or {}
    for name, value in more.items():
        if name not in _NEUTRAL:
            _log_once(name)
        elif value is not None and value not in _NEUTRAL[name] and more.get(_UNLESS_NONE.get(name, "")) != "none":
            raise invalid(f"{name} is not supported; leave it out", name, "unsupported_parameter")
    for message in request.messages:
        images = [part.image_url for part in message.content if isinstance(part, ImagePart)]
        for given in (message, *message.content, *images):
            for name in given.model_extra or ():
                _log_once(name)
    return request


def parse_tokenize(body: bytes | bytearray) -> TokenizeRequest:
    """Reads a request of ``/tokenize``. Raises ApiError as `parse_chat` does."""
    request = _parse(TokenizeRequest, body)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("give either prompt or messages", "prompt")
    return request


def _log_once(name: str) -> None:
    with _one_at_a_time:
        if name not in _known_by_now and len(_known_by_now) < 100:
            _known_by_now.add(name)
            logger.warning("a request has the field %.100r, which changes nothing here", name)


def _parse(kind: type[Any], body: bytes | bytearray) -> Any:
    # Before anything is built: pydantic's parser bounds the depth, but not how much stands side by side.
    strings = (body.count(b'"') - body.count(b'\\"')) // 2
    containers = body.count(b"[") + body.count(b"{")
    if strings > _MAX_STRINGS or containers > _MAX_CONTAINERS or body.count(b",") > _MAX_COMMAS:
        raise invalid("the body has too many parts", code="too_many_parts")
    try:
        return kind.model_validate_json(body[3:] if body.startswith(b"\xef\xbb\xbf") else body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if problem["type"] == "json_invalid":
        raise invalid(
            f"the body is not JSON: {problem['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        ) from None
    param = _path(problem["loc"])
    if problem["type"] == "missing":
        raise invalid(f"{param} is missing", param, "missing_required_parameter") from None
    told = problem["msg"].removeprefix("Value error, ")
    raise invalid(f"{param}: {told}" if param else told, param or None, "invalid_value") from None


def _path(location: tuple[int | str, ...]) -> str:
    """``messages[0].content`` from pydantic's location, which names the kind of a part after its number."""
    path = ""
    for before, part in zip((None, *location), location, strict=False):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (isinstance(before, int) and part in ("text", "image_url")):
            path += f".{part}" if path else part
    return path[:200]
