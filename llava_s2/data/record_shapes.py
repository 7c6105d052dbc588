"""The shapes in which training records come, read into one: turns, a system message and images.

Known are LLaVA's ``conversations`` (``from``/``value``, and ShareGPT's and InternVL's variants), ``messages`` with
``role``/``content`` (TRL's, the hub's: text or a list of parts), single questions (``query``/``response`` with
``history``, ``prompt``/``completion``, ``question``/``answer``, ``instruction``/``input``/``output``), FineVision's
``texts`` and captions. Images are under ``image`` or ``images``, in a part of a message, or in Qwen-VL's ``<img>``.

In text, ``<image>`` stands for an image, and ``\\<image>`` for the word itself.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llava_s2.data.image_decoding import Embedded
from llava_s2.data.validation_error import ValidationError
from llava_s2.model.templates import IMAGE_TOKEN

LITERAL_IMAGE = "\\" + IMAGE_TOKEN
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "question"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "answer", "response"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "function_call", "tool_call"), "tool"),
}
_TURN_LISTS = ("conversations", "conversation", "messages")
_PAIRS = (
    ("query", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("instruction", "output"),
)
_SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systemPrompt")
# Words beside a single question and a single answer, and beside a turn's text, that would be lost without a word.
_BESIDE_QUESTION = ("context", "passage", "hint", "lecture", "choices", "options")
_BESIDE_TEXT = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")
# How a turn says that nothing is learnt of it: OpenAI's and ShareGPT's, axolotl's, ms-swift's.
_LOSS_KEYS = ("weight", "train", "loss")
IMAGE_KEYS = ("image", "images")
TURN_KEYS = (*_TURN_LISTS, "texts", "caption", *(first for first, _ in _PAIRS))
"""A record has one of these at least."""
TEXT_KEYS = tuple(dict.fromkeys((*TURN_KEYS, *(second for _, second in _PAIRS), "history", "input", *_SYSTEM)))
"""All the keys that are read beside the images'."""
_IN_PART = ("image", "image_url", "url", "path", "base64", "bytes")
_READ = {*IMAGE_KEYS, *TEXT_KEYS}
_UNREAD_KINDS = re.compile(r"video|audio|sound|speech|clip|frames", re.IGNORECASE)
_MEDIA_NAME = re.compile(r"ima?ge?s?|pic|photo|screenshot|pixel|media|visual|file", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"(?:^|_)(?:ima?ge?s?|pictures?|photos?|screenshots?)(?:_|\d|$)", re.IGNORECASE)
_MEDIA_FILE = re.compile(
    r"^data:(image|video|audio)/|\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif|mp4|mkv|webm|mov|avi|wav|mp3|flac|npy)$",
    re.IGNORECASE,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{200,}={0,2}\s*")
_QWEN_IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)
# Other models' marks; a question about HTML seldom begins with one.
_OTHER_MARK = re.compile(
    r"<\|(?:image|video|audio)(?:_\d+|_pad)?\|>|<\|?vision_start\|?>|<ImageHere>|<image_?\d+>|\A\s*<(?:video|audio)>"
)


@dataclass
class Turn:
    """One turn of a conversation.

    Attributes:
        role: ``user``, ``assistant``, ``system`` or ``tool``.
        text: with `IMAGE_TOKEN` for every image and `LITERAL_IMAGE` for the word.
        learnt: whether an answer is trained on.
    """

    role: str
    text: str
    learnt: bool = True


def is_record(value: Any) -> bool:
    """Whether a JSON value is an object with something that turns are read from."""
    return isinstance(value, dict) and any(value.get(key) is not None for key in TURN_KEYS)


def read_turns(record: dict[str, Any]) -> list[Turn]:
    """The turns of a record of any known shape, its system message first.

    Raises:
        ValidationError: there are none, they are not what they should be, or a role is unknown.
    """
    values = _turn_values(record)
    parts = any(_is_image_part(part) for value in values if isinstance(value, dict) for part in _parts(value))
    turns = [_turn(number, value, parts) for number, value in enumerate(values)]
    system = next((record[key] for key in _SYSTEM if record.get(key)), None)
    if system is not None:
        if not isinstance(system, str):
            raise ValidationError("malformed", f'"system" must be text, not {type(system).__name__}')
        if any(turn.role == "system" for turn in turns):
            raise ValidationError("roles", 'has a "system" key and a system turn; keep one of them')
        turns.insert(0, Turn("system", system))
    # Who writes LLaVA's turns marks the place of an image; elsewhere the images come before the first question.
    if record.get("conversations") is None and not any(count_images(turn.text) for turn in turns):
        first = next((turn for turn in turns if turn.role == "user"), None)
        if first is not None:
            first.text = f"{IMAGE_TOKEN}\n" * len(_record_images(record)) + first.text
    return turns


