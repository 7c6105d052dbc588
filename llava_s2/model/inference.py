"""From messages and images to what the model takes: shared by evaluation and serving."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.model.processor import image_repeats
from llava_s2.model.templates import end_of_turn

Message = dict[str, Any]
"""``{"role": "user" | "assistant" | "system", "content": str | list of parts}``, as chat templates take it."""

ImageTensors = tuple[torch.Tensor, ...]
"""Images as the model takes them, (3, S, S) float32 each."""


def user_message(text: str, images: int = 0) -> Message:
    """A user's turn: placeholders of its images, then the text."""
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def assistant_message(text: str) -> Message:
    """An answer. In parts like a question: some checkpoints' chat templates read nothing else."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def prepare_image(processor: LlavaProcessor, image: Image.Image) -> torch.Tensor:
    """The image as the processor's model takes it, (3, S, S) float32."""
    return processor.image_processor([image], return_tensors="pt")["pixel_values"][0]


def encode_prompts(
    processor: LlavaProcessor, conversations: Sequence[Sequence[Message]], images: Sequence[Image.Image]
) -> BatchFeature:
    """Renders conversations up to where the assistant answers, with the processor's own chat template.

    Args:
        processor: of the model.
        conversations: each a list of messages, the last a user's.
        images: of all conversations, in the order of their placeholders.

    Returns:
        ``input_ids`` and ``attention_mask`` (B, L), int64, padded on the left, and ``pixel_values`` (images, 3, S, S)
        if there are any.
    """
    texts = _render(processor, conversations)
    return processor(
        text=texts,
        images=list(images) or None,
        padding=True,
        padding_side="left",
        add_special_tokens=_lacks_bos(processor, texts),
        return_tensors="pt",
    )


def prompt_ids(processor: LlavaProcessor, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Ids of the same prompts without their images: not padded, each image a run of its placeholder.

    Raises:
        InputError: see ``num_image_tokens``.
    """
    texts = _render(processor, conversations)
    rows = processor.tokenizer(texts, add_special_tokens=_lacks_bos(processor, texts))["input_ids"]
    return [
        [token for token, count in zip(row, image_repeats(row, processor), strict=True) for _ in range(count)]
        for row in rows
    ]


def _render(processor: LlavaProcessor, conversations: Sequence[Sequence[Message]]) -> list[str]:
    return [
        processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]


def _lacks_bos(processor: LlavaProcessor, texts: Sequence[str]) -> bool:
    bos = processor.tokenizer.bos_token
    return not (bos and texts[0].startswith(bos))


def context_length(model: LlavaForConditionalGeneration) -> int:
    """How many tokens the language model takes, prompt and answer together; any if its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def token_arguments(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> dict[str, Any]:
    """What ``generate`` must know of single tokens.

    An answer ends with the model's own end token or with the one that ends a turn in the conversation template, and
    never holds the image placeholder.
    """
    own = model.generation_config.eos_token_id
    turn = processor.tokenizer.convert_tokens_to_ids(
        end_of_turn(str(processor.chat_template), processor.tokenizer.eos_token)
    )
    return {
        "eos_token_id": sorted({turn, *(own if isinstance(own, list) else [own])} - {None}),
        "pad_token_id": processor.tokenizer.pad_token_id,
        "suppress_tokens": [processor.image_token_id],
    }
