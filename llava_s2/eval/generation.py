"""Greedy answers to a batch of questions.

Questions about one image share its way through the tower and the language model: the prompt up to the image's end
is encoded once for each image, and its key-value cache serves all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    LogitsProcessor,
    LogitsProcessorList,
)

from llava_s2.model.inference import ImageTensors, context_length, prompt_ids, token_arguments, user_message
from llava_s2.model.rounding import near_tie


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: without special tokens and outer white space.
        near_tie: some token of it was so close to another that half precision's rounding may have chosen it.
        too_long: with its prompt it is longer than the model's context.
        cut: it ended at the bound on new tokens.
    """

    text: str
    near_tie: bool
    too_long: bool
    cut: bool


@torch.inference_mode()
def answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[ImageTensors],
    prompts: Sequence[str | list[dict[str, Any]]],
    max_new_tokens: int,
) -> list[Answer]:
    """Answers each prompt by greedy decoding; in float32 a batch gives what its questions give alone.

    Args:
        model: in eval mode.
        processor: its processor, whose chat template is used.
        images: of each prompt, shown before it; the same tensors where prompts are about the same images.
        prompts: the user's words; or parts as chat templates take them, where the images stand between the words.
        max_new_tokens: bound on an answer.

    Returns:
        One answer a prompt.
    """
    conversations = [
        [user_message(prompt, len(shown)) if isinstance(prompt, str) else {"role": "user", "content": prompt}]
        for prompt, shown in zip(prompts, images, strict=True)
    ]
    rows = prompt_ids(processor, conversations)
    start = _shared_start(rows, images, processor.image_token_id)
    inputs = _padded(rows, start, processor.tokenizer.pad_token_id, model.device)
    if start:
        inputs["past_key_values"] = _encode_once(model, rows, images, start)
    elif any(images):
        inputs["pixel_values"] = _stacked(model, images)
    watch = _Margins()
    output = model.generate(  # type: ignore[misc]
        **inputs,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_new_tokens,
        logits_processor=LogitsProcessorList([watch]),
        **(ends := token_arguments(model, processor)),
    )
    new = output[:, inputs["input_ids"].shape[1] :]
    ended = torch.isin(new, torch.tensor(ends["eos_token_id"], device=new.device)).cumsum(dim=1)
    counted = torch.nn.functional.pad(ended[:, :-1], (1, 0)) == 0  # up to and with the first token that ends it
    close = (near_tie(*watch.stacked(), model.dtype).to(new.device) & counted).any(dim=1).tolist()
    texts = processor.batch_decode(new, skip_special_tokens=True)
    lengths = [len(row) + count for row, count in zip(rows, counted.sum(dim=1).tolist(), strict=True)]
    told = zip(texts, close, lengths, (ended[:, -1] == 0).tolist(), strict=True)
    return [Answer(text.strip(), tie, length > context_length(model), cut) for text, tie, length, cut in told]


class _Margins(LogitsProcessor):
    """Changes no score; keeps of every step the largest and by how much it leads."""

    def __init__(self) -> None:
        self._steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        first, second = scores.float().topk(2).values.unbind(dim=-1)
        self._steps.append((first - second, first.abs()))
        return scores

    def stacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Margins and sizes of the largest, (B, steps) each."""
        margins, sizes = zip(*self._steps, strict=True)
        return torch.stack(margins, dim=1), torch.stack(sizes, dim=1)


def _shared_start(rows: Sequence[Sequence[int]], images: Sequence[ImageTensors], image_token: int) -> int:
    """How many tokens, up to the end of the images, are worth encoding once for each image: 0 if none repeats."""
    distinct = {tuple(map(id, shown)) for shown in images}
    if len(distinct) == len(rows) or len({len(shown) for shown in images}) > 1 or not images[0]:
        return 0
    length = len(rows[0]) - rows[0][::-1].index(image_token)
    return length if all(row[:length] == rows[0][:length] for row in rows) else 0


def _encode_once(
    model: LlavaForConditionalGeneration, rows: Sequence[Sequence[int]], images: Sequence[ImageTensors], start: int
) -> DynamicCache:
    """The cache of the first ``start`` tokens of every row, computed once for each set of images."""
    places: dict[tuple[int, ...], int] = {}
    of_row = [places.setdefault(tuple(map(id, shown)), len(places)) for shown in images]
    firsts = [of_row.index(place) for place in range(len(places))]
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=torch.tensor([rows[first][:start] for first in firsts], device=model.device),
        pixel_values=_stacked(model, [images[first] for first in firsts]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(torch.tensor(of_row, device=model.device))
    return cache


def _padded(rows: Sequence[Sequence[int]], start: int, pad: int, device: torch.device) -> dict[str, Any]:
    """Ids and mask of the rows, (B, L), padded where the shared start ends (on the left if there is none)."""
    longest = max(map(len, rows))
    ids = [[*row[:start], *[pad] * (longest - len(row)), *row[start:]] for row in rows]
    mask = [[*[1] * start, *[0] * (longest - len(row)), *[1] * (len(row) - start)] for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _stacked(model: LlavaForConditionalGeneration, images: Sequence[ImageTensors]) -> torch.Tensor:
    """(images, 3, S, S) in the order of their placeholders."""
    return torch.stack([image for shown in images for image in shown]).to(model.device, model.dtype)