def images_of(record: dict[str, Any]) -> list[str | Embedded]:
    """Returns a record's images, in the order of their marks; none for text alone.

    Raises:
        ValidationError: an image is neither a path nor what holds one, or a key that is not read looks like media.
    """
    images = _record_images(record)
    try:
        values = _turn_values(record)
    except ValidationError:
        values = []
    parts = [part for value in values if isinstance(value, dict) for part in _parts(value) if _is_image_part(part)]
    if not images:
        texts = [_text_of(value) for value in values if isinstance(value, dict)]
        images = [_part_image(part) for part in parts if _names_image(part)]
        images += [name.strip() for text in texts if isinstance(text, str) for name in _QWEN_IMAGE.findall(text)]
    elif parts and all(isinstance(part.get("index"), int) for part in parts):
        try:
            images = [images[part["index"]] for part in parts]
        except IndexError:
            raise ValidationError("image_placeholders", f"an image part's index is not among {len(images)}") from None
    for key, value in record.items():
        if key in _READ or not value:
            continue
        if _UNREAD_KINDS.search(key) and _looks_like_media(value):
            raise ValidationError("malformed", f'"{key}": videos and sounds are not trained on; drop the record')
        if not images and _MEDIA_NAME.search(key) and _looks_like_media(value):
            raise ValidationError("malformed", f'"{key}": not read, and it looks like images; name it "image"')
    return images


def count_images(text: str) -> int:
    """How many images a text marks."""
    return text.count(IMAGE_TOKEN) - text.count(LITERAL_IMAGE)


def media_keys(record: dict[str, Any]) -> list[str]:
    """The keys of a record that are not read although they look like media, by value or, beside no image, by name."""
    has_images = bool(_record_images(record))
    found = []
    for key, value in record.items():
        if key in _READ or not value:
            continue
        source = has_images and isinstance(value, str) and value.startswith("http")  # where its image came from
        named = not has_images and _IMAGE_NAME.search(key) and isinstance(value, str | int | list)
        if named or (_looks_like_media(value) and not source):
            found.append(key)
    return found


def _turn_values(record: dict[str, Any]) -> list[Any]:
    lists = [key for key in _TURN_LISTS if record.get(key) is not None]
    if len(lists) > 1 and record[lists[0]] != record[lists[1]]:
        raise ValidationError("malformed", f'has "{lists[0]}" and "{lists[1]}"; keep one of them')
    if lists:
        turns = _columns_to_turns(record[lists[0]], lists[0])
        if not isinstance(turns, list) or not turns:
            raise ValidationError("malformed", f'"{lists[0]}" must be a list of turns, and it is empty or missing')
        return turns
    if isinstance(record.get("texts"), list):  # FineVision, the Cauldron
        pairs = [(turn.get("user"), turn.get("assistant")) for turn in record["texts"] if isinstance(turn, dict)]
        return [turn for pair in pairs for turn in _exchange(*pair)]
    for question_key, answer_key in _PAIRS:
        question, answer = record.get(question_key), record.get(answer_key)
        if question is None or answer is None:
            continue
        if isinstance(question, list) and isinstance(answer, list):  # TRL's conversational prompt and completion
            return question + answer
        if lost := [key for key in _BESIDE_QUESTION if record.get(key)]:
            raise ValidationError("malformed", f'"{lost[0]}" beside a question is not read; write it into the question')
        if question_key == "instruction" and record.get("input"):
            question = f"{question}\n{record['input']}"
        history = record.get("history") or []
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise ValidationError("malformed", '"history" must be pairs of a question and its answer')
        return [turn for pair in [*history, (question, answer)] for turn in _exchange(*pair)]
    if isinstance(record.get("caption"), str):
        return _exchange("", record["caption"])
    if "chosen" in record and "rejected" in record:
        raise ValidationError("malformed", "is a pair of preferences, and training takes one answer")
    keys = ", ".join(map(repr, list(record)[:6])) or "none"
    raise ValidationError(
        "malformed", f'"conversations" must be a list of turns, and it is empty or missing (keys: {keys})'
    )


