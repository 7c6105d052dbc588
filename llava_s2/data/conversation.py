"""One LLaVA conversation → token ids and labels.

The text and the loss mask come out of one rendering of the chat template: what stands in its ``{% generation %}``
blocks takes loss. There is no second computation of lengths that could disagree with the first, which is what LLaVA's
``tokenization mismatch`` was.
"""

from typing import Any

from transformers import LlavaProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from llava_s2.data.faults import RecordFault
from llava_s2.errors import InputError
from llava_s2.model.processor import num_image_tokens
from llava_s2.model.templates import TEMPLATES, end_of_turn
from llava_s2.model.tokenizer import IMAGE_TOKEN

IGNORE_INDEX = -100
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
        ``{"input_ids": ..., "labels": ...}``, equally long lists. Each image is a run of the image token as long as the
        model's features of one image. ``labels`` are the ids where loss is taken and -100 elsewhere; of an empty answer
        nothing is taken, not even that it ends.

    Raises:
        InputError: unknown template or role, turns out of order, an empty conversation, or no answer that is not empty.
    """
    if template not in TEMPLATES:
        raise InputError(f"unknown template {template!r}; there are {', '.join(TEMPLATES)}")
    return encode_messages(to_messages(conversations, template), processor, TEMPLATES[template])


def encode_messages(
    messages: list[dict[str, Any]], processor: LlavaProcessor, chat_template: str
) -> dict[str, list[int]]:
    """Encodes chat messages; `encode_conversation` without LLaVA's record format, and for any chat template.

    Args:
        messages: ``{"role": …, "content": …}`` as chat templates take them.
        processor: the model's.
        chat_template: Jinja text that encloses replies in ``{% generation %}``.

    Returns:
        As `encode_conversation`.

    Raises:
        InputError: the chat template marks no reply, so that no token would take loss.
    """
    tokenizer = processor.tokenizer
    # What apply_chat_template does inside; called whole, it differs between transformers versions in how it maps the
    # answers' characters to tokens, and newer ones refuse an image placeholder without its image.
    rendered: Any = render_jinja_template(
        [messages],
        chat_template=chat_template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    (text,), (marked,) = rendered
    end = end_of_turn(chat_template, tokenizer.eos_token)
    answers = [(start, stop) for start, stop in marked if text[start:stop].replace(end, "").strip()]
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    tokens = tokenizer(text, add_special_tokens=not has_bos, return_offsets_mapping=True)
    run = num_image_tokens(processor)
    input_ids: list[int] = []
    labels: list[int] = []
    for token, (start, stop) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
        takes_loss = any(start < answer_stop and stop > answer_start for answer_start, answer_stop in answers)
        repeats = run if token == processor.image_token_id else 1
        input_ids += [token] * repeats
        labels += [token if takes_loss else IGNORE_INDEX] * repeats
    if all(label == IGNORE_INDEX for label in labels):
        raise InputError("the chat template marks no reply with {% generation %}; name another one with --template")
    return {"input_ids": input_ids, "labels": labels}


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
