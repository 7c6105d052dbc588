"""The shapes in which training records come, read into one: turns, a system message and images.

Known are LLaVA's ``conversations`` (``from``/``value``, and ShareGPT's and InternVL's variants), ``messages`` with
``role``/``content`` (TRL's, the hub's: text or a list of parts), single questions (``query``/``response`` with
``history``, ``prompt``/``completion``, ``question``/``answer``, ``instruction``/``input``/``output``), FineVision's
``texts`` and captions. Images are under ``image`` or ``images``, in a part of a message, or in Qwen-VL's ``<img>``.

In text, ``<image>`` stands for an image, and ``\\<image>`` for the word itself.
"""

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llava_s2.data.image_decoding import Embedded
from llava_s2.data.unread import check_mark, check_record, check_turn, is_base64, unread
from llava_s2.data.validation_error import ValidationError
from llava_s2.model.templates import IMAGE_TOKEN

LITERAL_IMAGE = "\\" + IMAGE_TOKEN
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "question"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "answer", "response"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
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
# How a turn says that nothing is learnt of it: OpenAI's and ShareGPT's, axolotl's, ms-swift's.
_LOSS_KEYS = ("weight", "train", "loss")
_TEXT = ("value", "content", "text")  # the keys of a turn's text, the first that is there counting
_TURN_READ = {"from", "role", *_TEXT, *_LOSS_KEYS}
IMAGE_KEYS = ("image", "images")
TURN_KEYS = (*_TURN_LISTS, "texts", "caption", *(first for first, _ in _PAIRS))
"""A record has one of these at least."""
# Where an image stands in an object, and in a part of a message.
_ENCODED = ("bytes", "base64", "data")
_IN_OBJECT = (*_ENCODED, "path", "url", "image", "image_url", "source", "file", "file_name")
_LONGEST_PATH = 1024  # characters
_QWEN_IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)


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
    values, _ = _turn_values(record)
    parts = any(_is_image_part(part) for value in values if isinstance(value, dict) for part in _parts(value))
    turns = [_turn(number, value, parts) for number, value in enumerate(values)]
    system = next((record[key] for key in _SYSTEM if record.get(key)), None)
    if system is not None:
        if not isinstance(system, str):
            raise ValidationError("malformed", f'"system" must be text, not {type(system).__name__}')
        if any(turn.role == "system" for turn in turns):
            raise ValidationError("roles", 'has a "system" key and a system turn; keep one of them')
        turns.insert(0, Turn("system", system))
    questions = [turn for turn in turns if turn.role == "user"]
    unmarked = [] if any(count_images(turn.text) for turn in turns) else _record_images(record)
    for number, turn in enumerate(turns):
        if turn.role == "user":
            check_mark(number, turn.text, bool(unmarked))
    # Who writes LLaVA's turns marks the place of an image; elsewhere the images come before the first question.
    if record.get("conversations") is None and questions:
        questions[0].text = f"{IMAGE_TOKEN}\n" * len(unmarked) + questions[0].text
    return turns


def images_of(record: dict[str, Any]) -> list[str | Embedded]:
    """Returns a record's images, in the order of their marks; none for text alone.

    Raises:
        ValidationError: an image is neither a path nor what holds one, or a key that is not read looks like media.
    """
    images = _record_images(record)
    values: list[Any] = []
    shape: tuple[str, ...] = ()
    beside: dict[str, Any] = {}
    with contextlib.suppress(ValidationError):
        values, shape = _turn_values(record)
        beside = _unread_values(record, shape)
    parts = [part for value in values if isinstance(value, dict) for part in _parts(value) if _is_image_part(part)]
    texts = [_text_of(value) for value in values if isinstance(value, dict)]
    own = [part for part in parts if any(part.get(key) for key in _IN_OBJECT)]
    own += [name.strip() for text in texts if isinstance(text, str) for name in _QWEN_IMAGE.findall(text)]
    if images and parts and all(isinstance(part.get("index"), int) for part in parts):
        try:
            images = [images[part["index"]] for part in parts]
        except IndexError:
            raise ValidationError("image_placeholders", f"an image part's index is not among {len(images)}") from None
    elif images and own and not all(map(_may_be_same, images, own)):
        raise ValidationError("malformed", 'names other images in its turns than in "image" or "images"; keep one')
    images = images or [_image(image, "a part of a message") for image in own]
    check_record(beside, bool(images), shape)
    return images


