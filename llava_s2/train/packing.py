"""Whether a language model keeps packed examples apart."""

from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from llava_s2.data.collator import PackingCollator
from llava_s2.errors import InputError

_LENGTH = 6  # tokens of each of the two examples


def packing_collator(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, model_name: str
) -> PackingCollator:
    """The collator that packs for this model.

    Raises:
        InputError: the language model lets a packed example see the one before it (its attention goes by something
            else than position ids); found by running it on two texts.
    """
    text: Any = model.config.text_config
    flash = "flash" in (text._attn_implementation or "")
    collate = PackingCollator(tokenizer.pad_token_id, None if flash else text.hidden_size)
    # Flash attention runs on GPUs alone, where the model may not be yet; transformers itself cuts by position ids.
    if not flash and not _keeps_apart(model, tokenizer.pad_token_id):
        raise InputError(
            f"--packing: {model_name} ({text.model_type}) does not keep packed examples apart; leave it out and take "
            "--group_by_modality_length True, which leaves little padding too"
        )
    return collate


def _keeps_apart(model: LlavaForConditionalGeneration, pad_token_id: int) -> bool:
    """Whether the second of two packed texts gives the same, bit by bit, whatever the first one is."""
    language_model: Any = model.model.language_model
    device = language_model.get_input_embeddings().weight.device
    seconds = []
    for first in (1, 2):
        texts = [torch.full((_LENGTH,), first), torch.arange(1, 1 + _LENGTH)]
        batch = PackingCollator(pad_token_id, None)([{"input_ids": ids, "labels": ids} for ids in texts])
        inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
        with torch.no_grad():
            states = language_model(**inputs, use_cache=batch["use_cache"]).last_hidden_state
        seconds.append(states[0, _LENGTH:])
    return torch.equal(*seconds)
