"""What a record holds beside what is read of it: images, masks and words are refused, the rest is told.

Training that leaves such a thing out in silence learns something else than its data says: an answer without its image,
a turn that was not to be learnt, a question without its choices.
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from llava_s2.data.image_decoding import Embedded
from llava_s2.data.validation_error import ValidationError
from llava_s2.model.templates import IMAGE_TOKEN

_SOUND_OR_VIDEO = re.compile(r"video|audio|sound|speech|clip|frames", re.IGNORECASE)
_IMAGES = re.compile(r"ima?ge?s?|pic|photo|screenshot|pixel|media|visual|file", re.IGNORECASE)
# Names that leave no doubt, whatever stands there.
_SURELY_SOUND_OR_VIDEO = re.compile(r"(?:video|audio|speech|sound)s?(?:_(?:path|file|url|name)s?)?", re.IGNORECASE)
_SURELY_IMAGES = re.compile(
    r"(?:img|image|picture|photo|screenshot)s?(?:_?(?:path|file|url|uri|name|base64|b64|base64_str|bytes|data)s?)?|"
    r"media|pixel_values|visuals?|attachments?",
    re.IGNORECASE,
)
_MAYBE_IMAGES = re.compile(r"(?:^|_)(?:ima?ge?s?|pictures?|photos?|screenshots?)(?:_|\d|$)", re.IGNORECASE)
_MEDIA_FILE = re.compile(
    r"^data:(image|video|audio)/|\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif|mp4|mkv|webm|mov|avi|wav|mp3|flac|npy)$",
    re.IGNORECASE,
)
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/4", "R0lGOD", "UklGR")  # of PNG, JPEG, GIF and WebP
_BASE64 = re.compile(
    rf"[A-Za-z0-9+/\s]{{200,}}={{0,2}}\s*|(?:{'|'.join(_BASE64_STARTS)})[A-Za-z0-9+/\s]{{40,}}={{0,2}}\s*"
)
# Beside a turn's text: words of its own, and what says which of its tokens are learnt.
_OTHER_WORDS = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")
_MASK = re.compile(
    r"(?:^|_)(?:loss|masks?|masked|train|trainable|training|learn|learnable|weights?|supervised?|ignore)(?:_|$)"
)
_IS_LEFT_OUT = re.compile(r"mask|masked|ignore")
_MASK_OF_RECORD = re.compile(
    r"(?:loss|label|target|turn|train)_?(?:mask|weight|scale)s?|(?:sample_?)?weights?|loss|train(?:able|_on\w*|_turns)?"
)
_LIST_OF_NUMBERS = re.compile(r"\s*\[\s*(?:\d+(?:\.\d+)?\s*,\s*)*\d+(?:\.\d+)?\s*\]\s*")  # as a table's text holds one
# Beside a question and its answer, and beside turns.
_OTHER_QUESTION = ("context", "passage", "hint", "lecture", "choices", "options", "input")
_TOOLS = ("tools", "functions")
# Of a set for KTO: whether an answer is to be learnt or avoided.
_IS_WANTED = ("label", "kto_tag")
_SYSTEM = re.compile(r"sys(?:tem)?(?:[_-]?\w+)?|preamble|meta_instruction|instructions", re.IGNORECASE)
# Other models' marks; a question about HTML seldom begins with one, and of text alone only the first kind is one.
_MARK = re.compile(
    r"<\|(?:image|video|audio)(?:_\d+|_pad)?\|>|<\|?vision_start\|?>|<ImageHere>|<image_?\d+>|<image_placeholder>|"
    r"<image_soft_token>|<start_of_image>|<IMG_CONTEXT>|<imageplaceholder>|\A\s*<(?:video|audio)>|"
    r"!\[[^\]\n]*\]\(data:image/"
)
_LINK_TO_IMAGE = re.compile(r"!\[[^\]\n]*\]\([^)\n]+\)")
_MARK_OF_IMAGE = re.compile(r"\[IMG\]|<Image>|<IMAGE>|<image ?/>|<img>|<Img>|!\[[^\]\n]*\]\((?!https?:)[^)\n]+\)")


def check_mark(number: int, text: str, has_images: bool) -> None:
    """Raises ValidationError where a question's text has another model's mark.

    Args:
        number: the turn's.
        has_images: whether the record has images of which no place is marked: what else might be words is a mark then.
    """
    mark = _MARK.search(text) or (_MARK_OF_IMAGE.search(text) if has_images else None)
    if mark is not None:
        raise ValidationError(
            "image_placeholders",
            f"turn {number}: {mark[0].strip()[:40]} is another model's mark; an image's is {IMAGE_TOKEN}, and videos "
            "and sounds are not trained on",
        )


def check_turn(number: int, values: dict[str, Any]) -> None:
    """Raises ValidationError where what a turn holds beside its role and text would be lost: words, media, a mask.

    Args:
        number: the turn's.
        values: what it holds under keys that are not read.
    """
    for key, value in values.items():
        if key in _OTHER_WORDS:
            raise ValidationError(
                "malformed", f'turn {number}: "{key}" is not trained on; write it into its text, or drop it'
            )
        if _looks_like_media(value) or (
            isinstance(value, str | list | dict)
            and (_SURELY_IMAGES.fullmatch(key) or _SURELY_SOUND_OR_VIDEO.fullmatch(key))
        ):
            raise ValidationError(
                "malformed",
                f'turn {number}: "{key}": media are not read in a turn; put images under the record\'s "image" or '
                f'"images" and write {IMAGE_TOKEN} where they belong',
            )
        asks_nothing = value in (0, False) if _IS_LEFT_OUT.fullmatch(key) else value in (1, True)
        if _MASK.search(key) and not asks_nothing:
            raise ValidationError(
                "malformed",
                f'turn {number}: "{key}" is not read; a turn that is not to be learnt has "weight": 0, and parts of '
                "one cannot be left out",
            )


def check_record(values: dict[str, Any], has_images: bool, shape: Sequence[str]) -> None:
    """Raises ValidationError where what a record holds beside turns and images would be lost.

    Args:
        values: what it holds under keys that are not read.
        has_images: whether images were found under keys that are.
        shape: the keys that its turns were read from.
    """
    is_single = "history" in shape  # a question and its answer
    for key, value in values.items():
        is_media = _looks_like_media(value)
        may_hold = isinstance(value, str | list | dict) and not has_images
        if (_SOUND_OR_VIDEO.search(key) and is_media) or (may_hold and _SURELY_SOUND_OR_VIDEO.fullmatch(key)):
            raise ValidationError("malformed", f'"{key}": videos and sounds are not trained on; drop the record')
        if not has_images and ((_IMAGES.search(key) and is_media) or (may_hold and _SURELY_IMAGES.fullmatch(key))):
            raise ValidationError("malformed", f'"{key}": not read, and it looks like images; name it "image"')
        if key in _OTHER_QUESTION and is_single:
            raise ValidationError("malformed", f'"{key}" beside a question is not read; write it into the question')
        if key == "A" and is_single and values.get("B"):
            raise ValidationError("malformed", 'choices under "A", "B" … are not read; write them into the question')
        if key == "history":
            raise ValidationError("malformed", f'"history" beside "{shape[0]}" is not read; write it into that')
        if isinstance(value, str) and " " in value.strip() and _SYSTEM.fullmatch(key):
            raise ValidationError(
                "malformed", f'"{key}" is not read, and looks like a system message; name it "system"'
            )
        numbers = json.loads(value) if isinstance(value, str) and _LIST_OF_NUMBERS.fullmatch(value) else value
        if _MASK_OF_RECORD.fullmatch(key) and isinstance(numbers, int | float | list) and not _all_ones(numbers):
            raise ValidationError(
                "malformed",
                f'"{key}" of a record is not read; a turn that is not to be learnt has "weight": 0, and --data_weights '
                "has files more or less often",
            )
        if key in _TOOLS and value not in ("[]", "{}"):
            raise ValidationError("malformed", f'"{key}" is not read; write the tools into the system message')
        if key == "objects" and isinstance(value, dict) and value.keys() & {"bbox", "ref"}:
            raise ValidationError("malformed", '"objects" is not read; write its names and boxes into the text')
        if key.startswith("rejected") or (key in _IS_WANTED and value is False):
            raise ValidationError("malformed", f'"{key}": is of a set of preferences, and training takes one answer')


def media_keys(values: dict[str, Any], has_images: bool) -> list[str]:
    """Of the keys that are not read, those that look like media, by value or, beside no image, by name."""
    found = []
    for key, value in values.items():
        source = has_images and isinstance(value, str) and value.startswith("http")  # where its image came from
        named = not has_images and _MAYBE_IMAGES.search(key) and isinstance(value, str | int | list)
        if named or (_looks_like_media(value) and not source):
            found.append(key)
    return found


def unread_links(messages: Sequence[dict[str, Any]]) -> list[str]:
    """What to call Markdown's links to images, where a question has one: words they are, and no image is seen."""
    asked = (message["content"] for message in messages if message["role"] == "user")
    return ["Markdown's ![…](…) in questions"] if any(map(_LINK_TO_IMAGE.search, asked)) else []


def is_base64(text: str) -> bool:
    """Whether a text is an image's file in base64."""
    return text.startswith(_BASE64_STARTS) and _BASE64.fullmatch(text) is not None


def unread(values: dict[str, Any], read: Collection[str]) -> dict[str, Any]:
    """What an object holds under keys that are not read; nothing of a table's empty cells."""
    return {
        key: value
        for key, value in values.items()
        if key not in read and value is not None and (value or not isinstance(value, str | list | dict))
    }


def _all_ones(value: Any) -> bool:
    return all(map(_all_ones, value)) if isinstance(value, list) else value == 1


def _looks_like_media(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_looks_like_media, value))
    if isinstance(value, str) and _BASE64.fullmatch(value[:4096]):
        return True
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or any(map(_looks_like_media, value.values()))
    return isinstance(value, Embedded) or (isinstance(value, str) and _MEDIA_FILE.search(value) is not None)
