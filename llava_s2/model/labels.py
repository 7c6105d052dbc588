"""Chat messages → token ids and labels.

The text and the loss mask come out of one rendering of the chat template: what stands in its ``{% generation %}``
blocks takes loss. There is no second computation of lengths that could disagree with the first, which is what LLaVA's
``tokenization mismatch`` was.
"""

from typing import Any

from transformers import LlavaProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from llava_s2.errors import InputError
from llava_s2.model.processor import num_image_tokens
from llava_s2.model.templates import end_of_turn

IGNORE_INDEX = -100


def encode_messages(
    messages: list[dict[str, Any]], processor: LlavaProcessor, chat_template: str
) -> dict[str, list[int]]:
    """Encodes a conversation for training, or for what a model makes of its replies.

    Args:
        messages: ``{"role": …, "content": …}`` as chat templates take them.
        processor: the model's.
        chat_template: Jinja text that encloses replies in ``{% generation %}``.

    Returns:
        ``{"input_ids": ..., "labels": ...}``, equally long lists. Each image is a run of the image token as long as the
        model's features of one image. ``labels`` are the ids where loss is taken and -100 elsewhere; of an empty answer
        nothing is taken, not even that it ends.

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
