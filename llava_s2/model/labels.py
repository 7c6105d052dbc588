"""Chat messages → token ids and labels.

The text and the loss mask come out of one rendering of the chat template: what stands in its ``{% generation %}``
blocks is what the model learns; in a template without such blocks, what a rendering without the reply lacks. There is
no second computation of lengths that could disagree with the first, which is what LLaVA's ``tokenization mismatch``
was.
"""

import re
from typing import Any

from transformers import LlavaProcessor, PreTrainedTokenizerFast

from llava_s2.errors import InputError
from llava_s2.model.processor import image_repeats
from llava_s2.model.templates import IMAGE_TOKEN, end_of_turn, marks_replies, render, render_with_marks

IGNORE_INDEX = -100
_STAND_IN = "\ue000reply\ue001"  # starts and ends as no reply does


def encode_messages(
    messages: list[dict[str, Any]], processor: LlavaProcessor, chat_template: str
) -> dict[str, list[int]]:
    """Encodes a conversation for training, or for what a model makes of its replies.

    Args:
        messages: ``{"role": …, "content": …}`` as chat templates take them;
            a reply with ``"weight": 0`` is outside the loss mask.
        processor: the model's.
        chat_template: Jinja text.

    Returns:
        ``{"input_ids": ..., "labels": ...}``, equally long lists. Each image is a run of the image token as long as the
        model's features of one image. ``labels`` are the ids of the replies and of the tokens that end them, -100
        elsewhere; an empty reply is left out of the loss, and so is the token that ends it.

    Raises:
        InputError: the chat template refuses the messages, drops an image or words of a question, or ends no reply with
            a token.
    """
    tokenizer = processor.tokenizer
    text, replies = render_replies(messages, tokenizer, chat_template)
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    if 0 in weights:
        if len(replies) != len(weights):
            raise InputError("a reply has weight 0, and the chat template does not mark every reply as one")
        replies = [reply for reply, weight in zip(replies, weights, strict=True) if weight]
    # Other special tokens (``<loc_001>``) are words.
    ends = {end_of_turn(chat_template, tokenizer.eos_token), tokenizer.eos_token, tokenizer.bos_token or ""}
    ends |= {tokenizer.pad_token or "", tokenizer.unk_token or ""}
    empty = re.compile("|".join(map(re.escape, sorted(ends - {""}, key=len, reverse=True))))
    replies = [(start, end) for start, end in replies if empty.sub("", text[start:end]).strip()]
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos] and not text.startswith(tokenizer.bos_token)
    input_ids: list[int] = [bos] if adds_bos else []
    labels: list[int] = [IGNORE_INDEX] if adds_bos else []
    ids = tokens["input_ids"]
    contents = [message["content"] for message in messages if isinstance(message["content"], str)]
    images = sum(content.count(IMAGE_TOKEN) for content in contents)
    if (shown := ids.count(processor.image_token_id)) < images:
        raise InputError(f"the chat template shows {shown} of {images} images; name another one with --template")
    for number, message in enumerate(messages):
        # Of answers some templates drop what a model thought before them.
        said = message["content"] if message["role"] != "assistant" and isinstance(message["content"], str) else ""
        if lost := [piece.strip() for piece in said.split(IMAGE_TOKEN) if piece.strip() not in text]:
            raise InputError(
                f"the chat template drops or changes words of message {number} ({lost[0][:40]!r}); name another one "
                "with --template"
            )
    for token, count, (start, end) in zip(ids, image_repeats(ids, processor), tokens["offset_mapping"], strict=True):
        is_target = any(start < reply_end and end > reply_start for reply_start, reply_end in replies)
        input_ids += [token] * count
        labels += [token if is_target else IGNORE_INDEX] * count
    return {"input_ids": input_ids, "labels": labels}


def render_replies(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, chat_template: str
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation's text, and start and end of what the model writes of it, with the token that ends a reply.

    Raises:
        InputError: see `encode_messages`.
    """
    special: Any = tokenizer.special_tokens_map
    text, replies = render_with_marks(chat_template, messages, **special)
    if marks_replies(chat_template):
        return text, replies
    added = sorted({*tokenizer.get_added_vocab(), tokenizer.eos_token}, key=len, reverse=True)
    ending = re.compile(rf"\s*({'|'.join(map(re.escape, added))})")
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = messages[:number]
        start, end = _place(text, render(chat_template, [*before, _other(message), *messages[number + 1 :]], **special))
        prompt = render(chat_template, before, add_generation_prompt=True, **special)
        if text.startswith(prompt) and len(prompt) <= start:
            start = len(prompt)
        # The token behind the last reply of a conversation ends it, and not the one that begins the next turn.
        shorter = render(chat_template, [*before, message], **special)
        _, stop = _place(shorter, render(chat_template, [*before, _other(message)], **special))
        last, here = ending.match(shorter, stop), ending.match(text, end)
        if last is None or here is None or last[1] != here[1]:
            raise InputError(
                "the chat template marks no reply with {% generation %} and ends none with a token of the tokenizer, "
                "so the model would not learn to stop; name another one with --template"
            )
        replies.append((start, here.end()))
    return text, replies


def _other(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": _STAND_IN}


def _place(text: str, other: str) -> tuple[int, int]:
    """Start and end of what two texts do not have in common."""
    shorter = min(len(text), len(other))
    start = next((i for i in range(shorter) if text[i] != other[i]), shorter)
    rest = next((i for i in range(shorter - start) if text[-1 - i] != other[-1 - i]), shorter - start)
    return start, len(text) - rest
