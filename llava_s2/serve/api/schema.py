"""Requests and responses of the API: which of OpenAI's fields there are, and what they may hold."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_s2.serve.api.errors import ApiError, invalid

MAX_MESSAGES = 1024
_INT64 = 2**63 - 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: str = Field(description="A data URL of a PNG, JPEG, WebP or GIF; http(s) where the server allows it")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Without effect: every picture is seen at all scales"
    )


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


# OpenAI's own pattern, which no path and no markup fits.
Name = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$", description="Not shown to the model")]
Content = Annotated[list[TextPart], Field(min_length=1)]
UserContent = Annotated[
    list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1, max_length=256)
]


class SystemMessage(_Strict):
    role: Literal["system", "developer"]
    content: str | Content
    name: Name | None = None


class UserMessage(_Strict):
    role: Literal["user"]
    content: str | UserContent
    name: Name | None = None


class AssistantMessage(_Strict):
    role: Literal["assistant"]
    content: str | Content
    name: Name | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Strict):
    include_usage: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text"]


class ChatRequest(_Strict):
    """OpenAI's chat completion request. Fields that are not here, or not with another value, are refused."""

    model: Annotated[str, Field(max_length=512)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=_INT64)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=_INT64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="0, the default, takes the likeliest token each time"
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-_INT64 - 1, le=_INT64)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Only with stream")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="Only with logprobs")
    # What has no effect, and so is taken at its neutral value alone.
    n: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    response_format: ResponseFormat | None = None
    store: Literal[False] | None = None
    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="Not used")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


Finish = Literal["stop", "length"]


class Choice(BaseModel):
    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Finish


class PromptDetails(BaseModel):
    cached_tokens: int = 0
    image_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(BaseModel):
    """Seconds of each stage, an extension of OpenAI's response; ``tower`` is 0 where all pictures were known."""

    queue: float
    prepare: float = Field(description="Decoding pictures, making them the model's input, tokenizing")
    tower: float
    prefill: float
    decode: float
    pictures: int
    cached_pictures: int


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[Choice]
    usage: Usage
    timings: Timings


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: Literal[0] = 0
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llava-s2"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "draining"]


def parse(body: bytes | bytearray) -> ChatRequest:
    """Reads a request. pydantic's parser is bounded in depth, so nesting costs no stack.

    Raises:
        ApiError: not JSON, or not this schema; ``param`` says where.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is only taken with stream: true", "stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs is only taken with logprobs: true", "top_logprobs")
    return request


def _refusal(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a union's members each has its say: what is wrong deepest is what was meant.
    problem = max(problems, key=lambda found: len(found["loc"]))
    if problem["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {problem['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json")
    param = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return invalid(f"{param} is not supported; leave it out", param, "unsupported_parameter")
    if problem["type"] == "missing":
        return invalid(f"{param} is missing", param, "missing_required_parameter")
    return invalid(f"{param}: {problem['msg']}" if param else problem["msg"], param or None, "invalid_value")


_UNION_MEMBERS = {"system", "developer", "user", "assistant", "text", "image_url"}


def _path(location: tuple[int | str, ...]) -> str:
    """``messages[0].content`` from pydantic's location, which names the members of unions too."""
    path = ""
    for before, part in zip((None, *location), location, strict=False):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not ((isinstance(before, int) and part in _UNION_MEMBERS) or "[" in part or part == "str"):
            path += f".{part}" if path else part
    return path[:200]
