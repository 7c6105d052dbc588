"""How likely a model finds each of several replies to a prompt.

What replies have in common goes through the model once: the images and the text before them once for all questions
about them, a question once for all its options, which then go through as one batch.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlavaForConditionalGeneration, LlavaProcessor

from llava_s2.errors import InputError
from llava_s2.model.inference import ImageTensors, assistant_message, context_length, user_message
from llava_s2.model.labels import IGNORE_INDEX, encode_messages
from llava_s2.model.rounding import near_tie


@dataclass(frozen=True)
class Ranking:
    """What the model makes of one question's options.

    Attributes:
        losses: mean cross-entropy of each option as the reply, in nats a token.
        near_tie: the two smallest are so close that half precision's rounding may have decided.
        too_long: a conversation with one of the options is longer than the model's context.
    """

    losses: list[float]
    near_tie: bool
    too_long: bool = False


@torch.inference_mode()
def rank_options(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: ImageTensors,
    questions: Sequence[tuple[str, Sequence[str]]],
) -> list[Ranking]:
    """Mean cross-entropy of each option as the assistant's reply (V*'s way of choosing; Wu & Xie 2023).

    The loss counts the tokens that training would: the option up to and with the end-of-turn token, as the
    checkpoint's conversation template writes it. Equal to running each whole conversation on its own.

    Args:
        model: in eval mode.
        processor: its processor, whose chat template is used.
        images: shown before the prompt, the same for all questions.
        questions: prompt and options of each, at least one option.

    Returns:
        One ranking a question.

    Raises:
        InputError: the chat template does not mark what a reply is.
    """
    replies = [_Replies.encode(processor, len(images), prompt, options) for prompt, options in questions]
    pixels = {"pixel_values": torch.stack(images).to(model.device, model.dtype)} if images else {}
    cache, start = DynamicCache(config=model.config.get_text_config()), 0
    if len(questions) > 1:
        start = _common([row for asked in replies for row in asked.rows], min(asked.shared for asked in replies) - 1)
        if (replies[0].rows[0][start:] == processor.image_token_id).any():
            start = 0  # half of an image is nothing to share
    if start:
        ids = replies[0].rows[0][None, :start].to(model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **pixels)
        pixels = {}
    image_token = processor.image_token_id
    return [asked.rank(model, image_token, deepcopy(cache), start, pixels) for asked in replies]


@dataclass(frozen=True)
class _Replies:
    """One question's conversations, one an option.

    Attributes:
        rows: ids of each.
        labels: of each, -100 outside the loss mask.
        shared: length of the longest prefix that all rows share and that the loss counts in none.
    """

    rows: list[torch.Tensor]
    labels: list[torch.Tensor]
    shared: int

    @classmethod
    def encode(cls, processor: LlavaProcessor, images: int, prompt: str, options: Sequence[str]) -> "_Replies":
        question = user_message(prompt, images)
        encoded = [
            encode_messages([question, assistant_message(option)], processor, str(processor.chat_template))
            for option in options
        ]
        rows = [torch.tensor(row["input_ids"]) for row in encoded]
        labels = [torch.tensor(row["labels"]) for row in encoded]
        for option, row in zip(options, labels, strict=True):
            if (row == IGNORE_INDEX).all():
                raise InputError(f"the option {option!r} is one of the model's special tokens, which has no likelihood")
        # Found in the ids, not in the text: a tokenizer may draw the prompt's last characters into the reply's first
        # token.
        limit = min(int((row != IGNORE_INDEX).nonzero()[0]) for row in labels)
        return cls(rows, labels, _common(rows, limit))

    def rank(
        self,
        model: LlavaForConditionalGeneration,
        image_token: int,
        cache: DynamicCache,
        start: int,
        pixels: dict[str, torch.Tensor],
    ) -> Ranking:
        """Losses, with ``cache`` holding the first ``start`` tokens; it is used up."""
        question = self.rows[0][None, start : self.shared].to(model.device)
        first = model(input_ids=question, past_key_values=cache, use_cache=True, logits_to_keep=1, **pixels)
        cache.batch_repeat_interleave(len(self.rows))

        # Padding stands on the right, where causal attention lets no counted token see it: it needs no mask.
        tails = pad_sequence([row[self.shared :] for row in self.rows], batch_first=True).to(model.device)
        targets = pad_sequence(
            [row[self.shared :] for row in self.labels], batch_first=True, padding_value=IGNORE_INDEX
        )
        rest = model(input_ids=tails, past_key_values=cache, use_cache=True)
        # The logits at a position predict the next one: those of the prefix's last position the tail's first token.
        logits = torch.cat([first.logits[:, -1:].expand(len(tails), -1, -1), rest.logits[:, :-1]], dim=1).float()
        # No reply holds an image: its placeholder is no candidate, as it is none in LLaVA's own vocabulary.
        logits = logits.index_fill(-1, torch.tensor([image_token], device=logits.device), -torch.inf)
        # Flat, because over a dimension that is not the last torch adds up the vocabulary with a visible error.
        losses = cross_entropy(
            logits.flatten(0, 1), targets.flatten().to(logits.device), ignore_index=IGNORE_INDEX, reduction="none"
        ).view(targets.shape)
        counts = (targets != IGNORE_INDEX).sum(dim=1)
        means = losses.sum(dim=1).cpu() / counts
        sizes = logits.amax(dim=-1).cpu().abs().masked_fill(targets == IGNORE_INDEX, 0).amax(dim=1)
        close = _is_near_tie(means, sizes / counts.sqrt(), model.dtype)
        return Ranking(means.tolist(), close, max(map(len, self.rows)) > context_length(model))


def _common(rows: Sequence[torch.Tensor], limit: int) -> int:
    """Length of the longest prefix that all rows share, at most ``limit``."""
    same = torch.stack([row[:limit] == rows[0][:limit] for row in rows]).all(dim=0)
    return limit if bool(same.all()) else int((~same).nonzero()[0])


def _is_near_tie(losses: torch.Tensor, sizes: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the two smallest losses are; ``sizes`` are those of the logits, of which a mean's errors are less."""
    if len(losses) < 2:
        return False
    best = losses.topk(2, largest=False)
    return bool(near_tie(best.values[1] - best.values[0], sizes[best.indices].max(), dtype))