def _exchange(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _columns_to_turns(value: Any, key: str) -> Any:
    """A list of turns from how a column of a table may hold it: that list, a struct of lists, or its JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValidationError("malformed", f'"{key}" is text, but no JSON ({error})') from None
    if isinstance(value, dict) and all(isinstance(texts, list) for texts in value.values()):
        return [dict(zip(value, texts, strict=False)) for texts in zip(*value.values(), strict=False)]
    return value


def _turn(number: int, value: Any, has_image_parts: bool) -> Turn:
    if not isinstance(value, dict):
        raise ValidationError("roles", f"turn {number}: unknown role: must be an object, not {type(value).__name__}")
    names = [value[key] for key in ("from", "role") if value.get(key) is not None]
    roles = {_ROLES.get(name.lower()) if isinstance(name, str) else None for name in names}
    if len(roles) > 1:
        raise ValidationError("roles", f'turn {number}: "from" and "role" say different things; keep one of them')
    role, name = next(iter(roles), None), next(iter(names), None)
    if lost := [key for key in _BESIDE_TEXT if value.get(key)]:
        raise ValidationError(
            "malformed", f'turn {number}: "{lost[0]}" is not trained on; write it into its text, or drop it'
        )
    if role is None:
        raise ValidationError("roles", f'turn {number}: unknown role {name!r}, "from" must be "human" or "gpt"')
    text = _text_of(value)
    if text is not None and any(value.get(key) not in (None, text) for key in ("value", "content")):
        raise ValidationError("malformed", f'turn {number}: has "value" and "content", which differ; keep one of them')
    if isinstance(text, list):
        text = _text_of_parts(number, _parts(value), has_image_parts)
    if not isinstance(text, str):
        raise ValidationError("malformed", f'turn {number}: "value" must be text, not {type(text).__name__}')
    if role == "user" and _QWEN_IMAGE.search(text):
        text = _QWEN_IMAGE.sub(IMAGE_TOKEN, text)
    if role == "user" and (mark := _OTHER_MARK.search(text)):
        raise ValidationError(
            "image_placeholders",
            f"turn {number}: {mark[0].strip()} is another model's mark; an image's is {IMAGE_TOKEN}, and videos and "
            "sounds are not trained on",
        )
    return Turn(role, text, learnt=all(value.get(key) not in (0, False) for key in _LOSS_KEYS))


def _text_of_parts(number: int, parts: list[Any], has_image_parts: bool) -> str:
    """As transformers renders parts: an image is `IMAGE_TOKEN` and a line break, text follows as it stands."""
    text = ""
    for part in parts:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise ValidationError("malformed", f"turn {number}: a part must be an object, not {type(part).__name__}")
        if _is_image_part(part):
            text += f"{IMAGE_TOKEN}\n"
        elif isinstance(words := part.get("text", part.get("content")), str):
            text += words.replace(IMAGE_TOKEN, LITERAL_IMAGE) if has_image_parts else words
        else:
            kind = part.get("type")
            raise ValidationError("malformed", f"turn {number}: parts are text and images, not {kind or part!r}")
    return text


def _text_of(turn: dict[str, Any]) -> Any:
    return next((turn[key] for key in ("value", "content", "text") if turn.get(key) is not None), None)


def _parts(turn: dict[str, Any]) -> list[Any]:
    text = _text_of(turn)
    return text if isinstance(text, list) else []


def _is_image_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    return kind in ("image", "image_url", "input_image") or (
        kind is None and any(part.get(key) for key in ("image", "image_url"))
    )


def _names_image(part: dict[str, Any]) -> bool:
    return any(part.get(key) for key in _IN_PART)


def _part_image(part: dict[str, Any]) -> str | Embedded:
    key = next(key for key in _IN_PART if part.get(key))
    value = part[key]
    if key == "base64" and not str(value).startswith("data:"):
        value = f"data:image/unknown;base64,{value}"
    return _image({"bytes": value} if key == "bytes" else value, "a part of a message")


def _record_images(record: dict[str, Any]) -> list[str | Embedded]:
    found = [key for key in IMAGE_KEYS if record.get(key) not in (None, "", [])]
    if not found:
        return []
    both = [_listed(record[key], key) for key in found]
    if len(both) == 2 and both[0] != both[1]:
        raise ValidationError("malformed", 'has "image" and "images", which differ; keep one of them')
    return both[0]


def _listed(value: Any, key: str) -> list[str | Embedded]:
    return [_image(each, key) for each in (value if isinstance(value, list) else [value])]


def _image(value: Any, key: str) -> str | Embedded:
    """A path, or what holds an image: ``{"bytes", "path"}`` of ``datasets``, ``{"url"}``, a ``data:`` URL."""
    if isinstance(value, Embedded):
        return value
    if isinstance(value, dict):
        if isinstance(data := value.get("bytes"), bytes | bytearray) and data:
            return Embedded(f'"{key}" of {len(data)} bytes', _giver(bytes(data)))
        value = next((value[name] for name in ("path", "url", "image", "file_name") if value.get(name)), value)
    if isinstance(value, str) and value.startswith("data:"):
        return _data_url(value, key)
    if not isinstance(value, str) or not value:
        raise ValidationError("malformed", f'"{key}" must be a path or a list of paths, not {_short(value)}')
    return value


def _data_url(value: str, key: str) -> Embedded:
    head, comma, body = value.partition(",")
    try:
        data = base64.b64decode(body, validate=True) if comma and head.endswith(";base64") else b""
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise ValidationError("corrupt_image", f'"{key}": a data: URL whose base64 cannot be read')
    return Embedded(f'"{key}" of {len(data)} bytes', _giver(data))


def _giver(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _looks_like_media(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_looks_like_media, value))
    if isinstance(value, str) and _BASE64.fullmatch(value[:4096]):
        return True
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or any(map(_looks_like_media, value.values()))
    return isinstance(value, Embedded) or (isinstance(value, str) and _MEDIA_FILE.search(value) is not None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "…"
