"""One LLaVA conversation → token ids and labels."""

from transformers import LlavaProcessor

from llava_s2.data.faults import RecordFault
from llava_s2.errors import InputError
from llava_s2.model.labels import encode_messages
from llava_s2.model.templates import TEMPLATES
from llava_s2.model.tokenizer import IMAGE_TOKEN

_ROLES = {"human": "user", "gpt": "assistant"}


def encode_conversation(
    conversations: list[dict[str, str]], processor: LlavaProcessor, template: str = "vicuna_v1"
) -> dict[str, list[int]]:
    """Encodes the ``"conversations"`` list of one LLaVA record for training.

    Args:
        conversations: turns ``{"from": "human" | "gpt", "value": text}``, each ``<image>`` standing for one image.
        processor: the model's; its tokenizer and its number of tokens an image are used.
        template: a name in ``llava_s2.model.templates.TEMPLATES``. ``plain`` (stage 1) keeps nothing of the question
            but its image.

    Returns:
        ``{"input_ids": ..., "labels": ...}`` as `encode_messages` gives them.

    Raises:
        InputError: unknown template or role, turns out of order, an empty conversation, or no answer that is not empty.
    """
    if template not in TEMPLATES:
        raise InputError(f"unknown template {template!r}; there are {', '.join(TEMPLATES)}")
    return encode_messages(to_messages(conversations, template), processor, TEMPLATES[template])


def to_messages(conversations: list[dict[str, str]], template: str) -> list[dict[str, str]]:
    """Checks a LLaVA conversation and turns it into chat messages, placing images where LLaVA places them.

    The only image of a turn moves to the turn's front, on a line of its own; several stay where they are. An answer
    before the first question is left out. Both as in LLaVA's ``preprocess_multimodal`` and ``preprocess_v1``.

    Raises:
        InputError: as `encode_conversation`.
    """
    if not isinstance(conversations, list) or not conversations:
        raise RecordFault("malformed", '"conversations" must be a list of turns, and it is empty or missing')
    messages: list[dict[str, str]] = []
    for number, turn in enumerate(conversations):
        role, value = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role not in _ROLES:
            raise RecordFault("roles", f'turn {number}: unknown role {role!r}, "from" must be "human" or "gpt"')
        if not isinstance(value, str):
            raise RecordFault("malformed", f'turn {number}: "value" must be text, not {type(value).__name__}')
        if number == 0 and role == "gpt":
            continue
        if role != ("gpt" if len(messages) % 2 else "human"):
            raise RecordFault("roles", f"turn {number}: human and gpt must take turns, here {role} speaks twice")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RecordFault("malformed", f"turn {number}: holds half of a surrogate pair, no text") from None
        if role == "human":
            value = _place_image(value)
        elif IMAGE_TOKEN in value:
            raise RecordFault(
                "image_placeholders", f"turn {number}: {IMAGE_TOKEN} in an answer; images belong to human turns"
            )
        messages.append({"role": _ROLES[role], "content": value})
    if len(messages) < 2:
        raise RecordFault(
            "no_target", "no answer after a human turn, so no target to learn; add one or drop the record"
        )
    if not any(message["content"].strip() for message in messages[1::2]):
        raise RecordFault("no_target", "the answer is empty, so there is nothing to learn; fill it or drop the record")
    if template == "plain":
        question = messages[0]
        question["content"] = IMAGE_TOKEN * question["content"].count(IMAGE_TOKEN)
        if len(messages) != 2 or not question["content"]:
            raise RecordFault(
                "image_placeholders",
                "the plain template needs one human turn with an image, and one answer",
            )
    return messages


def _place_image(value: str) -> str:
    if value.count(IMAGE_TOKEN) != 1:
        return value
    return f"{IMAGE_TOKEN}\n{value.replace(IMAGE_TOKEN, '').strip()}".strip()
