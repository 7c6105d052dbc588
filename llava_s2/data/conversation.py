"""One training record → token ids and labels."""

import re
from typing import Any

from transformers import LlavaProcessor

from llava_s2.data.record_shapes import LITERAL_IMAGE, Turn, count_images, read_turns
from llava_s2.data.validation_error import ValidationError
from llava_s2.errors import InputError
from llava_s2.model.labels import IGNORE_INDEX, encode_messages
from llava_s2.model.templates import IMAGE_TOKEN, TEMPLATES, find_template, takes_system

_END_TOKENS = re.compile(r"</?s>|<\|(im_end|endoftext|eot_id|end_of_text|end)\|>|<eos>|<end_of_turn>")
# As serving writes it: a space keeps the tokenizer from reading an image.
_ESCAPED_IMAGE = f"{IMAGE_TOKEN[0]} {IMAGE_TOKEN[1:]}"


def encode_conversation(
    conversations: list[dict[str, Any]], processor: LlavaProcessor, template: str = "vicuna_v1"
) -> dict[str, list[int]]:
    """Encodes the ``"conversations"`` list of one LLaVA record for training.

    Args:
        conversations: turns ``{"from": "human" | "gpt", "value": text}`` (or of another shape that
            `llava_s2.data.record_shapes` knows), each ``<image>`` standing for one image.
        processor: the model's; its tokenizer and its number of tokens an image are used.
        template: what `find_template` takes: a name in ``TEMPLATES``, ``own`` for the tokenizer's, a Jinja file or its
            text. ``plain`` (stage 1) keeps nothing of the question but its image.

    Returns:
        ``{"input_ids": ..., "labels": ...}`` as `encode_messages` gives them.

    Raises:
        InputError: unknown template or role, turns out of order, an empty conversation, or no answer that is not empty.
    """
    chat_template = find_template(template, processor.tokenizer.chat_template)
    return encode_record({"conversations": conversations}, processor, chat_template)


def encode_record(record: dict[str, Any], processor: LlavaProcessor, chat_template: str) -> dict[str, list[int]]:
    """Encodes a record of any known shape with a chat template (Jinja text), see `encode_conversation`.

    Raises:
        ValidationError: what is wrong with the record, or that the chat template refuses it.
    """
    messages = to_messages(read_turns(record), chat_template)
    try:
        encoded = encode_messages(messages, processor, chat_template)
    except InputError as error:
        raise ValidationError("roles", str(error)) from None
    if all(label == IGNORE_INDEX for label in encoded["labels"]):
        raise ValidationError(
            "no_target", "no answer has text beside special tokens, so there is nothing to learn; drop the record"
        )
    return encoded


def to_messages(turns: list[Turn], chat_template: str) -> list[dict[str, Any]]:
    """Checks turns and makes chat messages of them, placing images where LLaVA places them.

    The only image of a turn moves to the turn's front, on a line of its own; several stay where they are. An answer
    before the first question is left out. Both as in LLaVA's ``preprocess_multimodal`` and ``preprocess_v1``. An answer
    that is not to be learnt has ``"weight": 0``.

    Raises:
        ValidationError: turns are out of order, an image stands in an answer, there is no answer, or the chat template
            has no place for a system message or a tool's turn.
    """
    messages: list[dict[str, str]] = []
    dropped = False  # whether an answer before the first question was left out
    for number, turn in enumerate(turns):
        text = turn.text
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValidationError("malformed", f"turn {number}: holds half of a surrogate pair, no text") from None
        if turn.role != "user" and count_images(text):
            raise ValidationError(
                "image_placeholders",
                f"turn {number}: {IMAGE_TOKEN} in {_OWNER.get(turn.role, 'an answer')}; images belong to human turns "
                f"(write {LITERAL_IMAGE} for the word itself)",
            )
        if turn.role == "system":
            if number:
                raise ValidationError("roles", f"turn {number}: a system message stands first or nowhere")
            if text.strip() and chat_template != TEMPLATES["plain"]:
                if not takes_system(chat_template):
                    raise ValidationError(
                        "roles", "the chat template has no place for a system message; put it into the question"
                    )
                messages.append({"role": "system", "content": text.replace(LITERAL_IMAGE, _ESCAPED_IMAGE)})
            continue
        if turn.role == "tool" and chat_template in TEMPLATES.values():
            raise ValidationError("roles", f"turn {number}: a tool's turn, which this template has no words for")
        before = messages[-1]["role"] if messages else "system"
        if turn.role == "assistant" and before == "system" and not dropped:
            dropped = True
            continue
        if (turn.role, before) in _TWICE:
            speaker = "human" if turn.role == "user" else "gpt"
            raise ValidationError("roles", f"turn {number}: human and gpt must take turns, here {speaker} speaks twice")
        text = text.replace(LITERAL_IMAGE, _ESCAPED_IMAGE)
        unlearnt: dict[str, Any] = {} if turn.learnt or turn.role != "assistant" else {"weight": 0}
        messages.append({"role": turn.role, "content": _place_image(text) if turn.role == "user" else text, **unlearnt})
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        raise ValidationError(
            "no_target", "no answer after a human turn, so no target to learn; add one or drop the record"
        )
    if not any(message.get("weight", 1) for message in messages if message["role"] == "assistant"):
        raise ValidationError("no_target", "no answer is to be learnt, as all have weight 0; drop the record")
    if not any(_END_TOKENS.sub("", answer).strip() for answer in answers):
        raise ValidationError(
            "no_target", "the answer is empty, so there is nothing to learn; fill it or drop the record"
        )
    if chat_template == TEMPLATES["plain"]:
        question = messages[0]
        question["content"] = IMAGE_TOKEN * question["content"].count(IMAGE_TOKEN)
        if len(messages) != 2 or not question["content"]:
            raise ValidationError(
                "image_placeholders", "the plain template needs one human turn with an image, and one answer"
            )
    return messages


# Who speaks out of turn, and what was said before.
_TWICE = {("user", "user"), ("assistant", "assistant"), ("assistant", "system")}
_OWNER = {"system": "a system message", "tool": "a tool's turn"}


def _place_image(value: str) -> str:
    if value.count(IMAGE_TOKEN) != 1:
        return value
    return f"{IMAGE_TOKEN}\n{value.replace(IMAGE_TOKEN, '').strip()}".strip()