def unread_of(record: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a record that can be read holds under keys of which neither turns nor images are read; and such keys of its
    turns, as ``KEY in turns``."""
    values, shape = _turn_values(record)
    in_turns = {key: None for turn in values if isinstance(turn, dict) for key in unread(turn, _TURN_READ)}
    return _unread_values(record, shape), [f"{key} in turns" for key in in_turns]


def _unread_values(record: dict[str, Any], shape: tuple[str, ...]) -> dict[str, Any]:
    return unread(record, {"id", *IMAGE_KEYS, *shape, next((key for key in _SYSTEM if record.get(key)), "")})


def count_images(text: str) -> int:
    """How many images a text marks."""
    return text.count(IMAGE_TOKEN) - text.count(LITERAL_IMAGE)


def _turn_values(record: dict[str, Any]) -> tuple[list[Any], tuple[str, ...]]:
    """A record's turns as they stand in it, and the keys that they are under."""
    lists = [key for key in _TURN_LISTS if record.get(key) is not None]
    if len(lists) > 1 and record[lists[0]] != record[lists[1]]:
        raise ValidationError("malformed", f'has "{lists[0]}" and "{lists[1]}"; keep one of them')
    if lists:
        turns = _columns_to_turns(record[lists[0]], lists[0])
        if not isinstance(turns, list) or not turns:
            raise ValidationError("malformed", f'"{lists[0]}" must be a list of turns, and it is empty or missing')
        return turns, tuple(lists)
    if isinstance(texts := _columns_to_turns(record.get("texts"), "texts"), list):  # FineVision, the Cauldron
        if not all(isinstance(turn, dict) for turn in texts):
            raise ValidationError("malformed", '"texts" must be pairs of "user" and "assistant"')
        pairs = [(turn.get("user"), turn.get("assistant")) for turn in texts]
        return [turn for pair in pairs for turn in _exchange(*pair)], ("texts",)
    for question_key, answer_key in _PAIRS:
        question, answer = record.get(question_key), record.get(answer_key)
        if question is None or answer is None:
            continue
        read: tuple[str, ...] = (question_key, answer_key, "history")
        if question_key == "instruction":
            read = (*read, "input")
            if record.get("input"):
                question = f"{question}\n{record['input']}"
        history = record.get("history") or []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise ValidationError("malformed", '"history" must be pairs of a question and its answer')
        return [turn for pair in [*history, (question, answer)] for turn in _exchange(*pair)], read
    if isinstance(record.get("caption"), str):
        return _exchange("", record["caption"]), ("caption",)
    if "chosen" in record and "rejected" in record:
        raise ValidationError("malformed", "is a pair of preferences, and training takes one answer")
    keys = ", ".join(map(repr, list(record)[:6])) or "none"
    raise ValidationError(
        "malformed", f'"conversations" must be a list of turns, and it is empty or missing (keys: {keys})'
    )


def _exchange(question: Any, answer: Any) -> list[dict[str, Any]]:
    """The turns of a question and its answer, each a text, a list of parts, or TRL's list of messages."""
    turns: list[Any] = []
    for role, said in (("user", question), ("assistant", answer)):
        is_turns = isinstance(said, list) and any(isinstance(turn, dict) and "role" in turn for turn in said)
        turns += said if is_turns else [{"role": role, "content": said}]
    return turns


def _columns_to_turns(value: Any, key: str) -> Any:
    """A list of turns from how a column of a table may hold it: that list, a struct of lists, or its JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValidationError("malformed", f'"{key}" is text, but no JSON ({error})') from None
    if isinstance(value, dict) and all(isinstance(texts, list) for texts in value.values()):
        if len(lengths := set(map(len, value.values()))) > 1:
            raise ValidationError(
                "malformed", f'"{key}": its columns have {", ".join(map(str, sorted(lengths)))} turns'
            )
        return [dict(zip(value, texts, strict=True)) for texts in zip(*value.values(), strict=True)]
    return value


def _turn(number: int, value: Any, has_image_parts: bool) -> Turn:
    if not isinstance(value, dict):
        raise ValidationError("roles", f"turn {number}: unknown role: must be an object, not {type(value).__name__}")
    names = [value[key] for key in ("from", "role") if value.get(key) is not None]
    roles = {_ROLES.get(name.lower()) if isinstance(name, str) else None for name in names}
    if len(roles) > 1:
        raise ValidationError("roles", f'turn {number}: "from" and "role" say different things; keep one of them')
    role, name = next(iter(roles), None), next(iter(names), None)
    check_turn(number, unread(value, _TURN_READ))
    if role is None and name in ("function_call", "tool_call"):
        raise ValidationError(
            "roles", f"turn {number}: a call of a tool; write it as the text of an answer, to be learnt"
        )
    if role is None:
        what = repr(name) if names else f"(its keys are {', '.join(map(repr, value))})"
        raise ValidationError("roles", f'turn {number}: unknown role {what}, "from" must be "human" or "gpt"')
    text = _text_of(value)
    if others := [key for key in _TEXT if value.get(key) and value[key] != text]:
        own = next(key for key in _TEXT if value.get(key) is not None)
        raise ValidationError(
            "malformed", f'turn {number}: has "{own}" and "{others[0]}", which differ; keep one of them'
        )
    if isinstance(text, list):
        text = _text_of_parts(number, _parts(value), has_image_parts)
    if not isinstance(text, str):
        raise ValidationError("malformed", f'turn {number}: "value" must be text, not {type(text).__name__}')
    if role == "user" and _QWEN_IMAGE.search(text):
        text = _QWEN_IMAGE.sub(IMAGE_TOKEN, text)
    return Turn(role, text, _is_learnt(number, value, role))


def _is_learnt(number: int, turn: dict[str, Any], role: str) -> bool:
    """Whether a turn's flags say that it is learnt, which of an answer none has to."""
    for key in _LOSS_KEYS:
        if (flag := turn.get(key)) is None:
            continue
        if flag not in (0, 1) or isinstance(flag, str):
            raise ValidationError("malformed", f'turn {number}: "{key}" {_short(flag)}: must be 0 or 1, true or false')
        if flag and role != "assistant":
            raise ValidationError(
                "malformed", f'turn {number}: "{key}" {_short(flag)}: only answers are learnt; leave it out'
            )
    return all(turn.get(key) not in (0, False) for key in _LOSS_KEYS)


def _text_of_parts(number: int, parts: list[Any], has_image_parts: bool) -> str:
    """As transformers renders parts: an image is `IMAGE_TOKEN` and a line break, text follows as it stands."""
    text = ""
    if len(parts) > 1 and all(isinstance(part, str) for part in parts):
        raise ValidationError("malformed", f"turn {number}: {len(parts)} texts where one belongs; keep one of them")
    for part in parts:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise ValidationError("malformed", f"turn {number}: a part must be an object, not {type(part).__name__}")
        if _is_image_part(part):
            if part.get("text"):
                raise ValidationError(
                    "malformed", f"turn {number}: text in an image's part; make it a part of its own, of type text"
                )
            text += f"{IMAGE_TOKEN}\n"
        elif isinstance(words := part.get("text", part.get("content")), str):
            check_turn(number, unread(part, ("type", "text", "content")))
            text += words.replace(IMAGE_TOKEN, LITERAL_IMAGE) if has_image_parts else words
        else:
            kind = part.get("type")
            raise ValidationError("malformed", f"turn {number}: parts are text and images, not {kind or part!r}")
    return text


def _text_of(turn: dict[str, Any]) -> Any:
    return next((turn[key] for key in _TEXT if turn.get(key) is not None), None)


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


def _may_be_same(image: str | Embedded, other: Any) -> bool:
    """Whether two images may be one: names are compared without their folders, and what is held is not read here."""
    while isinstance(other, dict):
        other = next((other[key] for key in _IN_OBJECT if other.get(key)), None)
    if not isinstance(image, str) or not isinstance(other, str):
        return True
    return re.split(r"[/\\]", image)[-1] == re.split(r"[/\\]", other)[-1]


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
    """A path, or what holds an image: ``{"bytes", "path"}`` of ``datasets``, ``{"url"}``, ``{"source": {"data"}}``, a
    ``data:`` URL, base64."""
    if isinstance(value, Embedded):
        return value
    if isinstance(value, bytes | bytearray) and value:
        return Embedded(f'"{key}" of {len(value)} bytes', _giver(bytes(value)))
    if isinstance(value, dict) and (name := next((name for name in _IN_OBJECT if value.get(name)), None)):
        value = value[name]
        if name in _ENCODED and isinstance(value, str) and not value.startswith("data:"):
            value = f"data:image/unknown;base64,{value}"
        return _image(value, key)
    if isinstance(value, str) and is_base64(value):
        value = f"data:image/unknown;base64,{''.join(value.split())}"
    if isinstance(value, str) and value.startswith("data:"):
        return _data_url(value, key)
    if not isinstance(value, str) or not value:
        raise ValidationError("malformed", f'"{key}" must be a path or a list of paths, not {_short(value)}')
    if len(value) > _LONGEST_PATH:
        raise ValidationError("malformed", f'"{key}": {len(value)} characters are no path, and no image in base64')
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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "…"
