"""Examples of different lengths, some without images → one batch, padded or packed."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_s2.model.labels import IGNORE_INDEX

_ATTENTION = 3  # a product of attention beside one of weights: its backward is the costlier, its rate the lower
_NEAR = 1.1  # of costs: what is nearly as cheap and holds less padding is taken


@dataclass
class Collator:
    """Pads examples on the right to the longest of the batch.

    Returns ``input_ids``, ``labels`` and ``attention_mask`` (int64, (B, L)) and, where any example has images,
    ``pixel_values`` (uint8, (images of the whole batch, 3, S, S), or what the dataset gives in their place) in the
    order of the examples.
    """

    pad_token_id: int

    def __call__(self, examples: list[dict[str, Tensor]]) -> dict[str, Any]:
        input_ids = [example["input_ids"] for example in examples]
        batch = {
            "input_ids": pad_sequence(input_ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence([e["labels"] for e in examples], batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in input_ids], batch_first=True),
        }
        return batch | _images(examples)


@dataclass
class PackingCollator:
    """Puts the examples of a batch one behind the other into a few rows, without attention from one to another.

    The loss is that of the same examples padded: position ids start again with each example, which is how transformers'
    attention (SDPA, eager, and flash attention's variable lengths) tells examples apart.

    Args:
        pad_token_id: of the tokenizer.
        hidden_size: of the language model, for `pack`; None for a single row, which flash attention needs and which
            costs it nothing.

    Returns ``input_ids``, ``labels`` and ``position_ids`` (int64, (R, L)), ``pixel_values`` as `Collator`, in the order
    in which the rows hold their examples, and ``use_cache`` False: transformers takes position ids for those of packed
    examples only where it makes no key-value cache, and with one lets examples see each other without a word.
    """

    pad_token_id: int
    hidden_size: int | None

    def __call__(self, examples: list[dict[str, Tensor]]) -> dict[str, Any]:
        rows = pack([len(example["input_ids"]) for example in examples], self.hidden_size)
        placed = [[examples[index] for index in row] for row in rows]
        batch = {
            "input_ids": _rows([[e["input_ids"] for e in row] for row in placed], self.pad_token_id),
            "labels": _rows([[_without_first(e["labels"]) for e in row] for row in placed], IGNORE_INDEX),
            "position_ids": _position_ids([[len(e["input_ids"]) for e in row] for row in placed]),
            "use_cache": False,
        }
        return batch | _images([example for row in placed for example in row])


def pack(lengths: Sequence[int], hidden_size: int | None) -> list[list[int]]:
    """Chooses the rows that examples of these lengths are packed into.

    With few rows little is padding, with many the attention over a row, which without flash attention computes what it
    masks, is small. R rows of L tokens cost a layer of H channels in proportion to R * L * (6 * H + 3 * L); of the
    divisions that cost at most a tenth more than the cheapest, the one with the least padding is taken.

    Args:
        lengths: tokens of the examples.
        hidden_size: H; None for one row.

    Returns:
        The indices of each row's examples.
    """
    if hidden_size is None:
        return [list(range(len(lengths)))]
    divisions = []
    for count in range(1, len(lengths) + 1):
        rows = _even_rows(lengths, count)
        longest = max(sum(lengths[index] for index in row) for row in rows)
        places = count * longest
        divisions.append((places, places * (6 * hidden_size + _ATTENTION * longest), rows))
    cheapest = min(cost for _, cost, _ in divisions)
    return min((places, rows) for places, cost, rows in divisions if cost <= _NEAR * cheapest)[1]


def keep_targets(batch: dict[str, Any]) -> dict[str, Any]:
    """Adds to a batch what has the model compute logits only at positions where a row takes loss.

    ``logits_to_keep`` (int64, (K,)) are these positions, and ``shift_labels`` (int64, (B, K)) what comes after each.
    """
    following = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORE_INDEX)[:, 1:]
    kept = (following != IGNORE_INDEX).any(0).nonzero().flatten()
    if not len(kept):
        kept = torch.zeros(1, dtype=torch.int64)
    return {**batch, "logits_to_keep": kept, "shift_labels": following[:, kept]}


def _even_rows(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Each example, longest first, goes to the row that is shortest so far."""
    rows: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, row) for row in range(count)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length, row = shortest[0]
        rows[row].append(index)
        heapq.heapreplace(shortest, (length + lengths[index], row))
    return rows


def _rows(parts: list[list[Tensor]], padding: int) -> Tensor:
    return pad_sequence([torch.cat(row) for row in parts], batch_first=True, padding_value=padding)


def _position_ids(lengths: list[list[int]]) -> Tensor:
    """From 0 in each example; the padding behind them counts as one more."""
    longest = max(map(sum, lengths))
    return torch.stack([torch.cat([torch.arange(n) for n in [*row, longest - sum(row)]]) for row in lengths])


def _without_first(labels: Tensor) -> Tensor:
    """An example's first token follows nothing: padded, it takes no loss; packed, it must take none either."""
    return torch.cat([labels.new_full((1,), IGNORE_INDEX), labels[1:]])


def _images(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    images = [example["pixel_values"] for example in examples if "pixel_values" in example]
    return {"pixel_values": torch.cat(images)} if images else {}
